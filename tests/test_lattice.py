"""Plane lattices found in images of atoms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core.lattice import (
    Lattice,
    autocorrelation,
    cell_to_cell_change,
    choose_lattice,
    find_columns,
    find_lattices,
    fold,
    reduce_basis,
)

PIXEL = 0.2
SIZE = 104
MIDDLE = SIZE * PIXEL / 2


def turn(vectors: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return vectors @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def picture(vectors: np.ndarray, atoms: list[tuple[float, float, float]], change: float = 0.0) -> np.ndarray:
    """Gaussian atoms (fractional y, x, height) in every cell; ``change`` makes heights differ from cell to cell."""
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL - MIDDLE
    image = np.zeros((SIZE, SIZE))
    rng = np.random.default_rng(1)
    for i in range(-12, 13):
        for j in range(-12, 13):
            for a, b, height in atoms:
                place = (np.array([i + a, j + b])) @ vectors
                if np.abs(place).max() < MIDDLE + 1:
                    scale = height * (1 + change * rng.choice([-1, 1]))
                    image += scale * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * 0.28**2))
    return image


def disc(radius_A: float = 6.5) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL - MIDDLE
    return 1 / (1 + np.exp((np.hypot(y, x) - radius_A) / 0.5))


BASES = {
    "square": [[3.9, 0], [0, 3.9]],
    "hexagonal": [[4.9, 0], [-2.45, 4.9 * np.sqrt(3) / 2]],
    "centred": [[2.4, 3.3], [-2.4, 3.3]],
    "oblique": [[5.1, 0.3], [1.2, 6.4]],
}


SMALL_BASES = {
    "nickel [100]": [[2.49, 0], [0, 2.49]],
    "graphite [001]": [[2.46, 0], [-1.23, 1.23 * np.sqrt(3)]],
}
"""Cells of which dozens fit into the field: many a larger cell repeats them as well as they do themselves."""


def assert_same_lattice(found: np.ndarray, planted: np.ndarray) -> None:
    """The same points, and reduced lengths within 0.5 %."""
    coefficients = found @ np.linalg.inv(planted)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=0.02)
    assert abs(np.linalg.det(np.round(coefficients))) == pytest.approx(1)
    expected = np.linalg.norm(np.round(coefficients) @ planted, axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected, rtol=0.005)
    np.testing.assert_allclose(np.linalg.norm(reduce_basis(found), axis=1), np.linalg.norm(found, axis=1))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", list(BASES))
def test_planted_lattices_are_found(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = turn(np.array(BASES[name]), rng.uniform(0, 360))
    image = picture(vectors, [(0, 0, 1.0), (0.31, 0.42, 0.45)])
    image += rng.normal(0, 0.05, image.shape)
    assert_same_lattice(choose_lattice(find_lattices(image, disc(), PIXEL, 40)).vectors_A, vectors)


@pytest.mark.parametrize("name", list(SMALL_BASES))
def test_the_smallest_cell_is_among_the_candidates(name: str) -> None:
    vectors = turn(np.array(SMALL_BASES[name]), 17.0)
    image = picture(vectors, [(0, 0, 1.0)])
    image += np.random.default_rng(0).normal(0, 0.05, image.shape)
    assert_same_lattice(choose_lattice(find_lattices(image, disc(), PIXEL, 40)).vectors_A, vectors)


def test_of_equally_good_lattices_the_smallest_is_chosen() -> None:
    vectors = np.array(BASES["oblique"])
    areas = {1: 0.90, 2: 0.93, 3: 0.94, 4: 0.62}
    candidates = [Lattice(np.diag([n, 1]) @ vectors, correlation) for n, correlation in areas.items()]
    candidates.append(Lattice(vectors / 2, 0.85))
    assert choose_lattice(candidates) is candidates[0]
    assert choose_lattice(candidates, tolerance=0.01) is candidates[1]
    assert choose_lattice(candidates, tolerance=0.2) is candidates[4]
    assert candidates[1].area_A2 == pytest.approx(2 * abs(np.linalg.det(vectors)))


def test_the_weight_says_where_to_look() -> None:
    """Another crystal beside the illuminated disc changes little; with the weight wide open it would rule."""
    inner, outer = turn(np.array(BASES["square"]), 10), turn(np.array(BASES["hexagonal"]), 25)
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL - MIDDLE
    inside = np.hypot(y, x) < 7.5
    image = np.where(inside, picture(inner, [(0, 0, 1.0)]), 3 * picture(outer, [(0, 0, 1.0)]))
    assert_same_lattice(choose_lattice(find_lattices(image, disc(), PIXEL, 40)).vectors_A, inner)
    everywhere = choose_lattice(find_lattices(image, np.ones_like(image), PIXEL, 40)).vectors_A
    coefficients = everywhere @ np.linalg.inv(outer)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=0.05)


def test_white_noise_has_no_lattice() -> None:
    for seed in range(3):
        assert find_lattices(np.random.default_rng(seed).normal(size=(SIZE, SIZE)), disc(), PIXEL) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_field_without_a_lattice_correlates_badly(seed: int) -> None:
    """Atoms anywhere: only large cells, whose few points correlate by less than 0.5, a crystal by 0.7 and more."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL
    places = rng.uniform(0, SIZE * PIXEL, (120, 2))
    image = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 0.28**2)) for a, b in places)
    found = find_lattices(np.asarray(image), disc(), PIXEL)
    assert max((f.correlation for f in found), default=0.0) < 0.5
    assert min((f.area_A2 for f in found), default=np.inf) > 30


