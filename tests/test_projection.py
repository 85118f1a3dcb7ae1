"""What the patterns say of matter without a crystal; its truth is abTEM's."""

from __future__ import annotations

import numpy as np
import pytest

from mepdiff_core.batches import split_patterns
from mepdiff_core.crystals import Crystal
from mepdiff_core.projection import MatterStep, illumination, matter_by_depth, project
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan

A, THICKNESS, SLICES = 4.2, 12.8, 8
HIGH, LOW = 2.0, 10.6
"""Å below the entrance face: one sheet of gold there, another between its columns."""
SHEETS = Crystal(
    "sheets",
    np.diag([A, A, THICKNESS]),
    np.array([79, 79]),
    np.array([[0.0, 0.0, HIGH / THICKNESS], [0.5, 0.5, LOW / THICKNESS]]),
)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(SHEETS, SimulationConfig(scan_shape=(14, 14), origin_A=(0.0, 0.0, 0.0), seed=1))


@pytest.fixture(scope="module")
def steps(scan: Scan) -> list[MatterStep]:
    fit, held = split_patterns(scan.n_patterns, 0.05, 0)
    rng = np.random.default_rng(0)
    return list(matter_by_depth(scan, SLICES, THICKNESS / SLICES, fit, held, rng))


def centroids_A(volume: np.ndarray, scan: Scan) -> tuple[float, float]:
    """Mean depth of the matter where the columns of either sheet are."""
    assert scan.truth is not None
    true, lit = scan.truth.phase, illumination(scan) > 0.9
    depth = (np.arange(SLICES) + 0.5) * THICKNESS / SLICES
    found = []
    for s in (int(HIGH * SLICES / THICKNESS), int(LOW * SLICES / THICKNESS)):
        profile = volume[:, (true[s] > 0.5 * true[s].max()) & lit].sum(1)
        found.append(float(depth @ profile / profile.sum()))
    return found[0], found[1]


def test_sheets_at_two_depths_come_apart(scan: Scan, steps: list[MatterStep]) -> None:
    assert scan.truth is not None
    high, low = centroids_A(scan.truth.phase, scan)
    assert low - high > 7
    above, below = centroids_A(steps[-1].volume, scan)
    assert below - above > 0.4 * (low - high)


def test_depth_explains_what_was_held_out(steps: list[MatterStep]) -> None:
    """The first passes have all slices alike."""
    even, last = steps[2], steps[-1]
    np.testing.assert_array_equal(even.volume, np.repeat(even.volume[:1], SLICES, 0))
    assert even.heldout is not None
    assert last.heldout is not None
    assert last.heldout < even.heldout - 50
    assert [s.step for s in steps] == list(range(1, steps[-1].total + 1))


def test_what_lies_together_is_the_projection(scan: Scan, steps: list[MatterStep]) -> None:
    """Two ways to the same matter: of four slices alike, and of eight."""
    fit, _ = split_patterns(scan.n_patterns, 0.05, 0)
    *_, last = project(scan, THICKNESS, fit, 12, np.random.default_rng(0))
    lit = illumination(scan) > 0.9
    total = steps[-1].volume.sum(0)[lit]
    assert np.corrcoef(total, last.phase[lit])[0, 1] > 0.97


def test_nothing_held_out_has_no_misfit(scan: Scan) -> None:
    none = np.zeros(0, np.int64)
    first = next(matter_by_depth(scan, SLICES, THICKNESS / SLICES, np.arange(8), none, np.random.default_rng(0)))
    assert first.heldout is None
