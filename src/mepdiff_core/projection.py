"""A specimen's matter, projected or by depth, from a few Poisson passes over its patterns; no cell, no prior.

The phase is built from atoms: weights, none below zero, convolved with the image of one atom. Spread evenly along the beam
they give the projection in seconds, and with it the lattice and the columns. A weight for every slice gives a volume: what
the patterns say of depth without a crystal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core.batches import Indices, make_batches
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.metrics import poisson_deviance
from mepdiff_core.optics import frequencies, interaction_constant
from mepdiff_core.renderer import PROJECTED_V_A2, scattering_factor
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig

MODEL_SLICES = 4
BATCH = 32
STEP_SIZE = 0.4
"""Adam's, in silicon atoms' weight a pixel, for the projection; halved for its last passes."""
ATOM = 14
"""The element whose image is the basis: silicon's width lies between oxygen's and tungsten's."""
EVEN_PASSES, FREE_PASSES, FREE_STEP = 3, 11, 0.3
"""Of a volume: passes with slices alike, passes with each its own, and the latter's step as part of the former's, which
falls to nothing along half a cosine."""
STEPS, FEWEST = 80, 4
"""Of a volume: steps a pass, if each has so many patterns; it comes to depth by steps, not by patterns."""


@dataclass(frozen=True)
class ProjectionStep:
    """Attributes: ``step`` of ``total`` passes; ``phase`` (y, x) projected, rad, on the object field; mean ``loss``."""

    step: int
    total: int
    phase: npt.NDArray[np.float64]
    loss: float


@dataclass(frozen=True)
class MatterStep:
    """Attributes: ``step`` of ``total`` passes; ``volume`` (slices, y, x), rad, on the object field; ``heldout``: misfit of
    the patterns held out, nats a pattern, None without any."""

    step: int
    total: int
    volume: npt.NDArray[np.float32]
    heldout: float | None


class _Weights:
    """Atoms' weights in one image for all slices, or in one for each, and Adam's moments.

    Args:
        model: of the patterns; scan: its optics.
        images: 1, or as many as the model has slices.
    """

    def __init__(self, model: ForwardModel, scan: Scan, images: int) -> None:
        self.model, self.slices = model, model.volume_shape[0]
        shape = model.volume_shape[1:]
        ky, kx = frequencies(shape[0], scan.pixel_size_A)[0], frequencies(shape[1], scan.pixel_size_A)[1]
        factor = scattering_factor(ATOM, ky**2 + kx**2)
        scale = interaction_constant(scan.optics.energy_eV) * PROJECTED_V_A2 / scan.pixel_size_A**2 * factor[0, 0]
        self.unit = STEP_SIZE * min(1.0, scale) / images
        self.image = torch.as_tensor(factor / factor[0, 0], dtype=torch.float32, device=model.device)
        self.weights = torch.zeros((images, *shape), device=model.device)
        self.first, self.second, self.count = torch.zeros_like(self.weights), torch.zeros_like(self.weights), 0

    def phase(self) -> torch.Tensor:
        """(images, y, x), rad."""
        return self._spread(self.weights)

    def volume(self) -> torch.Tensor:
        """(slices, y, x), rad."""
        phase = self.phase()
        return phase if len(phase) > 1 else (phase / self.slices).repeat(self.slices, 1, 1)

    def turn(self, batches: Iterable[Indices], rate: float, alike: bool = False) -> float:
        """A pass of steps of ``rate`` units; ``alike``: the same step in every slice. The mean loss."""
        losses = []
        for batch in batches:
            loss, gradient, _ = self.model.loss_and_gradient(self.volume(), batch, Poisson())
            if alike or len(self.weights) == 1:
                gradient = gradient.mean(0, keepdim=True)
            self._step(self._spread(gradient).expand_as(self.weights), rate * self.unit)
            losses.append(float(loss))
        return float(np.mean(losses))

    def _step(self, gradient: torch.Tensor, rate: float) -> None:
        self.count += 1
        self.first.mul_(0.9).add_(gradient, alpha=0.1)
        self.second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        step = self.first / (1 - 0.9**self.count) / ((self.second / (1 - 0.99**self.count)).sqrt() + 1e-12)
        self.weights = (self.weights - rate * step).clamp_(min=0)

    def _spread(self, weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(weights) * self.image).real
        return result