def test_autocorrelation_is_the_sum_it_says() -> None:
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(5, 4)), rng.uniform(0.2, 1, (5, 4))
    corr, overlap = autocorrelation(image, weight)
    a = image - np.sum(image * weight) / np.sum(weight)
    assert corr.shape == overlap.shape == (9, 7)
    for dy, dx in product(range(-4, 5), range(-3, 4)):
        total = left = right = both = 0.0
        for y in range(5):
            for x in range(4):
                if 0 <= y + dy < 5 and 0 <= x + dx < 4:
                    w, v = weight[y, x], weight[y + dy, x + dx]
                    total += w * v * a[y, x] * a[y + dy, x + dx]
                    left += w * v * a[y, x] ** 2
                    right += w * v * a[y + dy, x + dx] ** 2
                    both += w * v
        assert corr[4 + dy, 3 + dx] == pytest.approx(total / np.sqrt(left * right), abs=1e-9)
        assert overlap[4 + dy, 3 + dx] == pytest.approx(both / np.sum(weight**2), abs=1e-9)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=5),
    st.floats(1, 12),
    st.floats(1, 12),
    st.floats(5, 175),
    st.floats(0, 360),
    st.booleans(),
)
def test_a_reduced_basis_spans_the_same_lattice(
    shears: list[tuple[bool, int]], first: float, second: float, between: float, degrees: float, swap: bool
) -> None:
    """Any basis, changed by any product of shears: the same points, Lagrange's inequalities, a right-handed pair."""
    angle = np.radians(between)
    vectors = turn(np.array([[first, 0], [second * np.cos(angle), second * np.sin(angle)]]), degrees)
    change = np.array([[0, 1], [1, 0]]) if swap else np.eye(2, dtype=int)
    for lower, by in shears:
        change = change @ np.array([[1, 0], [by, 1]] if lower else [[1, by], [0, 1]])
    reduced = reduce_basis(change @ vectors)
    coefficients = reduced @ np.linalg.inv(vectors)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=1e-6)
    assert np.linalg.det(reduced) == pytest.approx(abs(np.linalg.det(vectors)))
    a, b = reduced
    assert abs(a @ b) <= 0.5 * (a @ a) + 1e-9 * (b @ b)
    assert a @ a <= b @ b * (1 + 1e-9)


def test_the_averaged_cell_shows_its_columns() -> None:
    vectors = turn(np.array(BASES["oblique"]), 11)
    atoms = [(0.1, 0.2, 1.0), (0.6, 0.5, 0.6), (0.35, 0.85, 0.4)]
    image = picture(vectors, atoms)
    cell = fold(image, disc(), vectors, PIXEL, np.array([MIDDLE, MIDDLE]))
    places, heights = find_columns(cell, vectors)
    order = np.argsort(-heights)
    assert len(places) == 3
    for place, (a, b, _) in zip(places[order], atoms, strict=True):
        step = (place - (a, b) + 0.5) % 1 - 0.5
        assert np.linalg.norm(step @ vectors) < 0.1


def test_columns_that_differ_from_cell_to_cell_are_noticed() -> None:
    vectors = np.array(BASES["square"])
    place = np.array([[MIDDLE, MIDDLE]])
    same = cell_to_cell_change(picture(vectors, [(0, 0, 1)]), disc(), vectors, place, PIXEL)
    changing = cell_to_cell_change(picture(vectors, [(0, 0, 1)], 0.25), disc(), vectors, place, PIXEL)
    assert same < 0.04
    assert changing == pytest.approx(0.25, rel=0.2)
