"""What a detector adds of its own: dead and hot pixels, a background, and counts that are no electrons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

Image = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
FEWEST_PATTERNS = 30
"""Fewer do not tell the gain."""
FAINT = 1e-2
"""Of the brightest pixel's mean: in fainter pixels a background that is slightly off counts for too much."""
SCALINGS = 100
"""Of rows and columns, until each has the same noise (Sinkhorn and Knopp)."""
MOST_BAD = 0.02
"""More bad pixels than this part of all are no faults of a detector but the patterns' own spots."""


def find_bad_pixels(mean: Image, spread: Image, n_patterns: int, sigmas: float = 8.0) -> tuple[Mask, Mask]:
    """Pixels that differ from all around them in the mean of many patterns.

    A pixel is hot above 1.5 times the second largest of its 24 neighbours, dead below half the second smallest of its 8,
    and both by ``sigmas`` standard errors: an edge or a ring of the pattern has neighbours like itself, a fault has not.
    (Two faults side by side are found, larger clusters are not.)

    Args:
        mean, spread: (ky, kx) mean and standard deviation over all patterns.
        n_patterns: how many they were.
        sigmas: how sure to be.

    Returns:
        (ky, kx) masks of the dead and of the hot.

    Raises:
        InputError: so many that they are no faults.
    """
    from scipy.ndimage import percentile_filter, rank_filter

    mean = np.asarray(mean, np.float64)
    wide = np.ones((5, 5), bool)
    wide[2, 2] = False
    near = np.ones((3, 3), bool)
    near[1, 1] = False
    high = rank_filter(mean, rank=-2, footprint=wide, mode="mirror")
    low = rank_filter(mean, rank=1, footprint=near, mode="mirror")
    typical = percentile_filter(np.asarray(spread, np.float64), 50, footprint=wide, mode="mirror")
    # a pixel's own spread says nothing: a hot one flickers, a dead one is still
    error = np.maximum(typical, np.sqrt(np.abs(mean) / 4)) / np.sqrt(n_patterns)
    hot = mean > 1.5 * high + sigmas * error
    dead = mean < 0.5 * low - sigmas * typical / np.sqrt(n_patterns)
    count, most = int((hot | dead).sum()), int(MOST_BAD * mean.size)
    check(
        count <= most,
        f"{count} pixels stand out from their neighbours, more than faults would (at most {most}): these are spots of the "
        "pattern; leave fill_bad_pixels out",
    )
    return dead, hot


def fill_pixels(patterns: npt.NDArray[np.generic], bad: Mask) -> npt.NDArray[np.generic]:
    """Patterns (..., ky, kx) with each bad pixel replaced by the mean of the good ones around it.

    Whole counts stay whole. Three good neighbours at least are used, from farther away where there are fewer.

    Raises:
        InputError: no good pixel is left.
    """
    if not bad.any():
        return patterns
    check(not bad.all(), "every pixel is bad; there is nothing to fill from")
    filled = patterns.copy()
    whole = patterns.dtype.kind in "ui"
    for y, x in np.argwhere(bad):
        for reach in range(1, max(bad.shape)):
            rows = slice(max(y - reach, 0), y + reach + 1)
            columns = slice(max(x - reach, 0), x + reach + 1)
            good = ~bad[rows, columns]
            if good.sum() >= min(3, int((~bad).sum())):
                break
        value = patterns[..., rows, columns][..., good].mean(-1)
        filled[..., y, x] = np.rint(value) if whole else value
    return filled


def find_background(mean: Image) -> float:
    """Counts a pixel that are there without the beam: the median of the mean pattern in the detector's corners.

    Where scattering reaches the corners, it is counted too.
    """
    height, width = mean.shape
    y, x = np.indices(mean.shape)
    distance = np.hypot((y - (height - 1) / 2) / height, (x - (width - 1) / 2) / width)
    return float(np.median(mean[distance >= 0.9 * distance.max()]))


def find_gain(patterns: npt.NDArray[np.generic]) -> float:
    """Electrons per count, from the counting noise.

    Electrons come one by one: counts of g each electron have a variance of g times their mean. Patterns of many positions
    are sums of few, so that all but the strongest singular vectors of the table of positions and pixels hold this noise
    alone; with rows and columns scaled so that each has the same noise, its eigenvalues follow the law of Marchenko and
    Pastur, and their scale is the gain. Detectors that spread an electron over several pixels seem to have less noise, and
    readout noise adds some.

    Args:
        patterns: (n, ky, kx) counts without background.

    Raises:
        InputError: too few patterns, or nearly as many different ones as there are.

    Source: Landa, Zhang & Kluger, SIAM J. Math. Data Sci. 4 (2022) 1420.
    """
    n = len(patterns)
    check(n >= FEWEST_PATTERNS, f"the gain cannot be found from {n} patterns; it takes {FEWEST_PATTERNS}, or give it")
    table = patterns.reshape(n, -1).astype(np.float64)
    mean = table.mean(0)
    table = table[:, mean > FAINT * mean.max()]
    check(table.size > 0 and table.sum(1).min() > 0, "some patterns are empty; the gain cannot be found, give it")
    check(
        table.shape[1] >= n, f"only {table.shape[1]} pixels see the beam in {n} patterns; the gain cannot be found, give it"
    )
    pixels = table.shape[1]
    rows = np.ones(n)
    for _ in range(SCALINGS):
        columns = n / (rows @ table)
        rows = pixels / (table @ columns)
    table = np.sqrt(rows)[:, None] * table * np.sqrt(columns)
    values = np.linalg.eigvalsh(table @ table.T)[::-1] / pixels
    for signals in range(n // 2):
        left = (n - signals) / (pixels - signals)
        scale = pixels / (pixels - signals)
        noise = scale * float(np.median(values[signals:])) / _median_of_noise(left)
        if scale * values[signals] <= noise * (1 + np.sqrt(left)) ** 2:
            return 1 / noise
    raise InputError("the patterns differ too much from each other to tell their noise; give electrons_per_count")


def _median_of_noise(ratio: float) -> float:
    """Median eigenvalue of white noise of variance 1, of so many rows a column (Marchenko and Pastur's law)."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    x = low + (high - low) * (np.arange(4000) + 0.5) / 4000
    density = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    return float(np.interp(0.5, density / density[-1], x))
