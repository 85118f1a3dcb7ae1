"""From matter spread along the beam to atoms at depths: periods tried, occupations found, and drawn.

For a period along the beam, an atom at depth z lies in the same slices as one a little deeper; the depths fall into slots.
The quadratic misfit by slice (``atom_waves``) becomes one by slot, and ``occupation`` does the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mepdiff_core.columns import Columns, Painter
from mepdiff_core.element_features import FEATURES, element_table, possible_elements
from mepdiff_core.occupation import Chain, Occupation, Problem, places, products
from mepdiff_core.stacking import Stacking

Array = npt.NDArray[np.float64]

NARROWEST_A = 0.04
"""Slots narrower than this are left out: they hold an atom with no likelihood worth the name."""
NEAREST_A = 1.7
"""Two atoms are nowhere nearer than this; of two slots the farthest ends count."""
TWINS_A = 0.5
"""Columns nearer than this are twins."""
HEAVY = 6.0
"""Matter, in oxygen atoms, above which a column's waves are followed to second order: below, that adds no nat."""
ATOM_COST, ELEMENT_COST = 6.0, 5.0
"""Nats that an atom, and that another element, must gain: about what a free depth and a free choice of element cost."""
ELEMENTS_BESIDE, NEIGHBOURS = 3, 2
"""Elements this near in the periodic table's order are compared at the end, the next ones by the model itself: they scatter
nearly alike."""
SHORTEST_PERIOD_A = 2.2
PERIOD_STEP_A = 0.01
"""Of the periods that are compared once the slices are known."""
LIKE_STEP_A, LIKE_A = 0.05, 0.15
"""Of the periods tried at last, and how far around those that fit what was found."""


@dataclass(frozen=True)
class Slots:
    """Attributes: ``depth_A``, ``width_A`` (slots,): middle and width; ``slices`` (slots, slices): copies in each slice."""

    depth_A: Array
    width_A: Array
    slices: Array


def make_slots(period_A: float | None, slices: int, slice_thickness_A: float) -> Slots:
    """The slots of one period; without a period each slice is one."""
    thickness = slices * slice_thickness_A
    if period_A is None:
        middle = (np.arange(slices, dtype=np.float64) + 0.5) * slice_thickness_A
        return Slots(middle, np.full(slices, float(slice_thickness_A)), np.eye(slices))
    faces = np.arange(slices + 1) * slice_thickness_A
    crossings = (faces[:, None] - np.arange(0, thickness, period_A)).ravel()
    edges = np.unique(np.round(np.concatenate([[0.0, period_A], crossings]), 6))
    edges = edges[(edges >= 0) & (edges <= round(period_A, 6))]
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    middle, width = middle[width > NARROWEST_A], width[width > NARROWEST_A]
    table = np.zeros((len(middle), slices))
    for row, start in zip(table, middle, strict=True):
        for depth in np.arange(start, thickness, period_A):
            row[int(depth / slice_thickness_A)] += 1
    return Slots(middle, width, table)


@dataclass(frozen=True)
class Arrangement:
    """Atoms of the columns, one period of them.

    Attributes:
        period_A: None where the crystal does not repeat along the beam.
        column, number: (n,) which column and which element; depth_A: (n,) from the entrance face, Å.
        slot: (n,) which of the period's slots.
        occupied: (n, slices) how many copies of each atom lie in each slice.
        energy: quadratic misfit and prior, nats; prior: the latter.
        shift: (2,) how much deeper the next cells along t1 and t2 lie, in periods; ``occupied`` is then by bin.
    """

    period_A: float | None
    column: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    depth_A: Array
    slot: npt.NDArray[np.int64]
    occupied: Array
    energy: float
    prior: float
    shift: Array | None = None

    def same_as(self, other: Arrangement) -> bool:
        """Whether the same elements lie in the same slices."""
        return len(self.number) > 0 and self._key() == other._key()

    def _key(self) -> tuple[tuple[int, int, int, int], ...]:
        rows, slices = np.nonzero(self.occupied)
        return tuple(
            sorted(
                (int(self.column[r]), int(s), int(self.number[r]), round(float(self.occupied[r, s])))
                for r, s in zip(rows, slices, strict=True)
            )
        )


