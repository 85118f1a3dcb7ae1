"""What a real experiment does to a scan, found, mended and reconstructed: within a tenth of the clean scan's SSIM.

``benchmarks/science/real_conditions.py`` does the same with more passes, and shows what happens where nothing is mended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mepdiff_core.calibration import calibrate, calibration_of
from mepdiff_core.crystals import Crystal
from mepdiff_core.patterns import shift
from mepdiff_core.preparation import prepare
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ADAM_BEST, AdamConfig, ModelConfig, RefineConfig
from mepdiff_core.simulate import simulate_scan
from mepdiff_core.states import State

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "science"))

import real_conditions as real

QUICK = replace(ADAM_BEST, engine="fast", iterations=20, patience=None, slices=6)
LONGER = replace(QUICK, iterations=60)
Score = Callable[[Scan, AdamConfig], tuple[float, State]]


@pytest.fixture(scope="module")
def big(perovskite: Crystal) -> Scan:
    """18 x 18 patterns of 64 px through 9.6 Å of SrTiO3, the scan turned by 25 degrees."""
    return simulate_scan(perovskite, real.CONFIG)


@pytest.fixture(scope="module")
def score(big: Scan) -> Score:
    """SSIM as a part of the clean scan's, and the last state."""
    clean, _ = real.score(big, real.inner(big), QUICK)
    assert clean is not None

    def of(scan: Scan, config: AdamConfig) -> tuple[float, State]:
        found, state = real.score(big, scan, config)
        assert found is not None
        return found / clean, state

    return of


def found(scan: Scan, name: str) -> object:
    return scan.info["prepared"][-1]["found"][name]


def test_rotation(big: Scan, score: Score) -> None:
    """25 degrees, told as 0: to 0.2 degrees."""
    ready = prepare(calibrate(real.inner(big), {"scan_rotation_deg": 0.0}), PrepareConfig(rotation="find"))
    assert calibration_of(ready).scan_rotation_deg == pytest.approx(real.ROTATION, abs=0.2)
    assert score(ready, QUICK)[0] > 0.9


def test_shifts(big: Scan, score: Score) -> None:
    """Patterns 3 and -2 pixels off: to 0.05 pixels."""
    clean = real.inner(big)
    ready = prepare(replace(clean, counts=shift(clean.counts, (3, -2))), PrepareConfig(centre="mean"))
    assert found(ready, "mean_shift_px") == pytest.approx([-3, 2], abs=0.05)
    assert score(ready, QUICK)[0] > 0.9


def test_drift(big: Scan, score: Score) -> None:
    """A walk of 0.3 Å rms: to 0.14 Å rms in 60 passes."""
    scan, walk = real.drifted(real.inner(big))
    part, state = score(scan, replace(LONGER, refine=RefineConfig(position_rate_A=0.05)))
    assert state.refined is not None
    left = state.refined.positions_A - (scan.positions_A - walk)
    assert np.sqrt(np.mean(np.sum((left - left.mean(0)) ** 2, axis=1))) < 0.14
    assert part > 0.9


def test_two_probe_modes(big: Scan, score: Score) -> None:
    """A vortex that holds a quarter of the beam, found from nothing: its part to 0.06, both modes to a fidelity of 0.96."""
    clean = real.inner(big)
    part, state = score(
        real.mixed(clean), replace(QUICK, iterations=40, refine=RefineConfig(probe_rate=0.05, probe_modes=2))
    )
    assert state.refined is not None
    modes, true = (probe.reshape(2, -1) for probe in (state.refined.probe, real.two_modes(clean)))
    assert np.sum(np.abs(modes[1]) ** 2) == pytest.approx(real.VORTEX, abs=0.06)
    assert np.linalg.svd(modes.conj() @ true.T, compute_uv=False).sum() ** 2 > 0.96
    assert part > 0.9


def test_tilt(big: Scan, score: Score) -> None:
    """5 and -3 mrad, given; what finds them: tests/test_thickness.py."""
    assert score(real.tilted(real.inner(big)), replace(QUICK, model=ModelConfig(tilt_mrad=real.TILT)))[0] > 0.9


def test_dead_and_hot_pixels(big: Scan, score: Score) -> None:
    """All of them, and no other."""
    ready = prepare(real.faulty(real.inner(big)), PrepareConfig(fill_bad_pixels=True))
    for kind, true in (("dead", real.DEAD), ("hot", real.HOT)):
        pixels = found(ready, f"{kind}_pixels")
        assert isinstance(pixels, list)
        assert sorted(map(tuple, pixels)) == sorted(true)
    assert score(ready, QUICK)[0] > 0.9


def test_gain_and_background(big: Scan, score: Score) -> None:
    """4 counts an electron over a background of 6: to 6 % in a window hardly wider than the probe, and to 0.1 counts."""
    clean = real.inner(big)
    config = PrepareConfig(background=None, electrons_per_count=None, beam="sum")
    ready = prepare(replace(clean, counts=clean.counts / real.GAIN + real.PEDESTAL), config)
    assert found(ready, "electrons_per_count") == pytest.approx(real.GAIN, rel=0.06)
    assert found(ready, "background") == pytest.approx(real.PEDESTAL, abs=0.1)
    assert score(ready, QUICK)[0] > 0.9
