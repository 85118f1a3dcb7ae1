"""Posterior samplers on a scan, with a tiny prior that has learnt nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from mepdiff_core.baselines import run_adam
from mepdiff_core.batches import split_patterns
from mepdiff_core.cli import main
from mepdiff_core.config import read_yaml
from mepdiff_core.diffusion import DiffusionConfig, denoiser
from mepdiff_core.errors import InputError
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Amplitude, Poisson, make_likelihood
from mepdiff_core.posterior import _Task, run_dps, run_proximal
from mepdiff_core.probe import load_refined
from mepdiff_core.runs import Run
from mepdiff_core.sample import dpmpp_2m_sde, noise_of_seeds, polyexponential
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ADAM_BEST, DPSConfig, ProximalConfig, RefineConfig, SamplerConfig
from mepdiff_core.states import SampleState
from mepdiff_core.tiling import Tiled, Tiles
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.weights import PriorConfig, load_prior, save_prior

NETWORK = UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16, patch=2)
TINY = PriorConfig(NETWORK, DiffusionConfig(), (4, 32, 32))
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "batches": 2, "sigma_max": 4.0}
Sampler = Callable[..., Iterator[SampleState]]
BOTH = [(run_dps, DPSConfig), (run_proximal, ProximalConfig)]


@pytest.fixture(scope="module")
def prior_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = UNet(NETWORK)
    torch.nn.init.normal_(network.exit.weight, std=0.05)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_prior(path, dict(network.named_parameters()), TINY, {"data": "nothing"})
    return path


def made(kind: type[SamplerConfig], prior: Path, **more: Any) -> Any:
    warm = {"warm_passes": 1} if kind is ProximalConfig else {"guidance_scale": 10.0}
    return kind(prior=str(prior), **(SHORT | warm | more))


def last(states: Iterator[SampleState]) -> SampleState:
    *_, state = states
    return state


@pytest.mark.parametrize(("run", "kind"), BOTH)
def test_states_tell_what_goes_on(run: Sampler, kind: type[SamplerConfig], small_scan: Scan, prior_path: Path) -> None:
    states = list(run(small_scan, made(kind, prior_path)))
    sampled = states[-3:]
    assert [s.step for s in states] == list(range(1, len(states) + 1))
    assert {s.total for s in states} == {len(states)}
    np.testing.assert_allclose([s.sigma for s in sampled], polyexponential(3, 0.1, 4.0)[:3])
    for state in sampled:
        assert state.volume.shape == state.noisy.shape == (4, *state.illuminated.shape)
        assert np.isfinite(state.volume).all()
        assert state.log_snr == pytest.approx(-2 * np.log(state.sigma))
        assert state.grad_norm > 0
        assert state.network_s > 0
        assert state.physics_s > 0
    assert sampled[0].network_calls < sampled[2].network_calls
    # the probe's tails beyond the scan leave less than a fiftieth of the dose in the corners
    lit = sampled[0].illuminated
    assert lit[lit.shape[0] // 2, lit.shape[1] // 2]
    assert not lit[0, 0]
    assert np.array_equal(last(run(small_scan, made(kind, prior_path))).volume, states[-1].volume)


@pytest.mark.parametrize(("run", "kind"), BOTH)
def test_another_denoiser_in_the_networks_place(
    run: Sampler, kind: type[SamplerConfig], small_scan: Scan, prior_path: Path
) -> None:
    """The network's own gives the same bits; one that knows the answer is believed where nothing pulls."""
    config = made(kind, prior_path, guidance_scale=0.0) if kind is DPSConfig else made(kind, prior_path)
    own = last(run(small_scan, config)).volume
    again = last(run(small_scan, config, denoise=denoiser(load_prior(prior_path).network))).volume
    np.testing.assert_array_equal(own, again)
    known = last(run(small_scan, config, denoise=lambda x, added: 0 * x + 16 * 0.25))
    assert not np.array_equal(known.volume, own)
    if kind is DPSConfig:
        np.testing.assert_allclose(known.volume[:, known.illuminated], 0.25, rtol=1e-5)


@pytest.mark.parametrize(("run", "kind"), BOTH)
def test_samples_together_are_those_of_one_at_a_time(
    run: Sampler, kind: type[SamplerConfig], small_scan: Scan, prior_path: Path
) -> None:
    together = last(run(small_scan, made(kind, prior_path, samples=3)))
    assert together.samples is not None
    assert together.heldout is not None
    misfits = []
    for number in range(3):
        alone = last(run(small_scan, made(kind, prior_path, first_sample=number)))
        np.testing.assert_allclose(together.samples[number], alone.volume, atol=2e-6)
        assert alone.heldout is not None
        misfits.append(alone.heldout)
    assert together.heldout == pytest.approx(min(misfits), rel=1e-6)
    np.testing.assert_array_equal(together.volume, together.samples[int(np.argmin(misfits))])
    assert float(np.abs(together.samples[0] - together.samples[1]).max()) > 1e-3


