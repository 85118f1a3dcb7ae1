"""Four shapes for every element's scattering factor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mepdiff_core.element_features import FEATURES, HEAVIEST, LIGHTEST, MIXED, element_table
from mepdiff_core.renderer import scattering_factor

K = np.linspace(0.05, 2.6, 400)
"""1/Å; finer than the table's own."""
ELEMENTS = np.arange(LIGHTEST, HEAVIEST + 1)


def factors(numbers: npt.NDArray[np.integer] | tuple[int, ...]) -> npt.NDArray[np.float64]:
    """(elements, frequencies) scattering factors, weighted by the root of the area of the plane at each frequency."""
    return np.array([scattering_factor(int(z), K**2) for z in numbers]) * np.sqrt(K)


def residuals(drawn: npt.NDArray[np.float64], numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    true = factors(numbers)
    return np.asarray(np.linalg.norm(drawn - true, axis=1) / np.linalg.norm(true, axis=1))


def test_the_shapes_cover_lithium_to_uranium() -> None:
    assert (LIGHTEST, HEAVIEST, FEATURES) == (3, 92, 4)
    table = element_table()
    assert table.features.shape == (HEAVIEST + 1, FEATURES)
    assert table.mixture.shape == (FEATURES, len(MIXED))
    assert not table.features[0].any()


def test_mixed_images_draw_any_element_to_two_percent() -> None:
    """An element's features times the shapes, the shapes drawn as mixtures of ``MIXED``: both errors together, by k."""
    table = element_table()
    drawn = table.features[ELEMENTS] @ table.mixture @ factors(MIXED)
    assert residuals(drawn, ELEMENTS).max() < 0.02


def test_the_mixtures_are_the_shapes() -> None:
    """The best any four functions could do, singular vectors do; the mixtures span the same space and are orthogonal."""
    table = element_table()
    shapes = table.mixture @ factors(MIXED)
    norms = np.linalg.norm(shapes, axis=1)
    gram = (shapes / norms[:, None]) @ (shapes / norms[:, None]).T
    assert gram == pytest.approx(np.eye(FEATURES), abs=0.02)
    assert norms == pytest.approx(np.full(FEATURES, norms.mean()), rel=0.01)  # one unit for every feature
    known = factors(ELEMENTS)
    best = np.linalg.svd(known / np.linalg.norm(known, axis=1)[:, None], full_matrices=False)[2][:FEATURES]
    overlap = np.linalg.svd(best @ (shapes / norms[:, None]).T, compute_uv=False)
    assert overlap.min() > 0.98


def test_features_are_the_best_fit() -> None:
    table = element_table()
    shapes = table.mixture @ factors(MIXED)
    fitted = np.linalg.lstsq(shapes.T, factors(ELEMENTS).T, rcond=None)[0].T
    assert table.features[ELEMENTS] == pytest.approx(fitted, abs=0.005)


def test_oxygen_is_the_unit_and_strength_the_first_feature() -> None:
    table = element_table()
    assert table.features[8, 0] == pytest.approx(1.0, abs=1e-12)
    strength = np.linalg.norm(factors(ELEMENTS), axis=1)
    assert (table.features[ELEMENTS, 0] > 0).all()
    assert np.corrcoef(table.features[ELEMENTS, 0], strength)[0, 1] > 0.99
    assert (np.abs(table.features[ELEMENTS, 1:]).max(1) < table.features[ELEMENTS, 0]).all()
