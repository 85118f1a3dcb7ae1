"""Damage in an HDF5 file that the HDF5 library does not see: it would never come back, or read zeros.

Texts of any length lie in "global heaps". The library walks a heap from object to object by their sizes, and for ever where
a free object's size has become 0. Source of the layout: HDF5 File Format Specification 3.0, section III.E.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

T = TypeVar("T")

SIGNATURE = b"GCOL\x01\x00\x00\x00"
HEAD_BYTES = 16
"""Of a heap, and of an object in it, with lengths of 8 bytes."""
LOOKED_AT = 64 << 20
"""Bytes at the beginning and at the end of a file that are searched: a scan's texts do not lie among its patterns."""


def check_heaps(path: str | Path) -> None:
    """No heap of texts in the file can be walked for ever.

    Raises:
        InputError: one can.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = len(data)
        for begin, end in ((0, LOOKED_AT), (max(LOOKED_AT, size - LOOKED_AT), size)):
            at = data.find(SIGNATURE, begin, end)
            while at >= 0:
                check(_ends(data, at), f"{path} cannot be read as HDF5; it is damaged (a heap of its texts has no end)")
                at = data.find(SIGNATURE, at + 1, end)


def _ends(data: mmap.mmap, at: int) -> bool:
    if at + HEAD_BYTES > len(data):
        return True  # the library itself meets the end of the file
    end = min(at + struct.unpack_from("<Q", data, at + 8)[0], len(data))
    at += HEAD_BYTES
    while at + HEAD_BYTES <= end:
        index, size = struct.unpack_from("<H6xQ", data, at)
        step = size if index == 0 else HEAD_BYTES + -(-size // 8) * 8
        if step == 0:
            return False
        at += step
    return True


def stored_chunks(dataset: Any) -> tuple[int, int]:
    """Chunks of a data set that are in its file, and those that there should be; HDF5 reads missing ones as zeros."""
    if dataset.chunks is None:
        return 1, 1
    return int(dataset.id.get_num_chunks()), math.prod(
        -(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)
    )


def peek(path: str | Path, look: Callable[[Any], T]) -> T | None:
    """What a look into an HDF5 file shows; None where it is none, or damaged (whoever reads it says how)."""
    import h5py

    try:
        check_heaps(path)
        with h5py.File(path, "r") as file:
            return look(file)
    except (InputError, OSError, KeyError, RuntimeError, TypeError, ValueError):
        return None
