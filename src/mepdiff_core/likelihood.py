"""How well predicted intensities explain measured ones, with the derivative the adjoint needs.

Intensities and data are fractions of the beam: a pattern sums to about 1. Source of both losses: PtyRAD's CombinedLoss
(loss_single and loss_poissn), whose values these reproduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mepdiff_core.errors import InputError

INTENSITY_FLOOR = 1e-10
"""PtyRAD adds this fraction of the beam to every pixel it predicts."""


class Likelihood(Protocol):
    """A loss that is a function of a sum over pixels, so that patterns can come in any chunks."""

    def terms(self, intensity: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """Per-pixel terms of the sum and their derivative by the intensity, both in the shape of ``intensity``."""
        ...

    def finish(self, total: float, data_scale: float, n_pixels: int) -> tuple[float, float]:
        """The loss, and the factor that turns the sum's derivative into the loss's; zeros where there is no electron."""
        ...

    def data_scale(self, data: Tensor) -> float:
        """What the loss is normalised by, summed over these patterns."""
        ...


def sum64(x: Tensor) -> float:
    """A sum in float64 (1e7 counts in float32 round to whole nats); devices without float64 sum in float32."""
    return float(x.sum(dtype=torch.float32 if x.device.type == "mps" else torch.float64))


@dataclass(frozen=True)
class Amplitude:
    """Root mean square of sqrt(I) - sqrt(D), over the mean of sqrt(D): Gaussian statistics of amplitudes.

    Its derivative is taken as 0 where the residual is 0, where the square root has none.
    """

    floor: float = INTENSITY_FLOOR

    def terms(self, intensity: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        amplitude = (intensity + self.floor).sqrt_()
        residual = amplitude - data.sqrt()
        return residual.square(), residual / amplitude

    def finish(self, total: float, data_scale: float, n_pixels: int) -> tuple[float, float]:
        if data_scale == 0:
            return 0.0, 0.0
        mean = data_scale / n_pixels
        rms = (total / n_pixels) ** 0.5
        return rms / mean, 0.5 / (rms * n_pixels * mean) if rms > 0 else 0.0

    def data_scale(self, data: Tensor) -> float:
        return sum64(data.sqrt())


@dataclass(frozen=True)
class Poisson:
    """Mean of I - D log(I + background), over the mean of D: Poisson statistics, up to a constant.

    Times the electrons in the patterns it is the negative log-likelihood in nats.

    Attributes:
        background: fraction of the beam in each pixel that no model explains. Without it a few stray counts at high
            angle decide everything.
    """

    background: float = 1e-7

    def terms(self, intensity: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        expected = intensity + self.background
        return intensity - data * expected.log(), 1 - data / expected

    def finish(self, total: float, data_scale: float, n_pixels: int) -> tuple[float, float]:
        return (total / data_scale, 1 / data_scale) if data_scale > 0 else (0.0, 0.0)

    def data_scale(self, data: Tensor) -> float:
        return sum64(data)


def make_likelihood(name: str) -> Likelihood:
    """The likelihood of that name.

    Raises:
        InputError: there is none.
    """
    if name == "amplitude":
        return Amplitude()
    if name == "poisson":
        return Poisson()
    raise InputError(f"likelihood '{name}' is not known; choose amplitude or poisson")
