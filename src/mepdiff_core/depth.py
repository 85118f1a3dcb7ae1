"""From matter spread along the beam to atoms at depths: periods tried, occupations found, and drawn.

For a period along the beam, an atom at depth z lies in the same slices as one a little deeper; the depths fall into slots.
The quadratic misfit by slice (``atom_waves``) becomes one by slot, and ``occupation`` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mepdiff_core.columns import Columns, Painter
from mepdiff_core.element_features import FEATURES, LIGHTEST, NEVER, element_table
from mepdiff_core.occupation import Chain, Occupation, Problem

Array = npt.NDArray[np.float64]

NARROWEST_A = 0.04
"""Slots narrower than this are left out: they hold an atom with no likelihood worth the name."""
NEAREST_A = 1.7
"""Two atoms are nowhere nearer than this; of two slots the farthest ends count."""
ATOM_COST, ELEMENT_COST = 6.0, 5.0
"""Nats that an atom, and that another element, must gain: about what a free depth and a free choice of element cost."""
SHORTEST_PERIOD_A = 2.2


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
    edges = edges[(edges >= 0) & (edges <= period_A)]
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
    """

    period_A: float | None
    column: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    depth_A: Array
    slot: npt.NDArray[np.int64]
    occupied: Array
    energy: float
    prior: float

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
    """The misfit by matter: one parameter for the first feature of each slice of each column, and one for each other feature
    of each column, evenly along the beam; around a ``centre``. Misfits add up over patterns."""

    misfit: float
    gradient: Array
    fisher: Array
    centre: Array
    columns: int
    slices: int


def sources(painter: Painter, slices: int) -> Sequence[Mapping[int, Tensor]]:
    """The sources of ``Matter``'s parameters, in its order."""
    n = len(painter.columns)
    by_slice = [{s: painter.shapes[0][i]} for i in range(n) for s in range(slices)]
    shared = [painter.shapes[f][i] / slices for i in range(n) for f in range(1, FEATURES)]
    return by_slice + [dict.fromkeys(range(slices), image) for image in shared]


def matter_of_columns(columns: Columns, slices: int) -> Array:
    """The parameters of columns that are even along the beam."""
    first = np.repeat(columns.amounts[:, 0] / slices, slices)
    return np.concatenate([first, columns.amounts[:, 1:].ravel()])


def matter_of_atoms(arrangement: Arrangement, columns: int, slices: int) -> Array:
    """The parameters of atoms."""
    features = element_table().features[arrangement.number]
    first, others = np.zeros((columns, slices)), np.zeros((columns, FEATURES - 1))
    np.add.at(first, arrangement.column, features[:, :1] * arrangement.occupied)
    np.add.at(others, arrangement.column, features[:, 1:] * arrangement.occupied.sum(1, keepdims=True))
    return np.concatenate([first.ravel(), others.ravel()])


class DepthSearch:
    """Occupations for one quadratic misfit.

    Args:
        matter: the misfit; columns: whose distances forbid overlaps.
        slice_thickness_A: Å.
        elements: atomic numbers that may occur; None for all that occur in crystals.
    """

    def __init__(
        self, matter: Matter, columns: Columns, slice_thickness_A: float, elements: Sequence[int] | None = None
    ) -> None:
        self.matter, self.slice_thickness_A = matter, slice_thickness_A
        self.distances_A = columns.distances_A()
        table = element_table().features
        self.numbers = np.array(
            sorted(elements) if elements else [z for z in range(LIGHTEST, len(table)) if z not in NEVER], np.int64
        )
        self.table = table[self.numbers]
        self.known = elements is not None
        # misfit(x) = base + slope x + x fisher x / 2
        m = matter
        self.base = float(m.misfit - m.gradient @ m.centre + 0.5 * m.centre @ m.fisher @ m.centre)
        self.slope = m.gradient - m.fisher @ m.centre

    def problem(self, period_A: float | None) -> tuple[Problem, Slots]:
        """The misfit by occupied slots."""
        m, n, slices = self.matter, self.matter.columns, self.matter.slices
        slots = make_slots(period_A, slices, self.slice_thickness_A)
        count = len(slots.depth_A)
        lift = np.zeros((n, count, FEATURES, len(m.gradient)))
        for i in range(n):
            lift[i, :, 0, i * slices : (i + 1) * slices] = slots.slices
            for f in range(1, FEATURES):
                lift[i, :, f, n * slices + i * (FEATURES - 1) + f - 1] = slots.slices.sum(1)
        flat = lift.reshape(-1, len(m.gradient))
        shape = (n, count, FEATURES)
        apart = np.abs(slots.depth_A[:, None] - slots.depth_A)
        if period_A is not None:
            apart = np.minimum(apart, period_A - apart)
        apart = apart + (slots.width_A[:, None] + slots.width_A) / 2
        near = np.hypot(apart[None, :, None, :], self.distances_A[:, None, :, None]) < NEAREST_A
        for i in range(n):
            np.fill_diagonal(near[i, :, i, :], False)
        problem = Problem(
            self.base,
            (flat @ self.slope).reshape(shape),
            (flat @ m.fisher @ flat.T).reshape(*shape, *shape),
            self.table,
            np.full(len(self.numbers), ATOM_COST),
            -np.log(slots.width_A / slots.width_A.sum()),
            0.0 if self.known else ELEMENT_COST,
            near,
        )
        return problem, slots

    def search(
        self, period_A: float | None, rng: np.random.Generator, hot: float, sweeps: int, start: Arrangement | None = None
    ) -> Arrangement:
        """The best arrangement met while cooling from ``hot`` nats to 1, from nothing or from another of the same period."""
        problem, slots = self.problem(period_A)
        chain = Chain(problem, self._label(start, slots), rng, most=4 if period_A is None else 3)
        return self._arrangement(chain.search(hot, 1.0, sweeps), period_A, problem, slots)

    def chain(self, start: Arrangement, rng: np.random.Generator) -> tuple[Chain, Slots]:
        """A chain that draws from the quadratic posterior, at an arrangement."""
        problem, slots = self.problem(start.period_A)
        chain = Chain(problem, self._label(start, slots), rng, most=4 if start.period_A is None else 3, exact=True)
        return chain, slots

    def arrangement(self, occupation: Occupation, period_A: float | None) -> Arrangement:
        """An occupation of the period's slots as atoms."""
        problem, slots = self.problem(period_A)
        return self._arrangement(occupation, period_A, problem, slots)

    def _label(self, start: Arrangement | None, slots: Slots) -> npt.NDArray[np.int64]:
        label = np.zeros((self.matter.columns, len(slots.depth_A)), np.int64)
        if start is not None:
            label[start.column, start.slot] = np.searchsorted(self.numbers, start.number) + 1
        return label

    def _arrangement(self, found: Occupation, period_A: float | None, problem: Problem, slots: Slots) -> Arrangement:
        column, slot = np.nonzero(found.label)
        element = found.label[column, slot] - 1
        prior = float(
            problem.element_cost[element].sum()
            + problem.slot_cost[slot].sum()
            + problem.first_cost * len(np.unique(element))
        )
        return Arrangement(
            period_A,
            column,
            self.numbers[element],
            slots.depth_A[slot],
            slot,
            slots.slices[slot],
            found.energy,
            prior,
        )
