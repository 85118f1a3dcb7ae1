"""A scan's probe in a wider window of finer pixels, for models whose windows are wider than the detector's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.optics import make_probe_modes, propagator
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig

Waves = npt.NDArray[np.complexfloating]


def wide_probe(scan: Scan, window: int, grid: int, model: ModelConfig, overfocus_A: float = 0.0) -> Waves:
    """The probe of a scan, (modes, grid, grid), all intensities together summing to 1.

    Args:
        scan: whose probe is taken, or that of its optics with the modes of ``model``.
        window: width of the grid in widths of the detector's window; grid: pixels along it.
        overfocus_A: how much farther from its crossover it is taken.

    Raises:
        InputError: modes for a probe that has its own.
    """
    pixel_A = window * scan.n_pixels * scan.pixel_size_A / grid
    if scan.probe is None:
        probe: Waves = make_probe_modes(scan.optics, grid, pixel_A, model.probe_modes, model.source_size_A)
    else:
        own = len(scan.probe)
        check(
            model.probe_modes == 1,
            f"the scan has a probe of its own, of {own} modes; leave probe_modes out or the probe away",
        )
        probe = _on_grid(scan.probe, window, grid)
    if not overfocus_A:
        return probe
    farther = propagator(scan.optics.energy_eV, grid, pixel_A, overfocus_A)
    return np.asarray(np.fft.fftshift(np.fft.ifft2(_spectrum(probe) * farther), axes=(-2, -1)))


def _on_grid(probe: Waves, window: int, grid: int) -> Waves:
    """(modes, n, n) put into a window so many times wider, and interpolated there."""
    modes, n, _ = probe.shape
    wide = window * n
    padded = np.zeros((modes, wide, wide), np.complex128)
    inside = slice(wide // 2 - n // 2, wide // 2 - n // 2 + n)
    padded[:, inside, inside] = probe
    fine = np.zeros((modes, grid, grid), np.complex128)
    inside = slice(grid // 2 - wide // 2, grid // 2 - wide // 2 + wide)
    fine[:, inside, inside] = np.fft.fftshift(_spectrum(padded), axes=(-2, -1))
    found = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(fine, axes=(-2, -1))), axes=(-2, -1))
    return np.asarray(found / np.sqrt(np.sum(np.abs(found) ** 2)))


def _spectrum(waves: Waves) -> Waves:
    """Of waves that are centred at n // 2, zero frequency at the corner."""
    return np.asarray(np.fft.fft2(np.fft.ifftshift(waves, axes=(-2, -1))))
