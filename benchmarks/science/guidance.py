"""What should guide a sampler: the likelihood, its weight, positivity, a warm start; one change at a time.

python benchmarks/science/guidance.py SCAN.h5 [SCAN.h5 ...] --out guidance.csv [--only "NAME;NAME"] [--threads 1]

Scans with their truth, as 'mepdiff simulate' or 'mepdiff evaluate' makes them. A row for each scan and choice, as it comes;
a second call goes on. Seconds are those of the processor, parted into network and patterns by the share of the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from table import fill

from mepdiff_core.reconstruction import method_config, reconstruct
from mepdiff_core.report import judge
from mepdiff_core.scan import load_scan
from mepdiff_core.states import SampleState

DPS: dict[str, Any] = {"method": "dps", "steps": 40}
POISSON = {"likelihood": "poisson", "guidance_scale": 20000.0}
CHOICES: dict[str, dict[str, Any]] = {
    "dps": DPS,
    "dps, amplitude, 15000": DPS | {"guidance_scale": 15000.0},
    "dps, poisson, 7000": DPS | POISSON | {"guidance_scale": 7000.0},
    "dps, poisson, 20000": DPS | POISSON,
    "dps, poisson, 60000": DPS | POISSON | {"guidance_scale": 60000.0},
    "dps, poisson, 180000": DPS | POISSON | {"guidance_scale": 180000.0},
    "dps, positive": DPS | {"positivity": True},
    "dps, poisson, 20000, positive": DPS | POISSON | {"positivity": True},
    "dps, warm, sigma 1.5": DPS | {"warm_passes": 5, "sigma_max": 1.5},
    "dps, warm, sigma 16": DPS | {"warm_passes": 5, "sigma_max": 16.0},
    "dps, poisson, 20000, warm, sigma 1.5": DPS | POISSON | {"warm_passes": 5, "sigma_max": 1.5},
    "proximal": {"method": "proximal"},
    "proximal, amplitude": {"method": "proximal", "likelihood": "amplitude"},
    "proximal, not positive": {"method": "proximal", "positivity": False},
    "proximal, cold, sigma 16": {"method": "proximal", "warm_passes": 0, "sigma_max": 16.0},
    "proximal, cold, sigma 800": {"method": "proximal", "warm_passes": 0, "sigma_max": 800.0},
}
METRICS = ("ssim_2d", "ssim_atoms", "nrmse", "depth_correlation", "r_heldout", "deviance_heldout")
COLUMNS = ("scan", "choice", *METRICS, "cpu_s", "clock_s", "network_part", "physics_part", "note")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="names of choices, with semicolons between them (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(";") if arguments.only else list(CHOICES)
    compare(arguments.out, arguments.scans, {name: CHOICES[name] for name in names})


def compare(out: Path, scans: Sequence[Path], choices: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each choice and scan."""
    jobs = {(path.stem, name): partial(measure, path, name, choices[name]) for name in choices for path in scans}
    fill(out, COLUMNS, jobs)


def measure(path: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One method on one scan."""
    method = settings["method"]
    config = method_config(method, {key: value for key, value in settings.items() if key != "method"})
    scan = load_scan(path)
    began, clock, network, physics, total = time.process_time(), time.perf_counter(), 0.0, 0.0, 0.0
    for state in reconstruct(scan, method, config=config, device="cpu"):
        print(f"\r{path.stem}: {name}, step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
        total = state.seconds
        if isinstance(state, SampleState):
            network, physics = network + state.network_s, physics + state.physics_s
    seconds, clock = time.process_time() - began, time.perf_counter() - clock
    device = torch.device("cpu")
    found = judge(scan, state.volume, config.slice_thickness_A, config.heldout_fraction, config.seed, device)
    return {
        **{metric: f"{found[metric]:.4f}" for metric in METRICS},
        "cpu_s": f"{seconds:.1f}",
        "clock_s": f"{clock:.1f}",
        "network_part": f"{network / total:.3f}",
        "physics_part": f"{physics / total:.3f}",
        "note": state.note,
    }


if __name__ == "__main__":
    main()
