"""What data, network and training length do to a prior: short trainings that differ in one thing, judged alike.

python benchmarks/science/train_ablation.py SCAN.h5 --out DIR [--only "NAME;NAME"] [--threads N]

Every training is the preset 'small' with 20,000 generated crystals but for what its name says, in steps of 16 crops. The
prior is then measured on the same held-out crystals, 64 crops at ten ranges of log-SNR: the mean squared error of v, where
1 is what zeros would miss; and 'dps' reconstructs SCAN.h5 with it, which holds a crystal that none of them saw (a scan of
'mepdiff evaluate', of a formula that small.yaml excludes). A row for each training and length in DIR/train_ablation.csv, as
it comes; a second call goes on, in the midst of a training too. The row 'installed' is the prior in the package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from table import fill
from torch import Tensor

from mepdiff_core.config import from_dict, merge
from mepdiff_core.loader import open_crops
from mepdiff_core.posterior import run_dps
from mepdiff_core.reconstruction import method_config
from mepdiff_core.report import judge
from mepdiff_core.scan import Scan, load_scan
from mepdiff_core.settings import EMBEDDED, DPSConfig
from mepdiff_core.train import train
from mepdiff_core.train_config import TrainConfig, preset
from mepdiff_core.training_folder import TrainingFolder
from mepdiff_core.unet import costs
from mepdiff_core.validation import validate
from mepdiff_core.weights import load_prior

STEPS = 600
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "as it is": ({}, (STEPS // 2, STEPS, 2 * STEPS)),
    "200 crystals": ({"crystals": 200}, (STEPS,)),
    "half as wide": ({"network": {"channels_2d": [16, 32], "channels_3d": [48, 64], "head_channels": 16}}, (STEPS,)),
    "twice as wide": ({"network": {"channels_2d": [64, 128], "channels_3d": [192, 256]}}, (STEPS,)),
    "crops of 32 px": ({"crops": {"pixels": 32}}, (STEPS,)),
    "noise as the paper's": ({"diffusion": {"log_snr_mean": -7.0}}, (STEPS,)),
}
"""Name: (what is another, lengths in steps)."""
CROPS, BANDS = 64, ("-6.3", "-4.1", "-1.9", "+0.3")
METRICS = ("ssim_2d", "ssim_atoms", "depth_correlation", "deviance_heldout")
COLUMNS = ("training", "steps", "crystals", "parameters", "seconds", "loss", *(f"v at {band}" for band in BANDS), *METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only", help="trainings, semicolons between them (default: all); 'as it is' comes first, for its crystals"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.only.split(";") if arguments.only else list(VARIANTS)
    scan, out = load_scan(arguments.scan), arguments.out
    jobs = {
        (name, str(steps)): partial(measure, out, scan, name, steps, VARIANTS[name][0])
        for name in names
        for steps in VARIANTS[name][1]
    }
    jobs["installed", ""] = lambda: judged(out, scan, EMBEDDED)
    fill(out / "train_ablation.csv", COLUMNS, jobs)


def config_of(changed: Mapping[str, Any], steps: int) -> TrainConfig:
    often = {"checkpoint_every": 100, "validate_every": STEPS, "validation_crops": 0, "pictures_every": 0, "steps": steps}
    return from_dict(TrainConfig, merge(merge(preset("small"), often), changed))


def measure(out: Path, scan: Scan, name: str, steps: int, changed: Mapping[str, Any]) -> dict[str, Any]:
    """One training, as long as it is to be."""
    config, path = config_of(changed, steps), out / name.replace(" ", "-")
    for state in train(config, path, resume=path.exists(), device="cpu"):
        print(f"\r{name}: step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
    found = judged(out, scan, str(TrainingFolder(path, config).last))
    return {**found, "crystals": config.crystals, "seconds": f"{state.seconds:.0f}"}


def held_out(out: Path) -> Tensor:
    """(crops, 1, z, y, x) of crystals that the training 'as it is' holds out, and all others with it."""
    config = config_of({}, STEPS)
    _, crops = open_crops(
        TrainingFolder(out / "as-it-is", config).crystals, config.crops, torch.device("cpu"), config.exclude
    )
    assert crops is not None
    return torch.stack([crops[i] for i in range(CROPS)])


def judged(out: Path, scan: Scan, prior: str) -> dict[str, Any]:
    """What a prior misses of held-out crystals, and what dps makes of the scan with it."""
    loaded = load_prior(prior)
    validation = validate(loaded.network, held_out(out), config_of({}, STEPS).diffusion).rows()
    config = method_config("dps", {"steps": 100, "batch_size": 160, "engine": "fast", "prior": prior})
    assert isinstance(config, DPSConfig)
    for state in run_dps(scan, config):
        print(f"\rdps, step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
    found = judge(scan, state.volume, config.slice_thickness_A, config.heldout_fraction, config.seed, torch.device("cpu"))
    return {
        "parameters": costs(loaded.config.network)[-1].parameters,
        "loss": f"{validation['loss']:.4f}",
        **{f"v at {band}": f"{validation[f'loss_at_{band}']:.4f}" for band in BANDS},
        **{metric: f"{found[metric]:.4f}" for metric in METRICS},
    }


if __name__ == "__main__":
    main()
