"""Small scans and crystals that many tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mepdiff_core.crystals import Crystal
from mepdiff_core.optics import Optics
from mepdiff_core.scan import Scan, save_scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan

SMALL = SimulationConfig(
    optics=Optics(overfocus_A=60.0),
    scan_shape=(6, 7),
    scan_step_A=0.73,
    k_max_invA=2.5,
    detector_pixels=64,
    thickness_A=6.4,
    origin_A=(0.3, 0.2, 0.4),
)
"""A few seconds of simulation; the probe of 60 Å over focus fits into the window of 12.8 Å."""


@pytest.fixture(scope="session")
def perovskite() -> Crystal:
    """Strontium titanate, built by hand: no file is read."""
    cell = 3.905 * np.eye(3)
    numbers = np.array([38, 22, 8, 8, 8])
    fractional = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Crystal("SrTiO3", cell, numbers, fractional)


@pytest.fixture(scope="session")
def small_scan(perovskite: Crystal) -> Scan:
    """42 noisy patterns of 64 px through 4 slices of SrTiO3, with truth."""
    return simulate_scan(perovskite, SMALL)


@pytest.fixture(scope="session")
def small_file(small_scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_scan`` as a file."""
    path = tmp_path_factory.mktemp("scan") / "small.h5"
    save_scan(small_scan, path)
    return path
