"""Thickness and tilt, found by patterns that are held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mepdiff_core.cli import main
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.fit_settings import ThicknessConfig
from mepdiff_core.forward import ForwardModel
from mepdiff_core.optics import Optics
from mepdiff_core.scan import Scan, save_scan
from mepdiff_core.settings import ModelConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.thickness import fit_thickness


@pytest.fixture(scope="module")
def thick(perovskite: Crystal) -> Scan:
    """12 x 12 noisy patterns of 64 px through 19.2 Å of SrTiO3."""
    config = SimulationConfig(
        optics=Optics(overfocus_A=60.0),
        scan_shape=(12, 12),
        scan_step_A=0.512,
        detector_pixels=64,
        thickness_A=19.2,
        origin_A=(0.3, 0.2, 0.4),
    )
    return simulate_scan(perovskite, config)


def leaning(scan: Scan, tilt_mrad: tuple[float, float], slices: int = 12) -> Scan:
    """The same specimen as a tilted one, with new counts; its slices are those of the truth over and over."""
    assert scan.truth is not None
    phase = np.concatenate([scan.truth.phase] * -(-slices // len(scan.truth.phase)))[:slices]
    model = ForwardModel(scan, slices, 1.6, ModelConfig(tilt_mrad=tilt_mrad, sampling=2))
    patterns = model.predict(torch.as_tensor(phase), np.arange(scan.n_patterns)).numpy()
    counts = np.random.default_rng(0).poisson(patterns * scan.electrons_per_pattern)
    return replace(scan, counts=counts.reshape(scan.counts.shape), truth=None)


def test_the_thickness_is_found_by_patterns_held_out(thick: Scan) -> None:
    """19.2 Å among 12.8 to 25.6 Å, by more than 500 nats."""
    config = ThicknessConfig(lowest_A=12.8, highest_A=25.6, candidates=5, slice_thickness_A=3.2)
    steps = list(fit_thickness(thick, config))
    assert [s.step for s in steps] == list(range(1, 5 * 15 + 1))
    assert [len(s.candidates) for s in steps[14::15]] == [1, 2, 3, 4, 5]
    best = steps[-1].best()
    assert (best.thickness_A, best.slices) == (pytest.approx(19.2), 6)
    assert best.slice_thickness_A == pytest.approx(3.2)
    assert best.nats_above == 0
    assert sorted(c.nats_above for c in steps[-1].candidates)[1] > 500


def test_a_tilt_of_5_mrad_is_found(thick: Scan) -> None:
    """To 0.7 mrad in a specimen of 38.4 Å, where it moves the columns by a pixel."""
    tilted = leaning(thick, (5.0, -3.0), 24)
    config = ThicknessConfig(lowest_A=38.4, highest_A=38.4, candidates=1, slice_thickness_A=3.2, tilt=True)
    *_, end = fit_thickness(tilted, config)
    *_, upright = fit_thickness(tilted, replace(config, tilt=False))
    assert end.best().tilt_mrad == pytest.approx((5.0, -3.0), abs=0.7)
    assert end.best().heldout < upright.best().heldout - 1e-4
    *_, none = fit_thickness(leaning(thick, (0.0, 0.0), 24), config)
    assert none.best().tilt_mrad == pytest.approx((0.0, 0.0), abs=0.7)


def test_the_size_of_the_source_is_found(thick: Scan) -> None:
    """0.4 Å among 0, 0.2, 0.4 and 0.6 Å; a point among the same."""
    assert thick.truth is not None
    config = ThicknessConfig(19.2, 19.2, 1, slice_thickness_A=3.2, source_sizes_A=(0.0, 0.2, 0.4, 0.6), iterations=10)
    for size, modes in ((0.4, 12), (0.0, 1)):
        model = ForwardModel(thick, 12, 1.6, ModelConfig(probe_modes=modes, source_size_A=size))
        patterns = model.predict(torch.as_tensor(thick.truth.phase), np.arange(thick.n_patterns)).numpy()
        counts = np.random.default_rng(1).poisson(patterns * thick.electrons_per_pattern)
        *_, end = fit_thickness(replace(thick, counts=counts.reshape(thick.counts.shape), truth=None), config)
        assert [c.source_size_A for c in end.candidates] == [0.0, 0.2, 0.4, 0.6]
        best = end.best()
        assert best.source_size_A == size
        assert best.probe_modes == (1 if size == 0 else 8)
        assert end.step == end.total == 40
        assert sorted(c.nats_above for c in end.candidates)[1] > 20


def test_the_command_names_the_options_to_use(
    thick: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_scan(thick, tmp_path / "scan.h5")
    settings = ["--set", "candidates=2", "--set", "slice_thickness_A=4.8", "--set", "iterations=6", "--device", "cpu"]
    arguments = ["fit-thickness", "scan.h5", "--from", "9.6", "--to", "19.2", "--tilt", *settings]
    assert main([*arguments, "--out", "t.png"]) == 0
    said = capsys.readouterr().out
    assert "Best: 19.2 Å. Use it with: --slices 4 --set slice_thickness_A=4.8 --set model.tilt_mrad=[" in said
    assert "The best lies at the end of what was tried: try farther." in said
    assert Path("t.png").stat().st_size > 5_000
    assert main([*arguments, "--json"]) == 0
    result = yaml.safe_load(capsys.readouterr().out)
    assert result["slices"] == 4
    assert [c["thickness_A"] for c in result["candidates"]] == pytest.approx([9.6, 19.2])
    use = ["--slices", "4", "--set", "slice_thickness_A=4.8", "--set", "model.tilt_mrad=[0.1,0.2]"]
    run = [
        "reconstruct",
        "scan.h5",
        "--method",
        "adam-best",
        "--out",
        "run",
        "--steps",
        "1",
        "--set",
        "engine=fast",
        "--device",
        "cpu",
    ]
    assert main([*run, *use]) == 0
    assert yaml.safe_load(Path("run/run.yaml").read_text())["config"]["model"]["tilt_mrad"] == [0.1, 0.2]
    source = ["fit-thickness", "scan.h5", "--from", "9.6", "--to", "9.6", *settings[2:], "--set", "candidates=1"]
    assert main([*source, "--source", "0", "0.3", "--out", "s.png"]) == 0
    assert "source  modes" in capsys.readouterr().out
    assert Path("s.png").stat().st_size > 5_000
    for bad, message in (
        (["--from", "20", "--to", "10"], "lowest_A is 20 and highest_A 10"),
        (["--out", "t.pdf"], "expected the name of a picture"),
        (["--set", "tilt=true", "--set", "even=false"], "set even=true to find a tilt"),
    ):
        assert main(["fit-thickness", "scan.h5", *bad]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_cannot_be_are_refused() -> None:
    for values, message in (({"heldout_fraction": 0.0}, "heldout_fraction is 0"), ({"candidates": 0}, "candidates is 0")):
        with pytest.raises(InputError, match=message):
            ThicknessConfig(**values)  # type: ignore[arg-type]
