"""Phase volumes as OME-TIFF files, with sizes and places in Å."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.files import atomic_path


def write_volume(
    path: str | Path,
    volume: npt.NDArray[np.floating],
    voxel_size_A: tuple[float, float, float],
    origin_A: tuple[float, float, float],
) -> None:
    """Write a phase volume as OME-TIFF: float32 rad, voxel size and position of each plane in Å.

    Axes are ZYX, for several volumes (k, z, y, x) of one specimen TZYX.
    """
    import tifffile

    (dz, dy, dx), (z, y, x) = voxel_size_A, origin_A
    depth, count = volume.shape[-3], math.prod(volume.shape[:-3])
    planes = count * depth
    units = {f"{name}Unit": "Å" for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")}
    plane_units = {f"{name}Unit": ["Å"] * planes for name in ("PositionX", "PositionY", "PositionZ")}
    meta = {
        "axes": "TZYX"[-volume.ndim :],
        "Name": "phase (rad)",
        "PhysicalSizeX": dx,
        "PhysicalSizeY": dy,
        "PhysicalSizeZ": dz,
        **units,
        "Plane": {
            "PositionX": [x] * planes,
            "PositionY": [y] * planes,
            "PositionZ": [z + i * dz for i in range(depth)] * count,
            **plane_units,
        },
    }
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(volume, np.float32), ome=True, metadata=meta, photometric="minisblack")
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_volume(path: str | Path, samples: bool = False) -> npt.NDArray[np.float32]:
    """Read a (z, y, x) volume from a TIFF file, or several as (k, z, y, x).

    Raises:
        InputError: missing, unreadable, or of another number of dimensions.
    """
    import tifffile

    check(Path(path).exists(), f"{path}: no such file")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say of damaged files is said by us
    with reading(path, "a TIFF volume"), tifffile.TiffFile(path) as file:
        check(len(file.pages) > 0, f"{path} has no pages")  # counted first: a damaged chain would be walked for ever
        volume = file.asarray()
    volume = volume[None] if volume.ndim == 2 else volume  # TIFF does not tell one slice from an image
    expected = "(k, z, y, x)" if samples else "(z, y, x)"
    check(volume.ndim == 3 + samples, f"{path} has shape {volume.shape}; expected {expected}")
    return np.asarray(volume, np.float32)