@pytest.mark.parametrize(("run", "kind"), BOTH)
def test_what_is_held_out_guides_nothing(
    run: Sampler, kind: type[SamplerConfig], small_scan: Scan, prior_path: Path
) -> None:
    """Other counts in the held-out patterns change the held-out misfit and no voxel."""
    config = made(kind, prior_path)
    _, held = split_patterns(small_scan.n_patterns, config.heldout_fraction, config.seed)
    counts = np.array(small_scan.counts)
    counts.reshape(-1, *counts.shape[2:])[held] = counts.reshape(-1, *counts.shape[2:])[held][:, ::-1]
    one, other = (last(run(scan, config)) for scan in (small_scan, replace(small_scan, counts=counts)))
    assert np.array_equal(one.volume, other.volume)
    assert one.heldout != other.heldout


@pytest.mark.parametrize(("run", "kind"), BOTH)
@pytest.mark.parametrize("done", [1, 2])
def test_a_sampler_goes_on_from_a_checkpoint(
    run: Sampler, kind: type[SamplerConfig], done: int, small_scan: Scan, prior_path: Path
) -> None:
    config = made(kind, prior_path)
    states = list(run(small_scan, config))
    middle = states[-4 + done]
    rest = list(run(small_scan, config, checkpoint=middle.checkpoint))
    assert len(rest) == 3 - done
    assert rest[0].step == middle.step + 1
    assert np.array_equal(rest[-1].volume, states[-1].volume)
    assert rest[-1].network_calls == states[-1].network_calls


def test_guidance_that_goes_too_far_is_halved_the_same_in_any_run(small_scan: Scan, prior_path: Path) -> None:
    """Sample by sample, and after an interruption."""
    strong = {"guidance_scale": 1e6, "steps": 4}
    states = list(run_dps(small_scan, made(DPSConfig, prior_path, samples=2, **strong)))
    assert states[-1].checkpoint is not None
    assert states[-1].samples is not None
    halvings = states[-1].checkpoint["halvings"]
    assert halvings.min() > 0
    assert "times lower now" in states[-1].note
    for number in range(2):
        alone = last(run_dps(small_scan, made(DPSConfig, prior_path, first_sample=number, **strong)))
        assert alone.checkpoint is not None
        assert alone.checkpoint["halvings"] == halvings[number]
        np.testing.assert_allclose(states[-1].samples[number], alone.volume, atol=1e-5)
    rest = run_dps(small_scan, made(DPSConfig, prior_path, samples=2, **strong), checkpoint=states[1].checkpoint)
    assert np.array_equal(last(rest).volume, states[-1].volume)


def test_guidance_grows_with_the_illuminated_area(small_scan: Scan, prior_path: Path) -> None:
    """A scan beside itself: every pattern has half the say, twice the area is illuminated, and the pull is the same."""
    rows = small_scan.positions_A.reshape(*small_scan.shape, 2)
    apart = rows[-1, 0] - rows[0, 0] + rows[1, 0] - rows[0, 0]
    twice = replace(
        small_scan,
        counts=np.concatenate([small_scan.counts, small_scan.counts]),
        positions_A=np.concatenate([small_scan.positions_A, small_scan.positions_A + apart]),
        truth=None,
    )
    pulls = []
    for scan in (small_scan, twice):
        task = _Task.prepare(scan, made(DPSConfig, prior_path), "cpu")
        _, gradient = task.measurement.gradient(torch.zeros(task.model.volume_shape), np.arange(scan.n_patterns))
        pulls.append(task.weight(1.0) * float(gradient.abs().max()))
    assert pulls[1] == pytest.approx(pulls[0], rel=0.2)
    task.illuminated_A2 = 212.0  # of the paper's scan: its table 4
    assert task.weight(np.exp(-2)) == pytest.approx(10.0 / np.sqrt(2))


