"""Superlattices and stackings against planted ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mepdiff_core.stacking import (
    CopyGains,
    best_superlattice,
    crossed_gain,
    find_stackings,
    occupancy,
    superlattice_gain,
    superlattices,
)

Array = npt.NDArray[np.float64]

SLICES, SLICE_A = 8, 1.6
THICKNESS_A = SLICES * SLICE_A
CELLS = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)])


def gains_of(added: list[Array], noise: float = 0.0) -> CopyGains:
    """What the patterns would say, were the misfit quadratic, of (copies, slices) matter beyond the even one."""
    rng = np.random.default_rng(0)
    depth = np.arange(SLICES) * SLICE_A
    curvature = 400.0 * (np.eye(SLICES) + 0.6 * np.exp(-np.abs(depth[:, None] - depth) / 2))
    weight = np.exp(-(CELLS**2).sum(1) / 8)
    weight /= weight.sum()
    gradient = [-(m @ curvature) * weight[:, None] + noise * rng.normal(size=m.shape) for m in added]
    n = len(added)
    least = np.full((n, SLICES), -2.0)
    return CopyGains(CELLS, np.array(gradient), np.array([curvature] * n), np.array([weight] * n), least, SLICE_A)


def atoms(starts: list[tuple[float, float]], period: float, shift: Array) -> Array:
    """(copies, slices) of atoms (depth, matter) in a stacking, less their mean."""
    matter = np.zeros((len(CELLS), SLICES))
    for depth, amount in starts:
        for row, cell in zip(matter, CELLS, strict=True):
            first = (depth + float(cell @ shift) * period) % period
            for z in np.arange(first, THICKNESS_A, period):
                row[int(z / SLICE_A)] += amount
    return matter - matter.mean()


@pytest.mark.parametrize("period", [2.8, 5.2, 9.05])
def test_matter_is_neither_lost_nor_made(period: float) -> None:
    """Every slice is filled by the bins together; an atom a cell deeper by a whole period is where it was."""
    table = occupancy(period, np.array([0.31, 0.77]), CELLS, 10, SLICES, SLICE_A)
    np.testing.assert_allclose(table.sum(1), SLICE_A / period * 10, rtol=1e-9)
    np.testing.assert_allclose(table.sum((1, 2)), THICKNESS_A / period * 10)
    again = occupancy(period, np.array([1.31, -0.23]), CELLS, 10, SLICES, SLICE_A)
    np.testing.assert_allclose(table, again, atol=1e-9)


def test_the_next_cell_lies_deeper() -> None:
    """By a quarter of 6.4 Å, which is one slice; a bin fades into the slices beside it."""
    table = occupancy(6.4, np.array([0.25, 0.0]), np.array([[0, 0], [1, 0]]), 4, SLICES, SLICE_A)
    np.testing.assert_allclose(table[0, 0], [0.75, 0.125, 0, 0.125, 0.75, 0.125, 0, 0.125], atol=0.01)
    np.testing.assert_allclose(table[1, 0], np.roll(table[0, 0], 1), atol=1e-9)


def test_every_sublattice_is_listed_once() -> None:
    """As many as the sum of the divisors of each index."""
    found = superlattices(4)
    assert [round(np.linalg.det(m)) for m in found].count(2) == 3
    assert [round(np.linalg.det(m)) for m in found].count(3) == 4
    assert [round(np.linalg.det(m)) for m in found].count(4) == 7
    points = np.array([(i, j) for i in range(12) for j in range(12)])
    kinds = {tuple(np.abs((points @ np.linalg.inv(m) + 1e-9) % 1).max(1) < 1e-6) for m in found}
    assert len(kinds) == len(found)


@pytest.mark.parametrize(
    ("period", "shift"),
    [(6.85, (0.75, 0.31)), (5.5, (0.42, 0.58)), (7.06, (0.62, 0.0))],
    ids=["triclinic", "other", "one way"],
)
def test_a_planted_stacking_is_found(period: float, shift: tuple[float, float]) -> None:
    """Two columns, noise: period to 5 %, shifts to 0.04; and no superlattice explains as much."""
    rho = np.array(shift)
    added = [atoms([(0.4, 5.0)], period, rho), atoms([(2.9, 4.0), (4.1, 1.0)], period, rho)]
    gains = gains_of(added, noise=4.0)
    best = find_stackings(gains, THICKNESS_A, None, 3)[0]
    assert best.period_A == pytest.approx(period, rel=0.05)
    np.testing.assert_allclose((best.shift - rho + 0.5) % 1 - 0.5, 0.0, atol=0.04)
    assert best.gain > best_superlattice(gains)[1]


@pytest.mark.parametrize("matrix", [[[2, 0], [0, 1]], [[3, 0], [0, 1]], [[1, 1], [0, 2]]])
def test_a_planted_superlattice_is_found(matrix: list[list[int]]) -> None:
    kind = np.round(CELLS @ np.linalg.inv(np.array(matrix)) % 1.0, 6) % 1.0
    own = np.random.default_rng(1).uniform(-1.5, 3.0, (100, SLICES))
    added = own[np.unique(kind, axis=0, return_inverse=True)[1].ravel()]
    gains = gains_of([added, np.zeros_like(added)], noise=4.0)
    found, gain = best_superlattice(gains)
    assert found is not None
    assert found.tolist() == matrix
    assert gain == pytest.approx(superlattice_gain(gains, found))
    assert gain > 100
    assert crossed_gain(gains, found) == pytest.approx(3 * gain, rel=0.5)  # halved three ways
    assert best_superlattice(gains, 1) == (None, 0.0)


@pytest.mark.parametrize("along", [0, 1])
def test_what_changes_slowly_over_the_field_is_no_superlattice(along: int) -> None:
    """As atoms that lie deeper from row to row, where the beam drifts: cells four times as long gain, but not by others."""
    added = CELLS[:, along, None] * np.linspace(-1, 1, SLICES)
    gains = gains_of([added, added], noise=4.0)
    found, gain = best_superlattice(gains)
    assert found is not None
    assert gain > 100
    assert crossed_gain(gains, found) < -2 * gain


def test_cells_that_are_alike_gain_nothing() -> None:
    gains = gains_of([np.tile(np.linspace(-1, 1, SLICES), (len(CELLS), 1))], noise=4.0)
    assert best_superlattice(gains) == (None, 0.0)
    assert find_stackings(gains, THICKNESS_A, None, 1)[0].gain < 0
