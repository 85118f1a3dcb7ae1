"""Guidance and samplers against laws whose answers are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mepdiff_core.batches import Indices
from mepdiff_core.diffusion import DiffusionConfig, denoiser
from mepdiff_core.errors import Diverged
from mepdiff_core.forward import ForwardModel
from mepdiff_core.guidance import DPS, Measurement, Proximal
from mepdiff_core.likelihood import Poisson
from mepdiff_core.sample import dpmpp_2m_sde, polyexponential
from mepdiff_core.scan import Scan
from mepdiff_core.unet import UNet, UNetConfig

SHAPE = (2, 3, 4)
SIZE = math.prod(SHAPE)
ALL = np.arange(1)
SCALE = 4.0


class Linear:
    """The misfit |A v - b|² / 2 of a volume."""

    def __init__(self, matrix: Tensor, data: Tensor) -> None:
        self.matrix, self.data = matrix, data

    def loss(self, volume: Tensor, indices: Indices) -> float:
        return float((self.matrix @ volume.flatten() - self.data).square().sum() / 2)

    def loss_and_gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]:
        residual = self.matrix @ volume.flatten() - self.data
        return float(residual.square().sum() / 2), (self.matrix.T @ residual).reshape(volume.shape)


def linear(seed: int = 0, rows: int = 2 * SIZE) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, SIZE, dtype=torch.float64, generator=generator)
    return Linear(matrix, torch.randn(rows, dtype=torch.float64, generator=generator))


def one_batch(item: int, step: int) -> Sequence[Indices]:
    return [ALL]


def unit(loss: float) -> float:
    """The loss is the negative log-likelihood."""
    return 1.0


def identity(x: Tensor, added: Tensor) -> Tensor:
    return 1 * x


def test_exact_guidance_of_a_gaussian_ends_with_the_exact_posterior() -> None:
    """Prior N(0, 1) on six voxels, y = A x + e: mean and covariance of 10,000 samples, to three deviations."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    data, spread = torch.randn(3, dtype=torch.float64, generator=generator), 0.5
    precision = torch.eye(6, dtype=torch.float64) + matrix.T @ matrix / spread**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ matrix.T @ data / spread**2

    def denoise(x: Tensor, added: Tensor) -> Tensor:
        s = float(added[0])
        known = x.flatten(1) / s**2 + matrix.T @ data / spread**2
        return torch.linalg.solve(precision + torch.eye(6, dtype=torch.float64) / s**2, known.T).T.reshape(x.shape)

    count = 10000

    def noise(number: int) -> Tensor:
        return torch.randn(count, 1, 1, 2, 3, dtype=torch.float64, generator=generator)

    sigmas = polyexponential(80, 0.01, 80.0).tolist()
    *_, (x, _) = dpmpp_2m_sde(denoise, noise(0) * sigmas[0], sigmas, noise)
    found = x.flatten(1)
    deviations = covariance.diagonal().sqrt() / math.sqrt(count)
    assert float(((found.mean(0) - mean) / deviations).abs().max()) < 4
    error = torch.cov(found.T) - covariance
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert float((error / scale).abs().max()) < 4 * math.sqrt(2 / count) + 0.01


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("order", [1, 2])
def test_the_sampler_is_diffusers_sde_dpm_solver(order: int) -> None:
    """The same noise, the same schedule: step by step the same volumes."""
    from diffusers import DPMSolverMultistepScheduler

    def mixture(x: Tensor, added: Tensor) -> Tensor:
        """The exact denoiser of two points, -1 and 1."""
        return torch.tanh(x / added.reshape(-1, 1, 1, 1, 1) ** 2)

    sigmas = polyexponential(12, 0.2, 20.0)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(12)
    scheduler.sigmas = sigmas
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(3, 1, 2, 4, 4, dtype=torch.float64, generator=generator) for _ in range(13)]
    x = noises[0] * sigmas[0]
    theirs = []
    scaled = x / (1 + sigmas[0] ** 2).sqrt()  # of unit variance, as theirs are
    for step, time in enumerate(scheduler.timesteps):
        sigma = sigmas[step]
        seen = mixture(scaled * (1 + sigma**2).sqrt(), sigma[None])
        scaled = scheduler.step(seen, time, scaled, variance_noise=noises[step + 1]).prev_sample
        theirs.append(scaled * (1 + sigmas[step + 1] ** 2).sqrt())
    ours = [x for x, _ in dpmpp_2m_sde(mixture, x, sigmas.tolist(), lambda number: noises[number])]
    same = 11 if order == 2 else 1  # all with noise left; of first order only that with no step behind it
    for a, b in zip(ours[:same], theirs[:same], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # diffusers keeps float32


def test_without_guidance_dps_is_the_prior() -> None:
    x = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    guide = DPS(lambda x, added: torch.tanh(x), Measurement(linear(), SHAPE, SCALE), one_batch, lambda sigma: 0.0)
    assert torch.equal(guide(x, torch.ones(2)), torch.tanh(x))
    assert guide.halvings == [0, 0]


def test_dps_follows_the_gradient_through_the_network(small_scan: Scan) -> None:
    """∇_x of the misfit of what a network denoised, in float64, against finite differences along two directions."""
    config = UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16)
    torch.manual_seed(0)
    network = UNet(config).double()
    torch.nn.init.normal_(network.exit.weight, std=0.05)
    network.requires_grad_(False)
    model = ForwardModel(small_scan, 4, 1.6, dtype=torch.complex128)
    denoise, scale = denoiser(network), DiffusionConfig().data_scale

    class Patterns:
        def loss(self, volume: Tensor, indices: Indices) -> float:
            return model.loss(volume, indices, Poisson())

        def loss_and_gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]:
            loss, gradient, _ = model.loss_and_gradient(volume, indices, Poisson())
            return float(loss), gradient

    depth, height, width = model.volume_shape
    canvas = (depth, -(-height // 2) * 2, -(-width // 2) * 2)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 1, *canvas, dtype=torch.float64, generator=generator)
    indices, added = np.arange(0, small_scan.n_patterns, 20), torch.full((1,), 0.5, dtype=torch.float64)
    measurement = Measurement(Patterns(), model.volume_shape, scale)
    guide = DPS(denoise, measurement, lambda item, step: [indices], lambda sigma: 1.0)
    gradient = (denoise(x, added) - guide(x, added)) / scale  # by x in scaled units

    def loss(x: Tensor) -> float:
        return measurement.loss(measurement.part(denoise(x, added)[0, 0]) / scale, indices)

    for _ in range(2):
        way = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        h = 1e-3
        slope = (8 * (loss(x + h * way) - loss(x - h * way)) - loss(x + 2 * h * way) + loss(x - 2 * h * way)) / (12 * h)
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-6, abs=1e-9)


def test_guidance_that_diverges_is_halved() -> None:
    x = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    measurement = Measurement(linear(), SHAPE, SCALE)
    guide = DPS(identity, measurement, one_batch, lambda sigma: 1e6)
    moved = guide(x, torch.ones(1)) - x
    assert guide.halvings[0] > 5
    assert float(moved.abs().max()) < 2 * math.pi * SCALE <= 2 * float(moved.abs().max())
    assert f"{2 ** guide.halvings[0]} times lower" in guide.note
    hopeless = DPS(identity, measurement, one_batch, lambda sigma: 1e35)
    with pytest.raises(Diverged, match="give a lower guidance_scale"):
        hopeless(x, torch.ones(1))


def test_a_step_that_raises_the_misfit_is_halved() -> None:
    """|A v - b|² / 2 falls along its gradient for steps below 2 / curvature; longer ones are halved until it does."""
    engine = linear()
    measurement = Measurement(engine, SHAPE, SCALE)
    x = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    x[1] = 1e-3 * x[0]  # the same place, so nearly, as zero

    def misfits(canvas: Tensor) -> list[float]:
        return [engine.loss(each[0] / SCALE, ALL) for each in canvas]

    def guided(g: float, halvings: Sequence[int] = (), watched: Indices | None = ALL) -> tuple[DPS, list[float]]:
        guide = DPS(identity, measurement, one_batch, lambda sigma: g, halvings=halvings, watched=watched)
        return guide, misfits(guide(x, torch.ones(1)))

    step = SCALE / float(torch.linalg.eigvalsh(engine.matrix.T @ engine.matrix).max())
    guide, after = guided(step)
    assert guide.halvings == [0, 0]
    assert all(a < b for a, b in zip(after, misfits(x), strict=True))
    _, unwatched = guided(16 * step, watched=None)
    guide, after = guided(16 * step)
    assert all(a < b < c for a, b, c in zip(after, misfits(x), unwatched, strict=True))
    assert min(guide.halvings) > 0
    assert "times lower now" in guide.note
    again, goes_on = guided(16 * step, guide.halvings)
    assert (again.halvings, goes_on) == (guide.halvings, after)


def test_data_steps_end_where_likelihood_and_prior_balance() -> None:
    """argmin of nats |A v - b|² / 2 + |v - v0|² / (2 r²), in closed form."""
    engine, nats, r = linear(), 3.0, 0.4
    x = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    guide = Proximal(
        identity,
        Measurement(engine, SHAPE, SCALE),
        lambda item, step: [ALL] * 4000,
        lambda loss: nats,
        lambda sigma: r,
        lambda sigma: 1e-3,
        positive=False,
    )
    around = (x / SCALE).flatten()
    left = nats * engine.matrix.T @ engine.matrix + torch.eye(SIZE, dtype=torch.float64) / r**2
    exact = torch.linalg.solve(left, nats * engine.matrix.T @ engine.data + around / r**2)
    found = (guide(x, torch.ones(1)) / SCALE).flatten()
    assert float((found - exact).abs().max()) < 1e-3
    assert float((around - exact).abs().max()) > 0.1


def test_a_flat_prior_leaves_least_squares() -> None:
    engine = linear()
    exact = torch.linalg.lstsq(engine.matrix, engine.data[:, None]).solution[:, 0]
    guide = Proximal(
        identity,
        Measurement(engine, SHAPE, SCALE),
        lambda item, step: [ALL] * 400,
        lambda loss: 1.0,
        lambda sigma: 1e6,
        lambda sigma: 3e-3,
        positive=False,
    )
    x = torch.zeros(1, 1, *SHAPE, dtype=torch.float64)
    for _ in range(10):
        x = guide(x, torch.ones(1))
    assert float((x.flatten() / SCALE - exact).abs().max()) < 2e-3


def test_positivity() -> None:
    x = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    measurement = Measurement(linear(), SHAPE, SCALE)
    guide = Proximal(identity, measurement, one_batch, unit, lambda s: 1.0, lambda s: 0.01)
    assert float(guide(x, torch.ones(1)).min()) == 0
    pulled = [DPS(identity, measurement, one_batch, lambda sigma: 0.1, kept)(x, torch.ones(1)) for kept in (False, True)]
    assert float(pulled[0].min()) < 0
    assert torch.equal(pulled[1], pulled[0].clamp(min=0))


def test_moments_go_on_from_step_to_step() -> None:
    """Two calls with what the first one kept are the two calls of one object."""

    def fresh(step: int = 1, moments: tuple[Tensor, Tensor, int] | None = None) -> Proximal:
        measurement = Measurement(linear(), SHAPE, SCALE)
        batches = [ALL, ALL]
        return Proximal(identity, measurement, lambda i, s: batches, unit, lambda s: 1.0, lambda s: 0.1, True, step, moments)

    x = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    one = fresh()
    middle = one(x, torch.ones(2))
    assert one.moments is not None
    first, second, count = one.moments
    assert count == 2
    other = fresh(2, (first.clone(), second.clone(), count))
    assert torch.equal(one(middle, torch.ones(2)), other(middle, torch.ones(2)))
    assert not torch.equal(fresh()(middle, torch.ones(2)), other(middle, torch.ones(2)))
