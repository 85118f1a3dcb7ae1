"""PtyRAD's results on a scan's object field: as a volume to start from, and as the states of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.ptyrad_result import is_ptyrad_result, read_ptyrad_result
from mepdiff_core.scan import Scan
from mepdiff_core.states import Refined, State


def read_start(path: str | Path, scan: Scan, slice_thickness_A: float) -> npt.NDArray[np.float32]:
    """Read a start volume, (slices, y, x) in rad, on the object field of a scan.

    Raises:
        InputError: unreadable; or a result of PtyRAD of other pixels, slices or positions.
    """
    from mepdiff_core.forward import object_field
    from mepdiff_core.volume_files import read_volume

    if not is_ptyrad_result(path):
        return read_volume(path)
    result = read_ptyrad_result(path)
    for name, theirs, ours in (
        ("pixels", result.pixel_size_A, scan.pixel_size_A),
        ("slices", result.slice_thickness_A, slice_thickness_A),
    ):
        check(math.isclose(theirs, ours, rel_tol=5e-3), f"{path} has {name} of {theirs:.4g} Å; this run has {ours:.4g} Å")
    area = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
    # where our field begins in PtyRAD's wider one; both have their positions' means at one place
    ours = (scan.positions_A - scan.positions_A.min(0)) / scan.pixel_size_A
    begin = _window_corners(path, scan).mean(0) - ours.mean(0)
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


def read_run(path: str | Path, scan: Scan, slice_thickness_A: float) -> Iterator[State]:
    """The states of a reconstruction that PtyRAD has done, one for each loss it has on record, all with its last volume.

    Raises:
        InputError: as for ``read_start``.
    """
    import h5py

    path = Path(path)
    volume, result = read_start(path, scan, slice_thickness_A), read_ptyrad_result(path)
    corners = _window_corners(path, scan)
    positions = (corners - corners.mean(0)) * result.pixel_size_A + scan.positions_A.mean(0)
    with reading(path, "a result of PtyRAD"), h5py.File(path, "r") as file:
        losses = np.asarray(file["loss_iters"][()], np.float64) if "loss_iters" in file else np.zeros((0, 2))
        check(losses.ndim == 2 and losses.shape[1] == 2, f"{path}: its losses are no table of iterations and values")
    check(len(losses) > 0, f"{path} has no losses on record; it is no complete result of PtyRAD")
    fits = result.probe.shape[1:] == (scan.n_pixels, scan.n_pixels)
    check(fits, f"{path} has a probe of {result.probe.shape[-1]} px; the scan has {scan.n_pixels} px")
    probe = (result.probe / np.sqrt(np.sum(np.abs(result.probe.astype(np.complex128)) ** 2))).astype(np.complex64)
    refined = Refined(probe, positions, scan.pixel_size_A, scan.optics.energy_eV)
    last = int(losses[-1, 0])
    for step, loss in losses.tolist():
        yield State(int(step), last, volume, loss, 0.0, last, refined=refined)


def _window_corners(path: str | Path, scan: Scan) -> npt.NDArray[np.float64]:
    """(positions, 2) as (y, x): first pixel of each position's window in PtyRAD's object, with its fraction."""
    import h5py

    with reading(Path(path), "a result of PtyRAD"), h5py.File(path, "r") as file:
        corners = np.asarray(file["model_attributes/crop_pos"][()], np.float64)
        shifts = np.asarray(file["optimizable_tensors/probe_pos_shifts"][()], np.float64)
    check(
        corners.ndim == 2 and corners.shape[1] == 2 and corners.shape == shifts.shape,
        f"{path}: its positions do not fit together",
    )
    check(
        len(corners) == scan.n_patterns,
        f"{path} is of {len(corners)} positions; the scan has {scan.n_patterns}: is it another scan?",
    )
    return corners + shifts
