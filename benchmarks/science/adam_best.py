"""How adam-best was chosen: one setting changed at a time, several crystals, the volume of the lowest held-out misfit.

python benchmarks/science/adam_best.py --structures DIR --out adam_best.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mepdiff_core.baselines import run_adam
from mepdiff_core.errors import InputError
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.settings import ADAM_BEST, AdamConfig, Constraints
from mepdiff_core.simulate import SimulationConfig, simulate_scan

CASES = (("ZrO2", "b"), ("LiCoO2", "a"), ("Mn3NiO6", "c"), ("LaMoO4", "a"))


def settings() -> dict[str, AdamConfig]:
    base = replace(
        ADAM_BEST,
        engine="fast",
        iterations=40,
        constraints=Constraints(positivity=True, depth_blur_slices=1.0),
        learning_rate=5e-3,
    )

    def constraints(**values: float | bool) -> AdamConfig:
        return replace(base, constraints=replace(base.constraints, **values))

    return {
        "base": base,
        "rate 1e-3": replace(base, learning_rate=1e-3),
        "rate 2e-3": replace(base, learning_rate=2e-3),
        "rate 1e-2": replace(base, learning_rate=1e-2),
        "amplitude": replace(base, likelihood="amplitude"),
        "no positivity": constraints(positivity=False),
        "no blur": constraints(depth_blur_slices=0.0),
        "blur 0.5": constraints(depth_blur_slices=0.5),
        "blur 0.7": constraints(depth_blur_slices=0.7),
        "blur 1.5": constraints(depth_blur_slices=1.5),
        "kz 0.5": constraints(depth_blur_slices=0.0, kz_beta=0.5),
        "kz 1": constraints(depth_blur_slices=0.0, kz_beta=1.0),
        "kz 2": constraints(depth_blur_slices=0.0, kz_beta=2.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["crystal", "axis", "setting", "step", "heldout", "ssim_2d", "nrmse", "depth_correlation", "seconds"]
        )
        for name, axis in CASES:
            scan = simulate_scan(arguments.structures / f"{name}.cif", SimulationConfig(axis=axis, origin_A=None))
            assert scan.truth is not None
            for label, config in settings().items():
                state = None
                try:
                    for state in run_adam(scan, config):
                        print(f"\r{name} {label} {state.step}   ", end="", file=sys.stderr)
                except InputError as error:
                    print(label, error, file=sys.stderr)
                if state is None:
                    continue
                m = volume_metrics(state.volume, scan.truth.phase)
                row = [m["ssim_2d"], m["nrmse"], m["depth_correlation"]]
                writer.writerow(
                    [name, axis, label, state.volume_step, state.heldout, *(f"{v:.3f}" for v in row), f"{state.seconds:.0f}"]
                )
                file.flush()


if __name__ == "__main__":
    main()
