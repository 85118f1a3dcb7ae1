"""Crystals: what a CIF file says, what is refused, and boxes cut from cells of every shape."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from mepdiff_core.crystals import Atoms, Axis, Crystal, cut_box, read_crystal
from mepdiff_core.errors import InputError

AXES: tuple[Axis, ...] = get_args(Axis)
CELL = "".join(
    f"_cell_{name} {{}}\n" for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
)
CUBE = CELL.format(4, 4, 4, 90, 90, 90)
SITES = (
    "loop_\n_atom_site_label\n_atom_site_type_symbol\n"
    "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
)
P1 = "_space_group_name_H-M_alt 'P 1'\n"
STRONTIUM = "Sr1 Sr 0 0 0 1\n"
OPERATIONS = "loop_\n_space_group_symop_operation_xyz\n"


def cif(sites: str = STRONTIUM, symmetry: str = P1, cell: str = CUBE, name: str = "x") -> str:
    return f"data_{name}\n{cell}{symmetry}{SITES}{sites}"


def read_text(folder: Path, text: str) -> Crystal:
    path = folder / "made.cif"
    path.write_text(text)
    return read_crystal(path)


# reading


def test_symmetry_fills_the_cell_of_strontium_titanate(tmp_path: Path) -> None:
    sites = "Sr1 Sr 0 0 0 1\nTi1 Ti 0.5 0.5 0.5 1\nO1 O 0.5 0.5 0 1\n"
    crystal = read_text(tmp_path, cif(sites, "_space_group_name_H-M_alt 'P m -3 m'\n", CELL.format(*[3.905] * 3, *[90] * 3)))
    assert crystal.name == "made"
    assert crystal.formula == "O3SrTi"
    np.testing.assert_allclose(crystal.cell_A, 3.905 * np.eye(3), atol=1e-9)
    found = {(int(z), *map(float, f)) for z, f in zip(crystal.numbers, crystal.fractional, strict=True)}
    assert found == {(38, 0, 0, 0), (22, 0.5, 0.5, 0.5), (8, 0.5, 0.5, 0), (8, 0.5, 0, 0.5), (8, 0, 0.5, 0.5)}


def test_the_packaged_crystal_is_the_one_built_by_hand(perovskite: Crystal) -> None:
    with resources.as_file(resources.files("mepdiff_core") / "data" / "SrTiO3.cif") as path:
        crystal = read_crystal(path)
    assert crystal.formula == perovskite.formula
    np.testing.assert_allclose(crystal.cell_A, perovskite.cell_A, atol=1e-9)
    a, b = (sorted(zip(c.numbers.tolist(), c.fractional.tolist(), strict=True)) for c in (crystal, perovskite))
    assert a == b


def test_listed_operations_are_used_also_where_no_group_has_them(tmp_path: Path) -> None:
    operations = OPERATIONS + "x,y,z\n-x+1/4,-y,-z\n"
    crystal = read_text(tmp_path, cif("Sr1 Sr 0.2 0.3 0.1 1\n", operations))
    np.testing.assert_allclose(sorted(crystal.fractional.tolist()), [[0.05, 0.7, 0.9], [0.2, 0.3, 0.1]], atol=1e-9)


def test_rounded_special_positions_are_not_doubled(tmp_path: Path) -> None:
    """0.3333 stands for a third: the two magnesium atoms of the cell do not become four."""
    cell = CELL.format(3.2, 3.2, 5.2, 90, 90, 120)
    crystal = read_text(tmp_path, cif("Mg1 Mg 0.3333 0.6667 0.25 1\n", "_space_group_name_H-M_alt 'P 63/m m c'\n", cell))
    assert crystal.numbers.tolist() == [12, 12]
    assert abs(np.linalg.det(crystal.cell_A)) == pytest.approx(3.2**2 * np.sin(np.pi / 3) * 5.2)


def test_rows_of_the_cell_are_its_lattice_vectors(tmp_path: Path) -> None:
    crystal = read_text(tmp_path, cif(cell=CELL.format(4, 5, 6, 70, 80, 95)))
    a, b, c = crystal.cell_A
    np.testing.assert_allclose([np.linalg.norm(v) for v in (a, b, c)], [4, 5, 6])
    angles = [np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))) for u, v in ((b, c), (a, c), (a, b))]
    np.testing.assert_allclose(angles, [70, 80, 95])
    assert np.linalg.det(crystal.cell_A) > 0


@pytest.mark.parametrize(
    ("site", "number"),
    [("Sr1 Sr2+ 0 0 0 1", 38), ("D1 D 0 0 0 1", 1), ("Sr1 Sr 0.25(3) 0 0 1.0(1)", 38), ("Sr1 Sr 0 0 0 ?", 38)],
)
def test_ions_deuterium_uncertainties_and_unstated_occupancy_are_read(tmp_path: Path, site: str, number: int) -> None:
    assert read_text(tmp_path, cif(site + "\n")).numbers.tolist() == [number]


def test_coordinates_are_wrapped_into_the_cell(tmp_path: Path) -> None:
    crystal = read_text(tmp_path, cif("Sr1 Sr -0.25 1.5 7 1\n"))
    np.testing.assert_allclose(crystal.fractional, [[0.75, 0.5, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cif("Sr1 Sr 0 0 0 0.5\nCa1 Ca 0 0 0 0.5\n"), "site Sr1 is occupied to 0.5; only ordered crystals"),
        (cif("Sr1 Sr 0 0 0 0.97\n"), "site Sr1 is occupied to 0.97"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O ? 0.5 0.5 1\n"), "site O1 has no coordinates"),
        (cif("Sr1 Sr 0 . 0 1\n"), "site Sr1 has no coordinates"),
        (f"data_x\n{CUBE}{P1}", "has no atoms"),
        ("", "has no atoms"),
        (cif() + cif(name="y"), "holds 2 structures (x, y); split it into files of one each"),
        (cif() + cif(), "is not a readable CIF file"),
        ("hello, this is no crystal\n", "is not a readable CIF file"),
        (cif(""), "has no atoms"),
        (f"data_x\n{CUBE}{P1}loop_\n_atom_site_fract_x\n0.5\n", "has no atoms"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O 0.1 0 0 1\n"), "Sr1 and O1 are 0.40 Å apart"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O 0.9 0 0 1\n"), "Sr1 and O1 are 0.40 Å apart"),
        (cif("Sr1 Sr 0 0 0 1\nSr2 Sr 0 0 0 1\n"), "Sr1 and Sr2 are 0.00 Å apart"),
        (cif("Xx1 Xx 0 0 0 1\n"), "site Xx1 is 'Xx', which is no element"),
        (cif("Q1 Q 0 0 0 1\n"), "site Q1 is 'Q', which is no element"),
        (cif("Rf1 Rf 0 0 0 1\n"), "site Rf1 is 'Rf', which is no element up to Z = 103"),
        (cif(symmetry=""), "space group '' is not known and no symmetry operations are listed"),
        (cif(symmetry="_space_group_name_H-M_alt 'P 7'\n"), "space group 'P 7' is not known"),
        (cif(symmetry=OPERATIONS + "x,y,z\nfoo\n"), "symmetry operation 'foo' cannot be read"),
        (cif(cell=""), "the unit cell has volume 1 Å³"),
        (cif(cell=CELL.format(4, 4, 4, 90, 30, 170)), "the unit cell has volume nan Å³"),
        (cif(symmetry=P1 + "_chemical_formula_sum 'Sr Ti O3'\n"), "its atoms make Sr, its formula says 'Sr Ti O3'"),
    ],
)
def test_a_file_that_cannot_be_simulated_says_why_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "made.cif"))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x89HDF\r\n\x1a\n" + bytes(99), "data_x\n".encode("utf-16")])
def test_unreadable_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "made.cif"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_crystal(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.cif: no such file"):
        read_crystal(tmp_path / "none.cif")
    with pytest.raises(InputError, match="is a folder; give a CIF file"):
        read_crystal(tmp_path)


@pytest.mark.parametrize("formula", ["Sr", "Sr4", "'Sr 1'", "?", "'Sr1.00'", "'see text'"])
def test_a_formula_agrees_by_ratio_or_says_nothing(tmp_path: Path, formula: str) -> None:
    assert read_text(tmp_path, cif(symmetry=P1 + f"_chemical_formula_sum {formula}\n")).formula == "Sr"


# cutting


def cell_vectors(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> npt.NDArray[np.float64]:
    """Rows a, b, c in the usual setting: a along x, b in the x-y plane."""
    ca, cb, cg = np.cos(np.radians([alpha, beta, gamma]))
    sg = np.sin(np.radians(gamma))
    y = (ca - cb * cg) / sg
    return np.array([[a, 0, 0], [b * cg, b * sg, 0], [c * cb, c * y, c * np.sqrt(1 - cb**2 - y**2)]])


SHAPES = {
    "cubic": (3.9, 3.9, 3.9, 90, 90, 90),
    "hexagonal": (3.2, 3.2, 5.2, 90, 90, 120),
    "triclinic": (3.1, 4.7, 6.3, 75, 98, 112),
}
BASIS = np.array([[0.05, 0.1, 0.15], [0.55, 0.35, 0.45], [0.3, 0.8, 0.7]])


def make_crystal(shape: str) -> Crystal:
    """Three elements in general positions: no symmetry hides a mistake."""
    return Crystal(shape, cell_vectors(*SHAPES[shape]), np.array([38, 22, 8]), BASIS)


def turned_cell(crystal: Crystal, axis: Axis) -> npt.NDArray[np.float64]:
    """Lattice vectors as (z, y, x), made from lengths and angles alone: axis along z, the next one in the x-z plane."""
    order = [("abc".index(axis) + i) % 3 for i in range(3)]
    u, v, w = crystal.cell_A[order]
    lu, lv, lw = (float(np.linalg.norm(r)) for r in (u, v, w))
    vz = u @ v / lu
    vx = np.sqrt(lv**2 - vz**2)
    wz = u @ w / lu
    wx = (v @ w - vz * wz) / vx
    wy = np.sqrt(lw**2 - wz**2 - wx**2)  # a right-handed cell keeps its third vector on the side of +y
    cell = np.empty((3, 3))
    cell[order] = [[lu, 0, 0], [vz, 0, vx], [wz, wy, wx]]
    return cell


def same_atoms(a: Atoms, b: Atoms, tolerance: float = 1e-6) -> bool:
    """The same elements at the same places, in whatever order."""
    if Counter(a.numbers.tolist()) != Counter(b.numbers.tolist()):
        return False
    distance, partner = cKDTree(b.positions_A).query(a.positions_A)
    return bool(distance.max() < tolerance and (a.numbers == b.numbers[partner]).all() and len(set(partner)) == len(partner))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_as_dense_as_the_crystal(shape: str, axis: Axis) -> None:
    crystal, size = make_crystal(shape), (150.0, 140.0, 160.0)
    atoms = cut_box(crystal, axis, size, (1.3, -20.0, 7.7))
    cells = np.prod(size) / abs(np.linalg.det(crystal.cell_A))
    assert len(atoms.numbers) == pytest.approx(3 * cells, rel=0.03)
    assert set(atoms.numbers.tolist()) == {38, 22, 8}
    assert atoms.size_A == size
    assert atoms.positions_A.min() >= 0
    assert (atoms.positions_A < size).all()
    # without a gap: every place has an atom no farther than the crystal's own largest hole
    places = np.random.default_rng(0).uniform(8, np.array(size) - 8, (2000, 3))
    assert cKDTree(atoms.positions_A).query(places)[0].max() < 4


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_holds_the_turned_crystal_and_nothing_else(shape: str, axis: Axis) -> None:
    """Against lattice sums written down from lengths and angles alone."""
    crystal, size, origin = make_crystal(shape), np.array([14.0, 11.0, 12.0]), np.array([2.1, -3.3, 5.2])
    cell = turned_cell(crystal, axis)
    steps = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = ((crystal.fractional[None] + steps[:, None]) @ cell).reshape(-1, 3) - origin
    inside = ((places >= 0) & (places < size)).all(1)
    expected = Atoms(places[inside], np.tile(crystal.numbers, len(steps))[inside], (14.0, 11.0, 12.0))
    assert same_atoms(cut_box(crystal, axis, (14.0, 11.0, 12.0), (2.1, -3.3, 5.2)), expected)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_axis_points_along_the_beam(shape: str, axis: Axis) -> None:
    """A lattice vector further along z the crystal is the same, and half of it is another."""
    crystal, size = make_crystal(shape), (20.0, 15.0, 15.0)
    length = float(np.linalg.norm(crystal.cell_A["abc".index(axis)]))
    start = (0.37, -1.21, 2.13)
    here = cut_box(crystal, axis, size, start)
    assert same_atoms(here, cut_box(crystal, axis, size, (start[0] + length, *start[1:])))
    assert same_atoms(here, cut_box(crystal, axis, size, (start[0] - 5 * length, *start[1:])))
    assert not same_atoms(here, cut_box(crystal, axis, size, (start[0] + length / 2, *start[1:])), 0.1)


@pytest.mark.parametrize(("axis", "along_x", "along_y"), [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")])
def test_an_orthorhombic_cell_turns_in_the_order_a_b_c(axis: Axis, along_x: str, along_y: str) -> None:
    lengths = {"a": 3.0, "b": 4.0, "c": 5.0}
    crystal = Crystal("box", np.diag([3.0, 4.0, 5.0]), np.array([8]), np.zeros((1, 3)))
    atoms = cut_box(crystal, axis, (30.0, 30.0, 30.0))
    for dimension, name in enumerate((axis, along_y, along_x)):  # z, y, x
        levels = np.unique(atoms.positions_A[:, dimension].round(6))
        np.testing.assert_allclose(np.diff(levels), lengths[name])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_turn_keeps_the_hand_of_a_chiral_group(shape: str, axis: Axis) -> None:
    """Four atoms of different elements: their distances and the sign of their triple product are those of the crystal."""
    cell = cell_vectors(*SHAPES[shape]) * 6  # a cell wide enough to hold one group alone
    offsets = np.array([[0, 0, 0], [1.5, 0, 0], [0.3, 2.0, 0], [-0.4, 0.5, 2.5]])
    fractional = (offsets + cell.sum(0) / 2) @ np.linalg.inv(cell)
    crystal = Crystal("chiral", cell, np.array([6, 7, 8, 9]), fractional)
    size = (60.0, 60.0, 60.0)
    atoms = cut_box(crystal, axis, size)
    by_element = {number: atoms.positions_A[atoms.numbers == number][:, ::-1] for number in (6, 7, 8, 9)}  # (x, y, z)
    centre = next(p for p in by_element[6] if (p > 5).all() and (p < 55).all())
    others = []
    for number, offset in zip((7, 8, 9), offsets[1:], strict=True):
        vectors = by_element[number] - centre
        vector = vectors[np.argmin(np.linalg.norm(vectors, axis=1))]
        assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(offset))
        others.append(vector)
    np.testing.assert_allclose(np.array(others) @ np.array(others).T, offsets[1:] @ offsets[1:].T, atol=1e-9)
    assert np.linalg.det(others) == pytest.approx(np.linalg.det(offsets[1:]))
    assert np.linalg.det(offsets[1:]) == pytest.approx(7.5)


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_a_later_origin_moves_the_atoms_towards_the_corner(dimension: int) -> None:
    crystal, size = make_crystal("triclinic"), (16.0, 16.0, 16.0)
    step = np.zeros(3)
    step[dimension] = 1.7
    here, moved = cut_box(crystal, "c", size), cut_box(crystal, "c", size, tuple(step))  # type: ignore[arg-type]
    kept = here.positions_A[:, dimension] >= 1.7
    shifted = here.positions_A[kept] - step
    distance, partner = cKDTree(moved.positions_A).query(shifted)
    assert kept.sum() > 20
    assert distance.max() < 1e-9
    assert (moved.numbers[partner] == here.numbers[kept]).all()


def test_the_origin_is_the_lattice_point_at_the_corner(perovskite: Crystal) -> None:
    atoms = cut_box(perovskite, "c", (3.905, 3.905, 3.905))
    assert sorted(atoms.numbers.tolist()) == [8, 8, 8, 22, 38]
    np.testing.assert_allclose(atoms.positions_A[atoms.numbers == 38], [[0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(atoms.positions_A[atoms.numbers == 22], [[1.9525] * 3], atol=1e-9)
    to_titanium = cut_box(perovskite, "c", (3.905, 3.905, 3.905), (1.9525, 1.9525, 1.9525))
    np.testing.assert_allclose(to_titanium.positions_A[to_titanium.numbers == 22], [[0, 0, 0]], atol=1e-9)


def test_an_atom_on_a_face_is_in_one_of_two_neighbouring_boxes(perovskite: Crystal) -> None:
    """Boxes side by side share out the atoms, also where rounding leaves some a hair off the face."""
    a = 3.905
    for origin in (0.0, 1e-9, -1e-9, 1e-6, -1e-6):
        counts = [len(cut_box(perovskite, "c", (a, a, a), (origin + i * a, origin, origin)).numbers) for i in range(3)]
        assert counts == [5, 5, 5]
        first = cut_box(perovskite, "c", (a, a, a), (origin, origin, origin))
        np.testing.assert_allclose(first.positions_A[first.numbers == 38], [[0, 0, 0]], atol=2e-6)


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    axis=st.sampled_from(AXES),
    cut=st.floats(0.3, 0.7),
    dimension=st.integers(0, 2),
    origin=st.tuples(*[st.floats(-50, 50)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_two_halves_hold_what_the_whole_holds(shape: str, axis: Axis, cut: float, dimension: int, origin: Any) -> None:
    crystal, size = make_crystal(shape), np.array([12.0, 13.0, 14.0])
    whole = cut_box(crystal, axis, tuple(size), origin)
    first, second, start = size.copy(), size.copy(), np.array(origin)
    first[dimension] *= cut
    second[dimension] -= first[dimension]
    start[dimension] += first[dimension]
    parts = cut_box(crystal, axis, tuple(first), origin), cut_box(crystal, axis, tuple(second), tuple(start))
    offset = np.zeros(3)
    offset[dimension] = first[dimension]
    joined = Atoms(
        np.concatenate([parts[0].positions_A, parts[1].positions_A + offset]),
        np.concatenate([part.numbers for part in parts]),
        whole.size_A,
    )
    assert same_atoms(whole, joined, 1e-3)
