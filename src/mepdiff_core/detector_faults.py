"""What a detector adds of its own: dead and hot pixels, a background, and counts that are no electrons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.bright_disk import Disk
from mepdiff_core.config import check

Image = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
QUIET = 0.2
"""Part of the frequencies along each side that the power of the noise is averaged over."""
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


def find_gain(patterns: npt.NDArray[np.generic], disk: Disk) -> float:
    """Electrons per count, from the counting noise inside the bright disk.

    Electrons come one by one: counts of g each electron have a variance of g times their mean. A pattern is smooth on the
    scale of its pixels, so that somewhere in its Fourier transform this white noise is all there is: where the mean power of
    all patterns is least. Detectors that spread an electron over several pixels seem to have less noise, and readout noise
    adds some.

    Args:
        patterns: (n, ky, kx) counts without background.
        disk: the bright disk.

    Raises:
        InputError: a disk too small to see noise in, or a single pattern.
    """
    check(len(patterns) >= 2, "a single pattern does not tell the gain")
    check(disk.radius >= 6, f"the bright disk's radius is {disk.radius:.1f} px; finding the gain needs 6 at least")
    from scipy.ndimage import uniform_filter

    y, x = np.indices(patterns.shape[1:])
    distance = np.hypot(y - disk.centre[0], x - disk.centre[1]) / (0.9 * disk.radius)
    taper = np.where(distance < 1, np.cos(np.pi / 2 * np.minimum(distance, 1)) ** 2, 0.0)
    box = [max(3, round(QUIET * size)) for size in patterns.shape[1:]]
    powers, signal = [np.zeros(patterns.shape[1:]), np.zeros(patterns.shape[1:])], 0.0
    for number, pattern in enumerate(patterns.astype(np.float64)):
        powers[number % 2] += np.abs(np.fft.fft2(pattern * taper)) ** 2
        signal += float(np.sum(pattern * taper**2)) * (number % 2)
    # chosen by one half of the patterns, measured on the other: the least of many is less than what it is
    choice, measured = (uniform_filter(each, box, mode="wrap") for each in powers)
    power = float(measured.ravel()[int(np.argmin(choice))])
    check(signal > 0 and power > 0, "the bright disk is empty; its gain cannot be found")
    return signal / power
