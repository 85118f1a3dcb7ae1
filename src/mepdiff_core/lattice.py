"""Projection -> in-plane lattice -> averaged cell -> atom columns.

The lattice is read off the projection's autocorrelation, normalised by what overlaps, so that the field's edge costs
nothing. Source: the masked normalised correlation of Padfield, IEEE TIP 21 (2012) 2706; bases are reduced as Lagrange and
Gauss did.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter
from skimage.feature import peak_local_max

Image = npt.NDArray[np.floating]
Array = npt.NDArray[np.float64]

SMALLEST_CELL_A2 = 2.0
"""No projected cell is smaller: two columns are hardly ever nearer than 1.4 Å."""
SHORTEST_A = 1.2
BACKGROUND_A = 1.5
"""Standard deviation of the Gaussian whose mean is taken off: slow drifts of the phase are no crystal."""
HIGHEST, NEAREST = 48, 16
"""Peaks of the autocorrelation that lattices are made of."""
CLOSER, CLOSER_SHIFTED, NOISE = 2.5, 3.0, 0.01
"""A larger cell is another one where it leaves so many times less of the correlation to 1; the second where its own columns
differ from cell to cell as well. Less than NOISE means nothing."""
OVERLAP = 0.12
"""Shifts that leave less of the illuminated field than this part tell nothing."""


@dataclass(frozen=True)
class Lattice:
    """An in-plane lattice.

    Attributes:
        vectors_A: (2, 2) rows are the lattice vectors as (y, x), Å, reduced.
        correlation: mean normalised correlation of the projection with itself shifted by lattice vectors; 1 is perfect.
    """

    vectors_A: Array
    correlation: float

    @property
    def lacks(self) -> float:
        """What the correlation lacks to 1, but for noise."""
        return max(1 - self.correlation, NOISE)

    @property
    def area_A2(self) -> float:
        return float(abs(np.linalg.det(self.vectors_A)))


def autocorrelation(image: Image, weight: Image) -> tuple[Array, Array]:
    """Weighted normalised correlation of an image with itself at every shift, and the weight that overlaps.

    Args:
        image: (y, x); weight: (y, x) from 0 to 1, how far each pixel is to be trusted.

    Returns:
        (2 y - 1, 2 x - 1) correlations and overlaps, zero shift in the middle; overlaps relative to that of no shift.
    """
    h, w = image.shape
    shape = (2 * h, 2 * w)
    a = image - np.sum(image * weight) / np.sum(weight)

    def correlate(u: Image, v: Image) -> Array:
        product = np.fft.irfft2(np.conj(np.fft.rfft2(u, shape)) * np.fft.rfft2(v, shape), shape)
        return np.asarray(np.fft.fftshift(product)[1:, 1:])

    overlap = correlate(weight, weight)
    cross = correlate(weight * a, weight * a)
    left, right = correlate(weight * a * a, weight), correlate(weight, weight * a * a)
    safe = overlap > 1e-6 * overlap.max()
    norm = np.sqrt(np.maximum(left * right, 1e-30))
    return np.where(safe, cross / norm, 0.0), overlap / overlap.max()


def reduce_basis(vectors: Array) -> Array:
    """The shortest basis of a plane lattice (Lagrange and Gauss), with an angle of 60 to 120 degrees, det > 0."""
    a, b = np.array(vectors, float)
    while True:
        if a @ a > b @ b:
            a, b = b, a
        shift = round(float(a @ b / (a @ a)))
        if shift == 0:
            break
        b = b - shift * a
    result = np.stack([a, b])
    return result if np.linalg.det(result) > 0 else np.stack([a, -b])


def find_lattices(image: Image, weight: Image, pixel_size_A: float, count: int = 6, larger: bool = False) -> list[Lattice]:
    """Lattices that a projection may have, the likeliest first; none that only repeats a smaller one.

    Args:
        image: (y, x) projected phase; weight: (y, x) from 0 to 1; pixel_size_A: Å.
        larger: those too that only repeat a smaller one.

    Returns:
        At most ``count`` lattices; none where the image does not repeat within the field.
    """
    flat = image - gaussian_filter(image, BACKGROUND_A / pixel_size_A)
    corr, overlap = autocorrelation(flat, weight)
    valid = overlap > OVERLAP
    middle = np.array(corr.shape) // 2
    peaks = peak_local_max(np.where(valid, corr, -1), min_distance=2, threshold_abs=0.15)
    shifts = peaks - middle
    keep = (np.linalg.norm(shifts, axis=1) * pixel_size_A > SHORTEST_A) & (
        (shifts[:, 0] > 0) | ((shifts[:, 0] == 0) & (shifts[:, 1] > 0))
    )
    peaks = peaks[keep]
    if len(peaks) < 2:
        return []
    fine = np.array([_subpixel(corr, p) for p in peaks]) - middle
    heights = corr[tuple(peaks.T)]
    # the highest; and the shortest, which may be lower by a little and make the smallest cell
    order = np.union1d(np.argsort(-heights)[:HIGHEST], np.argsort(np.linalg.norm(fine, axis=1))[:NEAREST])
    fine, heights = fine[order], heights[order]

    spline = spline_filter(corr)
    grid = np.array([(i, j) for i in range(-12, 13) for j in range(-12, 13) if (i, j) > (0, 0)])
    found: list[tuple[float, float, Array]] = []
    for i, j in combinations(range(len(fine)), 2):
        basis = fine[[i, j]]
        if abs(np.linalg.det(basis)) * pixel_size_A**2 < SMALLEST_CELL_A2:
            continue
        reduced = reduce_basis(basis)
        if np.linalg.norm(reduced[0]) * pixel_size_A < SHORTEST_A:
            continue
        if any(_same(reduced, other) for _, _, other in found):
            continue
        refined, score = _refine(reduced, corr, spline, overlap, middle, grid)
        if refined is not None and not any(_same(refined, other) for _, _, other in found):
            found.append((score, abs(float(np.linalg.det(refined))), refined))
    kept: list[Lattice] = []
    for score, _, vectors in sorted(found, key=lambda f: f[1]):
        lattice = Lattice(vectors * pixel_size_A, score)
        smaller = () if larger else kept
        if not any(_repeats(lattice.vectors_A, k.vectors_A) and k.lacks <= CLOSER * lattice.lacks for k in smaller):
            kept.append(lattice)
    return sorted(kept, key=lambda lattice: -lattice.correlation)[:count]


def _refine(
    basis: Array, corr: Array, spline: Array, overlap: Array, middle: npt.NDArray[np.integer], grid: npt.NDArray[np.integer]
) -> tuple[Array | None, float]:
    """The basis that fits best the peaks near its lattice points, and their mean height, weighted by overlap."""
    score = 0.0
    for _ in range(3):
        points = grid @ basis
        inside = np.all(np.abs(points) < middle - 2, axis=1)
        chosen, points = grid[inside], points[inside]
        weights = map_coordinates(overlap, (points + middle).T, order=1)
        chosen, points, weights = chosen[weights > OVERLAP], points[weights > OVERLAP], weights[weights > OVERLAP]
        if len(chosen) < 2:
            return None, 0.0
        places = np.array([_climb(corr, p + middle) for p in points]) - middle
        # cubic: a line between two pixels cuts off the top of a narrow peak, which short lattices pay for
        heights = map_coordinates(spline, (points + middle).T, order=3, prefilter=False)
        score = float(np.average(heights, weights=weights))
        scale = np.sqrt(weights)[:, None]
        solution, *_ = np.linalg.lstsq(chosen * scale, places * scale, rcond=None)
        if abs(np.linalg.det(solution)) < 0.5 * abs(np.linalg.det(basis)):
            return None, 0.0
        basis = solution
    return reduce_basis(basis), score


def _climb(corr: Array, start: Array) -> Array:
    """The sub-pixel maximum next to a place, or the place itself where none is within two pixels."""
    y, x = np.round(start).astype(int)
    h, w = corr.shape
    if not (3 <= y < h - 3 and 3 <= x < w - 3):
        return start
    box = corr[y - 2 : y + 3, x - 2 : x + 3]
    dy, dx = np.unravel_index(int(np.argmax(box)), box.shape)
    top = np.array([y + dy - 2, x + dx - 2])
    if dy in (0, 4) or dx in (0, 4):
        return start
    return _subpixel(corr, top)


def _subpixel(image: Array, place: npt.NDArray[np.integer]) -> Array:
    y, x = int(place[0]), int(place[1])
    result = np.array([y, x], float)
    for axis, (low, high) in enumerate((((y - 1, x), (y + 1, x)), ((y, x - 1), (y, x + 1)))):
        if not (low[axis] >= 0 and high[axis] < image.shape[axis]):
            continue
        a, b, c = image[low], image[y, x], image[high]
        curve = a - 2 * b + c
        if curve < 0:
            result[axis] += float(np.clip(0.5 * (a - c) / curve, -0.5, 0.5))
    return result


def _repeats(a: Array, b: Array) -> bool:
    """Whether lattice ``a`` is part of lattice ``b``."""
    coefficients = a @ np.linalg.inv(b)
    return bool(np.all(np.abs(coefficients - np.round(coefficients)) < 0.08))


def _same(a: Array, b: Array) -> bool:
    return _repeats(a, b) and abs(abs(float(np.linalg.det(a @ np.linalg.inv(b)))) - 1) < 0.2


def choose_lattice(candidates: list[Lattice], closer: float = CLOSER) -> Lattice:
    """The smallest cell that repeats about as well as any: larger ones repeat it.

    Args:
        closer: how many times less of the correlation to 1 a larger one must leave, to be another.
    """
    least = min(lattice.lacks for lattice in candidates)
    return min((c for c in candidates if c.lacks <= closer * least), key=lambda c: c.area_A2)


def fold(image: Image, weight: Image, lattice_A: Array, pixel_size_A: float, origin_A: Array) -> Array:
    """The averaged cell of an image, about 0.1 Å a sample along each lattice vector.

    Args:
        image, weight: (y, x); lattice_A: (2, 2); origin_A: (2,) the cell's corner, counted from the image's first pixel.
    """
    steps = np.ceil(np.linalg.norm(lattice_A, axis=1) / 0.1).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(s) / s for s in steps], indexing="ij"), -1) @ lattice_A
    corners = np.array([(i, j) for i in (0, 1) for j in (0, 1)]) * np.array(image.shape) * pixel_size_A
    reach = (corners - origin_A) @ np.linalg.inv(lattice_A)
    low, high = np.floor(reach.min(0)).astype(int) - 1, np.ceil(reach.max(0)).astype(int) + 1
    total, count = np.zeros(tuple(steps)), np.zeros(tuple(steps))
    for i in range(low[0], high[0] + 1):
        for j in range(low[1], high[1] + 1):
            places = ((grid + np.array([i, j]) @ lattice_A + origin_A) / pixel_size_A).reshape(-1, 2).T
            w = map_coordinates(weight, places, order=1, mode="constant").reshape(total.shape)
            if w.any():
                total += w * map_coordinates(image, places, order=3, mode="constant").reshape(total.shape)
                count += w
    return total / np.maximum(count, 1e-9)


def cell_to_cell_change(image: Image, weight: Image, lattice_A: Array, places_A: Array, pixel_size_A: float) -> float:
    """How much a column differs from cell to cell: standard deviation over mean of its height, all columns together.

    Args:
        places_A: (n, 2) one copy of each column, counted from the image's first pixel.

    Returns:
        A few percent where the crystal repeats in the plane; more where the stacking shifts from cell to cell.
    """
    sharp = gaussian_filter(image, 0.25 / pixel_size_A) - gaussian_filter(image, BACKGROUND_A / pixel_size_A)
    cells = np.array([(i, j) for i in range(-12, 13) for j in range(-12, 13)])
    deviation = mean = 0.0
    for place in places_A:
        at = ((place + cells @ lattice_A) / pixel_size_A).T
        w = map_coordinates(weight, at, order=1, mode="constant")
        height = map_coordinates(sharp, at, order=1, mode="constant")[w > 0.35]
        if len(height) > 2:
            deviation += float(np.var(height)) * len(height)
            mean += float(np.mean(height)) ** 2 * len(height)
    return float(np.sqrt(deviation / mean)) if mean > 0 else 0.0


def find_columns(cell: Array, lattice_A: Array) -> tuple[Array, Array]:
    """Fractional places (n, 2) of an averaged cell's columns and their heights (n,) over what surrounds them."""
    shape = np.array(cell.shape)
    step = float(np.mean(np.linalg.norm(lattice_A, axis=1) / shape))
    tiled = np.tile(cell, (3, 3))
    sharp = gaussian_filter(tiled, 0.1 / step) - gaussian_filter(tiled, 1.2 / step)
    peaks = peak_local_max(sharp, min_distance=max(2, round(0.45 / step)), threshold_abs=0.12 * float(sharp.max()))
    peaks = peaks[np.all((peaks >= shape) & (peaks < 2 * shape), axis=1)]
    return (peaks - shape) / shape, sharp[tuple(peaks.T)]


def describe(vectors: Array) -> str:
    """Lengths and angle of the reduced basis, in words."""
    a, b = reduce_basis(vectors)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.degrees(np.arccos(np.clip(a @ b / (lengths[0] * lengths[1]), -1, 1)))
    return f"{lengths[0]:.3f} × {lengths[1]:.3f} Å, {angle:.1f}°"
