"""How near a volume comes to the truth, and its patterns to the measured ones. Definitions: docs/method.md."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from mepdiff_core.config import check

Volume = npt.NDArray[np.floating]
FailureClass = Literal["near perfect", "slices misordered", "blurred in depth", "wrong structure"]

MIDDLE_PX = 64
"""Volumes are judged over the middle 64 x 64 pixels, which the scan covers and the paper shows."""
ATOM_LEVEL = 0.1
"""Voxels above this part of the truth's largest phase are where atoms are."""


def middle(volume: Volume, size: int = MIDDLE_PX) -> Volume:
    """The middle ``size`` x ``size`` pixels (or all there are) of (..., y, x)."""
    height, width = volume.shape[-2:]
    h, w = min(size, height), min(size, width)
    top, left = (height - h) // 2, (width - w) // 2
    return volume[..., top : top + h, left : left + w]


def align_offset(volume: Volume, truth: Volume) -> npt.NDArray[np.float64]:
    """The volume plus the constant phase that gives it the truth's mean; no pattern can see that constant."""
    return np.asarray(volume, np.float64) + (
        float(np.mean(truth, dtype=np.float64)) - float(np.mean(volume, dtype=np.float64))
    )


def ssim_2d(volume: Volume, truth: Volume) -> float:
    """Structural similarity of each slice, averaged: 7 px uniform window, data range that of the whole truth.

    Source: Wang et al., IEEE TIP 13 (2004) 600, as in scikit-image.
    """
    span = _span(truth)
    window = _window(truth.shape[1:])
    return float(
        np.mean([structural_similarity(v, t, win_size=window, data_range=span) for v, t in zip(volume, truth, strict=True)])
    )


def ssim_3d(volume: Volume, truth: Volume) -> float:
    """Structural similarity in three dimensions: the window is 7 voxels, or as many (odd) as there are slices.

    One or two slices leave a window that is flat: then it is ``ssim_2d``.
    """
    if len(truth) < 3:
        return ssim_2d(volume, truth)
    window = _window(truth.shape)
    return float(structural_similarity(volume, truth, win_size=window, data_range=_span(truth)))


def ssim_atoms(volume: Volume, truth: Volume) -> float:
    """Slice-wise structural similarity averaged over the voxels where atoms are, so that empty background earns nothing."""
    span, window = _span(truth), _window(truth.shape[1:])
    maps = [
        structural_similarity(v, t, win_size=window, data_range=span, full=True)[1]
        for v, t in zip(volume, truth, strict=True)
    ]
    return float(np.mean(np.stack(maps)[atom_mask(truth)]))


