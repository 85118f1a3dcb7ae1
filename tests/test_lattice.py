"""Plane lattices found in images of atoms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core.lattice import (
    autocorrelation,
    cell_to_cell_change,
    choose_lattice,
    find_columns,
    find_lattices,
    fold,
    reduce_basis,
)

PIXEL = 0.2
SIZE = 160
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


def disc(radius_A: float = 9.0) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL - MIDDLE
    return 1 / (1 + np.exp((np.hypot(y, x) - radius_A) / 0.5))


BASES = {
    "square": [[3.9, 0], [0, 3.9]],
    "hexagonal": [[4.9, 0], [-2.45, 4.9 * np.sqrt(3) / 2]],
    "centred": [[2.4, 3.3], [-2.4, 3.3]],
    "oblique": [[5.1, 0.3], [1.2, 6.4]],
}


@pytest.mark.parametrize("degrees", [0.0, 17.0, 41.0])
@pytest.mark.parametrize("name", list(BASES))
def test_planted_lattices_are_found(name: str, degrees: float) -> None:
    vectors = turn(np.array(BASES[name]), degrees)
    image = picture(vectors, [(0, 0, 1.0), (0.31, 0.42, 0.45)])
    image += np.random.default_rng(0).normal(0, 0.05, image.shape)
    found = choose_lattice(find_lattices(image, disc(), PIXEL, 40))
    coefficients = found.vectors_A @ np.linalg.inv(vectors)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=0.02)
    assert abs(np.linalg.det(np.round(coefficients))) == 1
    np.testing.assert_allclose(
        np.linalg.norm(found.vectors_A, axis=1), np.linalg.norm(reduce_basis(vectors), axis=1), rtol=0.006
    )


@pytest.mark.parametrize("degrees", [0.0, 23.0, 45.0])
@pytest.mark.parametrize("side", [1.74, 2.22])
def test_a_short_lattice_is_not_taken_for_one_that_repeats_it(side: float, degrees: float) -> None:
    """Nickel and tungsten along [001]: peaks nine and eleven pixels apart, whose tops lie between pixels."""
    image = picture(turn(side * np.eye(2), degrees), [(0, 0, 1.0)])
    image += np.random.default_rng(0).normal(0, 0.05, image.shape)
    found = find_lattices(image, disc(), PIXEL, 40)
    assert choose_lattice(found).area_A2 == pytest.approx(side**2, rel=0.01)
    assert len(found) == 1
    known = find_lattices(image, disc(), PIXEL, 1000, larger=True)  # centred cells that a user may give
    assert any(lattice.area_A2 == pytest.approx(2 * side**2, rel=0.01) for lattice in known)


def test_columns_that_nearly_look_alike_are_told_apart() -> None:
    """Zinc blende along [001]: two kinds of columns in turns on one square lattice."""
    image = picture(turn(3.83 * np.eye(2), 8.0), [(0, 0, 1.0), (0.5, 0.5, 1.0), (0.5, 0, 0.7), (0, 0.5, 0.7)])
    image += np.random.default_rng(0).normal(0, 0.03, image.shape)
    found = choose_lattice(find_lattices(image, disc(), PIXEL, 40))
    assert found.area_A2 == pytest.approx(3.83**2 / 2, rel=0.01)  # the centred half of the square
    alike = picture(turn(3.83 * np.eye(2), 8.0), [(0, 0, 1.0), (0.5, 0.5, 1.0), (0.5, 0, 1.0), (0, 0.5, 1.0)])
    alike += np.random.default_rng(0).normal(0, 0.03, alike.shape)
    assert choose_lattice(find_lattices(alike, disc(), PIXEL, 40)).area_A2 == pytest.approx(3.83**2 / 4, rel=0.01)


def test_a_field_without_a_lattice_correlates_badly() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL
    places = rng.uniform(0, SIZE * PIXEL, (150, 2))
    image = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 0.28**2)) for a, b in places)
    found = find_lattices(np.asarray(image), disc(), PIXEL)
    assert max((f.correlation for f in found), default=0.0) < 0.5


def test_autocorrelation_is_the_sum_it_says() -> None:
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(5, 4)), rng.uniform(0.2, 1, (5, 4))
    corr, overlap = autocorrelation(image, weight)
    a = image - np.sum(image * weight) / np.sum(weight)
    for dy, dx in ((0, 0), (2, 1), (-1, 3), (4, -2)):
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


@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 359))
def test_a_reduced_basis_spans_the_same_lattice(m: int, n: int, degrees: int) -> None:
    vectors = turn(np.array(BASES["oblique"]), degrees)
    changed = np.array([[1, m], [n, 1 + m * n]]) @ vectors
    reduced = reduce_basis(changed)
    coefficients = reduced @ np.linalg.inv(vectors)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=1e-6)
    assert np.linalg.det(reduced) == pytest.approx(abs(np.linalg.det(vectors)))
    a, b = reduced
    assert abs(a @ b) <= 0.5 * (a @ a) + 1e-9
    assert a @ a <= b @ b + 1e-9


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