@dataclass(frozen=True)
class Matter:
    """The misfit by matter, around a centre; what the parameters are, ``occupation.Problem`` says.

    Attributes:
        misfit, gradient, fisher: at the centre, as ``AtomWaves.quadratic`` gives them.
        centre: (columns, bins + other features).
        heavy: columns followed to second order.
    """

    misfit: float
    gradient: Array
    fisher: Array
    centre: Array
    heavy: tuple[int, ...]

    def __add__(self, other: Matter) -> Matter:
        """That of more patterns, around the same centre."""
        return replace(
            self,
            misfit=self.misfit + other.misfit,
            gradient=self.gradient + other.gradient,
            fisher=self.fisher + other.fisher,
        )

    def parameters(self, matter: Array) -> Array:
        """Of (columns, bins + other features) matter."""
        columns, width = matter.shape
        bins = width - FEATURES + 1
        away = matter - self.centre
        result = np.zeros(len(self.gradient))
        for column, place in enumerate(places(columns, bins, FEATURES - 1, self.heavy)):
            more = products(away[column : column + 1, :bins])[0] if column in self.heavy else np.zeros(0)
            result[place] = np.concatenate([away[column], more])
        return result

    def at(self, matter: Array) -> float:
        """The misfit of matter, nats."""
        x = self.parameters(matter)
        return float(self.misfit + self.gradient @ x + 0.5 * x @ self.fisher @ x)


def too_near(
    columns: Columns, slots: Slots, period_A: float | None, shift: Array, nearest_A: float = NEAREST_A
) -> npt.NDArray[np.bool_]:
    """(columns, slots, columns, slots) whether two atoms, wherever they are in their slots, are nearer than ``nearest_A``.

    Args:
        shift: (2,) how much deeper the next cells lie, in periods.
    """
    n, count = len(columns), len(slots.depth_A)
    below = slots.depth_A[None, :] - slots.depth_A[:, None]
    widths = (slots.width_A[:, None] + slots.width_A) / 2
    near = np.zeros((n, count, n, count), bool)
    step = columns.fractional[None] - columns.fractional[:, None]
    for cell in itertools.product(range(-2, 3), repeat=2):
        plane = np.linalg.norm((step + cell - np.round(step)) @ columns.lattice_A, axis=-1)
        one, other = np.nonzero(plane < nearest_A)
        deeper = (np.array(cell) - np.round(step[one, other])) @ shift * (period_A or 0.0)
        apart = np.abs(below + deeper[:, None, None])
        if period_A is not None:
            apart = np.minimum(apart % period_A, -apart % period_A)
        near[one, :, other, :] |= np.hypot(apart + widths, plane[one, other, None, None]) < nearest_A
    for i in range(n):
        np.fill_diagonal(near[i, :, i, :], False)
    return near


def twins_of(columns: Columns) -> dict[int, tuple[int, ...]]:
    """Of a column, those so near that the patterns hardly tell whose an atom is."""
    near = (columns.distances_A() < TWINS_A) & ~np.eye(len(columns), dtype=bool)
    return {i: tuple(int(j) for j in np.flatnonzero(row)) for i, row in enumerate(near) if row.any()}


def heavy_columns(columns: Columns) -> tuple[int, ...]:
    """Columns whose waves are to be followed to second order."""
    return tuple(int(i) for i in np.flatnonzero(columns.amounts[:, 0] > HEAVY))


def sources(painter: Painter, slices: int) -> Sequence[Mapping[int, Tensor]]:
    """The sources of ``Matter``'s parameters but the products, in its order."""
    n = len(painter.columns)
    by_slice = [{s: painter.shapes[0][i]} for i in range(n) for s in range(slices)]
    shared = [painter.shapes[f][i] / slices for i in range(n) for f in range(1, FEATURES)]
    return by_slice + [dict.fromkeys(range(slices), image) for image in shared]


def matter_of_columns(columns: Columns, slices: int) -> Array:
    """(columns, slices + other features) matter of columns that are even along the beam."""
    first = np.repeat(columns.amounts[:, :1] / slices, slices, axis=1)
    return np.concatenate([first, columns.amounts[:, 1:]], axis=1)


def matter_of_atoms(arrangement: Arrangement, columns: int, slices: int) -> Array:
    """(columns, slices + other features) matter of atoms."""
    features = element_table().features[arrangement.number]
    matter = np.zeros((columns, slices + FEATURES - 1))
    np.add.at(matter[:, :slices], arrangement.column, features[:, :1] * arrangement.occupied)
    np.add.at(matter[:, slices:], arrangement.column, features[:, 1:] * arrangement.occupied.sum(1, keepdims=True))
    return matter


