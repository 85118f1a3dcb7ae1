"""Arrays by name in one safetensors file: whole or not at all, nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Kind:
    """Files that say what they are, with a sha256 of their arrays.

    Attributes:
        name: on record in the file; ``version``: of its layout.
        words: what a person calls it.
    """

    name: str
    version: int
    words: str

    def save(self, arrays: Arrays, path: str | Path, about: Mapping[str, Any]) -> None:
        """Arrays by name and plain values about them, atomically."""
        head = {"format": self.name, "format_version": self.version, "sha256": digest(arrays)}
        save_arrays(arrays, path, json.dumps({**head, **about}))

    def load(self, path: str | Path, remedy: str) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, Any]]:
        """What ``save`` was given; ``remedy`` is what to do about a file that is refused.

        Raises:
            InputError: damaged, another kind of file, another layout, arrays that are not those it was written with.
        """
        arrays = load_arrays(path, remedy)
        try:
            about = json.loads(arrays_about(path))
            known = isinstance(about, dict) and about.get("format") == self.name
        except ValueError:
            known = False
        check(known, f"{path} is no {self.words}; {remedy}")
        version = about.get("format_version")
        check(version == self.version, f"{path} has layout {version}; this mepdiff reads layout {self.version}; {remedy}")
        check(digest(arrays) == about.get("sha256"), f"{path} is damaged (its sha256 does not fit); {remedy}")
        return arrays, about


def save_arrays(arrays: Arrays, path: str | Path, about: str = "") -> None:
    """Arrays by name into one safetensors file, atomically; ``about`` is a text that goes with them."""
    from safetensors.numpy import save

    # a 0-dimensional array must not become one of shape (1,), as ascontiguousarray makes it
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(contiguous, {"about": about}))


def load_arrays(path: str | Path, remedy: str = "remove it to start again") -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a safetensors file; ``remedy`` is what to do when it is damaged.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from None


def arrays_about(path: str | Path) -> str:
    """The text that ``save_arrays`` put beside the arrays."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return str((file.metadata() or {}).get("about", ""))


def read_about(path: str | Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What a file of a kind says of itself, and the shapes of its arrays by name; the arrays themselves stay on disk.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get("about", "")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged, or no safetensors file ({error}); choose another one") from None
    try:
        about = json.loads(text)
    except ValueError:
        about = {}  # of another kind
    return about if isinstance(about, dict) else {}, shapes


def digest(arrays: Arrays) -> str:
    """Hex sha256 of names, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
