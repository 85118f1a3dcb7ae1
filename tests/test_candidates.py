"""Which of two answers the held-out patterns prefer, and how a run of both goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import shift

from mepdiff_core import candidates
from mepdiff_core.atoms import run_crystal
from mepdiff_core.baselines import run_adam
from mepdiff_core.candidates import heldout_deviance, recalled, remembered, run_mepdiff
from mepdiff_core.defects import Defect
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.errors import InputError
from mepdiff_core.forward import object_field
from mepdiff_core.metrics import middle
from mepdiff_core.posterior import passes_of_adam
from mepdiff_core.probe import load_refined
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.settings import CrystalConfig, MepdiffConfig, ModelConfig, RefineConfig
from mepdiff_core.states import CrystalState, Refined, SampleState, State
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


def solver(state: CrystalState, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put in place of the crystal solver, which takes minutes; returns what beam it was asked about, each time."""
    asked: list[dict[str, Any]] = []

    def run_crystal(scan: Scan, config: Any, device: Any, **beam: Any) -> Iterator[CrystalState]:
        asked.append(beam)
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
        assert "prefer the crystal solver's volume to the prior's: deviance" in states[-1].verdict
    else:
        assert isinstance(states[-1], SampleState)
        assert "prefer the prior's volume to the crystal solver's: deviance" in states[-1].verdict
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


def whole_and_resumed(file: Path, folder: Path, config: MepdiffConfig, stop: int) -> tuple[Run, Run]:
    """A run in ``whole``, and one in ``stopped`` that was stopped after so many states and went on."""
    whole = Run(file, folder / "whole", "mepdiff", config)
    list(whole.states())
    states = Run(file, folder / "stopped", "mepdiff", config).states()
    for _ in range(stop):
        next(states)
    states.close()  # type: ignore[attr-defined]
    again = Run(file, folder / "stopped", "mepdiff", resume=True)
    list(again.states())
    return whole, again


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_of_both_goes_on_without_asking_the_solver_again(
    stop: int, small_scan: Scan, small_file: Path, config: MepdiffConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the solver, after the first passes, between two steps of the sampler."""
    asked = solver(crystal(small_scan, True, False, samples=None), monkeypatch)
    whole, again = whole_and_resumed(small_file, tmp_path, config, stop)
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


BOTH = RefineConfig(position_rate_A=0.02, probe_rate=0.01, probe_modes=2)


@pytest.mark.parametrize("refine", [BOTH, replace(BOTH, probe_rate=0.0, probe_modes=1)], ids=["both", "positions"])
def test_what_is_refined_first_is_used_by_all_that_follows(
    refine: RefineConfig, small_scan: Scan, config: MepdiffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solver and the sampler take just what Adam finds; a probe that was not refined stays that of the optics."""
    found = replace(passes_of_adam(config, 2), refine=refine)
    *_, alone = run_adam(small_scan, found)
    assert alone.refined is not None
    asked = solver(crystal(small_scan, True, False), monkeypatch)
    states: list[State] = list(run_mepdiff(small_scan, replace(config, refine=refine, refine_passes=2)))
    (beam,) = asked
    np.testing.assert_array_equal(beam["positions_A"], alone.refined.positions_A)
    assert np.ptp(beam["positions_A"] - small_scan.positions_A) > 0.01
    if refine.probe_rate:
        np.testing.assert_array_equal(beam["probe"], alone.refined.probe)
        assert len(beam["probe"]) == 2
    else:
        assert beam["probe"] is None
    assert [s.step for s in states] == list(range(1, 3)) + list(range(6, 12))  # the solver's first states are 4 and 5
    assert [s.seconds for s in states] == sorted(s.seconds for s in states)
    assert all(s.step <= s.total for s in states)
    for state in states:
        assert state.refined is not None
    for state in states[2:]:
        np.testing.assert_array_equal(state.refined.positions_A, alone.refined.positions_A)  # type: ignore[union-attr]
    deviance = heldout_deviance(small_scan, states[-2].volume, config, refined=alone.refined)
    assert f"{deviance:.4f}" in states[-1].verdict


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_run_that_refines_goes_on(
    stop: int, small_scan: Scan, small_file: Path, config: MepdiffConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it refines, before and after the solver's answer, between two steps of the sampler."""
    asked = solver(crystal(small_scan, True, False, samples=None), monkeypatch)
    refining = replace(config, refine=BOTH, refine_passes=2)
    whole, again = whole_and_resumed(small_file, tmp_path, refining, stop)
    for beam in asked[1:]:
        np.testing.assert_array_equal(beam["positions_A"], asked[0]["positions_A"])
    assert again.metrics["verdict"] == whole.metrics["verdict"] != ""
    assert again.metrics["r_heldout"] == whole.metrics["r_heldout"]
    one, other = (load_refined(tmp_path / name / "refined.h5") for name in ("whole", "stopped"))
    np.testing.assert_array_equal(one.probe, other.probe)


def test_what_was_refined_comes_back_from_a_checkpoint(small_scan: Scan) -> None:
    refined = Refined(small_scan.get_probe(), small_scan.positions_A + 0.1, small_scan.pixel_size_A, 300e3)
    other = recalled(remembered(crystal(small_scan, True, False, refined=refined)))
    assert other is not None
    assert other.refined is not None
    for name, value in asdict(refined).items():
        np.testing.assert_array_equal(getattr(other.refined, name), value)


def test_the_solver_sees_the_specimen_where_the_beam_really_was(small_scan: Scan) -> None:
    """Positions on record are off by 0.5 Å rms, the true ones are given: the projection is on the record's field, and
    nearer to the truth; so it is with the true probe instead of one that is out of focus."""
    assert small_scan.truth is not None
    off = np.random.default_rng(0).normal(0, 0.35, small_scan.positions_A.shape)
    wrong = replace(
        small_scan,
        positions_A=small_scan.positions_A + off,
        optics=replace(small_scan.optics, overfocus_A=120.0),
        truth=None,
    )
    positions, probe = small_scan.positions_A, small_scan.get_probe()

    def agreement(scan: Scan, **beam: Any) -> float:
        states = run_crystal(scan, CrystalConfig(slices=4), **beam)
        volume = [next(states) for _ in range(3)][-1].volume
        field = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
        assert volume.shape[1:] == field.shape
        assert small_scan.truth is not None
        apart = (np.array(small_scan.truth.origin_A[1:]) - field.origin_A) / scan.pixel_size_A
        truth = shift(small_scan.truth.phase.sum(0), apart, mode="grid-wrap")
        height, width = np.minimum(truth.shape, field.shape)
        parts = (middle(v[:height, :width], 24).ravel() for v in (truth, volume.sum(0)))
        return float(np.corrcoef(*parts)[0, 1])

    neither, half, both = (
        agreement(wrong, **b) for b in ({}, {"positions_A": positions}, {"positions_A": positions, "probe": probe})
    )
    assert neither < half - 0.1 < both - 0.3
    assert both == pytest.approx(agreement(replace(small_scan, probe=probe)), abs=0.04)


def test_what_the_solver_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match="a window and a sampling of its own; leave those of the model at 1"):
        CrystalConfig(model=ModelConfig(window=2))
    with pytest.raises(InputError, match="leave window and sampling of the model at 1, or take the method proximal"):
        MepdiffConfig(refine=BOTH, model=ModelConfig(sampling=2))
    tilted = ModelConfig(window=2, tilt_mrad=(1.0, 2.0))
    assert MepdiffConfig(refine=replace(BOTH, probe_rate=0.0, probe_modes=1), model=tilted).solver.model == ModelConfig(
        tilt_mrad=(1.0, 2.0)
    )
