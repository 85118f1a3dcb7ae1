"""Places refined with every atom in the specimen, against abTEM's patterns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.crystals import Crystal
from mepdiff_core.polish import draw_cell, polish
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.unit_cell import UnitCell, from_crystal

ORIGIN = (1.1, 0.7, 2.3)
SHEARED = Crystal(
    "CoO",
    np.array([[4.1, 0.0, 0.0], [-0.9, 4.4, 0.0], [-1.2, -1.0, 5.0]]),
    np.array([27, 8]),
    np.array([[0.1, 0.2, 0.3], [0.55, 0.65, 0.75]]),
    "1 P1",
)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(SHEARED, SimulationConfig(scan_shape=(6, 6), origin_A=ORIGIN, seed=3))


@pytest.fixture(scope="module")
def true(scan: Scan) -> UnitCell:
    assert scan.thickness_A is not None
    return from_crystal(SHEARED, "c", ORIGIN, scan.thickness_A)


@pytest.mark.slow
def test_places_period_and_shifts_are_recovered(scan: Scan, true: UnitCell) -> None:
    """From 0.04 Å in the plane, 0.3 Å along the beam, 2 % of the period: to 0.01 Å, a third of a slice and 3 %.

    So small a scan has few copies near the slices' faces, which alone tell a depth."""
    waves, indices = AtomWaves(scan, 8, 1.6), np.arange(0, 36, 3)
    positions, lattice = true.positions_A.copy(), true.lattice_A.copy()
    positions += np.array([[0.25, 0.03, -0.03], [-0.3, -0.04, 0.02]])
    lattice[2, 0] *= 1.02
    cell = replace(true, positions_A=positions, lattice_A=lattice)
    assert np.any(true.lattice_A[:2, 0])
    misfits = []
    for turn in range(4):
        result = polish(waves, cell, indices, turn)
        cell = result.cell
        misfits.append(result.before)
        assert result.after <= result.before
    truth = waves.misfit(waves.transmission(draw_cell(waves, true)), indices).sum()
    assert result.after < truth + 30
    assert misfits[0] > truth + 500
    away = cell.positions_A - true.positions_A
    assert np.abs(away[:, 1:]).max() < 0.01
    assert np.abs((away[:, 0] + 2.5) % 5.0 - 2.5).max() < 1.6 / 3
    assert cell.lattice_A[2, 0] == pytest.approx(true.lattice_A[2, 0], rel=0.03)
    assert np.isfinite(cell.spread_A).all()
    assert (cell.spread_A[:, 1:] < 0.01).all()


@pytest.mark.slow
def test_the_truth_stays(scan: Scan, true: UnitCell) -> None:
    """Within five of its own standard deviations."""
    waves = AtomWaves(scan, 8, 1.6)
    result = polish(waves, true, np.arange(0, 36, 3), 3)
    away = np.abs(result.cell.positions_A - true.positions_A)
    assert (away <= 5 * result.cell.spread_A + 0.002).all()
