"""A volume to start from: a TIFF of ours, or a result of PtyRAD, brought to the scan's object field."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.ptyrad_result import is_ptyrad_result, read_ptyrad_result
from mepdiff_core.scan import Scan


def read_start(path: str | Path, scan: Scan, slice_thickness_A: float) -> npt.NDArray[np.float32]:
    """Read a start volume, (slices, y, x) in rad, on the object field of a scan.

    Raises:
        InputError: unreadable; or a result of PtyRAD of other pixels, slices or positions.
    """
    from mepdiff_core.forward import object_field
    from mepdiff_core.runs import read_volume

    if not is_ptyrad_result(path):
        return read_volume(path)
    result = read_ptyrad_result(path)
    for name, theirs, ours in (
        ("pixels", result.pixel_size_A, scan.pixel_size_A),
        ("slices", result.slice_thickness_A, slice_thickness_A),
    ):
        check(math.isclose(theirs, ours, rel_tol=5e-3), f"{path} has {name} of {theirs:.4g} Å; this run has {ours:.4g} Å")
    corners = _window_corners(path)
    check(
        len(corners) == scan.n_patterns,
        f"{path} is of {len(corners)} positions; the scan has {scan.n_patterns}: is it another scan?",
    )
    area = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
    # where our field begins in PtyRAD's wider one: the first pixel of the outermost windows, fractions by Fourier
    begin = corners.min(0)
    y, x = first = np.round(begin).astype(int)
    height, width = area.shape
    check(
        y >= 0 and x >= 0 and y + height <= result.phase.shape[1] and x + width <= result.phase.shape[2],
        f"{path} has an object of shape {result.phase.shape}; this scan's field of {height} x {width} px does not fit in",
    )
    phase, rest = result.phase, begin - first
    if np.abs(rest).max() > 1e-3:
        ky, kx = np.fft.fftfreq(phase.shape[1])[:, None], np.fft.rfftfreq(phase.shape[2])
        ramp = np.exp(2j * np.pi * (ky * rest[0] + kx * rest[1]))
        phase = np.fft.irfft2(np.fft.rfft2(phase) * ramp, phase.shape[1:]).astype(np.float32)
    return np.array(phase[:, y : y + height, x : x + width])


def _window_corners(path: str | Path) -> npt.NDArray[np.float64]:
    """(positions, 2) as (y, x): first pixel of each position's window in PtyRAD's object, with its fraction."""
    import h5py

    with reading(Path(path), "a result of PtyRAD"), h5py.File(path, "r") as file:
        corners = np.asarray(file["model_attributes/crop_pos"][()], np.float64)
        shifts = np.asarray(file["optimizable_tensors/probe_pos_shifts"][()], np.float64)
    check(
        corners.ndim == 2 and corners.shape[1] == 2 and corners.shape == shifts.shape,
        f"{path}: its positions do not fit together",
    )
    return corners + shifts
