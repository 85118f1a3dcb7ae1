"""Seconds of a sampler's step: network, patterns, and what is left over; by method, precision, steps a call, mini-batch.

    python benchmarks/samplers.py [--threads 1] [--steps 6] [--device cpu]

A default scan's geometry (26 x 26 positions, 128 px, 8 slices) with made-up counts: speed does not depend on them; the
installed prior. Medians over the steps but the first, which makes plans. Besides, how far from float32's lies what the
network makes of noise in bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from typing import Any

import numpy as np
import torch

from mepdiff_core.optics import Optics
from mepdiff_core.reconstruction import reconstruct
from mepdiff_core.scan import Scan, raster_positions
from mepdiff_core.settings import EMBEDDED
from mepdiff_core.states import SampleState
from mepdiff_core.weights import load_prior

N = 128
PROXIMAL: dict[str, Any] = {"method": "proximal", "warm_passes": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dps": ("float32", {"method": "dps"}),
    "dps, bf16": ("bf16", {"method": "dps"}),
    "dps, 160 patterns": ("float32", {"method": "dps", "batch_size": 160}),
    "dps, 160 patterns, bf16": ("bf16", {"method": "dps", "batch_size": 160}),
    "dps, 4 samples": ("float32", {"method": "dps", "samples": 4, "batch_size": 160}),
    "proximal": ("float32", PROXIMAL),
    "proximal, bf16": ("bf16", PROXIMAL),
    "proximal, 5 data steps": ("float32", PROXIMAL | {"batches": 5}),
    "proximal, 5 data steps, bf16": ("bf16", PROXIMAL | {"batches": 5}),
    "proximal, 80 data steps of 8": ("float32", PROXIMAL | {"batches": 80, "batch_size": 8}),
    "proximal, 5 data steps of 128": ("float32", PROXIMAL | {"batches": 5, "batch_size": 128}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts = np.random.default_rng(0).poisson(16.0, (26, 26, N, N)).astype(np.uint8)
    scan = Scan(counts, raster_positions((26, 26), 0.512), Optics(), 5 / N, 16.0 * N * N, thickness_A=12.8)
    print(f"{arguments.device}, {arguments.threads} threads; seconds a step")
    print("| sampler | precision | step | network | patterns | rest | rest of both |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    for name, (precision, settings) in CASES.items():
        whole, network, physics, rest = step_seconds(scan, settings, precision, arguments.steps, arguments.device)
        print(
            f"| {name} | {precision} | {whole:.3f} | {network:.3f} | {physics:.3f} | {rest:.3f} |"
            f" {100 * rest / (network + physics):.1f} % |",
            flush=True,
        )
    print(f"bf16 differs from float32 by {difference(arguments.device):.1e} (relative, of what is denoised)")


def in_precision(name: str, device: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for matrix products and convolutions: only the network has any."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if name == "bf16" else contextlib.nullcontext()


def step_seconds(scan: Scan, settings: dict[str, Any], precision: str, steps: int, device: str) -> tuple[float, ...]:
    """Median seconds of a step, of its network, of its patterns, of what is left."""
    given = dict(settings)
    method = given.pop("method")
    rows, before = [], 0.0
    with in_precision(precision, device):
        for state in reconstruct(scan, method, device=device, steps=steps + 1, **given):
            assert isinstance(state, SampleState)
            whole = state.seconds - before
            rows.append((whole, state.network_s, state.physics_s, whole - state.network_s - state.physics_s))
            before = state.seconds
    return tuple(statistics.median(column) for column in zip(*rows[1:], strict=True))


def difference(device: str) -> float:
    """Relative, of what the network makes of noise of one tile."""
    prior = load_prior(EMBEDDED, device)
    x = torch.randn(4, 1, *prior.config.shape, generator=torch.Generator().manual_seed(0)).to(device)
    added = torch.full((4,), 1.5, device=device)
    exact = prior.denoise(x, added)
    with in_precision("bf16", device):
        return float((prior.denoise(x, added) - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