def test_without_guidance_dps_samples_the_prior(small_scan: Scan, prior_path: Path) -> None:
    state = last(run_dps(small_scan, made(DPSConfig, prior_path, guidance_scale=0.0)))
    prior = load_prior(prior_path)
    tiles = Tiles.lay(state.volume.shape, TINY.shape, state.illuminated)
    noise = noise_of_seeds([0], (1, *tiles.shape), torch.device("cpu"))
    sigmas = polyexponential(3, 0.1, 4.0).tolist()
    with torch.no_grad():
        *_, (x, _) = dpmpp_2m_sde(Tiled(denoiser(prior.network), tiles, 8), noise(0) * sigmas[0], sigmas, noise)
    np.testing.assert_allclose(state.volume, x[0, 0] / TINY.diffusion.data_scale, atol=1e-6)


def test_dps_starts_warm_where_it_is_asked_to(small_scan: Scan, prior_path: Path) -> None:
    """Without noise to speak of, what it starts from is what Adam left."""
    config = made(DPSConfig, prior_path, warm_passes=2, positivity=True, guidance_scale=0.0, sigma_max=0.02, sigma_min=0.01)
    *warm, first, _, last_one = run_dps(small_scan, config)
    assert [s.note for s in warm] == ["Adam, pass 1 of 2", "Adam, pass 2 of 2"]
    assert [s.step for s in (*warm, first)] == [1, 2, 3]
    error = first.noisy - warm[-1].volume
    assert float(np.abs(error).max()) < 6 * 0.02 / TINY.diffusion.data_scale
    assert float(last_one.volume.min()) == 0
    rest = list(run_dps(small_scan, config, checkpoint=first.checkpoint))
    assert np.array_equal(rest[-1].volume, last_one.volume)


def test_ptyrads_gradients_guide_alike(small_scan: Scan, prior_path: Path) -> None:
    ours, theirs = (
        last(run_dps(small_scan, made(DPSConfig, prior_path, engine=engine, steps=2))) for engine in ("fast", "ptyrad")
    )
    assert float(np.abs(ours.volume - theirs.volume).max()) < 2e-4 * float(np.abs(ours.volume).max())


@pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
def test_data_steps_weigh_the_patterns_by_their_counts(likelihood: str, small_scan: Scan, prior_path: Path) -> None:
    """The loss's gradient in nats is that of the negative log-likelihood, written out by hand for all fitted patterns."""
    task = _Task.prepare(small_scan, made(ProximalConfig, prior_path, likelihood=likelihood), "cpu")
    electrons, counts = small_scan.electrons_per_pattern, small_scan.patterns_at(task.fit).astype(np.float64)

    def nll(volume: torch.Tensor) -> float:
        expected = task.model.predict(volume, task.fit).double().numpy() * electrons
        if likelihood == "poisson":
            return float((expected - counts * np.log(expected + Poisson().background * electrons)).sum())
        return float(2 * np.square(np.sqrt(expected + Amplitude().floor * electrons) - np.sqrt(counts)).sum())

    volume = 0.1 * torch.rand(task.model.volume_shape, generator=torch.Generator().manual_seed(0))
    loss, gradient = task.measurement.gradient(volume, task.fit)
    way = gradient / gradient.norm()
    near, far = (nll(volume + h * way) - nll(volume - h * way) for h in (0.02, 0.04))
    slope = (8 * near - far) / (12 * 0.02)
    assert task.nats(small_scan)(loss) * float((gradient * way).sum()) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("slices", [2, 6, 11])
def test_any_thickness(slices: int, small_scan: Scan, prior_path: Path) -> None:
    state = last(run_proximal(small_scan, made(ProximalConfig, prior_path, slices=slices)))
    assert state.volume.shape == (slices, *state.illuminated.shape)
    assert float(np.abs(state.volume[-1]).max()) > 0


def test_a_prior_of_other_voxels_is_refused(small_scan: Scan, prior_path: Path) -> None:
    with pytest.raises(InputError, match=r"trained on voxels of 1.6 x 0.2 x 0.2 Å; this scan's are 2 x 0.2 x 0.2 Å"):
        next(run_proximal(small_scan, made(ProximalConfig, prior_path, slice_thickness_A=2.0)))
    with pytest.raises(InputError, match="dps starts from noise"):
        next(run_dps(small_scan, made(DPSConfig, prior_path), start=np.zeros((4, 3, 3))))
    with pytest.raises(InputError, match="the start volume has shape"):
        next(run_proximal(small_scan, made(ProximalConfig, prior_path), start=np.zeros((4, 3, 3))))


