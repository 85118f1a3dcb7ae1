"""Boxes of atoms cut from cells of every shape."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from mepdiff_core.crystals import Atoms, Axis, Crystal, cut_box

AXES: tuple[Axis, ...] = get_args(Axis)


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
