"""Atom columns in a repeated plane cell: drawn, refined by the patterns, and missing ones found.

Everything here treats matter as spread evenly along the beam; ``atoms`` takes it apart. Steps are Gauss and Newton's on the
Poisson likelihood, with the Fisher information as curvature (Osborne, Int. Stat. Rev. 60 (1992) 99).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import map_coordinates
from skimage.feature import peak_local_max
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.element_features import FEATURES, MIXED, element_table
from mepdiff_core.expansion import quadratic

Array = npt.NDArray[np.float64]

FARTHEST_STEP_A = 0.12
NEAREST_A = 0.35
"""No two columns are nearer than this: one of them is an artefact."""
SIGNIFICANT = 7.0
"""Standard deviations that a new column's amount must differ from zero."""
SHAPE_SPREAD = 0.2
"""How far a column's shapes may be from none, in standard deviations of those of the elements: where it is not even along
the beam, the patterns ask for shapes that no atoms have."""


@dataclass(frozen=True)
class Columns:
    """Columns of a plane cell.

    Attributes:
        lattice_A: (2, 2) rows are lattice vectors (y, x), Å.
        origin_A: (2,) (y, x) of the cell's corner in the frame of the scan's positions.
        fractional: (n, 2) where each column is.
        amounts: (n, features) matter of each, summed along the beam; an oxygen atom's first feature is 1.
    """

    lattice_A: Array
    origin_A: Array
    fractional: Array
    amounts: Array

    @property
    def area_A2(self) -> float:
        """Of the cell, Å²."""
        return abs(float(np.linalg.det(self.lattice_A)))

    def __len__(self) -> int:
        return len(self.fractional)

    def distances_A(self) -> Array:
        """(n, n) distances between columns, the nearest copies."""
        step = self.fractional[:, None] - self.fractional[None]
        step = step - np.round(step)
        near = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        copies = (step[:, :, None] + near) @ self.lattice_A
        return np.asarray(np.linalg.norm(copies, axis=-1).min(-1))

    def sorted(self) -> Columns:
        """The strongest first."""
        order = np.argsort(-self.amounts[:, 0], kind="stable")
        return replace(self, fractional=self.fractional[order], amounts=self.amounts[order])


class Painter:
    """Draws the columns of a cell on a model's grid.

    Args:
        waves: whose grid.
        columns: which columns.
    """

    def __init__(self, waves: AtomWaves, columns: Columns) -> None:
        self.waves, self.columns = waves, columns
        self.places = [copies(columns, i, waves) for i in range(len(columns))]
        self.spectra = [waves.spectrum(p) for p in self.places]
        self.factors = [
            sum_of(waves.factor(z) * float(w) for w, z in zip(row, MIXED, strict=True)) for row in element_table().mixture
        ]
        self._elements: dict[int, Tensor] = {}

    def element(self, number: int) -> Tensor:
        """(columns, drawn, drawn) phase, rad, of one atom of the element in every copy of each column."""
        if number not in self._elements:
            factor = self.waves.factor(number)
            self._elements[number] = torch.stack([self.waves.image(s * factor) for s in self.spectra])
        return self._elements[number]

    @cached_property
    def shapes(self) -> list[Tensor]:
        """For each feature (columns, y, x) at the model's pixel."""
        return [torch.stack([self.waves.plane(s * factor) for s in self.spectra]) for factor in self.factors]

    def flat(self, amounts: Array | None = None) -> Tensor:
        """(drawn, drawn) projected phase of all columns, rad; ``amounts``: (columns, features) instead of their own."""
        amounts = self.columns.amounts if amounts is None else amounts
        return self.waves.image(sum_of(s * self._factor(row) for s, row in zip(self.spectra, amounts, strict=True)))

    def column(self, index: int) -> Tensor:
        """(y, x) projected phase of one column at the model's pixel, rad."""
        return self.waves.plane(self._spectrum(index))

    def moved(self, index: int, axis: int) -> Tensor:
        """Derivative of that by the column's place along y (0) or x (1), rad/Å."""
        return self.waves.plane(self._spectrum(index) * self.waves.slope(axis))

    def stretched(self, vector: int) -> Tensor:
        """(2, y, x) derivative of all columns' by the (y, x) components of a lattice vector, rad/Å."""
        inverse = np.linalg.inv(self.columns.lattice_A)
        total = sum_of(
            self.waves.spectrum(p, ((p - self.columns.origin_A) @ inverse)[:, vector]) * self._factor(row)
            for p, row in zip(self.places, self.columns.amounts, strict=True)
        )
        return torch.stack([self.waves.plane(total * self.waves.slope(axis)) for axis in range(2)])

    def _spectrum(self, index: int) -> Tensor:
        return self.spectra[index] * self._factor(self.columns.amounts[index])

    def _factor(self, amounts: Array) -> Tensor:
        return sum_of(f * float(a) for f, a in zip(self.factors, amounts, strict=True))


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Their sum."""
    return reduce(torch.add, tensors)


def copies(columns: Columns, index: int, waves: AtomWaves) -> Array:
    """(m, 2) (y, x) of every copy of a column in the drawing, Å."""
    corner, size = np.asarray(waves.origin_A), np.asarray(waves.size_A)
    corners = corner + size * np.array([(i, j) for i in (0, 1) for j in (0, 1)])
    reach = (corners - columns.origin_A) @ np.linalg.inv(columns.lattice_A)
    low, high = np.floor(reach.min(0)).astype(int) - 1, np.ceil(reach.max(0)).astype(int) + 1
    cells = np.stack(np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1), indexing="ij"), -1)
    points = columns.origin_A + (columns.fractional[index] + cells.reshape(-1, 2)) @ columns.lattice_A
    return np.asarray(points[np.all((points >= corner) & (points < corner + size), axis=1)])


@dataclass(frozen=True)
class Refined:
    """A step's result: the columns, their misfit before it, nats, and the standard deviations of (amount, y, x) of each."""

    columns: Columns
    misfit: float
    spread: Array


