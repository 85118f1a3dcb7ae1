"""The projection of a specimen, from a few Poisson passes over its patterns.

The phase is spread evenly along the beam and built from atoms: weights, none below zero, convolved with the image of one
atom. Depth is left for later; the projection comes out in seconds, and with it the lattice and the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core.batches import Indices, make_batches
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.optics import frequencies, interaction_constant
from mepdiff_core.renderer import PROJECTED_V_A2, scattering_factor
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig

MODEL_SLICES = 4
BATCH = 32
STEP_SIZE = 0.4
"""Adam's, in silicon atoms' weight a pixel; halved for the last passes."""
ATOM = 14
"""The element whose image is the basis: silicon's width lies between oxygen's and tungsten's."""


@dataclass(frozen=True)
class ProjectionStep:
    """Attributes: ``step`` of ``total`` passes; ``phase`` (y, x) projected, rad, on the object field; mean ``loss``."""

    step: int
    total: int
    phase: npt.NDArray[np.float64]
    loss: float


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
    shape = model.volume_shape[1:]
    ky, kx = frequencies(shape[0], scan.pixel_size_A)[0], frequencies(shape[1], scan.pixel_size_A)[1]
    factor = scattering_factor(ATOM, ky**2 + kx**2)
    scale = interaction_constant(scan.optics.energy_eV) * PROJECTED_V_A2 / scan.pixel_size_A**2 * factor[0, 0]
    image = torch.as_tensor(factor / factor[0, 0], dtype=torch.float32, device=model.device)

    def spread(weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(weights) * image).real
        return result

    weights = torch.zeros(shape, device=model.device)
    first, second, count = torch.zeros_like(weights), torch.zeros_like(weights), 0
    unit = STEP_SIZE * min(1.0, scale)
    for done in range(passes):
        losses = []
        for batch in make_batches(fit, BATCH, rng):
            volume = (spread(weights) / MODEL_SLICES)[None].repeat(MODEL_SLICES, 1, 1)
            loss, gradient, _ = model.loss_and_gradient(volume, batch, Poisson())
            gradient = spread(gradient.mean(0))
            count += 1
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            step = first / (1 - 0.9**count) / ((second / (1 - 0.99**count)).sqrt() + 1e-12)
            rate = unit * (0.5 ** max(0, done - passes + 3))
            weights = (weights - rate * step).clamp_(min=0)
            losses.append(float(loss))
        phase = spread(weights).cpu().numpy().astype(np.float64)
        yield ProjectionStep(done + 1, passes, phase, float(np.mean(losses)))


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