@dataclass(frozen=True)
class Repeat:
    """Attributes: ``arrangement`` of the fewest atoms; ``periods_A``: the range of periods that give the same slices."""

    arrangement: Arrangement
    periods_A: tuple[float, float] | None


def shortest_repeat(found: Arrangement, slices: int, slice_thickness_A: float) -> Repeat:
    """The same atoms in the same slices, told by the period that needs the fewest of them.

    Several periods may put atoms into the same slices; the patterns can't tell them apart, and the likeliest is chosen: the
    one that leaves the depths most room.
    """
    wanted: dict[tuple[int, int], Array] = {}
    for column, number, row in zip(found.column, found.number, found.occupied, strict=True):
        key = (int(column), int(number))
        wanted[key] = wanted.get(key, np.zeros(slices)) + row
    grid = np.arange(SHORTEST_PERIOD_A, slices * slice_thickness_A, PERIOD_STEP_A).round(3)
    tables = [make_slots(float(period), slices, slice_thickness_A) for period in grid]
    covers = [_cover_all(slots.slices, wanted) for slots in tables]
    counts = np.array([np.inf if cover is None else sum(map(len, cover)) for cover in covers])
    if not len(counts) or counts.min() > len(found.number):
        return Repeat(found, None)
    fewest = np.flatnonzero(counts == counts.min())
    likeliest = min(fewest, key=lambda i: _room(tables[i], covers[i] or []))
    run = next(r for r in np.split(fewest, np.flatnonzero(np.diff(fewest) > 1) + 1) if likeliest in r)
    period, slots, cover = float(grid[likeliest]), tables[likeliest], covers[likeliest]
    assert cover is not None
    column, number = (np.repeat([key[i] for key in wanted], [len(c) for c in cover]) for i in (0, 1))
    slot = np.concatenate([np.array(c, np.int64) for c in cover])
    prior = ATOM_COST * len(slot) + _room(slots, cover)
    prior += found.prior - ATOM_COST * len(found.number) if found.period_A is None else 0.0
    arrangement = Arrangement(
        period,
        column.astype(np.int64),
        number.astype(np.int64),
        slots.depth_A[slot],
        slot,
        slots.slices[slot],
        found.energy - found.prior + prior,
        prior,
    )
    return Repeat(arrangement, (float(grid[run[0]]), float(grid[run[-1]])))


def _room(slots: Slots, cover: Sequence[Sequence[int]]) -> float:
    """Nats that depths drawn anywhere in the period cost by lying in these slots."""
    width = slots.width_A[[slot for places in cover for slot in places]]
    return -float(np.log(width / slots.width_A.sum()).sum())


def periods_like(found: Sequence[Arrangement], slices: int, slice_thickness_A: float) -> Array:
    """Periods, Å, that put these atoms into the same slices, their halves and thirds, and some around them."""
    near = [np.zeros(0)]
    for arrangement in found:
        period = arrangement.period_A
        if period is None:
            continue
        low, high = shortest_repeat(arrangement, slices, slice_thickness_A).periods_A or (period, period)
        low, high = min(low, period), max(high, period)
        near += [np.arange(low / n - LIKE_A, high / n + LIKE_A + 1e-3, LIKE_STEP_A) for n in (1, 2, 3)]
    fine: Array = np.unique(np.round(np.concatenate(near), 2))
    return fine[(fine >= SHORTEST_PERIOD_A) & (fine < slices * slice_thickness_A)]


def _cover_all(rows: Array, wanted: Mapping[tuple[int, int], Array]) -> list[list[int]] | None:
    """For each column and element the fewest (slots, slices) rows that fill exactly the wanted slices, or None."""
    result = []
    for target in wanted.values():
        cover = _cover(target, rows)
        if cover is None:
            return None
        result.append(cover)
    return result


def _cover(target: Array, rows: Array) -> list[int] | None:
    if not target.any():
        return []
    first = int(np.flatnonzero(target)[0])
    best: list[int] | None = None
    for k in np.flatnonzero((rows[:, first] > 0) & np.all(rows <= target, axis=1)):
        rest = _cover(target - rows[k], rows)
        if rest is not None and (best is None or len(rest) + 1 < len(best)):
            best = [int(k), *rest]
    return best


