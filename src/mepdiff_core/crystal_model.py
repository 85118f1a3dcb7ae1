"""A crystal's columns and stacking in a model of the waves: arrangements drawn and judged, and what matter does there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.batches import Indices
from mepdiff_core.columns import Columns, Painter
from mepdiff_core.depth import (
    Arrangement,
    Matter,
    heavy_columns,
    matter_of_atoms,
    matter_of_columns,
    sources,
)
from mepdiff_core.element_features import FEATURES, element_table
from mepdiff_core.expansion import quadratic
from mepdiff_core.metrics import expected_deviance
from mepdiff_core.polish import draw_cell
from mepdiff_core.stacking import Stacking, bin_sources, draw_matter
from mepdiff_core.unit_cell import UnitCell

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

APART_A, APART = 0.06, 4.0
"""Along y or x, beyond both of which, the second in standard deviations, atoms of a column lie apart."""
BIN_A = 0.6
"""Depth of a bin of matter where cells shift along the beam."""


@dataclass(frozen=True)
class CrystalModel:
    """Attributes: ``waves``; ``columns``; ``stacking``: None where the cells are all alike."""

    waves: AtomWaves
    columns: Columns
    stacking: Stacking | None = None

    @property
    def thickness_A(self) -> float:
        return self.waves.slices * self.waves.slice_thickness_A

    @property
    def bins(self) -> int:
        """Amounts of matter along the beam: one for each slice, or for each part of a period."""
        return self.waves.slices if self.stacking is None else max(4, round(self.stacking.period_A / BIN_A))

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.waves, self.columns)

    @cached_property
    def heavy(self) -> tuple[int, ...]:
        """Columns followed to second order; by bin of a period that would cost too much."""
        return heavy_columns(self.columns) if self.stacking is None else ()

    @cached_property
    def sources(self) -> Sequence[Mapping[int, Tensor]]:
        if self.stacking is None:
            return sources(self.painter, self.waves.slices)
        return bin_sources(self.painter, self.stacking, self.bins, self.thickness_A)

    @cached_property
    def even(self) -> Tensor:
        """(slices, drawn, drawn) phase, rad, of columns that are even along the beam."""
        slices = self.waves.slices
        return (self.painter.flat() / slices)[None].repeat(slices, 1, 1)

    @cached_property
    def even_matter(self) -> Array:
        """(columns, bins + other features)."""
        matter = matter_of_columns(self.columns, self.bins)
        if self.stacking is not None:
            matter *= self.stacking.period_A / self.thickness_A
        matter.flags.writeable = False  # kept for the next who asks
        return matter

    def phase(self, arrangement: Arrangement) -> Tensor:
        """(slices, drawn, drawn) of the atoms, rad."""
        waves = self.waves
        if arrangement.shift is not None:
            return draw_cell(waves, self.cell(arrangement))
        phase = torch.zeros(waves.slices, waves.drawn, waves.drawn, device=waves.device)
        for column, number, copies in zip(arrangement.column, arrangement.number, arrangement.occupied, strict=True):
            for s in np.flatnonzero(copies):
                phase[s].add_(self.painter.element(int(number))[column], alpha=float(copies[s]))
        return phase

    def phase_of_matter(self, matter: Array) -> Tensor:
        """(slices, drawn, drawn) of (columns, bins + other features) matter, rad."""
        if self.stacking is not None:
            return draw_matter(self.painter, self.stacking, matter, self.bins, self.thickness_A)
        others = matter[:, self.bins :] / self.bins
        return torch.stack([self.painter.flat(np.column_stack([level, others])) for level in matter[:, : self.bins].T])

    def matter(self, arrangement: Arrangement) -> Array:
        """(columns, bins + other features) of the atoms."""
        return matter_of_atoms(arrangement, len(self.columns), self.bins)

    def misfit(self, phase: Tensor, indices: Indices) -> Array:
        """(patterns,) nats."""
        return self.waves.misfit(self.waves.transmission(phase), indices)

    def excess(self, phase: Tensor, indices: Indices) -> tuple[float, float]:
        """Nats a pattern of misfit beyond what counting statistics give, and the standard error of that mean."""
        expected = self.waves.predict(self.waves.transmission(phase), indices)
        by_noise = torch.as_tensor(expected_deviance(expected.double().cpu().numpy()), device=expected.device)
        statistics = self.waves.measured.believed(by_noise).sum((1, 2)).cpu().numpy() / 2
        beyond = self.waves.deviance(expected, indices) - statistics
        return float(beyond.mean()), float(beyond.std() / np.sqrt(len(beyond)))

    def expand(self, phase: Tensor, centre: Array, indices: Indices) -> Matter:
        """The misfit around a crystal by its matter."""
        groups = [range(i * self.bins, (i + 1) * self.bins) for i in self.heavy]
        return Matter(*quadratic(self.waves, phase, self.sources, indices, groups), centre, self.heavy)

    def surplus(self, expansion: Matter) -> tuple[float, float]:
        """What free matter would gain at the centre of an expansion: nats beyond what noise gives it, and in deviations.

        At the truth the gradient is noise whose covariance is the Fisher information; whatever else is left in it, the
        structure has missed (Rao's score test).
        """
        count = expansion.centre.size
        gradient, fisher = expansion.gradient[:count], expansion.fisher[:count, :count]
        solved = np.linalg.solve(fisher + self._free(), np.column_stack([gradient, fisher]))
        parts = solved[:, 1:]
        by_noise, deviation = np.trace(parts), np.sqrt(2 * np.sum(parts * parts.T))
        beyond = float(gradient @ solved[:, 0] - by_noise)
        return beyond / 2, beyond / float(deviation)

    def score(self, phase: Tensor, indices: Indices) -> Array:
        """(columns * (bins + other features),) gradient of the misfit by matter, nats: an expansion's, but from one pass
        back through the waves, so that all patterns may have their say."""
        gradient = self.waves.gradient(phase, indices)
        return np.array(
            [
                sum(float(torch.vdot(gradient[s].ravel(), image.ravel())) for s, image in source.items())
                for source in self.sources
            ]
        )

    def surplus_of(self, scores: Array, fisher: Array) -> tuple[float, float]:
        """What free matter would gain, as ``surplus`` has it, and the deviation of that; both in nats.

        Only products of different groups' scores count: noise has none on average, whatever its covariance, of which the
        Fisher information of some patterns gives an estimate that need not be good.

        Args:
            scores: (groups, parameters) of groups of patterns; fisher: (parameters, parameters) of all of them.
        """
        groups = len(scores)
        solved = np.linalg.solve(fisher + self._free(), np.column_stack([scores.T, fisher]))
        products, parts = scores @ solved[:, :groups], solved[:, groups:]
        beyond = float(products.sum() - np.trace(products)) * groups / (groups - 1)
        return beyond / 2, float(np.sqrt(2 * np.sum(parts * parts.T) * groups / (groups - 1))) / 2

    def _free(self) -> Array:
        """Inverse variances of free matter and of its other features, as a matrix."""
        strength = np.repeat(self.even_matter[:, : self.bins].sum(1), self.bins)
        shapes = np.repeat(0.3 * self.columns.amounts[:, 0], FEATURES - 1)
        return np.diag(1 / np.concatenate([strength, shapes]) ** 2)

    def step(self, expansion: Matter) -> Array:
        """(columns, bins + other features) matter, none of it negative, of least misfit in an expansion without products."""
        columns, width = expansion.centre.shape
        count = columns * width
        flat, prior = self._flat(expansion.centre), self._free()
        around = self._flat(self.even_matter)
        root = np.linalg.cholesky(expansion.fisher[:count, :count] + prior)
        goal = expansion.fisher[:count, :count] @ flat + prior @ around - expansion.gradient[:count]
        least = np.concatenate([np.zeros(columns * self.bins), np.full(columns * (FEATURES - 1), -np.inf)])
        x = lsq_linear(root.T, np.linalg.solve(root, goal), (least - 1e-9, np.inf), method="bvls").x
        split = columns * self.bins
        return np.concatenate([x[:split].reshape(columns, -1), x[split:].reshape(columns, -1)], axis=1)

    def _flat(self, matter: Array) -> Array:
        return np.concatenate([matter[:, : self.bins].ravel(), matter[:, self.bins :].ravel()])

    def settled(self, arrangement: Arrangement, cell: UnitCell) -> tuple[CrystalModel, Arrangement]:
        """The model and the arrangement whose cell was polished; columns without an atom are left out, and those whose
        atoms are seen to lie apart become several. Where cells are all alike, atoms stay in their slots.

        Args:
            arrangement: atoms; cell: the same atoms, in the same order, where they are now.
        """
        period = self.thickness_A if arrangement.period_A is None else float(cell.lattice_A[2, 0])
        features = element_table().features[arrangement.number]
        groups = [
            group
            for column in np.unique(arrangement.column)
            for group in _apart(np.flatnonzero(arrangement.column == column), cell, features[:, 0])
        ]
        columns = replace(
            self.columns,
            lattice_A=cell.lattice_A[:2, 1:],
            fractional=np.zeros((len(groups), 2)),
            amounts=np.zeros((len(groups), FEATURES)),
        )
        place = (cell.positions_A[:, 1:] - columns.origin_A) @ np.linalg.inv(columns.lattice_A)
        column = np.zeros_like(arrangement.column)
        for k, group in enumerate(groups):
            # a heavy atom's place is known best: its information goes with the square of what it scatters
            columns.fractional[k] = np.average(place[group], axis=0, weights=features[group, 0] ** 2)
            columns.amounts[k] = features[group].sum(0) * self.thickness_A / period
            column[group] = k
        arrangement = replace(arrangement, column=column)
        if self.stacking is None:
            return CrystalModel(self.waves, columns), arrangement
        shift = cell.lattice_A[:2, 0] / period
        model = CrystalModel(self.waves, columns, replace(self.stacking, period_A=period, shift=shift % 1.0))
        depth = cell.positions_A[:, 0] % period
        slot = np.minimum((depth / period * model.bins).astype(np.int64), model.bins - 1)
        return model, replace(
            arrangement,
            period_A=period,
            depth_A=depth,
            slot=slot,
            occupied=np.eye(model.bins)[slot],
            shift=shift % 1.0,
        )

    def cell(self, arrangement: Arrangement, spread_A: Array | None = None, candidates: Any = None) -> UnitCell:
        """The unit cell of an arrangement."""
        columns, n = self.columns, len(arrangement.number)
        period = arrangement.period_A
        vectors = np.zeros((3, 3))
        vectors[:2, 1:] = columns.lattice_A
        vectors[2, 0] = self.thickness_A if period is None else period
        if arrangement.shift is not None:
            vectors[:2, 0] = arrangement.shift * vectors[2, 0]
        place = columns.origin_A + columns.fractional[arrangement.column] @ columns.lattice_A
        return UnitCell(
            vectors,
            period is not None,
            self.thickness_A,
            np.concatenate([arrangement.depth_A[:, None], place], axis=1).reshape(n, 3),
            arrangement.number,
            np.full((n, 3), np.nan) if spread_A is None else spread_A,
            tuple(((int(z), 1.0),) for z in arrangement.number) if candidates is None else candidates,
        )


def _apart(atoms: Integers, cell: UnitCell, strength: Array) -> list[Integers]:
    """A column's atoms, together where their places in the plane can't be told apart; the strongest first."""
    groups: list[list[int]] = []
    for atom in atoms[np.argsort(-strength[atoms], kind="stable")]:
        for group in groups:
            away = np.abs(cell.positions_A[atom, 1:] - cell.positions_A[group[0], 1:])
            error = np.hypot(cell.spread_A[atom, 1:], cell.spread_A[group[0], 1:])
            if not np.any(away > np.maximum(APART_A, APART * error)):
                group.append(int(atom))
                break
        else:
            groups.append([int(atom)])
    return [np.array(group) for group in groups]
