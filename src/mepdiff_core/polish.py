"""The last steps: places of atoms, lattice, period and shifts of a solved crystal, by the gradients of its misfit.

Gauss and Newton's steps with every atom where it is. A place along the beam tells only by the slice it is in; where cells
shift, copies lie at many depths and those near a face count: their matter is taken to pass from slice to slice over a
short way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.columns import Columns, copies, sum_of
from mepdiff_core.expansion import quadratic
from mepdiff_core.unit_cell import UnitCell

Array = npt.NDArray[np.float64]

PLACE_A, DEPTH_A, VECTOR_A, PERIOD_A, SHIFT_A = 0.05, 0.3, 0.02, 0.2, 0.15
"""Standard deviations of the prior of a step: places in the plane and along the beam, lattice vectors, period, shifts."""
PASSING_A = (0.4, 0.25, 0.15)
"""Half the way over which matter passes from slice to slice; its last entry serves all later steps."""
HALVINGS = 3


@dataclass(frozen=True)
class Polished:
    """Attributes: ``cell``, with the spread of its places; ``before``, ``after``: misfit of the patterns, nats."""

    cell: UnitCell
    before: float
    after: float


def polish(waves: AtomWaves, cell: UnitCell, indices: npt.NDArray[np.integer], turn: int = 0) -> Polished:
    """One step; the cell as it was, with its spread, where no part of the step lessens the misfit.

    Args:
        waves: the model; cell: the crystal.
        indices: which patterns.
        turn: how many steps went before.
    """
    copied = _Copies(waves, cell)
    shifted = bool(np.any(cell.lattice_A[:2, 0]))
    passing = PASSING_A[min(turn, len(PASSING_A) - 1)]
    n = len(cell.numbers)
    sources = [copied.moved(k, axis) for axis in (0, 1) for k in range(n)]
    sources += [copied.stretched(vector, axis) for vector in (0, 1) for axis in (0, 1)]
    widths = [PLACE_A] * (2 * n) + [VECTOR_A] * 4
    if shifted:
        sources += [copied.deepened([k], lambda cells, turns: np.ones(len(cells)), passing) for k in range(n)]
        sources.append(copied.deepened(range(n), lambda cells, turns: turns, passing))
        sources.append(copied.deepened(range(n), lambda cells, turns: cells[:, 0], passing))
        sources.append(copied.deepened(range(n), lambda cells, turns: cells[:, 1], passing))
        widths += [DEPTH_A] * n + [PERIOD_A, SHIFT_A, SHIFT_A]
    everywhere = {*range(2 * n, 2 * n + 4), *range(3 * n + 4, len(sources))}
    before, gradient, curvature = quadratic(waves, draw_cell(waves, cell), sources, indices, far=everywhere)
    inverse = np.linalg.inv(curvature + np.diag(1 / np.array(widths) ** 2))
    step, deviation = -inverse @ gradient, np.sqrt(np.diag(inverse))
    spread = cell.spread_A.copy()
    spread[:, 1:] = deviation[: 2 * n].reshape(2, n).T
    if shifted:
        spread[:, 0] = deviation[2 * n + 4 : 3 * n + 4]
    known = replace(cell, spread_A=spread)
    for halving in range(HALVINGS):
        trial = _moved(known, step / 2**halving, shifted)
        after = float(waves.misfit(waves.transmission(draw_cell(waves, trial)), indices).sum())
        if after < before:
            return Polished(trial, before, after)
    return Polished(known, before, before)


def _moved(cell: UnitCell, step: Array, shifted: bool) -> UnitCell:
    n = len(cell.numbers)
    positions, lattice = cell.positions_A.copy(), cell.lattice_A.copy()
    positions[:, 1:] += step[: 2 * n].reshape(2, n).T
    lattice[:2, 1:] += step[2 * n : 2 * n + 4].reshape(2, 2)
    if shifted:
        positions[:, 0] += step[2 * n + 4 : 3 * n + 4]
        lattice[2, 0] += step[3 * n + 4]
        lattice[:2, 0] += step[3 * n + 5 :]
        positions[:, 0] %= lattice[2, 0]
    return replace(cell, positions_A=positions, lattice_A=lattice)


def draw_cell(waves: AtomWaves, cell: UnitCell) -> Tensor:
    """(slices, drawn, drawn) phase, rad, of a cell's specimen."""
    corner = np.array([0.0, *waves.origin_A])
    box = cell.atoms_in((waves.slices * waves.slice_thickness_A, *waves.size_A), (0.0, *waves.origin_A))
    return waves.draw(box.positions_A + corner, box.numbers)


