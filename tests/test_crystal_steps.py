"""What the crystal solver finds before the atoms, in a file and in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mepdiff_core.arrays import save_arrays
from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.crystal_steps_figure import steps_figure
from mepdiff_core.errors import InputError

PIXEL = 0.2
ORIGIN = np.array([-3.0, 1.0])
LATTICE = np.array([[3.9, 0.3], [-1.2, 5.0]])
CORNER = np.array([2.5, 4.5])
PLACES = np.array([[0.25, 0.5], [0.75, 0.1]])
WEIGHTS = np.array([3.0, 1.0])


@pytest.fixture(scope="module")
def projection() -> np.ndarray:
    """Gaussian columns of 0.4 Å of a planted lattice."""
    y, x = (ORIGIN[k] + PIXEL * np.arange(120).reshape((-1, 1) if k == 0 else (1, -1)) for k in range(2))
    image = np.zeros((120, 120))
    for i in range(-12, 13):
        for j in range(-12, 13):
            for place, weight in zip(PLACES, WEIGHTS, strict=True):
                centre = CORNER + (place + np.array([i, j])) @ LATTICE
                image += weight * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * 0.4**2))
    return image


@pytest.fixture(scope="module")
def steps(projection: np.ndarray) -> CrystalSteps:
    weight = np.zeros(projection.shape)
    weight[10:-10, 20:-20] = 1.0
    found = CrystalSteps(projection, weight, ORIGIN, np.array(PIXEL)).with_lattice(LATTICE, CORNER)
    return found.with_columns(PLACES, WEIGHTS).with_periods([3.0, 4.0, np.nan], [70.0, 20.0, 50.0])


def test_the_averaged_cell_has_the_columns_where_they_are(steps: CrystalSteps) -> None:
    assert steps.average is not None
    sides = np.array(steps.average.shape)
    assert steps.average.max() == pytest.approx(3.0, rel=0.02)
    strongest = np.unravel_index(np.argmax(steps.average), steps.average.shape) / sides
    np.testing.assert_allclose(strongest, PLACES[0], atol=0.5 / sides.min())
    weaker = tuple(np.round(PLACES[1] * sides).astype(int))
    assert steps.average[weaker] == pytest.approx(1.0, rel=0.05)


def test_the_best_period_has_no_nats(steps: CrystalSteps) -> None:
    np.testing.assert_array_equal(steps.nats, [50.0, 0.0, 30.0])


def test_a_file_gives_back_what_is_known(steps: CrystalSteps, projection: np.ndarray, tmp_path: Path) -> None:
    for known in (steps, CrystalSteps(projection, projection, ORIGIN, np.array(PIXEL))):
        known.save(tmp_path / "steps.safetensors")
        again = CrystalSteps.load(tmp_path / "steps.safetensors")
        assert again.arrays().keys() == known.arrays().keys()
        for name, array in known.arrays().items():
            np.testing.assert_array_equal(again.arrays()[name], array)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.safetensors"
    save_arrays({"volume": np.zeros(3)}, path)
    with pytest.raises(InputError, match=r"steps.safetensors holds volume, not the crystal solver's steps; remove it"):
        CrystalSteps.load(path)
    path.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"steps.safetensors is damaged \(.*; remove it to go on without"):
        CrystalSteps.load(path)


def test_the_picture_has_a_panel_for_each_step(steps: CrystalSteps, projection: np.ndarray) -> None:
    first = CrystalSteps(projection, np.ones(projection.shape), ORIGIN, np.array(PIXEL))
    assert len(steps_figure(first).axes) == 1
    lattice = first.with_lattice(LATTICE, CORNER)
    assert [axis.get_title() for axis in steps_figure(lattice).axes][1:] == ["averaged cell"]
    shown = steps_figure(steps).axes
    assert [axis.get_title() for axis in shown] == [
        "projection: 3.912 × 5.142 Å, 99.1°",
        "averaged cell, 2 columns",
        "periods along the beam",
    ]
    # only where the beam was: rows 10 to 109, columns 20 to 99
    low, high = shown[0].get_xlim()
    assert (low, high) == pytest.approx((ORIGIN[1] + 19.5 * PIXEL, ORIGIN[1] + 99.5 * PIXEL))
    bottom, top = shown[0].get_ylim()
    assert (top, bottom) == pytest.approx((ORIGIN[0] + 9.5 * PIXEL, ORIGIN[0] + 109.5 * PIXEL))
    assert [text.get_text() for text in shown[1].texts] == ["3.0", "1.0"]
    place = PLACES[0] @ LATTICE
    crosses = [line.get_xydata()[0] for line in shown[1].lines]
    np.testing.assert_allclose(crosses[0], place[::-1])
