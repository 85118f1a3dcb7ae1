"""The loss of a network on held-out crystals, by log-SNR: always the same crops, the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mepdiff_core.diffusion import DiffusionConfig, Network, Weighting, losses

BINS = 10
BATCH = 16


@dataclass(frozen=True)
class Validation:
    """What a network misses.

    Attributes:
        loss: weighted as in training.
        edges: of the bins of log-SNR, one more than there are bins.
        by_bin: mean squared error of v in each bin.
    """

    loss: float
    edges: tuple[float, ...]
    by_bin: tuple[float, ...]

    def rows(self) -> dict[str, float]:
        """Column of validation.csv to its value."""
        return {"loss": self.loss} | dict(zip(columns(self.edges), self.by_bin, strict=True))


def columns(edges: Sequence[float]) -> list[str]:
    """What the bins are called in validation.csv: v-loss at their middle."""
    return [f"loss_at_{(low + high) / 2:+g}" for low, high in pairwise(edges)]


@torch.no_grad()
def validate(network: Network, crops: Tensor, config: DiffusionConfig, seed: int = 0) -> Validation:
    """Measure a network: every crop once in every bin, at a log-SNR of its own.

    Args:
        network: to measure.
        crops: (n, 1, z, y, x) held out, in rad.
        config: range, weight and scale.
        seed: of log-SNR and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    width = (config.log_snr_max - config.log_snr_min) / BINS
    edges = [config.log_snr_min + width * i for i in range(BINS + 1)]
    weighting, total, by_bin = Weighting(config), 0.0, []
    for low in edges[:-1]:
        within = (torch.randperm(len(crops), generator=generator) + torch.rand(len(crops), generator=generator)) / len(crops)
        log_snr = low + width * within.double()
        found = []
        for first in range(0, len(crops), BATCH):
            x = crops[first : first + BATCH] * config.data_scale
            noise = torch.randn(x.shape, generator=generator).to(x.device)
            found.append(losses(network, x, noise, log_snr[first : first + BATCH].to(x.device)).double().cpu())
        loss = torch.cat(found)
        by_bin.append(float(loss.mean()))
        total += width * float((loss * weighting.density(log_snr)).mean())
    return Validation(total, tuple(edges), tuple(by_bin))
