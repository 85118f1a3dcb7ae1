"""Which noise levels to train at: the same network, data and steps, only ``diffusion`` differs.

python benchmarks/science/noise_levels.py --out DIR [--steps 600] [--only NAME,NAME]

Trainings are judged alike, whatever they weigh: crystals that none has seen get noise of several sigma (in rad), and the
squared error of what the network makes of them is divided by the squared phase (1: it knows nothing; 0: all). One line a
training as it ends. One that is already in DIR is measured, not made again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from mepdiff_core.config import from_dict, merge
from mepdiff_core.crystal_set import CrystalSet
from mepdiff_core.prototype_crystals import generate
from mepdiff_core.train import train
from mepdiff_core.train_config import TrainConfig, preset
from mepdiff_core.training_data import CrystalCrops
from mepdiff_core.weights import Prior, load_prior

SHORT = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "ema_decay": 0.99,
    "crystals": 4000,
    "precision": "bf16",
    "pictures_every": 0,
    "validation_crops": 0,
    "checkpoint_every": 100000,
}
PAPER = {"log_snr_min": -20.0, "log_snr_max": 20.0, "log_snr_even": 0.0, "importance": False, "stratified": False}


def at(scale: float, mean: float, std: float) -> dict[str, float]:
    """Log-SNR around that noise (in rad) which has a log-SNR of ``mean`` at a data scale of 16."""
    shift = 2 * math.log(16 / scale)
    return {"log_snr_mean": mean + shift, "log_snr_std": std, "log_snr_min": shift - 14, "log_snr_max": shift + 8}


CHOICES = {
    "paper": PAPER,
    "paper, drawn by weight": PAPER | {"importance": True},
    "paper, drawn by weight, spread": PAPER | {"importance": True, "stratified": True},
    "small, mean -7": {"log_snr_mean": -7.0},
    "small, mean -7, no even part": {"log_snr_mean": -7.0, "log_snr_even": 0.0},
    "small, mean -4": {"log_snr_mean": -4.0},
    "small, mean -2": {"log_snr_mean": -2.0},
    "small": {},
    "small, mean 0": {"log_snr_mean": 0.0},
    "small, drawn evenly": {"importance": False},
    "small, data scale 4": {"data_scale": 4.0} | at(4, -1, 3),
    "small, data scale 64": {"data_scale": 64.0} | at(64, -1, 3),
}
SIGMAS = tuple(math.exp(-log_snr / 2) / 16 for log_snr in (-10, -8, -6, -4, -2, 0, 2, 4, 6))
"""rad; those of log-SNR -10 to 6 at a data scale of 16."""
CROPS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", help="names of choices, with semicolons between them (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    crops = unseen()
    print("| diffusion | " + " | ".join(f"{sigma:.3g} rad" for sigma in SIGMAS) + " |")
    print("|---|" + "---:|" * len(SIGMAS), flush=True)
    for name, diffusion in CHOICES.items():
        if arguments.only and name not in arguments.only.split(";"):
            continue
        changes = SHORT | {"diffusion": diffusion, "steps": arguments.steps, "seed": arguments.seed}
        config = from_dict(TrainConfig, merge(preset("small"), changes))
        folder = arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}-{arguments.seed}"
        if not (folder / "last.safetensors").exists():
            for _ in train(config, folder, device="cpu"):
                pass
        errors = relative_errors(load_prior(folder / "last.safetensors"), crops)
        print(f"| {name} | " + " | ".join(f"{error:.3f}" for error in errors) + " |", flush=True)


def unseen() -> torch.Tensor:
    """(crops, 1, z, y, x) rad of crystals from another seed."""
    crystals = CrystalSet.pack([generate(index, 1000) for index in range(CROPS)])
    crops = CrystalCrops(crystals, range(CROPS), TrainConfig().crops, torch.device("cpu"))
    return crops.assemble([crops.draw(index) for index in range(CROPS)])


@torch.no_grad()
def relative_errors(prior: Prior, crops: torch.Tensor) -> list[float]:
    """Squared error over squared phase at each of ``SIGMAS``."""
    scale, errors = prior.config.diffusion.data_scale, []
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))
    for sigma in SIGMAS:
        total = 0.0
        for x, e in zip(crops.split(16), noise.split(16), strict=True):
            found = prior.denoise((x + sigma * e) * scale, torch.full((len(x),), sigma * scale)) / scale
            total += float((found - x).square().sum())
        errors.append(total / float(crops.square().sum()))
    return errors


if __name__ == "__main__":
    main()
