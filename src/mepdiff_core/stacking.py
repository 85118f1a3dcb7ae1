"""How the cells of a projected lattice differ along the beam: not at all, in turns, or by a shift from cell to cell.

A projection repeats wherever the columns do; the crystal may repeat only in a larger cell (a superlattice), or each cell may
lie deeper than its neighbour by a part of the period along the beam (triclinic and monoclinic cells, most axes of hexagonal
ones). What the misfit's gradient says of every copy of every column, slice by slice, tells these apart: for each hypothesis
the gain of its best matter, none of it negative, is a small bounded least-squares problem (Stark & Parker, Comput. Stat. 10
(1995) 129).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import map_coordinates
from scipy.optimize import lsq_linear, minimize
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.columns import Columns, Painter, copies, sum_of
from mepdiff_core.expansion import quadratic

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BINS = 10
"""Of depth in one period, while stackings are compared."""
FINE = 16
"""Depths in a slice at which they are sampled."""
FREE_NATS = 1.0
"""Curvature that a prior adds to each amount of matter."""
FAINT = 0.03
"""Copies less illuminated than this part of the brightest are left out."""
PARAMETER_NATS = 10.0
"""What a free parameter must gain."""
LARGEST_INDEX = 4
"""Cells of a superlattice are this many times larger at most."""
SHORTEST_A, LONGEST_A = 2.6, 10.5
STEP_A, STEP = 0.3, 0.0625
"""Grid of periods, relative where they are long, and of shifts, on which stackings are first tried."""
AS_GOOD = 0.9
"""A shorter period that gains this part of a multiple's gain is preferred."""
REFINED = 32
"""Different stackings that are refined."""


@dataclass(frozen=True)
class Stacking:
    """How cells follow one another.

    Attributes:
        period_A: along the beam.
        shift: (2,) how much deeper the next cell along t1 and along t2 lies, in periods.
        gain: nats above cells that are all alike.
    """

    period_A: float
    shift: Array
    gain: float

    def __str__(self) -> str:
        return f"period {self.period_A:.2f} Å, shifts {self.shift[0]:.2f} and {self.shift[1]:.2f}"


@dataclass(frozen=True)
class CopyGains:
    """What the patterns say of every copy of every column.

    Attributes:
        cells: (cells, 2) which cells of the lattice are seen.
        gradient: (columns, cells, slices) misfit's derivative by oxygen atoms in each copy, nats.
        curvature: (columns, slices, slices) of all copies together.
        weight: (columns, cells) each copy's part of it.
        least: (columns, slices) the least matter that may be added: minus what is there.
        slice_thickness_A: Å.
    """

    cells: Integers
    gradient: Array
    curvature: Array
    weight: Array
    least: Array
    slice_thickness_A: float


def copy_gains(
    waves: AtomWaves,
    columns: Columns,
    illumination: Array,
    origin_A: Array,
    pixel_A: float,
    indices: npt.NDArray[np.integer],
    fewer: npt.NDArray[np.integer],
) -> CopyGains:
    """Gradient and curvature by the copies of columns that are even along the beam.

    Args:
        waves: the model; columns: around which.
        illumination: (y, x) of the object field; origin_A: of its first pixel; pixel_A: its pixel.
        indices: patterns for the gradient; fewer: for the curvature, which is scaled up.
    """
    painter, slices = Painter(waves, columns), waves.slices
    phase = (painter.flat() / slices)[None].repeat(slices, 1, 1)
    gradient = waves.gradient(phase, indices)
    atom = waves.to_model(waves.draw_flat(np.array([waves.origin_A]), 8))
    spectrum = np.conj(np.fft.fft2(atom.cpu().numpy()))
    matched = np.fft.ifft2(np.fft.fft2(gradient.cpu().numpy()) * spectrum).real
    sources = [{s: plane} for plane in waves.to_model(painter.element(8)) for s in range(slices)]
    fisher = quadratic(waves, phase, sources, fewer)[2] * (len(indices) / len(fewer))
    inverse = np.linalg.inv(columns.lattice_A)
    found: dict[tuple[int, int], list[tuple[int, float, Array]]] = {}
    for i in range(len(columns)):
        where = copies(columns, i, waves)
        weight = map_coordinates(illumination, ((where - origin_A) / pixel_A).T, order=1, mode="constant")
        where, weight = where[weight > FAINT * illumination.max()], weight[weight > FAINT * illumination.max()]
        pixels = ((where - waves.origin_A) / waves.model_pixel_A).T
        gradients = np.array([map_coordinates(plane, pixels, order=1) for plane in matched]).T
        for cell, part, g in zip(
            np.rint((where - columns.origin_A) @ inverse - columns.fractional[i]),
            weight / weight.sum(),
            gradients,
            strict=True,
        ):
            found.setdefault((int(cell[0]), int(cell[1])), []).append((i, part, g))
    result = CopyGains(
        np.array(list(found), np.int64),
        np.zeros((len(columns), len(found), slices)),
        np.array([fisher[i * slices : (i + 1) * slices, i * slices : (i + 1) * slices] for i in range(len(columns))]),
        np.zeros((len(columns), len(found))),
        np.repeat(-columns.amounts[:, :1] / slices, slices, axis=1),
        waves.slice_thickness_A,
    )
    for k, entries in enumerate(found.values()):
        for i, part, g in entries:
            result.weight[i, k], result.gradient[i, k] = part, g
    return result


