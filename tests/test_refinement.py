"""Positions, probe and modes under real conditions: found together with the specimen, saved, used again, resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mepdiff_core.baselines import run_adam
from mepdiff_core.cli import main
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.forward import ForwardModel
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.optics import Optics
from mepdiff_core.preparation import cut_truth
from mepdiff_core.probe import load_refined, probe_overlap
from mepdiff_core.scan import Scan, save_scan
from mepdiff_core.settings import ADAM_BEST, AdamConfig, ModelConfig, RefineConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.states import State

FAST = replace(ADAM_BEST, engine="fast", iterations=30, patience=None, slices=4)
LONGER = replace(FAST, iterations=60)
WIDE = SimulationConfig(
    optics=Optics(overfocus_A=60.0),
    scan_shape=(14, 14),
    scan_step_A=0.512,
    detector_pixels=64,
    thickness_A=6.4,
    origin_A=(0.3, 0.2, 0.4),
)


@pytest.fixture(scope="module")
def wide(perovskite: Crystal) -> Scan:
    """14 x 14 noisy patterns of 64 px through 4 slices of SrTiO3."""
    return simulate_scan(perovskite, WIDE)


def displaced(wide: Scan, errors_A: np.ndarray) -> Scan:
    """The middle 10 x 10 patterns, with positions that are wrong by so much."""
    inner = (slice(2, 12), slice(2, 12))
    true = wide.positions_A.reshape(14, 14, 2)[inner].reshape(-1, 2)
    wrong = replace(wide, counts=wide.counts[inner], positions_A=true + errors_A, truth=None)
    return replace(wrong, truth=cut_truth(wide, wrong))


def last(states: object) -> State:
    *_, state = states  # type: ignore[misc]
    assert isinstance(state, State)
    return state


def error(state: State, scan: Scan, errors_A: np.ndarray) -> float:
    """Root mean square distance of refined from true positions, after their common shift, Å."""
    assert state.refined is not None
    left = state.refined.positions_A - (scan.positions_A - errors_A)
    return float(np.sqrt(np.mean(np.sum((left - left.mean(0)) ** 2, axis=1))))


def test_random_errors_of_the_positions_are_found(wide: Scan) -> None:
    """0.3 Å rms, down to 0.08 Å in 60 passes, those of held-out patterns as well."""
    errors = np.random.default_rng(0).normal(0, 0.3 / np.sqrt(2), (100, 2))
    scan = displaced(wide, errors)
    plain = last(run_adam(scan, FAST))
    found = last(run_adam(scan, replace(LONGER, refine=RefineConfig(position_rate_A=0.05))))
    assert plain.refined is None
    assert error(found, scan, errors) < 0.08
    assert found.heldout is not None
    assert plain.heldout is not None
    assert found.heldout < plain.heldout - 0.003
    assert found.refined is not None
    np.testing.assert_allclose(found.refined.positions_A.mean(0), scan.positions_A.mean(0), atol=1e-9)


def test_a_drift_is_found(wide: Scan) -> None:
    """A smooth walk of 0.3 Å rms over the scan, down to 0.15 Å in 60 passes."""
    rng = np.random.default_rng(1)
    errors = np.cumsum(rng.normal(0, 1, (100, 2)), axis=0)
    errors -= errors.mean(0)
    errors *= 0.3 / np.sqrt(np.mean(np.sum(errors**2, axis=1)))
    scan = displaced(wide, errors)
    found = last(run_adam(scan, replace(LONGER, refine=RefineConfig(position_rate_A=0.05))))
    assert error(found, scan, errors) < 0.15


def test_a_probe_out_of_focus_is_mended(wide: Scan) -> None:
    """25 Å of defocus too much: a third of the lost overlap with the true probe comes back
    (focus is nearly the specimen's depth, which is free too), and the held-out patterns are explained better."""
    scan = displaced(wide, np.zeros((100, 2)))
    wrong = replace(scan, optics=replace(scan.optics, overfocus_A=85.0))
    found = last(run_adam(wrong, replace(FAST, refine=RefineConfig(probe_rate=0.05))))
    assert found.refined is not None
    before = probe_overlap(wrong.get_probe(), scan.get_probe())
    after = probe_overlap(found.refined.probe, scan.get_probe())
    assert before < 0.78
    assert 1 - after < 0.65 * (1 - before)
    plain = last(run_adam(wrong, FAST))
    assert found.heldout is not None
    assert plain.heldout is not None
    assert found.heldout < plain.heldout - 1e-3
    assert np.sum(np.abs(found.refined.probe) ** 2) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(found.refined.positions_A, wrong.positions_A)


def test_refining_starts_when_it_is_told(wide: Scan) -> None:
    scan = displaced(wide, np.full((100, 2), 0.0))
    late = replace(FAST, iterations=3, refine=RefineConfig(position_rate_A=0.05, probe_rate=0.01, start=3))
    states = list(run_adam(scan, late))
    plain = list(run_adam(scan, replace(late, refine=RefineConfig())))
    moved = [np.abs(s.refined.positions_A - scan.positions_A).max() for s in states if s.refined is not None]
    assert moved[:2] == [0, 0]
    assert 0.01 < moved[2] < 0.11
    np.testing.assert_array_equal(states[1].volume, plain[1].volume)


def test_a_refining_run_resumes_bit_for_bit(wide: Scan) -> None:
    scan = displaced(wide, np.random.default_rng(2).normal(0, 0.2, (100, 2)))
    refine = RefineConfig(position_rate_A=0.05, probe_rate=0.01, probe_modes=2, start=2)
    config = replace(FAST, iterations=4, refine=refine)
    states = list(run_adam(scan, config))
    for begin in (1, 3):
        resumed = last(run_adam(scan, config, checkpoint=states[begin - 1].checkpoint))
        np.testing.assert_array_equal(resumed.volume, states[-1].volume)
        assert resumed.refined is not None
        assert states[-1].refined is not None
        np.testing.assert_array_equal(resumed.refined.positions_A, states[-1].refined.positions_A)
        np.testing.assert_array_equal(resumed.refined.probe, states[-1].refined.probe)


def test_a_run_keeps_what_it_found_and_others_use_it(
    wide: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = np.random.default_rng(0).normal(0, 0.3 / np.sqrt(2), (100, 2))
    save_scan(displaced(wide, errors), tmp_path / "scan.h5")
    common = [
        "reconstruct",
        "scan.h5",
        "--method",
        "adam-best",
        "--device",
        "cpu",
        "--set",
        "engine=fast",
        "--set",
        "slices=4",
        "--steps",
        "20",
    ]
    assert main([*common, "--out", "plain"]) == 0
    refine = ["--set", "refine.position_rate_A=0.05", "--set", "refine.probe_rate=0.005"]
    assert main([*common, "--out", "first", *refine]) == 0
    found = load_refined("first/refined.h5")
    assert found.positions_A.shape == (100, 2)
    assert main([*common, "--out", "second", "--positions", "first/refined.h5", "--probe", "first/refined.h5"]) == 0
    scores = {name: yaml.safe_load(Path(name, "metrics.json").read_text()) for name in ("plain", "first", "second")}
    # judged with the positions it has found; counting noise alone has a deviance of about 1
    excess = {name: score["deviance_heldout"] - 1 for name, score in scores.items()}
    assert excess["first"] < 0.5 * excess["plain"]
    assert excess["second"] < 0.5 * excess["plain"]
    record = yaml.safe_load(Path("second", "run.yaml").read_text())
    assert record["positions"]["path"].endswith("first/refined.h5")
    assert main([*common, "--out", "second", "--resume"]) == 0
    assert main([*common, "--out", "none", "--positions", "scan.h5"]) == 2
    capsys.readouterr()
    for arguments, message in (
        (["--positions", "plain/volume.ome.tif"], "cannot be read as a file of refined positions"),
        (["--positions", "nowhere.h5"], "nowhere.h5: no such file"),
        (["--set", "engine=ptyrad", *refine], "refine needs engine fast; set engine=fast"),
        (["--set", "model.probe_modes=2"], "several modes need a size"),
    ):
        assert main([*common, "--out", "bad", *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not Path("bad").exists()


def test_a_second_mode_is_found_from_nothing(perovskite: Crystal) -> None:
    """A vortex that holds a quarter of the beam: its part to 0.05, both modes to a fidelity of 0.97, SSIM as without it."""
    scan = simulate_scan(perovskite, replace(WIDE, thickness_A=9.6))
    first = scan.get_probe()[0]
    k = np.arange(64) - 32
    vortex = np.fft.fft2(np.fft.ifftshift(first)) * np.fft.ifftshift(k[:, None] + 1j * k)
    vortex = np.fft.fftshift(np.fft.ifft2(vortex))
    true = np.stack([np.sqrt(0.75) * first, 0.5 * vortex / np.linalg.norm(vortex)]).astype(np.complex64)
    assert scan.truth is not None
    phase, all_of_them = torch.as_tensor(scan.truth.phase), np.arange(scan.n_patterns)

    def measured(probe: np.ndarray) -> Scan:
        patterns = ForwardModel(scan, 6, 1.6, probe=probe).predict(phase, all_of_them).numpy()
        counts = np.random.default_rng(3).poisson(patterns * scan.electrons_per_pattern)
        return replace(scan, counts=counts.reshape(scan.counts.shape))

    mixed = measured(true)
    refine = RefineConfig(probe_rate=0.05, probe_modes=2)
    found = last(run_adam(mixed, replace(LONGER, slices=6, refine=refine)))
    assert found.refined is not None
    probe = found.refined.probe.reshape(2, -1)
    assert np.sum(np.abs(probe) ** 2, axis=1) == pytest.approx([0.75, 0.25], abs=0.05)
    assert abs(np.vdot(probe[0], probe[1])) < 1e-5
    overlaps = np.linalg.svd(probe.conj() @ true.reshape(2, -1).T, compute_uv=False)
    assert overlaps.sum() ** 2 > 0.97  # the fidelity of two mixed states
    blind, clean = (last(run_adam(each, replace(FAST, slices=6))) for each in (mixed, measured(first[None])))
    scores = [volume_metrics(state.volume, scan.truth.phase)["ssim_2d"] for state in (blind, found, clean)]
    assert scores[0] < 0.9 * scores[2]
    assert scores[1] > 0.95 * scores[2]


def test_a_mode_that_is_not_there_stays_faint(wide: Scan) -> None:
    scan = displaced(wide, np.zeros((100, 2)))
    found = last(run_adam(scan, replace(FAST, refine=RefineConfig(probe_rate=0.02, probe_modes=3))))
    assert found.refined is not None
    assert np.sum(np.abs(found.refined.probe[1:]) ** 2) < 0.05


def test_patterns_of_a_wide_source_want_modes(wide: Scan) -> None:
    """The held-out misfit is lower with the modes of the source that blurred the patterns than with one."""
    scan = displaced(wide, np.zeros((100, 2)))
    blurred = np.zeros((10, 10, 64, 64))
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    # a source of 1.2 Å: the mean of neighbouring patterns at -1, 0 and 1 step, which are its own nodes
    for y, wy in zip((-1, 0, 1), weights, strict=True):
        for x, wx in zip((-1, 0, 1), weights, strict=True):
            blurred += wy * wx * wide.counts[2 + y : 12 + y, 2 + x : 12 + x]
    size = 0.512 / nodes.max() * np.sqrt(8 * np.log(2))
    blurred_scan = replace(scan, counts=np.random.default_rng(3).poisson(blurred))
    modes = ModelConfig(probe_modes=9, source_size_A=float(size))
    quick = replace(FAST, iterations=10)
    one, several = (last(run_adam(blurred_scan, replace(quick, model=m))) for m in (ModelConfig(), modes))
    assert one.heldout is not None
    assert several.heldout is not None
    assert several.heldout < one.heldout - 1e-3  # nats an electron: 260 a pattern


def test_settings_that_cannot_be_are_refused() -> None:
    for values, message in (
        ({"position_rate_A": -1.0}, "position_rate_A is -1"),
        ({"probe_support": 0.5}, "probe_support is 0.5"),
        ({"start": 0}, "refine start is 0"),
        ({"probe_modes": 2}, "refine probe_modes is 2, which a probe_rate of 0 leaves empty"),
    ):
        with pytest.raises(InputError, match=message):
            RefineConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="refine needs engine fast"):
        AdamConfig(refine=RefineConfig(position_rate_A=0.1))
    with pytest.raises(InputError, match="tilt_mrad"):
        ModelConfig(tilt_mrad=(0.0, 300.0))