@pytest.mark.parametrize("method", ["dps", "proximal"])
def test_a_run_that_was_stopped_goes_on(method: str, small_file: Path, prior_path: Path, tmp_path: Path) -> None:
    settings = {"prior": str(prior_path), **SHORT, "samples": 2}
    settings |= {"warm_passes": 1} if method == "proximal" else {"guidance_scale": 10.0}
    whole = Run(small_file, tmp_path / "whole", method, settings)
    list(whole.states())
    stopped = Run(small_file, tmp_path / "stopped", method, settings)
    with closing(stopped.states()) as states:  # type: ignore[type-var]
        list(islice(states, 3 if method == "proximal" else 2))
    assert read_yaml(tmp_path / "stopped" / "run.yaml")["status"] == "stopped"
    again = Run(small_file, tmp_path / "stopped", method, resume=True)
    list(again.states())
    for name in ("volume", "samples", "mean", "std", "illuminated"):
        one, other = (tifffile.imread(tmp_path / folder / f"{name}.ome.tif") for folder in ("whole", "stopped"))
        assert np.array_equal(one, other), name
    rows = [(tmp_path / folder / "history.csv").read_text().splitlines() for folder in ("whole", "stopped")]
    assert len(rows[0]) == len(rows[1])
    assert "network_calls" in rows[0][0]
    assert again.metrics["network_calls"] == whole.metrics["network_calls"] > 0
    assert read_yaml(tmp_path / "whole" / "run.yaml")["prior"]["path"] == str(prior_path)


def test_on_the_command_line(small_file: Path, prior_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    common = ["reconstruct", str(small_file), "--out", str(out), "--steps", "2", "--set", "batches=1"]
    assert main([*common, "--method", "proximal", "--prior", str(prior_path), "--samples", "2"]) == 0
    assert {p.name for p in out.glob("*.tif")} == {
        *("volume.ome.tif", "samples.ome.tif", "mean.ome.tif", "std.ome.tif", "illuminated.ome.tif")
    }
    capsys.readouterr()
    assert main([*common, "--method", "adam", "--prior", str(prior_path)]) == 2
    assert "--prior is for the methods dps, proximal and mepdiff" in capsys.readouterr().err
    assert main(["reconstruct", str(small_file), "--out", str(tmp_path / "no"), "--method", "dps", "--prior", "no.x"]) == 2
    assert capsys.readouterr().err.strip() == "mepdiff: no.x: no such file"
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("run", "kind"), BOTH)
def test_positions_are_found_before_the_sampler_begins(
    run: Sampler, kind: type[SamplerConfig], small_scan: Scan, prior_path: Path
) -> None:
    """They are those of Adam's refinement, the sampler's misfit is that at them, and it resumes from anywhere."""
    errors = np.random.default_rng(0).normal(0, 0.2, small_scan.positions_A.shape)
    wrong = replace(small_scan, positions_A=small_scan.positions_A + errors, truth=None)
    refine = RefineConfig(position_rate_A=0.05)
    config = made(kind, prior_path, refine=refine, refine_passes=12, seed=3)
    states = list(run(wrong, config))
    assert [s.step for s in states] == list(range(1, 16))
    assert {s.total for s in states} == {15}
    assert states[11].note == "refining, pass 12 of 12"
    adam = replace(ADAM_BEST, engine="fast", patience=None, iterations=12, refine=refine, seed=3)
    *_, expected = run_adam(wrong, adam)
    assert expected.refined is not None
    for state in states[11:]:
        assert state.refined is not None
        np.testing.assert_array_equal(state.refined.positions_A, expected.refined.positions_A)
    model = ForwardModel(wrong, 4, 1.6, positions_A=expected.refined.positions_A)
    _, held = split_patterns(wrong.n_patterns, 0.05, 3)
    misfit = model.loss(torch.as_tensor(np.array(states[-1].volume)), held, make_likelihood(config.likelihood))
    assert states[-1].heldout == pytest.approx(misfit, rel=1e-6)
    for done in (5, 12, 13):
        again = last(run(wrong, config, checkpoint=states[done - 1].checkpoint))
        np.testing.assert_array_equal(again.volume, states[-1].volume)


def test_a_run_keeps_what_its_sampler_has_refined(small_file: Path, prior_path: Path, tmp_path: Path) -> None:
    arguments = [
        "reconstruct",
        str(small_file),
        "--method",
        "proximal",
        "--prior",
        str(prior_path),
        "--out",
        str(tmp_path / "run"),
    ]
    arguments += ["--steps", "1", "--set", "batches=1", "--set", "refine.probe_rate=0.01", "--set", "refine_passes=2"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert load_refined(tmp_path / "run" / "refined.h5").probe.shape == (1, 64, 64)
