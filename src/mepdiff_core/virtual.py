"""What a detector of any shape would have seen: mean pattern, bright- and dark-field images, counts histogram."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

Counts = npt.NDArray[np.generic]


def mean_pattern(counts: Counts) -> npt.NDArray[np.float64]:
    """The mean of all patterns: (scan_y, scan_x, ky, kx) counts to (ky, kx) counts a pixel."""
    total = np.zeros(counts.shape[2:])
    for row in counts:
        total += row.sum(axis=0, dtype=np.float64)
    mean: npt.NDArray[np.float64] = total / (counts.shape[0] * counts.shape[1])
    return mean


def detector_mask(
    n_pixels: int, k_step_invA: float, inner_invA: float, outer_invA: float, centre_invA: tuple[float, float] = (0.0, 0.0)
) -> npt.NDArray[np.bool_]:
    """The pixels of a disk or ring.

    Args:
        n_pixels: along one side of a pattern, zero frequency at index n // 2.
        k_step_invA: width of a pixel, 1/Å.
        inner_invA, outer_invA: radii, 1/Å; a pixel belongs to it whose centre lies at inner <= k <= outer.
        centre_invA: (ky, kx) of its centre.

    Returns:
        (n_pixels, n_pixels) bool.

    Raises:
        InputError: a ring turned inside out.
    """
    check(0 <= inner_invA < outer_invA, f"a detector from {inner_invA:g} to {outer_invA:g} 1/Å; expected 0 <= inner < outer")
    k = (np.arange(n_pixels) - n_pixels // 2) * k_step_invA
    radius = np.hypot(k[:, None] - centre_invA[0], k[None, :] - centre_invA[1])
    mask: npt.NDArray[np.bool_] = (radius >= inner_invA) & (radius <= outer_invA)
    return mask


def virtual_image(counts: Counts, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Counts on a detector at every position: (scan_y, scan_x, ky, kx) and (ky, kx) to (scan_y, scan_x)."""
    # a row at a time: no second copy of the scan in memory
    return np.stack([row[:, mask].sum(axis=1, dtype=np.float64) for row in counts])


def counts_histogram(counts: Counts, bins: int = 50) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """How many pixels have how many counts.

    Returns:
        Edges, one more than there are bins, and numbers. Whole counts have bins of a whole width, at most ``bins`` of them.
    """
    largest = float(counts.max())
    if counts.dtype.kind in "ui":
        width = np.ceil((largest + 1) / bins)
        edges = np.arange(np.ceil((largest + 1) / width) + 1) * width - 0.5
    else:
        edges = np.linspace(0, largest or 1.0, bins + 1)
    numbers = np.zeros(len(edges) - 1, np.int64)
    for row in counts:
        numbers += np.histogram(row, edges)[0]
    return edges, numbers