class DepthSearch:
    """Occupations for one quadratic misfit.

    Args:
        matter: the misfit; columns: whose distances forbid overlaps.
        slice_thickness_A: Å.
        elements: atomic numbers that may occur; None for all that occur in crystals.
        stacking: where cells shift along the beam; the matter is then by bin of the period.
    """

    def __init__(
        self,
        matter: Matter,
        columns: Columns,
        slice_thickness_A: float,
        elements: Sequence[int] | None = None,
        stacking: Stacking | None = None,
    ) -> None:
        self.matter, self.slice_thickness_A = matter, slice_thickness_A
        self.columns, self.stacking = columns, stacking
        self.numbers = possible_elements(elements)
        self.table = element_table().features[self.numbers]
        self.known = elements is not None
        self.few = self.numbers if self.known else self.numbers[1::3]
        """Every third element, enough to compare periods."""
        self._problems: dict[tuple[float | None, bytes], tuple[Problem, Slots]] = {}

    def problem(self, period_A: float | None, among: npt.NDArray[np.int64] | None = None) -> tuple[Problem, Slots]:
        """The misfit by occupied slots; that of the last period asked for is kept. ``among``: atomic numbers, or all."""
        key = (period_A, b"" if among is None else among.tobytes())
        if key not in self._problems:
            problem, slots = self._problem(period_A)
            if among is not None:
                problem = replace(problem, element_cost=np.where(np.isin(self.numbers, among), problem.element_cost, np.inf))
            self._problems = {key: (problem, slots)}
        return self._problems[key]

    def _problem(self, period_A: float | None) -> tuple[Problem, Slots]:
        m, bins = self.matter, self.matter.centre.shape[1] - FEATURES + 1
        if self.stacking is None:
            slots = make_slots(period_A, bins, self.slice_thickness_A)
        else:
            period_A = self.stacking.period_A
            width = period_A / bins
            slots = Slots((np.arange(bins) + 0.5) * width, np.full(bins, width), np.eye(bins))
        near = too_near(self.columns, slots, period_A, np.zeros(2) if self.stacking is None else self.stacking.shift)
        problem = Problem(
            m.misfit,
            m.gradient,
            m.fisher,
            m.centre,
            m.heavy,
            slots.slices,
            self.table,
            np.full(len(self.numbers), ATOM_COST),
            -np.log(slots.width_A / slots.width_A.sum()),
            0.0 if self.known else ELEMENT_COST,
            near,
            twins_of(self.columns),
        )
        return problem, slots

    def search(
        self,
        period_A: float | None,
        rng: np.random.Generator,
        hot: float,
        sweeps: int,
        start: Arrangement | None = None,
        among: npt.NDArray[np.int64] | None = None,
    ) -> Arrangement:
        """The best arrangement met while cooling from ``hot`` nats to 1, from nothing or from another of the same period;
        ``among``: atomic numbers that it may have."""
        problem, slots = self.problem(period_A, among)
        chain = Chain(problem, self._label(start, slots), rng, most=4 if period_A is None else 3)
        return self._atoms(chain.search(hot, 1.0, sweeps), problem, slots, period_A)

    def chain(self, start: Arrangement, rng: np.random.Generator) -> tuple[Chain, Slots]:
        """A chain that draws from the quadratic posterior, at an arrangement."""
        problem, slots = self.problem(start.period_A)
        chain = Chain(problem, self._label(start, slots), rng, most=4 if start.period_A is None else 3, exact=True)
        return chain, slots

    def arrangement(self, occupation: Occupation, period_A: float | None) -> Arrangement:
        """An occupation of the period's slots as atoms."""
        problem, slots = self.problem(period_A)
        return self._atoms(occupation, problem, slots, period_A)

    def energy(self, arrangement: Arrangement) -> float:
        """Its quadratic misfit and prior, nats."""
        columns, width = self.matter.centre.shape
        return self.matter.at(matter_of_atoms(arrangement, columns, width - FEATURES + 1)) + arrangement.prior

    def other_elements(self, arrangement: Arrangement) -> list[Arrangement]:
        """The same places with an element, or a single atom, made another."""
        used = np.unique(arrangement.number)
        changed = [
            np.where(arrangement.number == old, new, arrangement.number)
            for old in used
            for new in self.numbers
            if new != old and (abs(new - old) <= ELEMENTS_BESIDE or new in used)
        ]
        for atom, old in enumerate(arrangement.number):
            for new in self.numbers[(np.abs(self.numbers - old) <= ELEMENTS_BESIDE) | np.isin(self.numbers, used)]:
                numbers = arrangement.number.copy()
                numbers[atom] = new
                changed.append(numbers)
        return self._renumbered(arrangement, changed)

    def like_elements(self, arrangement: Arrangement) -> list[Arrangement]:
        """The same places with like elements made one of them, or an element made one of its next neighbours."""
        number = arrangement.number
        used = np.unique(number)
        changed = []
        for target in used:
            near = np.abs(number - target) <= ELEMENTS_BESIDE
            if len(np.unique(number[near])) > 1:
                changed.append(np.where(near, target, number))
        for old in used:
            beside = self.numbers[(np.abs(self.numbers - old) <= NEIGHBOURS) & (self.numbers != old)]
            changed += [np.where(number == old, new, number) for new in beside]
        return self._renumbered(arrangement, changed)

    def merged(self, arrangement: Arrangement) -> list[Arrangement]:
        """An atom in the place of two or all of a column's, of an element that scatters as much: a heavy atom may have been
        told as several light ones at about its depth, which no single step leads back from."""
        strength, kept_of = element_table().features[:, 0], ("column", "depth_A", "slot", "occupied")
        result = []
        for column in np.unique(arrangement.column):
            mine = np.flatnonzero(arrangement.column == column)
            for group in [*itertools.combinations(mine, 2), *([tuple(mine)] if len(mine) > 2 else [])]:
                atoms = np.array(group)
                heaviest = atoms[np.argmax(strength[arrangement.number[atoms]])]
                misses = np.abs(strength[self.numbers] - strength[arrangement.number[atoms]].sum())
                number = arrangement.number.copy()
                number[heaviest] = self.numbers[np.argmin(misses)]
                kept = np.setdiff1d(np.arange(len(number)), atoms[atoms != heaviest])
                new = len(np.unique(number[kept])) - len(np.unique(arrangement.number))
                cost = ATOM_COST * (len(kept) - len(number)) + (0.0 if self.known else ELEMENT_COST * new)
                rest = {name: getattr(arrangement, name)[kept] for name in kept_of}
                result.append(replace(arrangement, number=number[kept], prior=arrangement.prior + cost, **rest))
        return result

    def _renumbered(self, arrangement: Arrangement, numbers: Sequence[npt.NDArray[np.int64]]) -> list[Arrangement]:
        """The arrangement with other elements, each once."""
        count = len(np.unique(arrangement.number))
        cost = 0.0 if self.known else ELEMENT_COST
        different = {n.tobytes(): n for n in numbers}.values()
        return [
            replace(arrangement, number=n, prior=arrangement.prior + cost * (len(np.unique(n)) - count)) for n in different
        ]

    def _atoms(self, found: Occupation, problem: Problem, slots: Slots, period_A: float | None) -> Arrangement:
        shift = None if self.stacking is None else self.stacking.shift
        return as_arrangement(found, self.numbers, problem, slots, period_A, shift)

    def _label(self, start: Arrangement | None, slots: Slots) -> npt.NDArray[np.int64]:
        label = np.zeros((len(self.matter.centre), len(slots.depth_A)), np.int64)
        if start is not None:
            label[start.column, start.slot] = np.searchsorted(self.numbers, start.number) + 1
        return label


def as_arrangement(
    found: Occupation,
    numbers: npt.NDArray[np.int64],
    problem: Problem,
    slots: Slots,
    period_A: float | None,
    shift: Array | None = None,
) -> Arrangement:
    """An occupation as atoms; ``numbers``: (elements,) atomic numbers of the problem's elements."""
    column, slot = np.nonzero(found.label)
    element = found.label[column, slot] - 1
    prior = problem.element_cost[element].sum() + problem.slot_cost[slot].sum()
    return Arrangement(
        period_A,
        column,
        numbers[element],
        slots.depth_A[slot],
        slot,
        slots.slices[slot],
        found.energy,
        float(prior + problem.first_cost * len(np.unique(element))),
        shift,
    )
