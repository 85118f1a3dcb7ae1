"""Guidance changed while a sampler runs: from the next step on, on record, and the same again from the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.errors import InputError
from mepdiff_core.posterior import run_dps
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.settings import AdamConfig, DPSConfig, MepdiffConfig, ProximalConfig
from mepdiff_core.steering import Steering, steerable
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.weights import PriorConfig, save_prior

TINY = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16), DiffusionConfig(), (4, 16, 16))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing, but whose gradient is not zero."""
    torch.manual_seed(0)
    network = UNet(TINY.network)
    torch.nn.init.normal_(network.exit.weight, std=0.05)
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_prior(path, network.state_dict(), TINY, {"steps": 0})
    return path


def config(prior: Path, **settings: Any) -> DPSConfig:
    return DPSConfig(prior=str(prior), steps=5, slices=4, batch_size=8, tile_batch=64, **settings)


def test_what_can_be_steered() -> None:
    assert steerable(DPSConfig()) == ["guidance_scale", "guidance_log_snr"]
    assert steerable(ProximalConfig()) == steerable(MepdiffConfig()) == ["learning_rate", "openness"]
    assert steerable(AdamConfig()) == []  # it has a learning rate, but nobody asks it


def test_a_change_waits_for_the_next_step_and_the_last_word_wins() -> None:
    steering, base = Steering(), DPSConfig()
    steering.begin(1)
    steering.ask(base, guidance_scale=7.0)
    steering.ask(base, guidance_scale=9.0)
    assert steering.now(base) is base
    steering.begin(2)
    assert steering.now(base).guidance_scale == 9.0
    assert steering.note == "guidance_scale 9 from here on"
    steering.begin(3)
    assert steering.note == ""
    steering.ask(base, guidance_scale=9.0)  # no change
    steering.ask(base, guidance_log_snr=1.0)
    steering.begin(4)
    assert steering.changes == [{"step": 2, "guidance_scale": 9.0}, {"step": 4, "guidance_log_snr": 1.0}]
    assert (steering.now(base).guidance_scale, steering.now(base).guidance_log_snr) == (9.0, 1.0)


def test_what_cannot_be_is_refused_and_nothing_changes() -> None:
    steering = Steering()
    with pytest.raises(InputError, match="guidance_scale is -1; expected 0 or more"):
        steering.ask(DPSConfig(), guidance_scale=-1.0)
    with pytest.raises(InputError, match="openness cannot be changed while this method runs; choose from guidance_scale"):
        steering.ask(DPSConfig(), openness=2.0)
    steering.begin(1)
    assert steering.changes == []


def test_guidance_changes_from_its_step_on_and_not_before(small_scan: Scan, prior: Path) -> None:
    """A run whose guidance is switched off after step 2 is one with guidance up to there, and differs after."""
    plain = [state.volume for state in run_dps(small_scan, config(prior))]
    off = [s.volume for s in run_dps(small_scan, config(prior), steering=Steering([{"step": 3, "guidance_scale": 0.0}]))]
    same = [np.array_equal(a, b) for a, b in zip(plain, off, strict=True)]
    assert same == [True, True, False, False, False]


def test_a_steered_run_is_on_record_and_comes_again_from_it(
    small_file: Path, small_scan: Scan, prior: Path, tmp_path: Path
) -> None:
    run = Run(small_file, tmp_path / "run", "dps", config(prior), "cpu")
    states = []
    for state in run.states():
        states.append(state)
        if state.step == 2:
            run.steering.ask(run.config, guidance_scale=20.0)
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert record["changes"] == [{"step": 3, "guidance_scale": 20.0}]
    assert record["config"]["guidance_scale"] == 5000.0
    assert [state.note for state in states] == ["", "", "guidance_scale 20 from here on", "", ""]
    assert "guidance_scale 20 from here on" in (tmp_path / "run" / "history.csv").read_text()
    *_, again = run_dps(small_scan, config(prior), steering=Steering(record["changes"]))
    np.testing.assert_array_equal(again.volume, states[-1].volume)


def test_a_steered_run_that_was_stopped_goes_on_steered(small_file: Path, prior: Path, tmp_path: Path) -> None:
    whole = Run(small_file, tmp_path / "whole", "dps", config(prior), "cpu")
    for state in whole.states():
        if state.step == 1:
            whole.steering.ask(whole.config, guidance_scale=20.0)
    first = Run(small_file, tmp_path / "parts", "dps", config(prior), "cpu")
    states = first.states()
    for state in states:
        if state.step == 1:
            first.steering.ask(first.config, guidance_scale=20.0)
        if state.step == 3:
            break
    states.close()  # type: ignore[attr-defined]
    *_, last = Run(small_file, tmp_path / "parts", "dps", device="cpu", resume=True).states()
    np.testing.assert_array_equal(last.volume, state_of(tmp_path / "whole"))
    record = yaml.safe_load((tmp_path / "parts" / "run.yaml").read_text())
    assert record["changes"] == [{"step": 2, "guidance_scale": 20.0}]


def state_of(folder: Path) -> np.ndarray:
    from mepdiff_core.volume_files import read_volume

    return read_volume(folder / "volume.ome.tif")
