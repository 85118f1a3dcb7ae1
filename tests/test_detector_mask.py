"""Blind pixels: no fit believes them, and they stay with the patterns through a preparation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.baselines import run_adam
from mepdiff_core.candidates import heldout_deviance
from mepdiff_core.cli import main
from mepdiff_core.columns import Columns
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystals import Crystal
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.element_features import FEATURES
from mepdiff_core.ensemble import heldout_deviances
from mepdiff_core.errors import InputError
from mepdiff_core.expansion import quadratic
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import make_likelihood
from mepdiff_core.metrics import middle
from mepdiff_core.polish import draw_cell
from mepdiff_core.posterior import run_proximal
from mepdiff_core.preparation import prepare, words_of
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.report import judge
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.settings import ADAM_BEST, LikelihoodName, MepdiffConfig, ProximalConfig
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.unit_cell import UnitCell, from_crystal
from mepdiff_core.weights import PriorConfig, save_prior

FAST = replace(ADAM_BEST, engine="fast", iterations=12, patience=None)
STOP = np.zeros((64, 64), bool)
STOP[28:37, :40] = True  # the arm of a beam stop, over a part of the bright disk


def stopped(scan: Scan, blind: bool) -> Scan:
    return replace(scan, counts=np.where(STOP, 0, scan.counts), blind=STOP if blind else None)


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_blind_pixels_say_nothing(small_scan: Scan, name: str) -> None:
    """Whatever is in them, loss and gradient are the same; and the loss is that over the other pixels."""
    assert small_scan.truth is not None
    volume, some = torch.as_tensor(small_scan.truth.phase), np.array([3, 11, 40])
    likelihood, results = make_likelihood(name), []
    for fill in (0, 7, 4000):
        scan = replace(small_scan, counts=np.where(STOP, fill, small_scan.counts), blind=STOP)
        model = ForwardModel(scan, 4, 1.6)
        loss, gradient, _ = model.gradients(volume, some, likelihood)
        assert float(loss) == pytest.approx(model.loss(volume, some, likelihood), rel=1e-9)
        results.append((float(loss), gradient.numpy()))
    for loss, gradient in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(gradient, results[0][1])
    predicted = model.predict(volume, some)[:, ~STOP]
    measured = torch.as_tensor(small_scan.patterns()[some][:, ~STOP] / small_scan.electrons_per_pattern)
    terms = likelihood.terms(predicted, measured)[0]
    expected = likelihood.finish(float(terms.sum(dtype=torch.float64)), likelihood.data_scale(measured), terms.numel())[0]
    assert results[0][0] == pytest.approx(expected, rel=1e-5)


def test_a_beam_stop_costs_little_where_it_is_known(small_scan: Scan) -> None:
    """The projection is nearly that without it; where it is unknown, it is taken for scattering."""
    found = {}
    for name, scan in (("clean", small_scan), ("known", stopped(small_scan, True)), ("unknown", stopped(small_scan, False))):
        *_, state = run_adam(scan, FAST)
        found[name] = middle(state.volume.sum(0), 24).ravel()
    correlations = {name: np.corrcoef(found["clean"], projection)[0, 1] for name, projection in found.items()}
    assert correlations["known"] > 0.8
    assert correlations["unknown"] < 0.5


def test_a_run_is_judged_by_what_the_detector_sees(small_scan: Scan) -> None:
    assert small_scan.truth is not None
    metrics = [
        judge(scan, small_scan.truth.phase, 1.6, 0.05, 0, torch.device("cpu"))
        for scan in (small_scan, stopped(small_scan, True), stopped(small_scan, False))
    ]
    assert metrics[1]["deviance_heldout"] == pytest.approx(metrics[0]["deviance_heldout"], rel=0.1)
    assert metrics[2]["deviance_heldout"] > 10 * metrics[0]["deviance_heldout"]


@pytest.mark.parametrize(
    "config",
    [
        PrepareConfig(flip_ky=True, transpose=True, detector_pixels=80),
        PrepareConfig(flip_kx=True, bin=2, subpixel="leave"),
        PrepareConfig(detector_crop=(8, 56, 8, 56), flip_ky=True, detector_pixels=32),
    ],
)
def test_they_stay_where_their_pixels_go(small_scan: Scan, tmp_path: Path, config: PrepareConfig) -> None:
    """Patterns with counts in blind pixels alone have counts, prepared, where the prepared scan is blind."""
    marked = replace(small_scan, counts=np.where(STOP, 5, 0) * np.ones_like(small_scan.counts), truth=None)
    np.save(tmp_path / "stop.npy", STOP.astype(np.uint8))
    ready = prepare(marked, replace(config, blind=str(tmp_path / "stop.npy")))
    assert ready.blind is not None
    # an odd row of two binned pixels: blind where either is
    np.testing.assert_array_equal(ready.blind, ready.counts[2, 3] > 0)
    assert f"{ready.blind.sum()} pixels of a finished pattern are blind" in words_of(ready)[0]
    save_scan(ready, tmp_path / "ready.h5")
    again = load_scan(tmp_path / "ready.h5")
    assert again.blind is not None
    np.testing.assert_array_equal(again.blind, ready.blind)


def test_ptyrads_engine_refuses_them(small_scan: Scan) -> None:
    with pytest.raises(InputError, match="PtyRAD believes every pixel, and the scan has blind ones; use engine=fast"):
        next(run_adam(stopped(small_scan, True), replace(FAST, engine="ptyrad")))


def judged_by_waves(scan: Scan, cell: UnitCell) -> dict[str, npt.NDArray[np.float64]]:
    """Everything that the crystal solver asks patterns for, at a cell."""
    waves, some = AtomWaves(scan, 4, 1.6), np.array([3, 11, 40])
    phase = draw_cell(waves, cell)
    sources = [{s: waves.to_model(waves.draw_flat(np.array([[1.0 + s, 1.3]]), 22))} for s in range(2)]
    misfit, gradient, curvature = quadratic(waves, phase, sources, some, [[0, 1]])
    model = CrystalModel(waves, Columns(cell.lattice_A[:2, 1:], np.zeros(2), np.zeros((1, 2)), np.ones((1, FEATURES))))
    return {
        "misfit": waves.misfit(waves.transmission(phase), some),
        "quadratic": np.concatenate([[misfit], gradient, curvature.ravel()]),
        "gradient": waves.gradient(phase, some).double().numpy(),
        "excess": np.array(model.excess(phase, some)),
    }


def test_the_crystal_solver_asks_only_pixels_that_see(small_scan: Scan, perovskite: Crystal) -> None:
    """Bit for bit the same whatever is in blind pixels; the same as without a mask where none is blind; and what a mask
    takes away from misfit and curvature is what another mask, of the other pixels, leaves."""
    cell = from_crystal(perovskite, "c", (0.0, 0.0, 0.0), 6.4)

    def at(fill: float, blind: npt.NDArray[np.bool_] | None) -> dict[str, npt.NDArray[np.float64]]:
        return judged_by_waves(replace(small_scan, counts=np.where(STOP, fill, small_scan.counts), blind=blind), cell)

    empty, nonsense, zeros = at(0, STOP), at(4000, STOP), np.zeros_like(STOP)
    for name, value in nonsense.items():
        np.testing.assert_array_equal(value, empty[name])
    whole, unmasked, rest = at(5, None), at(5, zeros), at(5, ~STOP)
    for name, value in whole.items():
        np.testing.assert_allclose(unmasked[name], value, rtol=1e-12)
    for name in ("misfit", "quadratic", "gradient"):
        largest = np.abs(whole[name]).max()
        np.testing.assert_allclose((empty[name] + rest[name]) / largest, whole[name] / largest, atol=3e-6)
    assert np.abs(rest["quadratic"]).max() > 0


@pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
def test_a_prior_is_weighed_against_what_was_seen(small_scan: Scan, likelihood: LikelihoodName, tmp_path: Path) -> None:
    """And not against the electrons of a hot beam stop: the sampler's answer is bit for bit the same."""
    torch.manual_seed(0)
    network = UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16, patch=2)
    save_prior(
        tmp_path / "tiny.safetensors",
        dict(UNet(network).named_parameters()),
        PriorConfig(network, DiffusionConfig(), (4, 32, 32)),
        {},
    )
    config = ProximalConfig(
        prior=str(tmp_path / "tiny.safetensors"), likelihood=likelihood, slices=4, steps=2, batches=2, warm_passes=1
    )
    answers = []
    for fill in (0, 4000):
        scan = replace(small_scan, counts=np.where(STOP, fill, small_scan.counts), blind=STOP)
        *_, state = run_proximal(scan, config)
        answers.append(state.volume)
    np.testing.assert_array_equal(*answers)
    assert answers[0].std() > 0