class _Copies:
    """Every copy of every atom in the drawing: its place, cell, period and depth."""

    def __init__(self, waves: AtomWaves, cell: UnitCell) -> None:
        self.waves, self.cell = waves, cell
        plane = cell.lattice_A[:2, 1:]
        inverse = np.linalg.inv(plane)
        origin = cell.positions_A[:, 1:].mean(0)
        fractional = (cell.positions_A[:, 1:] - origin) @ inverse
        columns = Columns(plane, origin, fractional, np.ones((len(fractional), 1)))
        thickness, period = waves.slices * waves.slice_thickness_A, float(cell.lattice_A[2, 0])
        self.places, self.cells, self.turns, self.depths = [], [], [], []
        for k in range(len(fractional)):
            where = copies(columns, k, waves)
            cells = np.rint((where - origin) @ inverse - fractional[k])
            level = cell.positions_A[k, 0] + cells @ cell.lattice_A[:2, 0]
            if cell.periodic_along_beam:
                first = np.floor(-level.max() / period) - 1
                turns = first + np.arange(np.ceil((thickness - level.min()) / period) - first + 2)
            else:
                turns = np.zeros(1)
            depth = (level[:, None] + turns * period).ravel()
            kept = (depth > -1.0) & (depth < thickness + 1.0)
            self.depths.append(depth[kept])
            self.turns.append(np.tile(turns, len(where))[kept])
            self.cells.append(np.repeat(cells, len(turns), axis=0)[kept])
            self.places.append(np.repeat(where, len(turns), axis=0)[kept])

    def moved(self, atom: int, axis: int) -> Mapping[int, Tensor]:
        """By the atom's place along y (0) or x (1), rad/Å."""
        return self._images([atom], lambda k: np.ones(len(self.depths[k])), axis)

    def stretched(self, vector: int, axis: int) -> Mapping[int, Tensor]:
        """By a component of a lattice vector, rad/Å."""
        return self._images(range(len(self.depths)), lambda k: self.cells[k][:, vector], axis)

    def deepened(
        self, atoms: Iterable[int], along: Callable[[Array, Array], Array], passing_A: float
    ) -> Mapping[int, Tensor]:
        """By the depth of atoms, rad/Å; ``along`` says how much deeper each copy goes, by its cell and period."""
        waves, planes = self.waves, {}
        for s in range(waves.slices):
            spectra = []
            for k in atoms:
                way = along(self.cells[k], self.turns[k])
                above, below = s * waves.slice_thickness_A, (s + 1) * waves.slice_thickness_A
                enters = np.abs(self.depths[k] - above) < passing_A
                leaves = np.abs(self.depths[k] - below) < passing_A
                weight = way * (enters.astype(float) - leaves.astype(float)) / (2 * passing_A)
                if weight.any():
                    spectra.append(waves.spectrum(self.places[k], weight) * waves.factor(int(self.cell.numbers[k])))
            if spectra:
                planes[s] = waves.plane(sum_of(spectra))
        return planes

    def _images(self, atoms: Iterable[int], weight: Callable[[int], Array], axis: int) -> Mapping[int, Tensor]:
        waves, planes = self.waves, {}
        for s in range(waves.slices):
            spectra = []
            for k in atoms:
                here = np.floor(self.depths[k] / waves.slice_thickness_A) == s
                if here.any():
                    spectrum = waves.spectrum(self.places[k][here], weight(k)[here])
                    spectra.append(spectrum * waves.factor(int(self.cell.numbers[k])))
            if spectra:
                planes[s] = waves.plane(sum_of(spectra) * waves.slope(axis))
        return planes
