"""Four shapes for every element."""

from __future__ import annotations

import numpy as np

from mepdiff_core.element_features import FEATURES, HEAVIEST, LIGHTEST, MIXED, element_table
from mepdiff_core.renderer import scattering_factor

K = np.linspace(0.05, 2.5, 97)  # not the table's own samples
FACTORS = np.array([scattering_factor(z, K**2) for z in range(1, HEAVIEST + 1)])


def shapes() -> np.ndarray:
    """(features, k) of the four shapes, as the mixture says."""
    return element_table().mixture @ FACTORS[[z - 1 for z in MIXED]]


def test_four_shapes_draw_every_element() -> None:
    table, drawn = element_table(), shapes()
    weight = np.sqrt(K)
    for z in range(LIGHTEST, HEAVIEST + 1):
        missed = (table.features[z] @ drawn - FACTORS[z - 1]) * weight
        assert np.linalg.norm(missed) < 0.022 * np.linalg.norm(FACTORS[z - 1] * weight), z


def test_three_shapes_would_not() -> None:
    table, drawn = element_table(), shapes()
    worst = max(
        np.linalg.norm(table.features[z, :3] @ drawn[:3] - FACTORS[z - 1]) / np.linalg.norm(FACTORS[z - 1])
        for z in range(LIGHTEST, HEAVIEST + 1)
    )
    assert worst > 0.03


def test_oxygen_is_the_unit_of_strength() -> None:
    features = element_table().features
    assert features.shape == (HEAVIEST + 1, FEATURES)
    assert features[8, 0] == 1
    assert 2 < features[22, 0] < 3 < features[38, 0] < features[57, 0] < features[74, 0] < 8