def refine(
    waves: AtomWaves,
    columns: Columns,
    indices: npt.NDArray[np.integer],
    with_lattice: bool = True,
    phase: Tensor | None = None,
    shape_spread: float = SHAPE_SPREAD,
) -> Refined:
    """One Gauss-Newton step of amounts, places and lattice.

    Args:
        waves: the model.
        indices: which patterns.
        phase: (slices, drawn, drawn) of the same columns, rad, where it is known how their matter lies along the beam; else
            it is even.
        shape_spread: how far shapes may be from none, in standard deviations of those of the elements.
    """
    painter, n = Painter(waves, columns), len(columns)
    everywhere = range(waves.slices)
    share = 1 / waves.slices
    images = [painter.shapes[f][i] * share for f in range(FEATURES) for i in range(n)]
    for axis in range(2):
        images += [painter.moved(i, axis) * share for i in range(n)]
    if with_lattice:
        images += [image * share for vector in range(2) for image in painter.stretched(vector)]
    if phase is None:
        phase = (painter.flat() * share)[None].repeat(waves.slices, 1, 1)
    sources = [dict.fromkeys(everywhere, image) for image in images]
    misfit, gradient, fisher = quadratic(
        waves, phase, sources, indices, far=range(len(sources) - 4 * with_lattice, len(sources))
    )

    # priors: an amount may change by half, a place by 0.2 Å, a lattice vector by 0.1 Å; a shape stays near an atom's: free,
    # it would make up for what is not even along the beam, step by step without end
    strength = columns.amounts[:, 0] + 0.3
    shapes = shape_spread * element_table().spread[:, None] * strength
    width = np.concatenate([0.5 * strength, shapes.ravel(), np.full(2 * n, 0.2), np.full(4 * with_lattice, 0.1)])
    gradient[n : FEATURES * n] += columns.amounts[:, 1:].T.ravel() / shapes.ravel() ** 2
    inverse = np.linalg.inv(fisher + np.diag(1 / width**2))
    step = -inverse @ gradient
    deviation = np.sqrt(np.diag(inverse))
    step[:n] = np.maximum(step[:n], -0.6 * columns.amounts[:, 0])
    split = FEATURES * n
    shift = np.clip(step[split : split + 2 * n].reshape(2, n).T, -FARTHEST_STEP_A, FARTHEST_STEP_A)
    lattice = columns.lattice_A + (step[split + 2 * n :].reshape(2, 2) if with_lattice else 0.0)
    moved = replace(
        columns,
        lattice_A=lattice,
        fractional=columns.fractional + shift @ np.linalg.inv(columns.lattice_A),
        amounts=columns.amounts + step[:split].reshape(FEATURES, n).T,
    )
    spread = np.stack([deviation[:n], deviation[split : split + n], deviation[split + n : split + 2 * n]], 1)
    return Refined(moved, misfit, spread)


