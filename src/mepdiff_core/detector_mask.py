"""Pixels of a detector that nothing is to be believed of: a beam stop, dead rows, gaps between chips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.volume_files import read_volume


def read_blind_pixels(path: str | Path, n_pixels: int) -> npt.NDArray[np.bool_]:
    """(ky, kx) of a picture of a detector, .npy or .tif: True where it is not 0.

    Raises:
        InputError: no such picture, one of another size, or one in which every pixel is blind.
    """
    path = Path(path)
    check(path.is_file(), f"{path}: no such file")
    check(path.suffix.lower() in (".npy", ".tif", ".tiff"), f"{path}: expected a picture of the detector, .npy or .tif")
    with reading(path, "a picture of the detector"):
        numpy = path.suffix.lower() == ".npy"
        picture = np.load(path, allow_pickle=False) if numpy else np.squeeze(read_volume(path), 0)
        blind = np.asarray(picture != 0)
    check(
        blind.shape == (n_pixels, n_pixels),
        f"{path} has shape {blind.shape}; the scan's patterns, as they are in the file, have ({n_pixels}, {n_pixels})",
    )
    check(not blind.all(), f"{path}: every pixel is blind; it has to be 0 where the detector sees")
    return np.asarray(blind, np.bool_)
