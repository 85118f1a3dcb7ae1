"""Posterior guidance: a denoiser of scaled volumes, pulled by the misfit of measured patterns.

Both ways wrap ``denoise`` into another one, so that any sampler can follow it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mepdiff_core.batches import Indices
from mepdiff_core.diffusion import Denoise
from mepdiff_core.errors import Diverged


class Engine(Protocol):
    """Loss and gradient of one volume (slices, y, x) in rad."""

    def loss_and_gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]: ...

    def loss(self, volume: Tensor, indices: Indices) -> float: ...


LARGEST_RAD = 2 * math.pi
"""Beyond it no voxel's phase is: the heaviest atoms reach some 2 rad."""
MOST_HALVINGS = 30
TOO_FAR = 0.01
"""A step that raises the misfit by more than this part has gone too far; a good one lowers it."""

Batches = Callable[[int, int], Sequence[Indices]]
"""Sample and step -> the patterns that guide there, in mini-batches."""


class Measurement:
    """Patterns that pull at volumes on the sampler's canvas, which may be wider and thicker than the field they see.

    Args:
        engine: loss and gradient.
        shape: (slices, y, x) of what it takes: the first voxels of the canvas.
        data_scale: what volumes in rad are multiplied by on the canvas.

    Attributes:
        losses: of the patterns that were asked last, one for each sample.
        seconds: spent here so far.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int, int], data_scale: float) -> None:
        self.engine, self.shape, self.data_scale = engine, shape, data_scale
        self.losses: list[float] = []
        self.seconds = 0.0

    def part(self, canvas: Tensor) -> Tensor:
        """(..., slices, y, x) of (..., z, y, x): a view of what the patterns see."""
        z, y, x = self.shape
        return canvas[..., :z, :y, :x]

    def loss(self, volume: Tensor, indices: Indices) -> float:
        """Loss of one volume in rad."""
        start = time.perf_counter()
        loss = self.engine.loss(volume, indices)
        self.seconds += time.perf_counter() - start
        return loss

    def gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]:
        """Loss and gradient of one volume in rad.

        Raises:
            Diverged: not a finite number.
        """
        start = time.perf_counter()
        loss, gradient = self.engine.loss_and_gradient(volume, indices)
        self.seconds += time.perf_counter() - start
        if not math.isfinite(loss):
            raise Diverged(f"the data misfit is {loss:g}; take a lower guidance_scale or learning_rate")
        return loss, gradient


class DPS:
    """Diffusion posterior sampling: the misfit of what was denoised pulls at what it was denoised from.

    x0 -> x0 - g(λ) ∂L(x0(x)) / ∂x, L PtyRAD's loss and λ = -2 ln σ; x0 in scaled units, the derivative by x in rad, which is
    what makes the paper's g neither idle nor divergent (docs/method.md).

    Args:
        denoise: of (batch, 1, z, y, x), differentiable.
        measurement: the misfit.
        batches: patterns of a sample and a step.
        weight: sigma -> g.
        positive: keep phases from falling below 0.
        step: which the next call is; halvings: of each sample, in an earlier call.
        watched: patterns, of those that guide, that tell whether a step has gone too far; none: they are not asked.

    Attributes:
        grad_norms: of ∂L/∂x, 1/rad, one for each sample.
        way_back_s: seconds of the gradient through the network so far.
        halvings: of each sample, times that its g was halved for good, because a step had left the phases that matter can
            have, or had raised the misfit of the patterns that are watched.

    Raises:
        Diverged: halving did not help.

    Source: Chung et al., arXiv 2209.14687, algorithm 1; MEP-Diffusion, table 4.
    """

    def __init__(
        self,
        denoise: Denoise,
        measurement: Measurement,
        batches: Batches,
        weight: Callable[[float], float],
        positive: bool = False,
        step: int = 1,
        halvings: Sequence[int] = (),
        watched: Indices | None = None,
    ) -> None:
        self.denoise, self.measurement, self.batches, self.weight = denoise, measurement, batches, weight
        self.positive, self.step, self.watched = positive, step, watched
        self.halvings, self.way_back_s = list(halvings), 0.0
        self.grad_norms: list[float] = []

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            seen = self.denoise(x, added)
        m, found = self.measurement, seen.detach()
        pull = torch.zeros_like(found)
        m.losses = []
        for item in range(len(x)):
            batches = self.batches(item, self.step)
            losses = []
            for indices in batches:
                loss, gradient = m.gradient(m.part(found[item, 0]) / m.data_scale, indices)
                m.part(pull[item, 0]).add_(gradient, alpha=1 / len(batches))
                losses.append(loss)
            m.losses.append(sum(losses) / len(losses))
        began = time.perf_counter()
        (back,) = torch.autograd.grad(seen, x, pull / m.data_scale)
        self.way_back_s += time.perf_counter() - began
        back = back * m.data_scale
        self.grad_norms = back.flatten(1).norm(dim=1).tolist()
        self.step += 1
        self.halvings += [0] * (len(x) - len(self.halvings))
        g = self.weight(float(added[0]))
        return torch.stack([self._pulled(item, found[item], g * back[item]) for item in range(len(x))])

    def _pulled(self, item: int, found: Tensor, full: Tensor) -> Tensor:
        """One sample after its step, which is halved for good until it goes no longer too far."""
        while True:
            pull: Tensor = full / 2 ** self.halvings[item]
            if float(pull.abs().max()) < LARGEST_RAD * self.measurement.data_scale:
                pulled: Tensor = found - pull
                if self.positive:
                    pulled.clamp_(min=0)
                if not self._worse(found[0], pulled[0]):
                    return pulled
            self.halvings[item] += 1
            if self.halvings[item] > MOST_HALVINGS:
                raise Diverged(
                    f"the guidance was halved {MOST_HALVINGS} times and still diverges; give a lower guidance_scale"
                )

    def _worse(self, before: Tensor, after: Tensor) -> bool:
        """Whether a step has raised the misfit of the patterns that are watched."""
        if self.watched is None:
            return False
        m = self.measurement
        one, two = (m.loss(m.part(canvas) / m.data_scale, self.watched) for canvas in (before, after))
        return not two <= one + TOO_FAR * abs(one)

    @property
    def note(self) -> str:
        """What a person should know."""
        most = max(self.halvings, default=0)
        return f"guidance went too far and is {2**most} times lower now" if most else ""


class Proximal:
    """Data steps between denoising and renoising, without a way back through the network.

    v -> argmin of the patterns' negative log-likelihood + |v - x0|² / (2 r²), x0 what was denoised and r what the prior
    leaves open there, by a few mini-batches of Adam's, whose moments are kept from one sampling step to the next.

    Args:
        denoise: of (batch, 1, z, y, x).
        measurement: the misfit.
        batches: patterns of a sample and a step.
        nats: loss -> derivative by it of the negative log-likelihood of all patterns that are fitted.
        spread: sigma -> r, rad.
        rate: sigma -> Adam's learning rate, rad.
        positive: keep phases from falling below 0.
        step: which the next call is; moments: (first, second) of an earlier call, and how many updates they hold.

    Source: Zhu et al. (DiffPIR), arXiv 2305.08995, algorithm 1; Zhang et al. (DAPS), arXiv 2407.01521, for r; moments kept
    across steps: arXiv 2603.16797.
    """

    def __init__(
        self,
        denoise: Denoise,
        measurement: Measurement,
        batches: Batches,
        nats: Callable[[float], float],
        spread: Callable[[float], float],
        rate: Callable[[float], float],
        positive: bool = True,
        step: int = 1,
        moments: tuple[Tensor, Tensor, int] | None = None,
    ) -> None:
        self.denoise, self.measurement, self.batches = denoise, measurement, batches
        self.nats, self.spread, self.rate, self.positive, self.step = nats, spread, rate, positive, step
        self.moments = moments
        self.grad_norms: list[float] = []
        self.note = ""

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        m, sigma = self.measurement, float(added[0])
        with torch.no_grad():
            seen = self.denoise(x, added) / m.data_scale
        if self.moments is None:
            self.moments = torch.zeros_like(m.part(seen)), torch.zeros_like(m.part(seen)), 0
        first, second, before = self.moments
        stiffness, rate = 1 / self.spread(sigma) ** 2, self.rate(sigma)
        found = seen.clone()
        m.losses, self.grad_norms, count = [], [], before
        for item in range(len(x)):
            volume, around = m.part(found[item, 0]), m.part(seen[item, 0])
            losses, norm, count = [], 0.0, before
            for indices in self.batches(item, self.step):
                loss, gradient = m.gradient(volume, indices)
                gradient = self.nats(loss) * gradient + stiffness * (volume - around)
                count += 1
                one, two = first[item, 0], second[item, 0]
                one.lerp_(gradient, 0.1)
                two.lerp_(gradient.square(), 0.01)
                update = one / (1 - 0.9**count) / ((two / (1 - 0.99**count)).sqrt() + 1e-12)
                volume.sub_(update, alpha=rate)
                if self.positive:
                    volume.clamp_(min=0)
                losses.append(loss)
                norm = float(gradient.norm())
            m.losses.append(sum(losses) / len(losses))
            self.grad_norms.append(norm)
        self.moments = first, second, count
        self.step += 1
        return found * m.data_scale
