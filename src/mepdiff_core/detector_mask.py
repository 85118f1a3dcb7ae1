"""Pixels of a detector that nothing is to be believed of: a beam stop, dead rows, gaps between chips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading


def read_blind_pixels(path: str | Path, n_pixels: int) -> npt.NDArray[np.bool_]:
    """(ky, kx) of a picture of a detector, .npy or .tif: True where it is not 0.

    Raises:
        InputError: no such picture, one of another size, or one in which every pixel is blind.
    """
    import tifffile

    path = Path(path)
    check(path.is_file(), f"{path}: no such file")
    check(path.suffix.lower() in (".npy", ".tif", ".tiff"), f"{path}: expected a picture of the detector, .npy or .tif")
    with reading(path, "a picture of the detector"):
        picture = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else tifffile.imread(path)
        blind = np.asarray(picture != 0)
    check(
        blind.shape == (n_pixels, n_pixels),
        f"{path} has shape {blind.shape}; the scan's patterns, as they are in the file, have ({n_pixels}, {n_pixels})",
    )
    check(not blind.all(), f"{path}: every pixel is blind; it has to be 0 where the detector sees")
    return np.asarray(blind, np.bool_)
