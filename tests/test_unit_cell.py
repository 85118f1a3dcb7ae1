"""Unit cells in the frame of a scan: filled, compared, drawn, written and read back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import ase.io
import gemmi
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mepdiff_core import __version__
from mepdiff_core.cell_figure import cell_figure
from mepdiff_core.cif_cells import with_uncertainty, write_cif
from mepdiff_core.crystals import Atoms, Axis, Crystal, cut_box, turned_cell
from mepdiff_core.errors import InputError
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import UnitCell, from_crystal, in_plane_lattice, lattice_error, match

AXES: tuple[Axis, ...] = get_args(Axis)
SHAPES = {
    "cubic": (3.9, 3.9, 3.9, 90, 90, 90),
    "hexagonal": (3.2, 3.2, 5.2, 90, 90, 120),
    "monoclinic": (5.2, 3.4, 6.1, 90, 118, 90),
    "triclinic": (4.1, 4.7, 6.3, 75, 98, 112),
}
BASIS = np.array([[0.05, 0.1, 0.15], [0.55, 0.35, 0.45], [0.3, 0.8, 0.7]])
THICKNESS_A = 12.8
ORIGIN = (1.3, -20.0, 7.7)


def make_crystal(shape: str) -> Crystal:
    """Three elements in general positions: no symmetry hides a mistake."""
    return Crystal(shape, gemmi_vectors(*SHAPES[shape]), np.array([38, 22, 8]), BASIS)


def gemmi_vectors(*sizes: float) -> npt.NDArray[np.float64]:
    return np.array(gemmi.UnitCell(*sizes).orth.mat.tolist()).T


def same_atoms(a: Atoms, b: Atoms, tolerance: float = 1e-6) -> bool:
    """The same elements at the same places, in whatever order."""
    if Counter(a.numbers.tolist()) != Counter(b.numbers.tolist()) or a.size_A != b.size_A:
        return False
    distance, partner = cKDTree(b.positions_A).query(a.positions_A)
    return bool(distance.max() < tolerance and (a.numbers == b.numbers[partner]).all() and len(set(partner)) == len(partner))


def make_slab(positions: Any, lattice: Any = ((0, 0, 4), (0, 4, 0)), thickness: float = THICKNESS_A) -> UnitCell:
    """Oxygen in a cell that does not repeat along the beam."""
    places = np.array(positions, float).reshape(-1, 3)
    n = len(places)
    vectors = np.array([*lattice, (thickness, 0, 0)], float)
    numbers = np.full(n, 8)
    return UnitCell(vectors, False, thickness, places, numbers, np.full((n, 3), np.nan), (((8, 1.0),),) * n)


# filling


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cell_of_a_crystal_fills_boxes_as_the_crystal_does(shape: str, axis: Axis) -> None:
    crystal = make_crystal(shape)
    cell = from_crystal(crystal, axis, ORIGIN, THICKNESS_A)
    for corner in ((0.0, 0.0, 0.0), (0.0, -12.8, 3.3)):
        start = tuple(o + c for o, c in zip(ORIGIN, corner, strict=True))
        size = (THICKNESS_A, 14.0, 17.0)
        assert same_atoms(cell.atoms_in(size, corner), cut_box(crystal, axis, size, start))  # type: ignore[arg-type]


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    axis=st.sampled_from(AXES),
    origin=st.tuples(*[st.floats(-50, 50)] * 3),
    corner=st.tuples(*[st.floats(-20, 20)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_a_box_holds_what_of_the_specimen_lies_in_it(shape: str, axis: Axis, origin: Any, corner: Any) -> None:
    crystal, size = make_crystal(shape), (9.0, 8.0, 7.0)
    atoms = from_crystal(crystal, axis, origin, THICKNESS_A).atoms_in(size, corner)
    everywhere = cut_box(crystal, axis, size, tuple(np.add(origin, corner)))
    z = everywhere.positions_A[:, 0] + corner[0]
    near_a_face = np.abs(z[:, None] - [0, THICKNESS_A]).min() < 1e-3 if len(z) else False
    there = (z >= 0) & (z < THICKNESS_A)
    if not near_a_face and len(atoms.numbers) + there.sum():
        assert same_atoms(atoms, Atoms(everywhere.positions_A[there], everywhere.numbers[there], everywhere.size_A))


def test_atoms_on_the_entrance_face_are_in_and_on_the_exit_face_out(perovskite: Crystal) -> None:
    for offset in (0.0, 1e-9, -1e-9, 1e-6, -1e-6):
        cell = from_crystal(perovskite, "c", (offset, offset, offset), 3 * 3.905)
        assert len(cell.atoms_in((100.0, 3.905, 3.905), (-50.0, 0.0, 0.0)).numbers) == 15
        assert cell.positions_A[:, 0].min() == pytest.approx(0, abs=2e-6)


def test_a_cell_without_a_period_along_the_beam_is_there_once() -> None:
    slab = make_slab([[0, 1, 1], [12.0, 5, 1], [-1e-5, 2, 2], [-0.3, 3, 3], [12.8, 3, 3]])
    atoms = slab.atoms_in((100.0, 4.0, 4.0), (-50.0, 0.0, 0.0))
    expected = np.array([[50, 1, 1], [62, 1, 1], [50, 2, 2]])
    assert same_atoms(atoms, Atoms(expected, np.full(3, 8), (100.0, 4.0, 4.0)), 1e-4)
    assert len(slab.atoms_in((100.0, 40.0, 20.0), (-50.0, -7.0, 9.0)).numbers) == 3 * 50
    assert len(slab.atoms_in((5.0, 4.0, 4.0), (3.0, 0.0, 0.0)).numbers) == 0
    assert len(slab.atoms_in((5.0, 4.0, 4.0), (30.0, 0.0, 0.0)).numbers) == 0


def test_a_shifted_stacking_moves_from_cell_to_cell() -> None:
    cell = UnitCell(
        np.array([[1.0, 0, 4], [0, 4, 0], [3, 0, 0]]),
        True,
        6.0,
        np.zeros((1, 3)),
        np.array([8]),
        np.full((1, 3), np.nan),
        (((8, 1.0),),),
    )
    found = cell.atoms_in((6.0, 4.0, 12.0)).positions_A
    assert sorted(map(tuple, found.tolist())) == [(0, 0, 0), (1, 0, 4), (2, 0, 8), (3, 0, 0), (4, 0, 4), (5, 0, 8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lattice_A": np.array([[0, 0, 4], [0, 4, 0], [12.8, 0.1, 0]])}, "expected \\(c, 0, 0\\)"),
        ({"lattice_A": np.array([[0, 0, 4.0], [0, 4, 0], [3, 0, 0]])}, "is 3 Å long; expected the thickness 12.8"),
        ({"lattice_A": np.array([[1, 0, 4.0], [0, 4, 0], [12.8, 0, 0]])}, "have a z component"),
        ({"lattice_A": np.array([[0, 2, 4.0], [0, 4, 8], [12.8, 0, 0]])}, "span no cell"),
        ({"spread_A": np.zeros((2, 3))}, "spread_A has shape \\(2, 3\\); expected \\(1, 3\\)"),
        ({"candidates": ()}, "candidates are given for 0 of 1 atoms"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make_slab([[1, 1, 1]]), **change)


# crystals


@pytest.mark.parametrize("hand", ["right", "left"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_a_crystal_it_is_the_specimen_turned_about_the_beam(shape: str, axis: Axis, hand: str) -> None:
    cell = from_crystal(make_crystal(shape), axis, ORIGIN, THICKNESS_A)
    cell = replace(cell, lattice_A=cell.lattice_A[[1, 0, 2]]) if hand == "left" else cell
    crystal = cell.to_crystal("x")
    assert np.linalg.det(crystal.cell_A) == pytest.approx(np.linalg.det(make_crystal(shape).cell_A))
    np.testing.assert_allclose(crystal.cell_A[[0, 0, 1], [1, 2, 2]], 0, atol=1e-12)
    np.testing.assert_allclose(crystal.cell_A, gemmi_vectors(*lengths_and_angles(crystal.cell_A)), atol=1e-9)
    assert (crystal.fractional >= 0).all()
    assert (crystal.fractional < 1).all()
    # cut along c its first vector points along x; in the scan along t1
    y, x = (cell.lattice_A[0] if hand == "right" else cell.lattice_A[1])[1:]
    box = (THICKNESS_A, 15.0, 16.0)
    cut = cut_box(crystal, "c", box, rotation_deg=float(np.degrees(np.arctan2(y, x))))
    assert same_atoms(cell.atoms_in(box), cut)


def lengths_and_angles(vectors: npt.NDArray[np.float64]) -> tuple[float, ...]:
    a, b, c = vectors
    pairs = ((b, c), (a, c), (a, b))
    angles = [np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))) for u, v in pairs]
    return (*(float(np.linalg.norm(v)) for v in vectors), *map(float, angles))


# comparing


def test_the_same_answer_matches_in_all() -> None:
    cell = from_crystal(make_crystal("triclinic"), "b", ORIGIN, THICKNESS_A)
    result = match(cell, cell, (THICKNESS_A, 20.0, 20.0), (0.0, 3.0, -7.0))
    assert (result.matched, result.missing, result.extra, result.right_species) == (1, 0, 0, 1)
    assert (result.rms_in_plane_A, result.rms_depth_A) == (0, 0)
    assert result.n_true == result.n_found == len(cell.atoms_in((THICKNESS_A, 20.0, 20.0), (0.0, 3.0, -7.0)).numbers)


def test_a_shift_shows_as_errors_and_loses_no_atom_at_the_edges_of_the_box(perovskite: Crystal) -> None:
    true = from_crystal(perovskite, "c", (0.5, 0.0, 0.0), 3 * 3.905)
    shift = np.array([0.25, 0.12, -0.16])
    found = replace(true, positions_A=true.positions_A + shift)
    result = match(found, true, (3 * 3.905, 11.7, 11.7))
    assert (result.matched, result.extra, result.right_species) == (1, 0, 1)
    assert result.rms_in_plane_A == pytest.approx(0.2)
    assert result.rms_depth_A == pytest.approx(0.25)
    beyond = replace(true, positions_A=true.positions_A + np.array([0, 0.4, 0.4]))
    result = match(beyond, true, (3 * 3.905, 11.7, 11.7))
    assert (result.matched, result.missing, result.extra) == (0, 1, 1)
    assert np.isnan(result.rms_in_plane_A)


def test_missing_extra_and_wrong_atoms_are_counted(perovskite: Crystal) -> None:
    true = from_crystal(perovskite, "c", (0.5, 0.3, 0.2), 4 * 3.905)
    box = (4 * 3.905, 4 * 3.905, 4 * 3.905)
    keep = np.array([0, 1, 2, 3])
    without = UnitCell(
        *(true.lattice_A, True, true.thickness_A, true.positions_A[keep], np.array([38, 22, 8, 7])),
        *(true.spread_A[keep], tuple(true.candidates[i] for i in keep)),
    )
    result = match(without, true, box)
    assert (result.n_true, result.n_found) == (320, 256)
    assert result.matched == pytest.approx(0.8)
    assert result.right_species == pytest.approx(0.75)
    assert result.extra == 0
    result = match(true, without, box)
    assert result.matched == 1
    assert result.extra == pytest.approx(0.2)


def test_as_many_partners_as_can_be_are_found() -> None:
    """The nearest one of each atom would leave another one alone."""
    true, found = make_slab([[5, 1.0, 1], [5, 1.4, 1]]), make_slab([[5, 1.35, 1], [5, 1.85, 1]])
    result = match(found, true, (THICKNESS_A, 4.0, 4.0))
    assert result.matched == 1
    assert result.rms_in_plane_A == pytest.approx(np.sqrt((0.35**2 + 0.45**2) / 2))


def test_depth_has_a_cutoff_of_its_own() -> None:
    true = make_slab([[5, 1, 1]])
    assert match(make_slab([[5.9, 1, 1.4]]), true, (THICKNESS_A, 4.0, 4.0)).matched == 1
    assert match(make_slab([[6.1, 1, 1]]), true, (THICKNESS_A, 4.0, 4.0)).matched == 0
    assert match(make_slab([[6.1, 1, 1]]), true, (THICKNESS_A, 4.0, 4.0), depth_cutoff_A=1.2).matched == 1


def test_no_atoms_are_no_fault() -> None:
    empty, some = make_slab([]), make_slab([[5, 1, 1]])
    assert match(empty, some, (THICKNESS_A, 4.0, 4.0)).missing == 1
    assert match(some, empty, (THICKNESS_A, 4.0, 4.0)).extra == 1
    assert np.isnan(match(some, empty, (THICKNESS_A, 4.0, 4.0)).matched)


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    steps=st.sampled_from([((1, 0), (0, 1)), ((0, 1), (1, 0)), ((1, 1), (0, 1)), ((2, 1), (1, 1)), ((-1, 0), (3, 1))]),
    relative=st.floats(0, 0.02),
)
@settings(max_examples=40, deadline=None)
def test_equivalent_lattice_vectors_have_no_error(shape: str, steps: Any, relative: float) -> None:
    true = from_crystal(make_crystal(shape), "c", ORIGIN, THICKNESS_A)
    lattice = true.lattice_A.copy()
    lattice[:2] = np.array(steps) @ lattice[:2]
    lattice[:2, 1:] *= 1 + relative
    found = replace(true, lattice_A=lattice)
    assert lattice_error(found, true) == pytest.approx(relative, abs=1e-9)


def test_reduced_lattices_are_those_of_known_crystals(perovskite: Crystal) -> None:
    cubic = in_plane_lattice(from_crystal(perovskite, "c", (0, 0, 0), 10.0))
    np.testing.assert_allclose(np.abs(cubic @ cubic.T), 3.905**2 * np.eye(2), atol=1e-9)
    # face-centred copper along c: its projection repeats by half a, level steps by a/√2
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    copper = from_crystal(Crystal("Cu", 3.6 * np.eye(3), np.full(4, 29), fcc), "c", (0.1, 0.2, 0.3), 7.2)
    projected, level = in_plane_lattice(copper), in_plane_lattice(copper, level=True)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1.8, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(level, axis=1), 3.6 / np.sqrt(2), atol=1e-9)
    assert abs(level[0] @ level[1]) < 1e-9
    primitive = Crystal("Cu", 1.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]), np.array([29]), np.zeros((1, 3)))
    along_110 = from_crystal(primitive, "a", (0, 0, 0), 7.2)
    rectangle = in_plane_lattice(along_110)  # seen along [110], face-centred is a centred rectangle of a and a/√2
    np.testing.assert_allclose(abs(np.linalg.det(rectangle)), 3.6**3 / 4 / (3.6 / np.sqrt(2)), atol=1e-9)


def test_a_multiple_cell_with_noise_has_the_lattice_of_the_single_one(perovskite: Crystal) -> None:
    true = from_crystal(perovskite, "c", (0, 0, 0), 10.0)
    double = np.concatenate([true.positions_A, true.positions_A + true.lattice_A[0]])
    double += np.random.default_rng(0).normal(size=double.shape) * 0.02
    lattice = np.array([true.lattice_A[0] + true.lattice_A[1], true.lattice_A[0] - true.lattice_A[1], true.lattice_A[2]])
    found = UnitCell(lattice, True, 10.0, double, np.tile(true.numbers, 2), np.full((10, 3), np.nan), true.candidates * 2)
    assert lattice_error(found, true) < 1e-9
    other = double.copy()
    other[5] += 1.0  # strontium
    assert lattice_error(replace(found, positions_A=other), true) > 0.3


# files


def spread_out(cell: UnitCell) -> UnitCell:
    spread = np.abs(np.random.default_rng(1).normal(size=cell.positions_A.shape)) * [0.3, 0.03, 0.03]
    spread[0] = np.nan
    candidates = (((int(cell.numbers[0]), 0.75), (39, 0.25)), *cell.candidates[1:])
    return replace(cell, spread_A=spread, candidates=candidates)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_written_cell_is_read_back(tmp_path: Path, shape: str, axis: Axis) -> None:
    cell = spread_out(from_crystal(make_crystal(shape), axis, ORIGIN, THICKNESS_A))
    path = tmp_path / "found.cif"
    write_cif(path, cell)
    expected, again = cell.to_crystal("found"), read_crystal(path)
    assert again.name == "found"
    assert (again.numbers == expected.numbers).all()
    np.testing.assert_allclose(again.cell_A, expected.cell_A, atol=1e-5)
    away = again.fractional - expected.fractional
    assert (np.linalg.norm((away - np.rint(away)) @ expected.cell_A, axis=1) < 1e-4).all()
    other = ase.io.read(path)
    assert other.get_chemical_symbols() == expected.symbols
    np.testing.assert_allclose(other.get_all_distances(mic=True), distances(expected), atol=2e-4)


def distances(crystal: Crystal) -> npt.NDArray[np.float64]:
    atoms = ase.Atoms(numbers=crystal.numbers, cell=crystal.cell_A, scaled_positions=crystal.fractional, pbc=True)
    return np.asarray(atoms.get_all_distances(mic=True))


def test_gemmi_finds_all_that_was_found(tmp_path: Path, perovskite: Crystal) -> None:
    cell = spread_out(from_crystal(perovskite, "c", (0.3, 0.2, 0.4), THICKNESS_A))
    path = tmp_path / "found.cif"
    write_cif(path, cell, name="a name")
    block = gemmi.cif.read(str(path)).sole_block()
    assert block.name == "a_name"
    assert gemmi.cif.as_string(block.find_value("_audit_creation_method")) == f"mepdiff {__version__}"
    structure = gemmi.make_small_structure_from_block(block)
    assert structure.spacegroup_hm == "P 1"
    assert [site.label for site in structure.sites] == ["Sr1", "Ti1", "O1", "O2", "O3"]
    assert {site.occ for site in structure.sites} == {1.0}
    assert structure.cell.parameters == pytest.approx((3.905,) * 3 + (90,) * 3)
    rows = block.find("_atom_site_", ["fract_x", "fract_y", "fract_z"])
    assert "(" not in rows[0][0]
    for row, spread in zip(list(rows)[1:], cell.spread_A[1:], strict=True):
        for text, width in zip(row, spread[::-1], strict=True):  # x, y, z; in a cube each of its own
            value, uncertainty = text.rstrip(")").split("(")
            unit = 10.0 ** -len(value.split(".")[1])
            assert int(uncertainty) * unit * 3.905 == pytest.approx(width, rel=0.05)
            assert int(uncertainty) >= 10
    candidates = block.find("_mepdiff_site_candidate_", ["label", "type_symbol", "probability"])
    assert [list(row) for row in candidates][:3] == [
        ["Sr1", "Sr", "0.7500"],
        ["Sr1", "Y", "0.2500"],
        ["Ti1", "Ti", "1.0000"],
    ]
    assert block.find_value("_mepdiff_beam_axis") == "c"
    assert path.read_text().startswith("# c lies along the beam")
    assert [p.name for p in tmp_path.iterdir()] == ["found.cif"]


def test_a_reader_sees_two_digits_of_an_uncertainty_and_a_program_the_whole_coordinate() -> None:
    assert with_uncertainty(0.0466971, 0.026961) == "0.047(27)"
    assert with_uncertainty(0.0466971, 0.026961, 8.78) == "0.046697(26961)"
    assert with_uncertainty(0.508449, 0.000478) == with_uncertainty(0.508449, 0.000478, 4.0) == "0.50845(48)"
    assert with_uncertainty(0.25, float("nan")) == "0.25000000"


def test_uncertainties_of_a_skew_cell_are_those_of_moved_atoms(tmp_path: Path) -> None:
    cell = from_crystal(make_crystal("triclinic"), "c", ORIGIN, THICKNESS_A)
    spread = np.array([[0.3, 0.02, 0.05]] * 3)
    path = tmp_path / "x.cif"
    write_cif(path, replace(cell, spread_A=spread))
    moved = cell.positions_A[0] + np.random.default_rng(0).normal(size=(200_000, 3)) * spread[0]
    expected = (moved @ np.linalg.inv(cell.lattice_A)).std(0)
    row = gemmi.cif.read(str(path)).sole_block().find("_atom_site_", ["fract_x", "fract_y", "fract_z"])[0]
    for text, width in zip(row, expected, strict=True):
        value, uncertainty = text.rstrip(")").split("(")
        assert int(uncertainty) * 10.0 ** -len(value.split(".")[1]) == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize("hand", ["right", "left"])
def test_the_file_says_where_the_cell_lies_in_the_scan(tmp_path: Path, hand: str) -> None:
    cell = from_crystal(make_crystal("triclinic"), "a", ORIGIN, THICKNESS_A)
    cell = replace(cell, lattice_A=cell.lattice_A[[1, 0, 2]]) if hand == "left" else cell
    path = tmp_path / "x.cif"
    write_cif(path, cell)
    block = gemmi.cif.read(str(path)).sole_block()
    rows = block.find("_mepdiff_lattice_vector_", ["scan_z_A", "scan_y_A", "scan_x_A"])
    lattice = np.array([[float(value) for value in row] for row in rows])
    written = replace(cell, lattice_A=lattice, positions_A=read_crystal(path).fractional @ lattice)
    box = (THICKNESS_A, 10.0, 10.0)
    assert same_atoms(written.atoms_in(box, (0.0, 0.5, 0.5)), cell.atoms_in(box, (0.0, 0.5, 0.5)), 1e-3)


def test_a_specimen_without_a_period_says_so(tmp_path: Path) -> None:
    path = tmp_path / "slab.cif"
    write_cif(path, make_slab([[1, 1, 1], [7.3, 2, 3]]))
    block = gemmi.cif.read(str(path)).sole_block()
    assert "no period along the beam" in gemmi.cif.as_string(block.find_value("_mepdiff_special_details"))
    assert block.find_value("_mepdiff_periodic_along_beam") == "no"
    assert read_crystal(path).cell_A[2, 2] == pytest.approx(THICKNESS_A)


def test_a_plain_crystal_is_written_without_a_beam(tmp_path: Path, perovskite: Crystal) -> None:
    path = tmp_path / "x.cif"
    write_cif(path, perovskite)
    assert "beam" not in path.read_text()
    assert path.read_text().startswith("data_SrTiO3\n")
    again = read_crystal(path)
    np.testing.assert_allclose(again.fractional, perovskite.fractional, atol=1e-8)
    assert again.structure_type == "221 Pm-3m"


def test_a_file_that_cannot_be_written_is_an_error_in_words(tmp_path: Path, perovskite: Crystal) -> None:
    with pytest.raises(InputError, match="does not exist; make it first"):
        write_cif(tmp_path / "none" / "x.cif", perovskite)


@given(turn=st.floats(0, 360), spread=st.floats(1e-6, 2), shape=st.sampled_from(sorted(SHAPES)))
@settings(max_examples=30, deadline=None)
def test_coordinates_survive_any_uncertainty(
    tmp_path_factory: pytest.TempPathFactory, turn: float, spread: float, shape: str
) -> None:
    """The uncertainty rounds no coordinate."""
    turned = Rotation.from_euler("z", turn, degrees=True).as_matrix()
    crystal = make_crystal(shape)
    cell = from_crystal(replace(crystal, cell_A=crystal.cell_A @ turned.T), "c", ORIGIN, THICKNESS_A)
    cell = replace(cell, spread_A=np.full((3, 3), spread))
    path = tmp_path_factory.mktemp("x") / "x.cif"
    write_cif(path, cell)
    away = read_crystal(path).fractional - cell.fractional
    assert (np.linalg.norm((away - np.rint(away)) @ cell.lattice_A, axis=1) < 1e-4).all()


# the picture


def test_the_picture_shows_every_atom_from_three_sides(perovskite: Crystal) -> None:
    cell = spread_out(from_crystal(perovskite, "c", (0.0, 0.0, 0.0), THICKNESS_A))
    figure = cell_figure(cell)
    figure.canvas.draw()
    above, *sides = figure.axes
    # strontium on 8 corners, titanium once, oxygen on two faces each
    assert [len(axis.patches) for axis in figure.axes] == [8 + 1 + 6] * 3
    assert (above.get_xlabel(), above.get_ylabel()) == ("x (Å)", "y (Å)")
    assert [axis.get_ylabel() for axis in sides] == ["depth (Å)"] * 2
    assert all(axis.get_ylim()[0] > axis.get_ylim()[1] for axis in figure.axes)  # downwards
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["O", "Ti", "Sr"]
    assert {text.get_text() for text in above.texts} == {"Sr?", "Ti", "O"}
    chromium = tuple(
        ((24, 1.0),) if number == 22 else of_it for number, of_it in zip(cell.numbers, cell.candidates, strict=True)
    )
    above, *_ = cell_figure(replace(cell, candidates=chromium)).axes
    assert {text.get_text() for text in above.texts} == {"Sr?", "Ti?", "O"}  # the one given, not the likeliest


def test_the_picture_of_a_skew_cell_stays_in_the_specimen() -> None:
    cell = from_crystal(make_crystal("triclinic"), "a", ORIGIN, THICKNESS_A)
    assert turned_cell(make_crystal("triclinic"), "a")[:, 0].min() < 0
    for axis in cell_figure(cell).axes[1:]:
        depths = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines[:12]])
        assert depths.min() >= 0


def test_the_picture_of_a_slab_does_not_repeat_it_along_the_beam() -> None:
    figure = cell_figure(make_slab([[0, 2, 2], [6, 2, 2], [12.7, 0, 2]]))
    figure.canvas.draw()
    assert [len(axis.patches) for axis in figure.axes] == [4] * 3
    assert "no period along the beam" in figure.get_suptitle()


def test_a_cell_without_atoms_is_drawn() -> None:
    cell_figure(make_slab([])).canvas.draw()