def psnr_dB(volume: Volume, truth: Volume) -> float:
    """Peak signal-to-noise ratio, dB; the peak is the truth's range."""
    error = float(np.mean((volume - truth) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(_span(truth) ** 2 / error))


def nrmse(volume: Volume, truth: Volume) -> float:
    """Root mean square error over the truth's root mean square."""
    return float(np.sqrt(np.mean((volume - truth) ** 2) / np.mean(truth.astype(np.float64) ** 2)))


def nrmse_atoms(volume: Volume, truth: Volume) -> float:
    """``nrmse`` over the voxels where atoms are."""
    mask = atom_mask(truth)
    return nrmse(volume[mask], truth[mask])


def depth_correlation(volume: Volume, truth: Volume) -> float:
    """Correlation of depth profiles: each atom column's mean over depth removed, then Pearson's over all their voxels.

    0 for a volume that is even along depth, however good its projection.
    """
    columns = truth.max(0) > ATOM_LEVEL * truth.max()
    v, t = volume[:, columns].astype(np.float64), truth[:, columns].astype(np.float64)
    v, t = v - v.mean(0), t - t.mean(0)
    norm = float(np.sqrt(np.sum(v**2) * np.sum(t**2)))
    return float(np.sum(v * t)) / norm if norm > 1e-12 else 0.0


def atom_mask(truth: Volume) -> npt.NDArray[np.bool_]:
    """Where atoms are: above a tenth of the truth's largest phase."""
    return np.asarray(truth > ATOM_LEVEL * truth.max())


def r_factor(predicted: Volume, measured: Volume) -> float:
    """Sum of |sqrt(I) - sqrt(D)| over the sum of sqrt(D)."""
    root = np.sqrt(measured, dtype=np.float64)
    return float(np.sum(np.abs(np.sqrt(predicted, dtype=np.float64) - root)) / np.sum(root))


def poisson_deviance(predicted: Volume, measured: Volume, background: float) -> float:
    """Poisson deviance a pixel: 2 (I − D + D log(D / I)), averaged; about 1 or less where the model is right.

    A proper score: its expectation is lowest for the true intensities, which that of the R-factor is not at few counts.

    Args:
        predicted, measured: electrons; background: electrons a pixel that are added to the prediction.
    """
    expected = predicted.astype(np.float64) + background
    counts = measured.astype(np.float64)
    ratio = np.where(counts > 0, counts, 1.0) / expected
    return float(2 * np.mean(expected - counts + counts * np.log(ratio)))


def expected_deviance(expected: Volume) -> npt.NDArray[np.float64]:
    """Poisson deviance that counting statistics alone give each pixel: what is left when the prediction is right.

    Args:
        expected: electrons a pixel, above 0.

    Returns:
        Mean of 2 (I - D + D log(D / I)) over D drawn from Poisson(I), to 1e-3 of itself, in the shape of ``expected``.
    """
    from scipy.special import gammaln, xlogy

    grid = np.geomspace(1e-8, 200, 400)
    counts = np.arange(500)
    log_probability = counts * np.log(grid[:, None]) - grid[:, None] - gammaln(counts + 1)
    terms = 2 * (grid[:, None] - counts + xlogy(counts, counts / grid[:, None]))
    table = np.sum(np.exp(log_probability) * terms, axis=1)
    values = np.asarray(expected, np.float64)
    many = 1 + 1 / (6 * np.maximum(values, 1.0))  # the expansion for many counts
    few = np.exp(np.interp(np.log(np.maximum(values, 1e-8)), np.log(grid), np.log(table)))
    return np.asarray(np.where(values > 200, many, few))


def volume_metrics(volume: Volume, truth: Volume) -> dict[str, float]:
    """All volume metrics over the middle of the field, after the constant phase is removed.

    Args:
        volume, truth: (z, y, x) on the same grid, rad.

    Raises:
        InputError: they are of different shape.
    """
    check(
        volume.shape == truth.shape, f"the volume has shape {volume.shape}, the truth {truth.shape}; they cannot be compared"
    )
    t = middle(truth).astype(np.float64)
    v = align_offset(middle(volume), t)
    functions = (ssim_2d, ssim_3d, ssim_atoms, psnr_dB, nrmse, nrmse_atoms, depth_correlation)
    return {function.__name__: function(v, t) for function in functions}


def failure_class(volume: Volume, truth: Volume) -> FailureClass:
    """The paper's four outcomes (its appendix G) by a stated measure.

    Near perfect: ``ssim_2d`` of 0.9 or more. Slices misordered: some other order of the slices reaches 0.9, or gains 0.1.
    Blurred in depth: the projection correlates with the truth's to 0.9 or more. Wrong structure: none of these.
    """
    from scipy.optimize import linear_sum_assignment

    t = middle(truth).astype(np.float64)
    v = align_offset(middle(volume), t)
    score = ssim_2d(v, t)
    if score >= 0.9:
        return "near perfect"
    flat_v, flat_t = v.reshape(len(v), -1), t.reshape(len(t), -1)
    distances = ((flat_v[:, None] - flat_t[None]) ** 2).mean(-1)
    order = linear_sum_assignment(distances.T)[1]
    reordered = ssim_2d(v[order], t)
    if reordered >= 0.9 or reordered >= score + 0.1:
        return "slices misordered"
    a, b = v.sum(0).ravel(), t.sum(0).ravel()
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    return "blurred in depth" if correlation >= 0.9 else "wrong structure"


def _span(truth: Volume) -> float:
    span = float(truth.max() - truth.min())
    check(span > 0, "the truth is constant; nothing can be compared with it")
    return span


def _window(shape: tuple[int, ...]) -> int:
    smallest = min(7, *shape)
    window = smallest - 1 + smallest % 2
    check(window >= 3, f"volumes of shape {shape} are too small for structural similarity; it needs 3 voxels each way")
    return window
