"""Space groups of atoms, against those that the atoms were made with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ase.spacegroup
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.cif import spacegroup_number, symmetry_operations
from mepdiff_core.cif_cells import write_cif
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.symmetry import find_symmetry, symmetrised


def grown(number: int, cell: list[float], symbols: list[str], basis: list[tuple[float, float, float]]) -> Crystal:
    """ASE fills the cell of a space group."""
    atoms = ase.spacegroup.crystal(symbols, basis=basis, spacegroup=number, cellpar=cell)
    return Crystal(f"group{number}", np.array(atoms.cell.array), np.array(atoms.numbers), atoms.get_scaled_positions() % 1)


KNOWN = {
    "NaCl": (grown(225, [5.64] * 3 + [90] * 3, ["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)]), "225 Fm-3m"),
    "diamond": (grown(227, [3.567] * 3 + [90] * 3, ["C"], [(0, 0, 0)]), "227 Fd-3m"),
    "wurtzite": (
        grown(186, [3.82, 3.82, 6.26, 90, 90, 120], ["Zn", "S"], [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.375)]),
        "186 P63mc",
    ),
    "rutile": (grown(136, [4.594, 4.594, 2.959, 90, 90, 90], ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)]), "136 P42/mnm"),
    "quartz": (
        grown(152, [4.913, 4.913, 5.405, 90, 90, 120], ["Si", "O"], [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 0.4522)]),
        "152 P3121",
    ),
    "corundum": (grown(167, [4.76, 4.76, 12.99, 90, 90, 120], ["Al", "O"], [(0, 0, 0.3522), (0.3063, 0, 0.25)]), "167 R-3c"),
    "baddeleyite": (
        grown(
            14,
            [5.15, 5.212, 5.317, 90, 99.23, 90],
            ["Zr", "O", "O"],
            [(0.2754, 0.0395, 0.2083), (0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792)],
        ),
        "14 P21/c",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_crystals_have_their_group(name: str) -> None:
    crystal, group = KNOWN[name]
    found = find_symmetry(crystal, 0.01)
    assert str(found) == group
    assert found.tolerance_A == 0.01


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_in_p1_has_the_type_of_the_file_with_symmetry(tmp_path: Path, name: str) -> None:
    crystal, group = KNOWN[name]
    write_cif(tmp_path / "x.cif", crystal)
    assert read_crystal(tmp_path / "x.cif").structure_type == group


@given(number=st.integers(1, 230))
@settings(max_examples=60, deadline=None)
def test_a_general_position_has_the_group_that_repeats_it(number: int) -> None:
    """Two elements in general positions, in a cell that the group's metric allows."""
    lengths, angles = (11.0, 12.3, 13.7), (84.0, 97.0, 105.0)
    if number >= 195:
        lengths, angles = (12.0,) * 3, (90.0,) * 3  # type: ignore[assignment]
    elif number >= 143:
        lengths, angles = (12.0, 12.0, 13.7), (90.0, 90.0, 120.0)
    elif number >= 75:
        lengths, angles = (12.0, 12.0, 13.7), (90.0, 90.0, 90.0)
    elif number >= 16:
        angles = (90.0, 90.0, 90.0)
    elif number >= 3:
        angles = (90.0, 97.0, 90.0)
    cell = np.array(ase.cell.Cell.new([*lengths, *angles]).array)
    places, numbers = [], []
    for element, place in ((38, (0.0712, 0.1534, 0.2191)), (8, (0.1873, 0.0471, 0.1129))):
        for rotation, translation in symmetry_operations(number):
            places.append((rotation @ place + translation) % 1.0)
            numbers.append(element)
    crystal = Crystal("x", cell, np.array(numbers), np.array(places))
    assert find_symmetry(crystal, 1e-3).number == number


def test_the_tolerance_decides() -> None:
    crystal, _ = KNOWN["rutile"]
    moved = crystal.fractional + np.random.default_rng(0).normal(size=crystal.fractional.shape) * 0.02 / 4.6
    rough = Crystal("rough", crystal.cell_A, crystal.numbers, moved % 1)
    assert find_symmetry(rough, 1e-4).number == 1
    assert find_symmetry(rough).number == 136


def test_symmetrised_atoms_lie_where_the_group_wants_them() -> None:
    crystal, group = KNOWN["rutile"]
    moved = crystal.fractional + np.random.default_rng(0).normal(size=crystal.fractional.shape) * 0.02 / 4.6
    tidy = symmetrised(Crystal("rough", crystal.cell_A, crystal.numbers, moved % 1))
    assert tidy.name == "rough"
    assert tidy.structure_type == group
    assert str(find_symmetry(tidy, 1e-5)) == group
    assert Counter(tidy.numbers.tolist()) == Counter(crystal.numbers.tolist())
    np.testing.assert_allclose(tidy.cell_A, crystal.cell_A, atol=1e-6)
    assert ((tidy.fractional >= 0) & (tidy.fractional < 1)).all()


def test_a_primitive_cell_becomes_the_conventional_one() -> None:
    primitive = Crystal("Cu", 1.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]), np.array([29]), np.zeros((1, 3)))
    conventional = symmetrised(primitive)
    np.testing.assert_allclose(conventional.cell_A, 3.6 * np.eye(3), atol=1e-9)
    assert len(conventional.numbers) == 4
    assert conventional.structure_type == "225 Fm-3m"


def test_the_hand_of_a_chiral_crystal_is_kept() -> None:
    crystal, _ = KNOWN["quartz"]
    mirrored = Crystal("left", crystal.cell_A * [1, 1, -1], crystal.numbers, crystal.fractional)
    assert find_symmetry(mirrored).number == spacegroup_number("P 32 2 1") == 154
    assert np.linalg.det(symmetrised(crystal).cell_A) > 0


def test_where_there_is_no_answer_it_says_why() -> None:
    crystal = Crystal("twice", 4 * np.eye(3), np.array([8, 8]), np.array([[0, 0, 0], [0, 0, 0.001]]))
    for question in (find_symmetry, symmetrised):
        with pytest.raises(InputError, match=r"^twice: spglib finds no space group within 0\.1 Å.*[^\n]*$"):
            question(crystal, 0.1)
    with pytest.raises(InputError, match="tolerance_A is 0; expected more than 0"):
        find_symmetry(crystal, 0)
