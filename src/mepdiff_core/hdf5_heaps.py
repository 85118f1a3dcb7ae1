"""Damage in an HDF5 file over which the HDF5 library would never come back.

Texts of any length lie in "global heaps". The library walks a heap from object to object by their sizes, and for ever where
a free object's size has become 0. Source of the layout: HDF5 File Format Specification 3.0, section III.E.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from mepdiff_core.config import check

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