def project(
    scan: Scan,
    thickness_A: float,
    fit: Indices,
    passes: int,
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
    probe: npt.NDArray[np.complexfloating] | None = None,
    positions_A: npt.NDArray[np.float64] | None = None,
) -> Iterator[ProjectionStep]:
    """Passes of Adam over the patterns ``fit``; the last step holds the answer. The model: as for ``ForwardModel``."""
    thickness = thickness_A / MODEL_SLICES
    model = ForwardModel(scan, MODEL_SLICES, thickness, config, probe, device, positions_A=positions_A)
    weights = _Weights(model, scan, 1)
    for done in range(passes):
        loss = weights.turn(make_batches(fit, BATCH, rng), 0.5 ** max(0, done - passes + 3))
        phase = weights.phase()[0].cpu().numpy().astype(np.float64)
        yield ProjectionStep(done + 1, passes, phase, loss)


def matter_by_depth(
    scan: Scan,
    slices: int,
    slice_thickness_A: float,
    fit: Indices,
    held: Indices,
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
    probe: npt.NDArray[np.complexfloating] | None = None,
    positions_A: npt.NDArray[np.float64] | None = None,
) -> Iterator[MatterStep]:
    """The volume of least Poisson misfit that is made of atoms, as far as a few passes of Adam over ``fit`` come.

    The last step holds the answer. What it is worth: docs/method.md. The model: as for ``ForwardModel``, with a window of 1.
    """
    model = ForwardModel(scan, slices, slice_thickness_A, config, probe, device, positions_A=positions_A)
    weights = _Weights(model, scan, slices)
    total = EVEN_PASSES + FREE_PASSES
    for done in range(total):
        part = (done - EVEN_PASSES) / FREE_PASSES
        rate = 1.0 if part < 0 else FREE_STEP * 0.5 * (1 + np.cos(np.pi * part))
        some = rng.permutation(fit)[: STEPS * BATCH]
        weights.turn(make_batches(some, max(FEWEST, len(some) // STEPS), rng), rate, alike=part < 0)
        volume = weights.volume()
        yield MatterStep(done + 1, total, volume.cpu().numpy(), _misfit(model, scan, volume, held))


def _misfit(model: ForwardModel, scan: Scan, volume: torch.Tensor, indices: Indices) -> float | None:
    """Half the Poisson deviance, nats a pattern; None of no patterns."""
    if not len(indices):
        return None
    electrons = scan.electrons_per_pattern
    predicted = model.predict(volume, indices).cpu().numpy()[:, scan.seen] * electrons
    measured = scan.patterns_at(indices)[:, scan.seen].astype(np.float64)
    return poisson_deviance(predicted, measured, Poisson().background * electrons) * scan.pattern_pixels / 2


def illumination(scan: Scan) -> npt.NDArray[np.float64]:
    """(y, x) on the object field: dose in units of the scan's middle, at most 1: how far the projection can be trusted."""
    model = ForwardModel(scan, 1, 1.0)
    probe = np.sum(np.abs(np.asarray(scan.get_probe())) ** 2, axis=0)
    dose = np.zeros(model.volume_shape[1:])
    n = scan.n_pixels
    for y, x in model.multislice.corners:
        dose[y : y + n, x : x + n] += probe
    height, width = dose.shape
    middle = dose[height // 2 - height // 6 : height // 2 + height // 6, width // 2 - width // 6 : width // 2 + width // 6]
    return np.asarray(np.clip(dose / np.median(middle), 0, 1))
