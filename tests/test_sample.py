"""Samplers, on data whose denoiser is known exactly."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mepdiff_core.cli import main
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.errors import InputError
from mepdiff_core.sample import SampleConfig, dpmpp_2m_sde, noise_of_seeds, polyexponential, sample_prior
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.volume_files import read_volume
from mepdiff_core.weights import Prior, PriorConfig, save_prior

MEAN, TAU = 0.3, 0.5
TINY = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16), DiffusionConfig(), (2, 8, 8))


def gaussian(x: Tensor, added: Tensor) -> Tensor:
    """The exact denoiser of data N(MEAN, TAU²), white."""
    keep = (TAU**2 / (TAU**2 + added**2)).reshape(-1, *[1] * (x.ndim - 1))
    return MEAN + keep * (x - MEAN)


def last(
    steps: int, eta: float, count: int = 64, low: float = 0.01, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    sigmas = polyexponential(steps, low, 80.0).tolist()
    generator = torch.Generator().manual_seed(3)

    def noise(number: int) -> Tensor:
        return torch.randn(count, 1, 2, 8, 8, generator=generator, dtype=dtype)

    first = noise(0) * sigmas[0]
    *_, (x, _) = dpmpp_2m_sde(gaussian, first, sigmas, noise, eta)
    return first, x


def exact(first: Tensor, high: float, low: float) -> Tensor:
    """Where the probability flow of the Gaussian takes a point: its distance from the mean shrinks as sqrt(τ² + s²)."""
    at_low = MEAN + (first - MEAN) * math.sqrt((TAU**2 + low**2) / (TAU**2 + high**2))
    return gaussian(at_low, torch.full((len(first),), low, dtype=first.dtype))


def test_the_ode_is_solved_to_second_order() -> None:
    errors = []
    for steps in (20, 40, 80):
        first, x = last(steps, eta=0.0)
        errors.append(float((x - exact(first, 80.0, 0.01)).abs().max()))
    assert errors[-1] < 2e-3
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 1.7


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_ends_with_the_datas_distribution(eta: float) -> None:
    """8192 voxels: mean to 0.5 %, spread to 1 % of τ, beyond three deviations of either."""
    _, x = last(200, eta)
    assert float(x.mean()) == pytest.approx(MEAN, abs=3.5 * TAU / math.sqrt(x.numel()))
    assert float(x.std()) == pytest.approx(TAU, rel=3.5 / math.sqrt(2 * x.numel()) + 0.005)


def test_noise_is_renewed_only_by_eta() -> None:
    asked = []

    def noise(number: int) -> Tensor:
        asked.append(number)
        return torch.zeros(1, 1, 2, 8, 8)

    list(dpmpp_2m_sde(gaussian, torch.ones(1, 1, 2, 8, 8), polyexponential(5, 0.1, 10.0).tolist(), noise, 0.0))
    assert not asked
    list(dpmpp_2m_sde(gaussian, torch.ones(1, 1, 2, 8, 8), polyexponential(5, 0.1, 10.0).tolist(), noise, 1.0))
    assert asked == [1, 2, 3, 4]  # the last step goes to no noise


@pytest.mark.parametrize("done", [1, 3])
def test_a_loop_goes_on_where_it_was(done: int) -> None:
    sigmas = polyexponential(6, 0.1, 10.0).tolist()
    noise = noise_of_seeds([3], (1, 2, 8, 8), torch.device("cpu"))
    whole = list(dpmpp_2m_sde(gaussian, noise(0) * sigmas[0], sigmas, noise))
    x, denoised = whole[done - 1]
    rest = list(dpmpp_2m_sde(gaussian, x, sigmas, noise, done=done, earlier=denoised))
    assert len(rest) == 6 - done
    assert torch.equal(rest[-1][0], whole[-1][0])


def test_the_schedule() -> None:
    sigmas = polyexponential(50, 0.1, 800.0)
    assert sigmas[0] == pytest.approx(800)
    assert sigmas[-2] == pytest.approx(0.1)
    assert sigmas[-1] == 0
    ratios = sigmas[1:-1] / sigmas[:-2]
    assert float(ratios.std()) < 1e-12
    curved = polyexponential(50, 0.1, 800.0, rho=2.0)
    assert float((curved[1:-1] / curved[:-2]).max()) > float(ratios[0])


def tiny_prior() -> Prior:
    torch.manual_seed(0)
    network = UNet(TINY.network)
    torch.nn.init.normal_(network.exit.weight, std=0.05)
    return Prior(TINY, network.requires_grad_(False).eval(), {}, "")


def test_a_batch_gives_the_samples_of_one_at_a_time() -> None:
    prior = tiny_prior()
    *_, together = sample_prior(prior, SampleConfig(n=3, steps=6, seed=4))
    *_, apart = sample_prior(prior, SampleConfig(n=3, steps=6, seed=4, batch_size=1))
    *_, second = sample_prior(prior, SampleConfig(n=1, steps=6, seed=5))
    assert together.samples is not None
    assert apart.samples is not None
    assert second.samples is not None
    np.testing.assert_allclose(together.samples, apart.samples, atol=2e-6)
    np.testing.assert_array_equal(apart.samples[1], second.samples[0])
    assert apart.step == apart.total == 18
    assert np.ptp(together.samples[0]) > 0


def test_seeds_draw_alone() -> None:
    draw, other = (
        noise_of_seeds([5, 6], (1, 2, 4, 4), torch.device("cpu")),
        noise_of_seeds([6], (1, 2, 4, 4), torch.device("cpu")),
    )
    for number in (1, 0, 2):
        assert torch.equal(draw(number)[1], other(number)[0])
    assert not torch.equal(other(0), other(1))


def test_another_size_than_trained_for() -> None:
    *_, state = sample_prior(tiny_prior(), SampleConfig(n=1, steps=2), (4, 16, 12))
    assert state.volume.shape == (4, 16, 12)
    with pytest.raises(InputError, match="takes multiples of 1 x 2 x 2"):
        list(sample_prior(tiny_prior(), SampleConfig(n=1, steps=2), (4, 15, 12)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = tiny_prior()
    save_prior(tmp_path / "prior.safetensors", prior.network.state_dict(), TINY, {"steps": 1})
    code = main(
        [
            "sample",
            "--prior",
            str(tmp_path / "prior.safetensors"),
            "--n",
            "2",
            "--steps",
            "3",
            "--out",
            str(tmp_path / "run"),
        ]
    )
    assert code == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "history.csv",
        "mean.ome.tif",
        "run.yaml",
        "samples.ome.tif",
        "sheet.png",
        "std.ome.tif",
        "volume.ome.tif",
    }
    *_, state = sample_prior(prior, SampleConfig(n=2, steps=3))
    np.testing.assert_array_equal(read_volume(tmp_path / "run" / "volume.ome.tif"), state.volume)
    assert "2 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "n is 0; expected at least 1"),
        (["--set", "sigma_min=900"], "sigma_min is 900 and sigma_max 800"),
        (["--set", "stepz=9"], "unknown field 'stepz'"),
    ],
)
def test_bad_input_of_the_command(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_prior(tmp_path / "prior.safetensors", tiny_prior().network.state_dict(), TINY, {})
    given = ["sample", "--prior", str(tmp_path / "prior.safetensors"), "--out", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
