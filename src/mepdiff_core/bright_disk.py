"""The bright disk of a pattern: where it lies and how large it is, to a fraction of a pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

RIM = 0.35
"""The edge is fitted within this part of the radius on both sides: what goes on farther inside and outside says nothing."""

PLACES = 150
"""Places of the disk that images are made of, at most."""


@dataclass(frozen=True)
class Disk:
    """A bright disk.

    Attributes:
        centre: (y, x) in pixels, fractions of one included.
        radius: in pixels.
    """

    centre: tuple[float, float]
    radius: float


def find_disk(pattern: npt.NDArray[np.floating]) -> Disk:
    """Fit the edge of the bright disk of one pattern, a mean pattern for instance.

    First a threshold at half the disk's level, then least squares of a disk whose edge falls from an inner to an outer
    level along a straight ramp of free width.

    Args:
        pattern: (ky, kx), without dead and hot pixels.

    Raises:
        InputError: no disk: an edge that is not there, or that leaves the detector.
    """
    from scipy.ndimage import label, median_filter
    from scipy.optimize import least_squares

    pattern = np.asarray(pattern, np.float64)
    smooth = median_filter(pattern, 3)
    y, x = (np.asarray(a, np.float64) for a in np.indices(pattern.shape))
    check(float(smooth.max()) > 0, "the mean pattern is empty; there is no bright disk to be found")
    # the level inside: the median of what is brighter than a tenth of the brightest, twice, so that a spot decides nothing
    level = float(smooth.max())
    for _ in range(2):
        level = float(np.median(smooth[smooth > 0.25 * level]))
    parts, _ = label(smooth > 0.5 * level)
    sizes = np.bincount(parts.ravel())[1:]
    inside = parts == 1 + int(np.argmax(sizes))
    area = int(inside.sum())
    radius = float(np.sqrt(area / np.pi))
    centre = float(y[inside].mean()), float(x[inside].mean())
    reach = max(pattern.shape) / 2
    check(
        2 <= radius <= reach,
        f"no bright disk was found (a bright area of {area} px); crop the patterns, or give centre and calibration by hand",
    )

    def residual(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        y0, x0, edge, outside, plateau, width = v
        ramp = np.clip((edge - np.hypot(ys - y0, xs - x0)) / width + 0.5, 0, 1)
        return np.asarray((outside + (plateau - outside) * ramp - values) / level)

    for _ in range(2):  # the second time about the place that the first has found
        distance = np.hypot(y - centre[0], x - centre[1])
        rim = np.abs(distance - radius) <= max(2.5, RIM * radius)
        ys, xs, values = y[rim], x[rim], pattern[rim]
        start = np.array([*centre, radius, values[distance[rim] > radius].mean(), level, 1.5])
        low = [start[0] - radius, start[1] - radius, 0.5 * radius, -np.inf, -np.inf, 1.0]
        high = [start[0] + radius, start[1] + radius, 1.6 * radius, np.inf, np.inf, max(2.0, radius)]
        fit = least_squares(
            residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.3, x_scale=[1, 1, 1, level, level, 1]
        )
        centre, radius = (float(fit.x[0]), float(fit.x[1])), float(fit.x[2])
    check(
        all(0 <= middle < size for middle, size in zip(centre, pattern.shape, strict=True)),
        f"the bright disk's centre would lie off the detector, at y, x = {centre[0]:.0f}, {centre[1]:.0f} px; crop the"
        " patterns, or give centre and calibration by hand",
    )
    check(
        fit.x[4] > 2 * max(fit.x[3], 0.0),
        "the bright disk has no clear edge (beam stop, disk wider than the detector?); give centre and calibration by hand",
    )
    return Disk(centre, radius)


def hard_radius(pattern: npt.NDArray[np.floating], disk: Disk) -> float:
    """The radius, near that of the fit, of the hard disk that holds the bright pixels and no others, as far as one does.

    A model's aperture is cut at pixels: one of another size by a hundredth has bright pixels where electrons never came.
    """
    y, x = np.indices(pattern.shape)
    distance = np.hypot(y - disk.centre[0], x - disk.centre[1])
    near = np.abs(distance - disk.radius) < 1
    inside = pattern[distance < max(1.0, disk.radius - 1)]
    outside = pattern[(distance > disk.radius + 1) & (distance < disk.radius + 3)]
    level = 0.5 * (float(np.median(inside)) + float(np.median(outside))) if outside.size else 0.5 * float(np.median(inside))
    order = np.argsort(distance[near])
    places, bright = distance[near][order], pattern[near][order] > level
    # wrong pixels if the disk ends before each place: dark ones inside, bright ones outside
    wrong = np.concatenate([[0], np.cumsum(~bright)]) + np.concatenate([np.cumsum(bright[::-1])[::-1], [0]])
    ends = np.concatenate([[places[0] - 0.02], 0.5 * (places[1:] + places[:-1]), [places[-1] + 0.02]])
    best = ends[wrong == wrong.min()]
    return float(best[np.argmin(np.abs(best - disk.radius))])


def disk_centres(patterns: Sequence[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    """(n, 2) as (y, x): the bright disk's centre in each of some patterns, pixels."""
    return np.array([find_disk(pattern).centre for pattern in patterns])


def wander_per_step(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(2,) pixels a step of a straight line through (n, 2) centres; 0 for a single one."""
    if len(centres) < 2:
        return np.zeros(2)
    places = np.arange(len(centres)) - (len(centres) - 1) / 2
    return np.asarray(places @ centres / (places @ places))


def disk_places(
    n: int, k_step: float, radius_invA: float, most: int = PLACES
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Neighbouring pixels of the bright disk taken together as places.

    Returns:
        (n * n,) the number of the place that each pixel of a centred pattern belongs to, or -1; and (places, 2) as (ky, kx):
        their means, 1/Å.
    """
    index = np.arange(n) - n // 2
    k = index * k_step
    inside = np.hypot(k[:, None], k[None, :]) < 0.9 * radius_invA
    check(int(inside.sum()) >= 4, "the bright disk has fewer than 4 pixels; its images cannot be told apart")
    block = max(1, math.ceil(math.sqrt(inside.sum() / most)))
    group = (index + n) // block
    number = np.where(inside, group[:, None] * (2 * n) + group[None, :], -1).ravel()
    names, labels = np.unique(number, return_inverse=True)
    labels = labels.reshape(-1) - int(names[0] == -1)
    ky, kx = np.broadcast_arrays(k[:, None], k[None, :])
    used = labels >= 0
    count = np.bincount(labels[used])
    sums = [np.bincount(labels[used], v.ravel()[used]) / count for v in (ky, kx)]
    return labels.astype(np.int64), np.stack(sums, axis=-1)
