"""Overfocus, thermal motion and thickness by the patterns: what was changed is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mepdiff_core.atom_waves import AtomWaves, Imaging
from mepdiff_core.crystals import Atoms, Crystal
from mepdiff_core.imaging import preferred_slices, refine_imaging
from mepdiff_core.optics import Optics
from mepdiff_core.polish import draw_cell
from mepdiff_core.renderer import Renderer
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.unit_cell import UnitCell, from_crystal

ORIGIN, THICKNESS = (0.3, 0.2, 0.4), 6.4
EVERY = np.arange(16)


@pytest.fixture(scope="module")
def scan(perovskite: Crystal) -> Scan:
    config = SimulationConfig(
        optics=Optics(overfocus_A=60.0),
        scan_shape=(4, 4),
        scan_step_A=0.73,
        detector_pixels=64,
        thickness_A=THICKNESS,
        origin_A=ORIGIN,
    )
    return simulate_scan(perovskite, config)


@pytest.fixture(scope="module")
def cell(perovskite: Crystal) -> UnitCell:
    return from_crystal(perovskite, "c", ORIGIN, THICKNESS)


def wrong_by(scan: Scan, overfocus_A: float) -> Scan:
    return replace(scan, optics=replace(scan.optics, overfocus_A=scan.optics.overfocus_A + overfocus_A))


def test_more_overfocus_is_the_optics_own(scan: Scan, cell: UnitCell) -> None:
    """To 1e-4: a probe's defocus is paraxial, propagation is not."""
    less = AtomWaves(wrong_by(scan, -5.0), 4, 1.6, imaging=Imaging(overfocus_A=5.0))
    right = AtomWaves(scan, 4, 1.6)
    transmission = right.transmission(draw_cell(right, cell))
    a, b = (waves.predict(transmission, EVERY).double() for waves in (less, right))
    assert float((a - b).norm() / b.norm()) < 1e-4
    wrong = AtomWaves(wrong_by(scan, -5.0), 4, 1.6).predict(transmission, EVERY).double()
    assert float((wrong - b).norm() / b.norm()) > 0.01


@pytest.mark.parametrize("error", [-7.0, 2.0])
def test_a_wrong_overfocus_is_found(scan: Scan, cell: UnitCell, error: float) -> None:
    refined = refine_imaging(
        AtomWaves(wrong_by(scan, error), 4, 1.6), lambda waves: draw_cell(waves, cell), EVERY, thermal=True
    )
    assert refined.waves.imaging.overfocus_A == pytest.approx(-error, abs=4 * refined.overfocus_spread_A)
    assert refined.overfocus_spread_A < 0.5
    assert refined.waves.imaging.thermal_A < 0.03


def test_what_is_right_is_left_alone(scan: Scan, cell: UnitCell) -> None:
    waves = AtomWaves(scan, 4, 1.6)
    assert refine_imaging(waves, lambda w: draw_cell(w, cell), EVERY, thermal=True).waves is waves


def test_thermal_motion_is_found(scan: Scan, cell: UnitCell) -> None:
    """The patterns are the model's own, made with atoms that move: the inverse crime, which tests the search alone."""
    moving = AtomWaves(scan, 4, 1.6, imaging=Imaging(thermal_A=0.08))
    expected = torch.fft.fftshift(moving.predict(moving.transmission(draw_cell(moving, cell)), EVERY), dim=(-2, -1))
    counts = np.random.default_rng(0).poisson(expected.double().numpy()).reshape(scan.counts.shape)
    still = AtomWaves(replace(scan, counts=counts), 4, 1.6)
    refined = refine_imaging(still, lambda waves: draw_cell(waves, cell), EVERY, thermal=True)
    assert refined.waves.imaging.thermal_A == pytest.approx(0.08, abs=0.01)
    assert abs(refined.waves.imaging.overfocus_A) < 1.0


def test_moving_atoms_are_blurred_ones() -> None:
    """By scipy's Gaussian filter, to 1e-3 of the peak."""
    atoms = Atoms(np.array([[0.5, 6.4, 6.4]]), np.array([22]), (1.6, 12.8, 12.8))
    pixel = 0.05
    sharp, blurred = (
        Renderer((256, 256), pixel, 1, 1.6, thermal_A=width).render([atoms])[0, 0].numpy() for width in (0.0, 0.12)
    )
    expected = gaussian_filter(sharp, 0.12 / pixel, mode="wrap", truncate=8)
    np.testing.assert_allclose(blurred, expected, atol=1e-3 * expected.max())
    assert blurred.max() < 0.9 * sharp.max()


@pytest.mark.parametrize("slices", [3, 4, 5])
def test_a_wrong_thickness_is_noticed(scan: Scan, cell: UnitCell, slices: int) -> None:
    def draw(waves: AtomWaves) -> torch.Tensor:
        return draw_cell(waves, replace(cell, thickness_A=waves.slices * 1.6))

    found, gain = preferred_slices(AtomWaves(scan, slices, 1.6), draw, EVERY)
    assert found == 4
    assert gain == 0 if slices == 4 else gain > 100
