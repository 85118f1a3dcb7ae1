"""Which of two answers the held-out patterns prefer, and how a run of both goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mepdiff_core import candidates
from mepdiff_core.candidates import heldout_deviance, recalled, remembered, run_mepdiff
from mepdiff_core.defects import Defect
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.errors import InputError
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.settings import MepdiffConfig
from mepdiff_core.states import CrystalState, SampleState, State
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.unit_cell import UnitCell
from mepdiff_core.weights import PriorConfig, save_prior

NETWORK = UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16, patch=2)
CELL = UnitCell(
    np.array([[0.0, 0, 3.905], [0, 3.905, 0], [3.905, 0, 0]]),
    True,
    6.4,
    np.array([[0.4, 0.2, 0.3], [2.3, 2.1, 2.2]]),
    np.array([38, 22]),
    np.array([[np.nan, 0.01, 0.01], [0.2, 0.01, 0.02]]),
    (((38, 0.9), (37, 0.1)), ((22, 1.0),)),
)
DEFECT = Defect("vacancy", 38, (0.4, 0.2, 0.3), (0.0, 0.0), 31.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MepdiffConfig:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_prior(path, dict(UNet(NETWORK).named_parameters()), PriorConfig(NETWORK, DiffusionConfig(), (4, 32, 32)), {})
    return MepdiffConfig(prior=str(path), steps=3, batches=2, batch_size=8, warm_passes=1, heldout_fraction=0.1)


def crystal(scan: Scan, good: bool, explained: bool, **more: Any) -> CrystalState:
    """An answer of the crystal solver: the truth, or nothing at all."""
    assert scan.truth is not None
    truth = np.array(scan.truth.phase)
    values: dict[str, Any] = {
        "step": 5,
        "total": 5,
        "volume": truth if good else np.zeros_like(truth),
        "loss": 1.0,
        "heldout": 1e9,  # the solver's own model says nothing for it: the common one decides
        "seconds": 2.0,
        "volume_step": 5,
        "samples": np.stack([truth, truth]),
        "cell": CELL,
        "defects": (DEFECT,),
        "explained": explained,
        "verdict": "Held-out patterns are what they are.",
    }
    return CrystalState(**{**values, **more})


def solver(state: CrystalState, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put in place of the crystal solver, which takes minutes; returns how often it was asked."""
    asked: list[int] = []

    def run_crystal(scan: Scan, config: Any, device: Any) -> Iterator[CrystalState]:
        asked.append(1)
        yield replace(state, step=4, volume_step=4, verdict="", explained=False)
        yield state

    monkeypatch.setattr(candidates, "run_crystal", run_crystal)
    return asked


def test_an_explained_crystal_is_the_answer(
    small_scan: Scan, config: MepdiffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver(crystal(small_scan, good=True, explained=True), monkeypatch)
    states = list(run_mepdiff(small_scan, config))
    assert [type(s) for s in states] == [CrystalState, CrystalState]
    assert states[-1].verdict == "Held-out patterns are what they are."
    compared = list(run_mepdiff(small_scan, replace(config, compare=True)))
    assert len(compared) > 2


@pytest.mark.parametrize("good", [True, False])
def test_the_patterns_held_out_decide(
    good: bool, small_scan: Scan, config: MepdiffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = crystal(small_scan, good, explained=False)
    solver(solved, monkeypatch)
    states = list(run_mepdiff(small_scan, config))
    sampled = [s for s in states if isinstance(s, SampleState)]
    assert [s.step for s in states] == [4, 5, 6, 7, 8, 9, 10]
    assert states[-1].step == states[-1].total
    assert states[-1].seconds == pytest.approx(2.0 + sampled[3].seconds - 2.0)
    mine, own = (heldout_deviance(small_scan, s.volume, config) for s in (sampled[3], solved))
    assert (own < mine) is good
    assert f"{min(own, mine):.4f}" in states[-1].verdict
    assert "Held-out patterns are what they are." in states[-1].verdict
    if good:
        assert isinstance(states[-1], CrystalState)
        assert states[-1].cell is solved.cell
        assert "prefer the crystal to the prior's volume" in states[-1].verdict
    else:
        assert isinstance(states[-1], SampleState)
        assert "prefer the prior's volume to the crystal" in states[-1].verdict
    expected = solved.volume if good else sampled[3].volume
    np.testing.assert_array_equal(states[-1].volume, expected)


def test_where_no_crystal_was_found_the_prior_answers(
    small_scan: Scan, config: MepdiffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver(crystal(small_scan, True, False, cell=None, samples=None, defects=()), monkeypatch)
    *_, state = run_mepdiff(small_scan, config)
    assert isinstance(state, SampleState)
    assert state.verdict.startswith("Held-out patterns prefer the prior's volume: deviance ")


def test_the_better_of_two_volumes_has_the_lower_deviance(small_scan: Scan, config: MepdiffConfig) -> None:
    assert small_scan.truth is not None
    truth = small_scan.truth.phase
    values = [heldout_deviance(small_scan, volume, config) for volume in (truth, 0.5 * truth, 0 * truth)]
    assert values == sorted(values)
    assert values[0] < 0.7 * values[2]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_of_both_goes_on_without_asking_the_solver_again(
    stop: int, small_scan: Scan, small_file: Path, config: MepdiffConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the solver, after the first passes, between two steps of the sampler."""
    asked = solver(crystal(small_scan, True, False, samples=None), monkeypatch)
    whole = Run(small_file, tmp_path / "whole", "mepdiff", config)
    list(whole.states())
    stopped = Run(small_file, tmp_path / "stopped", "mepdiff", config)
    states = stopped.states()
    for _ in range(stop):
        next(states)
    states.close()  # type: ignore[attr-defined]
    again = Run(small_file, tmp_path / "stopped", "mepdiff", resume=True)
    list(again.states())
    assert len(asked) == (3 if stop == 2 else 2)  # the solver itself keeps nothing to go on from
    assert again.metrics["verdict"] == whole.metrics["verdict"] != ""
    assert again.metrics["ssim_2d"] == whole.metrics["ssim_2d"]
    for name in ("volume.ome.tif", "crystal.cif"):
        assert (tmp_path / "stopped" / name).exists()
    header, *rows = (tmp_path / "stopped" / "history.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows] == [4, 5, 6, 7, 8, 9, 10]
    assert {"stage", "network_s"} <= set(header.split(","))


def test_an_answer_comes_back_from_a_checkpoint(small_scan: Scan) -> None:
    one = crystal(small_scan, True, False)
    other = recalled(remembered(one))
    assert other is not None
    for name in ("step", "loss", "heldout", "verdict", "explained", "defects", "stage"):
        assert getattr(one, name) == getattr(other, name)
    assert other.cell is not None
    assert other.cell.candidates == CELL.candidates
    for name, value in asdict(replace(CELL, candidates=((), ()))).items():
        if name == "candidates":
            continue
        np.testing.assert_array_equal(getattr(other.cell, name), value)
    assert one.samples is not None
    assert other.samples is not None
    np.testing.assert_array_equal(one.samples, other.samples)
    assert recalled({"x": np.zeros(1)}) is None


def test_nothing_held_out_decides_nothing() -> None:
    with pytest.raises(InputError, match="held-out patterns decide between two answers"):
        MepdiffConfig(heldout_fraction=0.0)


def test_states_are_one_run(small_scan: Scan, config: MepdiffConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    solver(crystal(small_scan, True, False), monkeypatch)
    states: list[State] = list(run_mepdiff(small_scan, config))
    assert all(s.step <= s.total for s in states)
    assert [s.seconds for s in states] == sorted(s.seconds for s in states)