def add_missing(
    waves: AtomWaves, columns: Columns, indices: npt.NDArray[np.integer], phase: Tensor | None = None
) -> Columns:
    """The columns and those whose absence the patterns show.

    The misfit's gradient by the phase, matched with an oxygen atom's image and summed over the cell's copies, is what a new
    atom there would gain; its Fisher information is taken from the columns that are known. ``phase`` as for ``refine``.
    """
    painter = Painter(waves, columns)
    share = 1 / waves.slices
    if phase is None:
        phase = (painter.flat() * share)[None].repeat(waves.slices, 1, 1)
    gain = waves.gradient(phase, indices).mean(0)
    atom = waves.to_model(waves.draw_flat(np.array([waves.origin_A]), 8))
    matched = torch.fft.ifft2(torch.fft.fft2(gain) * torch.fft.fft2(atom).conj()).real.cpu().numpy()

    steps = np.ceil(np.linalg.norm(columns.lattice_A, axis=1) / 0.1).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(s) / s for s in steps], indexing="ij"), -1)
    cell = np.zeros(tuple(steps))
    pixel = waves.model_pixel_A
    single = replace(columns, fractional=np.zeros((1, 2)), amounts=columns.amounts[:1])
    for corner in copies(single, 0, waves):
        places = (corner + grid @ columns.lattice_A - waves.origin_A) / pixel
        cell += map_coordinates(matched, places.reshape(-1, 2).T, order=1, mode="constant").reshape(cell.shape)
    # what an oxygen column's information is: that of the weakest known column's first feature
    weakest = int(np.argmin(columns.amounts[:, 0]))
    source = [dict.fromkeys(range(waves.slices), waves.to_model(painter.element(8)[weakest]) * share)]
    _, _, fisher = quadratic(waves, phase, source, indices)
    score = -cell / np.sqrt(fisher[0, 0])
    tiled = np.tile(score, (3, 3))
    peaks = peak_local_max(tiled, min_distance=3, threshold_abs=SIGNIFICANT)
    inside = np.all((peaks >= steps) & (peaks < 2 * steps), axis=1)
    found = columns
    for peak in peaks[inside][:6]:
        place = (peak - steps) / steps
        amount = np.zeros((1, FEATURES))
        amount[0] = element_table().features[8] * score[tuple(peak - steps)] / np.sqrt(fisher[0, 0])
        if amount[0, 0] < 0.15 * min(1.0, float(found.amounts[:, 0].min())):
            continue
        trial = replace(
            found,
            fractional=np.concatenate([found.fractional, place[None]]),
            amounts=np.concatenate([found.amounts, amount]),
        )
        if (trial.distances_A()[-1, :-1] > NEAREST_A).all():
            found = trial
    return found


def drop_empty(columns: Columns, spread: Array) -> Columns:
    """Without the columns whose amount the patterns do not show, and the weaker of two that are one."""
    keep = columns.amounts[:, 0] > np.maximum(0.1, SIGNIFICANT * spread[:, 0])
    distance = columns.distances_A()
    for a in range(len(columns)):
        for b in range(a):
            if keep[a] and keep[b] and distance[a, b] < NEAREST_A:
                keep[a if columns.amounts[a, 0] < columns.amounts[b, 0] else b] = False
    return replace(columns, fractional=columns.fractional[keep], amounts=columns.amounts[keep])


def split_cosets(
    waves: AtomWaves, columns: Columns, indices: npt.NDArray[np.integer], largest_A2: float = np.inf
) -> Columns:
    """The columns in a cell of twice or four times the area, where the patterns show that it repeats only there.

    A score test: the gain, to second order, of letting the copies of each column in a cell doubled both ways differ. Cells
    are no larger than ``largest_A2``.
    """
    n = len(columns)
    wide = widen(columns, np.array([[2, 0], [0, 2]]))
    painter = Painter(waves, wide)
    share = 1 / waves.slices
    phase = (painter.flat() * share)[None].repeat(waves.slices, 1, 1)
    sources = [dict.fromkeys(range(waves.slices), painter.column(i) * share) for i in range(4 * n)]
    _, gradient, fisher = quadratic(waves, phase, sources, indices)
    # the character of each coset under the three ways of doubling
    cosets = np.array([(i, j) for i in (0, 1) for j in (0, 1)])
    best, chosen = 0.0, None
    gains = {}
    for name, character in {"10": cosets[:, 0], "01": cosets[:, 1], "11": cosets.sum(1)}.items():
        contrast = np.kron(np.where(character % 2, -1.0, 1.0)[:, None], np.eye(n))
        g, f = contrast.T @ gradient, contrast.T @ fisher @ contrast
        gains[name] = 0.5 * float(g @ np.linalg.solve(f + 100 * np.eye(n), g))
    threshold = 10.0 + 5.0 * n
    significant = {name: gain for name, gain in gains.items() if gain > threshold}
    if not significant:
        return columns
    doubled = {"10": [[2, 0], [0, 1]], "01": [[1, 0], [0, 2]], "11": [[1, 1], [-1, 1]]}
    best = max(significant.values())
    chosen = max(significant, key=lambda name: significant[name])
    others = [gain for name, gain in significant.items() if name != chosen]
    alone = all(gain < 0.15 * best for gain in others)
    matrices = [doubled[chosen]] if alone else [[[2, 0], [0, 2]], doubled[chosen]]
    wider = [widen(columns, np.array(matrix)) for matrix in matrices]
    return next((cell for cell in wider if cell.area_A2 <= largest_A2), columns)


def widen(columns: Columns, matrix: npt.NDArray[np.integer]) -> Columns:
    """The same columns in the cell whose vectors are ``matrix`` @ lattice; copies in the order of the cosets."""
    count = abs(round(float(np.linalg.det(matrix))))
    inverse = np.linalg.inv(matrix)
    cosets: list[Array] = []
    for i in range(count + 1):
        for j in range(count + 1):
            place = (np.array([i, j]) @ inverse) % 1.0 % 1.0
            place[place > 1 - 1e-9] = 0.0
            if all(np.abs(place - c).max() > 1e-9 for c in cosets):
                cosets.append(place)
    fractional = np.concatenate([(columns.fractional @ inverse + c) for c in cosets])
    return Columns(matrix @ columns.lattice_A, columns.origin_A, fractional, np.tile(columns.amounts, (count, 1)))