def test_two_answers_are_compared_where_the_detector_sees(small_scan: Scan) -> None:
    """The deviance of held-out patterns, of both ways to it, is the same whatever is in blind pixels."""
    assert small_scan.truth is not None
    truth, found = small_scan.truth.phase, []
    for fill in (0, 4000):
        scan = replace(small_scan, counts=np.where(STOP, fill, small_scan.counts), blind=STOP)
        ranked = heldout_deviances(scan, truth[None], 1.6, 0.05, 0)
        found.append((heldout_deviance(scan, truth, MepdiffConfig()), *ranked))
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(heldout_deviance(small_scan, truth, MepdiffConfig()), rel=0.1)
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-9)


def test_other_pictures_are_refused(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("stop.tif", STOP.astype(np.uint8) * 255)
    np.save("small.npy", STOP[:32])
    np.save("all.npy", np.ones((64, 64)))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    Path("stop.png").write_bytes(b"x")
    for name, message in (
        ("small.npy", "has shape (32, 64); the scan's patterns, as they are in the file, have (64, 64)"),
        ("all.npy", "every pixel is blind"),
        ("objects.npy", "objects.npy"),
        ("stop.png", "expected a picture of the detector, .npy or .tif"),
        ("none.tif", "none.tif: no such file"),
    ):
        assert main(["prepare", str(small_file), "ready.h5", "--set", f"blind={name}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
        assert not Path("ready.h5").exists()
    assert main(["prepare", str(small_file), "ready.h5", "--set", "blind=stop.tif"]) == 0
    blind = load_scan("ready.h5").blind
    assert blind is not None
    np.testing.assert_array_equal(blind, STOP)