def superlattices(largest: int = LARGEST_INDEX) -> list[Integers]:
    """(2, 2) integer matrices, rows the vectors of each sublattice up to an index, in Hermite's normal form."""
    return [
        np.array([[a, b], [0, index // a]])
        for index in range(2, largest + 1)
        for a in range(1, index + 1)
        if index % a == 0
        for b in range(index // a)
    ]


def superlattice_gain(gains: CopyGains, matrix: Integers) -> float:
    """Nats that copies gain by being alike only in the cells of a sublattice, over what their parameters must gain."""
    count = round(abs(float(np.linalg.det(matrix))))
    kinds = _kinds(gains, matrix)
    total = -even_gain(gains)
    for kind in range(kinds.max() + 1):
        total += sum(_bounded_gain(*part) for part in _of_copies(gains, kinds == kind))
    return total - PARAMETER_NATS * gains.least.size * (count - 1)


def crossed_gain(gains: CopyGains, matrix: Integers) -> float:
    """Nats that copies gain by the best matter of *other* copies alike in a sublattice, over that of other copies of all.

    The copies are halved three ways, by every second cell of the sublattice along either vector and in a checkerboard, and
    the gains added up. Positive where cells differ in turns. What changes slowly over the field, as with a drifting beam, or
    at its edge, suits copies near one another, which a sublattice of few cells takes for a rule.
    """
    cells = np.floor(gains.cells @ np.linalg.inv(matrix) + 1e-6).astype(np.int64)
    kinds = _kinds(gains, matrix)
    total = 0.0
    for half in (cells[:, 0], cells[:, 1], cells.sum(1)):
        for fitted in (half % 2 == 0, half % 2 == 1):
            for kind in np.intersect1d(kinds[fitted], kinds[~fitted]):
                judged = ~fitted & (kinds == kind)
                total += _gain_elsewhere(gains, fitted & (kinds == kind), judged) - _gain_elsewhere(gains, fitted, judged)
    return total


def _gain_elsewhere(gains: CopyGains, fitted: npt.NDArray[np.bool_], judged: npt.NDArray[np.bool_]) -> float:
    """What the best matter of some copies gains in others."""
    total = 0.0
    for here, (g, f, _) in zip(_of_copies(gains, fitted), _of_copies(gains, judged), strict=True):
        x = bounded_step(*here)
        total -= float(g @ x + 0.5 * x @ f @ x)
    return total


def _kinds(gains: CopyGains, matrix: Integers) -> Integers:
    """(cells,) which coset of the sublattice each cell belongs to."""
    place = np.round((gains.cells @ np.linalg.inv(matrix)) % 1.0, 6) % 1.0
    return np.unique(place, axis=0, return_inverse=True)[1].ravel()


def _of_copies(gains: CopyGains, chosen: npt.NDArray[np.bool_]) -> Iterator[tuple[Array, Array, Array]]:
    """Of each column, gradient and curvature by matter that is the same in the chosen copies, and the least of it."""
    weight = gains.weight[:, chosen].sum(1)
    gradient = gains.gradient[:, chosen].sum(1)
    return zip(gradient, gains.curvature * weight[:, None, None], gains.least, strict=True)


def even_gain(gains: CopyGains) -> float:
    """What the best matter gains that is the same in all copies."""
    return sum(
        _bounded_gain(g, f, least) for g, f, least in zip(gains.gradient.sum(1), gains.curvature, gains.least, strict=True)
    )


def find_stackings(gains: CopyGains, thickness_A: float, period_A: float | None, count: int) -> list[Stacking]:
    """The stackings of highest gain, over what their parameters must gain; the best first.

    Args:
        thickness_A: of the specimen; period_A: along the beam, where it is known.
        count: how many at most.
    """
    periods = np.arange(SHORTEST_A, min(LONGEST_A, 0.8 * thickness_A), STEP_A) if period_A is None else np.array([period_A])
    shifts = np.arange(0, 1, STEP)
    trials = [
        Stacking(c, np.array(shift), _free_gain(gains, c, np.array(shift)))
        for c in periods
        for shift in itertools.product(shifts, shifts)
    ]
    distinct: list[Stacking] = []
    for trial in sorted(trials, key=lambda t: -t.gain):
        if not any(_near(trial, other) for other in distinct):
            distinct.append(trial)
        if len(distinct) == REFINED:
            break
    level = even_gain(gains) + PARAMETER_NATS * (BINS * len(gains.least) - gains.least.size)

    def refined(stacking: Stacking, free: bool, most: int) -> Stacking:
        def loss(x: Array) -> float:
            if not SHORTEST_A < x[0] < thickness_A:
                return 0.0
            return -(_free_gain if free else _matter_gain)(gains, float(x[0]), x[1:])

        start = np.array([stacking.period_A, *stacking.shift])
        simplex = start + np.array([[0, 0, 0], [0.03 * start[0], 0, 0], [0, 0.03, 0], [0, 0, 0.03]])
        found = minimize(loss, start, method="Nelder-Mead", options={"maxfev": most, "initial_simplex": simplex}).x
        gain = _matter_gain(gains, float(found[0]), found[1:]) - level
        return Stacking(float(found[0]), found[1:] % 1.0, gain)

    rough = sorted((refined(s, True, 100) for s in distinct), key=lambda s: -s.gain)[: 3 * count]
    parts = [Stacking(s.period_A / k, s.shift * k % 1.0, s.gain) for s in rough[:count] for k in (2, 3)]
    fine = [refined(s, False, 60) for s in rough + [part for part in parts if part.period_A > SHORTEST_A]]
    result: list[Stacking] = []
    for stacking in sorted(fine, key=lambda s: -s.gain):
        simpler = (other for other in fine if other.gain > AS_GOOD * stacking.gain)
        if not any(_near(stacking, o) for o in result) and not any(_is_multiple(stacking, o) for o in simpler):
            result.append(stacking)
    return result[:count]


def occupancy(period_A: float, shift: Array, cells: Integers, bins: int, slices: int, slice_thickness_A: float) -> Array:
    """(copies, bins, slices) of one atom's matter that lies in each slice, were it somewhere about its bin of the period.

    Bins fade into their neighbours: an atom between two of them is half in each.
    """
    step = slice_thickness_A / FINE
    depth = (np.arange(slices * FINE) + 0.5) * step
    part = (depth[None] / period_A - (cells @ shift)[:, None]) * bins - 0.5
    away = np.abs((part[:, None] - np.arange(bins)[:, None] + bins / 2) % bins - bins / 2)
    split = np.maximum(1 - away, 0.0).reshape(len(cells), bins, slices, FINE).sum(-1)
    return np.asarray(split * step / (period_A / bins))


def bin_sources(painter: Painter, stacking: Stacking, bins: int, thickness_A: float) -> list[Mapping[int, Tensor]]:
    """Sources of one period's matter: an oxygen atom in each bin of each column, then the other features, spread evenly."""
    waves = painter.waves
    result: list[Mapping[int, Tensor]] = []
    for where, table in zip(painter.places, _tables(painter, stacking, bins, thickness_A), strict=True):
        for u in range(bins):
            there = np.flatnonzero(table[:, u].any(0))
            spectra = {int(s): waves.spectrum(where, table[:, u, s]) * painter.factors[0] for s in there}
            result.append({s: waves.plane(spectrum) for s, spectrum in spectra.items()})
    share = thickness_A / stacking.period_A / waves.slices
    shared = [shape[i] * share for i in range(len(painter.places)) for shape in painter.shapes[1:]]
    return result + [dict.fromkeys(range(waves.slices), image) for image in shared]


def draw_matter(painter: Painter, stacking: Stacking, matter: Array, bins: int, thickness_A: float) -> Tensor:
    """(slices, drawn, drawn) phase, rad, of (columns, bins + other features) matter, as ``bin_sources`` have it."""
    waves = painter.waves
    tables = _tables(painter, stacking, bins, thickness_A)
    weights = [np.einsum("nus,u->ns", table, row[:bins]) for table, row in zip(tables, matter, strict=True)]
    share = thickness_A / stacking.period_A / waves.slices
    others = sum_of(
        painter.spectra[i] * painter.factors[f] * float(share * row[bins + f - 1])
        for i, row in enumerate(matter)
        for f in range(1, len(painter.factors))
    )
    first = [
        sum_of(waves.spectrum(where, weight[:, s]) for where, weight in zip(painter.places, weights, strict=True))
        for s in range(waves.slices)
    ]
    return torch.stack([waves.image(spectrum * painter.factors[0] + others) for spectrum in first])


def _tables(painter: Painter, stacking: Stacking, bins: int, thickness_A: float) -> Iterator[Array]:
    """Of each column, the (copies, bins, slices) ``occupancy`` of its copies."""
    columns, slices = painter.columns, painter.waves.slices
    inverse = np.linalg.inv(columns.lattice_A)
    for i, where in enumerate(painter.places):
        cells = np.rint((where - columns.origin_A) @ inverse - columns.fractional[i]).astype(np.int64)
        yield occupancy(stacking.period_A, stacking.shift, cells, bins, slices, thickness_A / slices)


def _near(a: Stacking, b: Stacking) -> bool:
    away = np.abs((a.shift - b.shift + 0.5) % 1 - 0.5)
    return bool(abs(a.period_A / b.period_A - 1) < 0.12 and (away < 0.12).all())


def _is_multiple(long: Stacking, short: Stacking) -> bool:
    """Whether the one is the other told with a period twice or three times as long."""
    ratio = round(long.period_A / short.period_A)
    if ratio < 2 or abs(long.period_A / short.period_A - ratio) > 0.06 * ratio:
        return False
    away = np.abs((long.shift * ratio - short.shift + 0.5) % 1 - 0.5)
    return bool((away < 0.15).all())


def _by_bin(gains: CopyGains, period_A: float, shift: Array) -> tuple[Array, Array, Array]:
    """(columns, bins) gradient, (columns, bins, bins) curvature by the matter in each bin, (columns,) the least of it."""
    slices = gains.least.shape[1]
    table = occupancy(period_A, shift, gains.cells, BINS, slices, gains.slice_thickness_A)
    gradient = np.einsum("mus,nms->nu", table, gains.gradient, optimize=True)
    spread = table.reshape(-1, slices) @ gains.curvature  # (columns, cells * bins, slices)
    weighted = spread.reshape(len(gains.weight), *table.shape) * gains.weight[:, :, None, None]
    curvature = np.einsum("nmus,mvs->nuv", weighted, table, optimize=True)
    return gradient, curvature, gains.least[:, 0] * (period_A / (BINS * gains.slice_thickness_A))


def _free_gain(gains: CopyGains, period_A: float, shift: Array) -> float:
    gradient, curvature, _ = _by_bin(gains, period_A, shift)
    step = np.linalg.solve(curvature + 4 * FREE_NATS * np.eye(BINS), gradient[..., None])[..., 0]
    return 0.5 * float((gradient * step).sum())


def _matter_gain(gains: CopyGains, period_A: float, shift: Array) -> float:
    parts = zip(*_by_bin(gains, period_A, shift), strict=True)
    return sum(_bounded_gain(g, f, np.full(BINS, least)) for g, f, least in parts)


def added_matter(gains: CopyGains, stacking: Stacking, bins: int) -> Array:
    """(columns, bins) of the matter, in oxygen atoms, that a stacking's gain comes from, beyond the even one."""
    parts = zip(*_by_bin(gains, stacking.period_A, stacking.shift), strict=True)
    matter = np.array([bounded_step(g, f, np.full(BINS, least)) for g, f, least in parts])
    there, here = (np.arange(bins) + 0.5) / bins, (np.arange(BINS) + 0.5) / BINS
    return np.array([np.interp(there, here, row, period=1.0) for row in matter]) * (BINS / bins)


def bounded_step(gradient: Array, curvature: Array, least: Array) -> Array:
    """The (parameters,) step of least ``gradient x + x curvature x / 2``, with a weak prior, none of it below ``least``."""
    root = np.linalg.cholesky(curvature + FREE_NATS * np.eye(len(gradient)))
    return np.asarray(lsq_linear(root.T, -np.linalg.solve(root, gradient), (least - 1e-9, np.inf), method="bvls").x)


def _bounded_gain(gradient: Array, curvature: Array, least: Array) -> float:
    """The most that ``-gradient x - x curvature x / 2`` can be with x not below ``least``."""
    x = bounded_step(gradient, curvature, least)
    return -float(gradient @ x + 0.5 * x @ curvature @ x)


def best_superlattice(gains: CopyGains, largest: int = LARGEST_INDEX) -> tuple[Integers | None, float]:
    """The smallest sublattice, up to an index, that gains nearly as much as any, and its gain; None where none gains."""
    found = [(matrix, superlattice_gain(gains, matrix)) for matrix in superlattices(min(largest, LARGEST_INDEX))]
    best = max((gain for _, gain in found), default=0.0)
    if best <= 0:
        return None, 0.0
    return next((matrix, gain) for matrix, gain in found if gain > 0.85 * best)
