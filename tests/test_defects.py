"""Planted vacancies and displaced atoms are found by the patterns, and none where there is none."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.batches import Indices
from mepdiff_core.crystals import Atoms, Crystal
from mepdiff_core.defect_search import find_defects
from mepdiff_core.defects import Defect, defect_from, with_defects
from mepdiff_core.errors import InputError
from mepdiff_core.forward import object_field
from mepdiff_core.projection import illumination
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.unit_cell import UnitCell, from_crystal

THICKNESS = 6.4
CELLS = (2, 6, 6)
MOVED = 0.3


def run(waves: AtomWaves, cell: UnitCell, scan: Scan) -> list[Defect]:
    field = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
    indices: Indices = np.arange(scan.n_patterns)
    search = find_defects(waves, cell, illumination(scan), np.asarray(field.origin_A), scan.pixel_size_A, indices)
    while True:
        try:
            assert 0 < next(search) <= 1
        except StopIteration as end:
            found: list[Defect] = end.value
            return found


@pytest.fixture(scope="module")
def config() -> SimulationConfig:
    return SimulationConfig(scan_shape=(9, 9), thickness_A=THICKNESS, origin_A=(1.1, 2.0, 1.7), seed=1)


def large(perovskite: Crystal) -> Crystal:
    """Two by six by six cells of it, as one; c first."""
    deep, high, wide = CELLS
    shifts = np.array([(x, y, z) for z in range(deep) for y in range(high) for x in range(wide)], float)
    fractional = (perovskite.fractional[None] + shifts[:, None]).reshape(-1, 3) / (wide, high, deep)
    cell = perovskite.cell_A * np.array([[wide], [high], [deep]])
    return Crystal("large", cell, np.tile(perovskite.numbers, len(shifts)), fractional)


def test_a_vacancy_and_a_displaced_atom_are_found(perovskite: Crystal, config: SimulationConfig) -> None:
    crystal = large(perovskite)
    perfect = simulate_scan(perovskite, config)
    cell = from_crystal(perovskite, "c", config.origin_A or (0, 0, 0), THICKNESS)
    middle = np.array([0.0, *perfect.positions_A.mean(0)])
    place = crystal.fractional @ crystal.cell_A  # (x, y, z)
    frame = place[:, ::-1] - (config.origin_A or (0, 0, 0))
    near = np.linalg.norm(frame[:, 1:] - middle[1:], axis=1)
    inside = (frame[:, 0] > 0.3) & (frame[:, 0] < THICKNESS - 0.3)
    oxygen, strontium = (int(np.argmin(np.where((crystal.numbers == z) & inside, near, np.inf))) for z in (8, 38))
    moved = crystal.fractional.copy()
    moved[strontium, 0] += MOVED / np.linalg.norm(crystal.cell_A[0])
    kept = np.arange(len(moved)) != oxygen
    scan = simulate_scan(Crystal("planted", crystal.cell_A, crystal.numbers[kept], moved[kept]), config)
    waves = AtomWaves(scan, 4, 1.6)
    found = {defect.kind: defect for defect in run(waves, cell, scan)}
    assert set(found) == {"vacancy", "displaced"}
    np.testing.assert_allclose(found["vacancy"].site_A, frame[oxygen], atol=0.02)
    np.testing.assert_allclose(found["displaced"].site_A, frame[strontium], atol=0.02)
    assert found["vacancy"].number == 8
    assert found["displaced"].number == 38
    np.testing.assert_allclose(found["displaced"].moved_A, (0.0, MOVED), atol=0.05)


def test_a_perfect_crystal_has_none(perovskite: Crystal, config: SimulationConfig) -> None:
    scan = simulate_scan(perovskite, config)
    cell = from_crystal(perovskite, "c", config.origin_A or (0, 0, 0), THICKNESS)
    assert run(AtomWaves(scan, 4, 1.6), cell, scan) == []


def test_atoms_of_a_box_take_the_defects() -> None:
    atoms = Atoms(np.array([[0.5, 1.0, 1.0], [0.5, 3.0, 1.0]]), np.array([8, 38]), (1.6, 5.0, 5.0))
    gone = Defect("vacancy", 8, (0.5, 0.0, 0.0), (0.0, 0.0), 50.0)
    moved = replace(gone, kind="displaced", number=38, site_A=(0.5, 2.0, 0.0), moved_A=(0.1, -0.2))
    elsewhere = replace(gone, site_A=(5.0, 0.0, 0.0))
    made = with_defects(atoms, [gone, moved, elsewhere], (0.0, -1.0, -1.0))
    np.testing.assert_array_equal(made.numbers, [38])
    np.testing.assert_allclose(made.positions_A, [[0.5, 3.1, 0.8]])


def test_a_defect_is_kept_as_plain_values() -> None:
    moved = Defect("displaced", 38, (0.5, 2.0, 0.0), (0.1, -0.2), 50.0)
    assert defect_from(asdict(moved)) == moved
    with pytest.raises(InputError, match="expected kind, number, site_A"):
        defect_from({"kind": "vacancy", "number": 8})
    with pytest.raises(InputError, match="one of vacancy, displaced"):
        defect_from(asdict(moved) | {"kind": "swapped"})
