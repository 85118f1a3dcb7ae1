"""Arrays by name in one safetensors file: whole or not at all, nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path


def save_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], path: str | Path, about: str = "") -> None:
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
