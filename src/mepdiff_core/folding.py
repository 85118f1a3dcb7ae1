"""Columns that are one another's copies, a part of a period deeper: the smaller cell, and all that its atoms may be.

Along the threefold axis of a rhombohedral crystal, and wherever else a lattice is centred, several columns of the projected
cell hold the same atoms in the same order, each column further along. Where the period is longer than the specimen is thick,
each lacks another part of it, their amounts differ a little, and the projection alone does not tell. One column is then all
there is to find: its places are so few that all of them are tried, and the waves are followed to second order in the matter
of every slice of every copy, products of two of them included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.batches import Indices
from mepdiff_core.columns import Columns, sum_of
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.depth import (
    ATOM_COST,
    ELEMENT_COST,
    Arrangement,
    Matter,
    Slots,
    as_arrangement,
    matter_of_atoms,
    sources,
    too_near,
)
from mepdiff_core.element_features import NON_METALS, element_table, possible_elements
from mepdiff_core.enumeration import best_occupations
from mepdiff_core.expansion import quadratic
from mepdiff_core.occupation import Problem
from mepdiff_core.stacking import SHORTEST_A, Stacking, bounded_step

Array = npt.NDArray[np.float64]

ALIKE_A, ALIKE = 0.15, 0.5
"""How far copies may be from where they should be, and by what part of the largest their amounts may differ: by that of a
heavy atom, which one of them may lack."""
NEAREST_A, NEAREST_METALS_A, ROOM_A = 1.75, 2.2, 0.6
"""No two atoms, and no two metals, are nearer than this, from the middle of one slot to that of the other, or to its ends as
far as it is wider than ``ROOM_A``."""
NARROWEST_A = 0.1
"""Slots narrower than this are left out."""
MOST_BINS = 40
"""Slices of all copies together that are followed: products go with their square."""
LONGEST_PART = 1.5
"""Of the thickness: the longest period; what is cut off of one copy the others show."""
PERIOD_STEP_A, FINE_STEP_A, NEARLY = 0.1, 0.02, 0.93
"""Grid of periods, that on which a range ends, and the part of the highest linear gain that makes one worth trying."""


@dataclass(frozen=True)
class Folded:
    """A cell of one column.

    Attributes:
        columns: the one, on average.
        cells: (copies, 2) which cell of the smaller lattice each column of the larger one lies in.
        shifts: (2,) each, how much deeper, in periods, the next cells along t1 and t2 may lie, so that the larger ones are
            all alike.
    """

    columns: Columns
    cells: npt.NDArray[np.int64]
    shifts: list[Array]


def fold(larger: CrystalModel) -> FoldedModel | None:
    """The model by the copies of one column; None where the columns are not that, or too much would have to be followed."""
    folded = fold_columns(larger.columns)
    if folded is None or len(larger.columns) * larger.waves.slices > MOST_BINS:
        return None
    return FoldedModel(larger, folded)


def fold_columns(columns: Columns) -> Folded | None:
    """The cell of which all columns are copies; None where they are not copies of one."""
    count = len(columns)
    steps = columns.fractional - columns.fractional[0]
    whole = np.rint(steps * count).astype(np.int64)
    off = (steps - whole / count) @ columns.lattice_A
    amounts = columns.amounts[:, 0]
    if count == 1 or np.linalg.norm(off, axis=1).max() > ALIKE_A or np.ptp(amounts) > ALIKE * amounts.max():
        return None
    kinds = {(int(a) % count, int(b) % count) for a, b in whole}
    if len(kinds) < count or any(((a + c) % count, (b + d) % count) not in kinds for a, b in kinds for c, d in kinds):
        return None
    ends = [(np.array(kind) / count + cell) for kind in kinds for cell in product((-1, 0, 1), repeat=2)]
    pairs = [np.array(pair) for pair in combinations(ends, 2) if abs(abs(np.linalg.det(np.array(pair))) - 1 / count) < 1e-6]
    basis = min(pairs, key=lambda pair: float(np.linalg.norm(pair @ columns.lattice_A, axis=1).sum()))
    larger = np.linalg.inv(basis)  # its rows: the larger cell's vectors by those of the smaller one
    parts = [np.array(part) / count for part in product(range(count), repeat=2)][1:]
    smaller = replace(
        columns,
        lattice_A=basis @ columns.lattice_A,
        fractional=(columns.fractional[0] + (steps - whole / count).mean(0))[None] @ larger,
        amounts=columns.amounts.mean(0)[None],
    )
    shifts = [part for part in parts if np.allclose(larger @ part, np.rint(larger @ part))]
    return Folded(smaller, np.rint(whole / count @ larger).astype(np.int64), shifts)


@dataclass(frozen=True)
class FoldedModel:
    """What matter in every slice of every copy does to the patterns.

    Matter is (1, copies * slices + other features): slice by slice of each column of the larger cell, then the other
    features of all copies together, evenly along the beam.

    Attributes: ``larger``: the model of the larger cell, its columns all of a kind; ``folded``: the smaller cell.
    """

    larger: CrystalModel
    folded: Folded

    @property
    def bins(self) -> int:
        return len(self.larger.columns) * self.larger.waves.slices

    @cached_property
    def even(self) -> Array:
        """The matter of columns that are even along the beam."""
        amounts, slices = self.larger.columns.amounts, self.larger.waves.slices
        return np.concatenate([np.repeat(amounts[:, 0] / slices, slices), amounts[:, 1:].sum(0)])[None]

    @cached_property
    def sources(self) -> list[Mapping[int, Tensor]]:
        slices = self.larger.waves.slices
        single = sources(self.larger.painter, slices)[: self.bins]
        shared = [sum_of(shape) / self.bins for shape in self.larger.painter.shapes[1:]]
        return [*single, *(dict.fromkeys(range(slices), shape) for shape in shared)]

    def phase(self, matter: Array) -> Tensor:
        """(slices, drawn, drawn) phase, rad, of matter."""
        columns, painter = len(self.larger.columns), self.larger.painter
        first = matter[0, : self.bins].reshape(columns, -1)
        others = np.tile(matter[0, self.bins :] / self.bins, (columns, 1))
        return torch.stack([painter.flat(np.column_stack([level, others])) for level in first.T])

    def matter(self, arrangement: Arrangement) -> Array:
        """Of the atoms in an arrangement of ``FoldedSearch``."""
        return matter_of_atoms(replace(arrangement, column=np.zeros_like(arrangement.column)), 1, self.bins)

    def expand(self, phase: Tensor, centre: Array, indices: Indices) -> Matter:
        """The misfit around some matter and its phase, to second order, products included."""
        parts = quadratic(self.larger.waves, phase, self.sources, indices, [range(self.bins)])
        return Matter(*parts, centre, (0,))


class FoldedSearch:
    """Arrangements of the one column's atoms by an expansion of ``expand``.

    Args:
        folded: the smaller cell; matter: the expansion.
        slices, slice_thickness_A: of the specimen.
        elements: atomic numbers that may occur; None for all that occur in crystals.
    """

    def __init__(
        self,
        folded: Folded,
        matter: Matter,
        slices: int,
        slice_thickness_A: float,
        elements: Sequence[int] | None = None,
    ) -> None:
        self.folded, self.matter = folded, matter
        self.slices, self.slice_thickness_A = slices, slice_thickness_A
        self.known = elements is not None
        self.elements = possible_elements(elements)

    @property
    def longest_A(self) -> float:
        """Of the periods that are tried."""
        return LONGEST_PART * self.slices * self.slice_thickness_A

    def stackings(self, period_A: float | None = None) -> list[Stacking]:
        """Periods and shifts whose matter, none of it negative, gains nearly as much as any, without products.

        Periods that put every depth into the same slices are one, their middle. ``period_A``: where it is known.
        """
        periods = np.arange(SHORTEST_A, self.longest_A, PERIOD_STEP_A) if period_A is None else np.array([period_A])
        found: list[Stacking] = []
        for shift in self.folded.shifts:
            tables = [self.slots(float(period), shift).slices for period in periods]
            starts = [i for i in range(len(tables)) if i == 0 or not np.array_equal(tables[i], tables[i - 1])]
            for first, end in zip(starts, [*starts[1:], len(tables)], strict=True):
                found.append(Stacking(float(periods[first:end].mean()), shift, self._gain(tables[first])))
        most = max(stacking.gain for stacking in found)
        return [stacking for stacking in found if stacking.gain >= most - (1 - NEARLY) * abs(most)]

    def _gain(self, table: Array) -> float:
        """Nats that the best matter in slots gains over the expansion's centre, without products."""
        count = table.shape[1]
        gradient, fisher = self.matter.gradient[:count], self.matter.fisher[:count, :count]
        centre = self.matter.centre[0, :count]
        x = bounded_step(table @ (gradient - fisher @ centre), table @ fisher @ table.T, np.zeros(len(table)))
        away = x @ table - centre
        return -float(gradient @ away + 0.5 * away @ fisher @ away)

    def slots(self, period_A: float, shift: Array) -> Slots:
        """Depths of the one column whose copies lie in the same slices; ``slices`` is by slice of each column."""
        thickness = self.slices * self.slice_thickness_A
        deeper = (self.folded.cells @ shift) % 1.0 * period_A
        faces = np.arange(self.slices + 1) * self.slice_thickness_A
        edges = np.unique(np.round(np.append((faces[:, None] - deeper) % period_A, [0.0, period_A]), 6))
        middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        middle, width = middle[width > NARROWEST_A], width[width > NARROWEST_A]
        table = np.zeros((len(middle), len(deeper), self.slices))
        for row, start in zip(table, middle, strict=True):
            for copy, more in zip(row, deeper, strict=True):
                for depth in np.arange((start + more) % period_A, thickness, period_A):
                    copy[int(depth / self.slice_thickness_A)] += 1
        return Slots(middle, width, table.reshape(len(middle), -1))

    def periods_like(self, stacking: Stacking) -> tuple[float, float]:
        """The range of periods around one whose copies lie in the same slices, Å: the patterns hardly tell them apart."""
        table = self.slots(stacking.period_A, stacking.shift).slices
        ends = []
        for step in (-FINE_STEP_A, FINE_STEP_A):
            end = stacking.period_A
            # no further than periods are tried: long ones may all be alike
            while 0 < end + step < max(self.longest_A, stacking.period_A) and np.array_equal(
                self.slots(end + step, stacking.shift).slices, table
            ):
                end += step
            ends.append(end)
        return ends[0], ends[1]

    def best(self, stacking: Stacking, count: int) -> list[Arrangement]:
        """The best arrangements of one period and shift."""
        slots = self.slots(stacking.period_A, stacking.shift)
        problem = Problem(
            self.matter.misfit,
            self.matter.gradient,
            self.matter.fisher,
            self.matter.centre,
            self.matter.heavy,
            slots.slices,
            element_table().features[self.elements],
            np.full(len(self.elements), ATOM_COST),
            -np.log(slots.width_A / slots.width_A.sum()),
            0.0 if self.known else ELEMENT_COST,
            self._too_near(stacking, NEAREST_A),
        )
        metal = ~np.isin(self.elements, NON_METALS)
        return [
            as_arrangement(found, self.elements, problem, slots, stacking.period_A, stacking.shift)
            for found in best_occupations(problem, metal, self._too_near(stacking, NEAREST_METALS_A), count)
        ]

    def _too_near(self, stacking: Stacking, nearest_A: float) -> npt.NDArray[np.bool_]:
        """(1, slots, 1, slots) whether two atoms are too near, whichever of the periods like this one is right."""
        near = []
        for period in (stacking.period_A, *self.periods_like(stacking)):
            slots = self.slots(period, stacking.shift)
            room = replace(slots, width_A=np.maximum(slots.width_A - ROOM_A, 0.0))
            near.append(too_near(self.folded.columns, room, period, stacking.shift, nearest_A))
        return np.asarray(np.logical_and.reduce(near))
