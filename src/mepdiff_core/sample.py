"""Samplers: noise schedules, and loops that call ``denoise(x, sigma)`` and know nothing of what is behind it.

Arrays are (batch, 1, z, y, x) in scaled units, noise added without shrinking (sigma from large to small).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mepdiff_core.diffusion import Denoise
from mepdiff_core.sample_settings import SampleConfig as SampleConfig
from mepdiff_core.seeds import seeded
from mepdiff_core.states import State
from mepdiff_core.weights import Prior

Noise = Callable[[int], Tensor]
"""Standard normal noise for the whole batch: number 0 to start from, then one for each step."""


def polyexponential(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """(steps + 1,) float64 sigmas from the largest to the smallest, and 0: ln sigma falls along a ramp to the power rho."""
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    sigmas = (ramp * math.log(sigma_max / sigma_min) + math.log(sigma_min)).exp()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    eta: float = 1.0,
    done: int = 0,
    earlier: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """SDE DPM-Solver++(2M): one call of ``denoise`` a step, of second order by the call before.

    Args:
        denoise: the model.
        x: standard normal noise times sigmas[0], or what it was after ``done`` steps.
        sigmas: falling, the last may be 0.
        noise: renews it; its number is that of the step, from 1.
        eta: how much of the noise is renewed.
        done: steps that are behind; ``earlier``: what was denoised in the last of them.

    Yields:
        (x, denoised) after each step; the last x is the sample.

    Source: Lu et al., DPM-Solver++, arXiv 2211.01095, algorithm 2 and its SDE form (section 4.3 and appendix B).
    """
    for step in range(done, len(sigmas) - 1):
        here, after = sigmas[step : step + 2]
        denoised = denoise(x, x.new_full((len(x),), here))
        if after == 0:
            x = denoised
        else:
            h = math.log(here / after)
            toward = -math.expm1(-h * (1 + eta))
            estimate = denoised
            if earlier is not None:
                estimate = denoised + (denoised - earlier) * (h / (2 * math.log(sigmas[step - 1] / here)))
            x = (after / here * math.exp(-eta * h)) * x + toward * estimate
            if eta:
                x = x + noise(step + 1) * (after * math.sqrt(-math.expm1(-2 * eta * h)))
            earlier = denoised
        yield x, denoised


def noise_of_seeds(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Noise:
    """Noise of (len(seeds), *shape), by the seed of each item and the number asked for; the same on every device."""

    def draw(number: int) -> Tensor:
        generators = [seeded(seed, number) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    return draw


def sample_prior(prior: Prior, config: SampleConfig, shape: tuple[int, int, int] | None = None) -> Iterator[State]:
    """Crystals from noise.

    Args:
        prior: to sample from.
        config: how many, how.
        shape: (z, y, x) voxels of each, which the network's strides divide; those of its training by default.

    Yields:
        ``State``: ``samples`` are the denoised estimates so far (zeros where a later batch has not begun), in rad, and
        ``volume`` is the first of them.

    Raises:
        InputError: a shape that does not fit.
    """
    size = prior.config.shape if shape is None else shape
    sigmas = polyexponential(config.steps, config.sigma_min, config.sigma_max, config.rho).tolist()
    batches = [range(i, min(i + config.batch_size, config.n)) for i in range(0, config.n, config.batch_size)]
    total, step, start = len(batches) * config.steps, 0, time.perf_counter()
    seconds = 0.0
    samples = np.zeros((config.n, *size), np.float32)
    for batch in batches:
        noise = noise_of_seeds([config.seed + i for i in batch], (1, *size), prior.device)
        loop = dpmpp_2m_sde(prior.denoise, noise(0) * sigmas[0], sigmas, noise, config.eta)
        for sigma, (_, denoised) in zip(sigmas, loop, strict=False):
            step += 1
            samples = samples.copy()
            samples[batch.start : batch.stop] = denoised[:, 0].cpu().numpy() / prior.config.diffusion.data_scale
            seconds += time.perf_counter() - start
            yield State(
                step=step,
                total=total,
                volume=samples[0],
                loss=math.nan,
                seconds=seconds,
                volume_step=step,
                sigma=sigma,
                samples=samples,
            )
            start = time.perf_counter()
