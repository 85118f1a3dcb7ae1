"""Diffusion in terms of log-SNR: noise in, v out, and what each log-SNR counts in training.

z = α x + σ ε with α² + σ² = 1 and log-SNR λ = ln(α² / σ²). The network predicts v = α ε - σ x (Salimans & Ho,
arXiv 2202.00512), from which x = α z - σ v and ε = σ z + α v. Samplers see noise added without shrinking, x + s ε, whose
sigma is s = σ / α = exp(-λ / 2). Here x is the phase volume in rad times ``data_scale``.
Source: MEP-Diffusion, appendices B, E and F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from mepdiff_core.config import check

Network = Callable[[Tensor, Tensor], Tensor]
"""Noisy volumes (batch, 1, z, y, x) and their (batch,) log-SNR -> v."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""Volumes with noise of the (batch,) sigma added -> what they are expected to have been."""


@dataclass(frozen=True)
class DiffusionConfig:
    """How a network is taught; the defaults are the paper's (MEP-Diffusion, appendices B and E) where it has any.

    Attributes:
        data_scale: c of appendix B, what volumes in rad are multiplied by; docs/training.md says how it was measured.
        log_snr_min, log_snr_max: the noise that is trained for.
        log_snr_mean, log_snr_std: of the normal distribution that weights the log-SNR in the loss.
        log_snr_even: the part of the weight that is spread evenly over all log-SNR instead.
        importance: draw log-SNR as often as they weigh; else draw them evenly and weight their losses.
        stratified: spread the log-SNR of a batch, one to each of as many equal parts of what is drawn from.
    """

    data_scale: float = 16.0
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0
    log_snr_mean: float = -7.0
    log_snr_std: float = 3.0
    log_snr_even: float = 0.0
    importance: bool = False
    stratified: bool = False

    def __post_init__(self) -> None:
        check(self.data_scale > 0, f"data_scale is {self.data_scale:g}; expected more than 0")
        check(
            self.log_snr_min < self.log_snr_mean < self.log_snr_max,
            f"log_snr_mean is {self.log_snr_mean:g}; expected between {self.log_snr_min:g} and {self.log_snr_max:g}",
        )
        check(self.log_snr_std > 0, f"log_snr_std is {self.log_snr_std:g}; expected more than 0")
        check(0 <= self.log_snr_even <= 1, f"log_snr_even is {self.log_snr_even:g}; expected 0 to 1")


def alpha(log_snr: Tensor) -> Tensor:
    """What is left of the data: α² = sigmoid(λ)."""
    return torch.sigmoid(log_snr).sqrt()


def sigma(log_snr: Tensor) -> Tensor:
    """How much noise there is: σ² = sigmoid(-λ)."""
    return torch.sigmoid(-log_snr).sqrt()


def log_snr_of(added: Tensor) -> Tensor:
    """λ of data with noise of this sigma added: λ = -2 ln s."""
    return -2 * added.log()


def added_noise(log_snr: Tensor) -> Tensor:
    """The inverse of ``log_snr_of``: s = σ / α = exp(-λ / 2)."""
    return (-log_snr / 2).exp()


def noisy(x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """z = α x + σ ε of (batch, ...) data at their (batch,) log-SNR."""
    return per_item(alpha(log_snr), x) * x + per_item(sigma(log_snr), x) * noise


def v_of(x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """v = α ε - σ x."""
    return per_item(alpha(log_snr), x) * noise - per_item(sigma(log_snr), x) * x


def denoised_of(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """x = α z - σ v."""
    return per_item(alpha(log_snr), z) * z - per_item(sigma(log_snr), z) * v


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) values, ready to be multiplied with (batch, ...) of the same type."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def denoiser(network: Network) -> Denoise:
    """What samplers call, from a network that predicts v: x + s ε and s in, the expected x out, in scaled units."""

    def denoise(x: Tensor, added: Tensor) -> Tensor:
        log_snr = log_snr_of(added)
        z = x * per_item(alpha(log_snr), x)
        return denoised_of(z, network(z, log_snr), log_snr)

    return denoise


class Weighting:
    """Which log-SNR training meets, and what each counts: w(λ) = (1 - e) N(λ; mean, std) / Z + e / (max - min).

    The expected loss is the integral of w(λ) times the mean squared error of v, whichever way λ is drawn.

    Args:
        config: the range, the weight, the way to draw.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self._normal = NormalDist(config.log_snr_mean, config.log_snr_std)
        self._low = self._normal.cdf(config.log_snr_min)
        self._inside = self._normal.cdf(config.log_snr_max) - self._low
        self._width = config.log_snr_max - config.log_snr_min

    def density(self, log_snr: Tensor) -> Tensor:
        """w(λ), whose integral over the range is 1."""
        c = self.config
        peak = (1 - c.log_snr_even) * self._normal.pdf(c.log_snr_mean) / self._inside
        return peak * (-0.5 * ((log_snr - c.log_snr_mean) / c.log_snr_std) ** 2).exp() + c.log_snr_even / self._width

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(count,) float64 log-SNR on the generator's device, and what the loss of each is multiplied by."""
        c = self.config
        u = torch.rand(count, dtype=torch.float64, device=generator.device, generator=generator)
        if c.stratified:
            u = (torch.arange(count, device=u.device) + u) / count
            u = u[torch.randperm(count, device=u.device, generator=generator)]
        if not c.importance:
            log_snr = c.log_snr_min + u * self._width
            return log_snr, self.density(log_snr) * self._width
        if c.log_snr_even:
            # the even part takes the lower end of the unit interval, so that a spread batch stays spread in both
            evenly = c.log_snr_min + u / c.log_snr_even * self._width
            rest = (u - c.log_snr_even) / max(1 - c.log_snr_even, 1e-12)
            log_snr = torch.where(u < c.log_snr_even, evenly, self._quantile(rest))
        else:
            log_snr = self._quantile(u)
        return log_snr, torch.ones_like(log_snr)

    def _quantile(self, u: Tensor) -> Tensor:
        probability = self._low + u.clamp(0, 1) * self._inside
        log_snr = self.config.log_snr_mean + self.config.log_snr_std * torch.special.ndtri(probability)
        inside: Tensor = log_snr.clamp(self.config.log_snr_min, self.config.log_snr_max)
        return inside


def losses(network: Network, x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """(batch,) mean squared error of v over each volume of scaled data."""
    log_snr = log_snr.to(x.dtype)
    error = network(noisy(x, noise, log_snr), log_snr) - v_of(x, noise, log_snr)
    result: Tensor = error.float().square().flatten(1).mean(1)
    return result
