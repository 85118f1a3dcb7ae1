"""Whether guidance and field find a crystal that the prior knows perfectly: dps and proximal with an exact denoiser.

python benchmarks/science/perfect_prior.py CRYSTAL.cif [CRYSTAL.cif ...] --out DIR [--axis c] [--only "NAME;NAME"]

In place of a network stands the exact answer of one that has learnt all there is of a single crystal: it knows cell,
elements and orientation, and not where the crystal lies (every origin on a grid over its cell is as likely). What a noisy
crop is expected to have been is then the mean of those crops, weighed by how well each explains it. No training is better,
so what is missing with it is not the network's fault. *One tile*: crops of 128 x 128 px, wider than the illuminated field,
instead of four that overlap. Scans are those of 'mepdiff evaluate'. A row for each crystal and choice in
DIR/perfect_prior.csv, as it comes; a second call goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import fill
from torch import Tensor

from mepdiff_core.crystals import Axis, Crystal, fill_box, turned_cell
from mepdiff_core.evaluation import find_cases
from mepdiff_core.evaluation_task import Task, simulate_case
from mepdiff_core.posterior import run_dps, run_proximal
from mepdiff_core.reconstruction import method_config
from mepdiff_core.renderer import Renderer
from mepdiff_core.report import judge
from mepdiff_core.scan import load_scan
from mepdiff_core.settings import EMBEDDED, DPSConfig, ProximalConfig
from mepdiff_core.simulate import SimulationConfig
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.weights import PriorConfig, load_prior, save_prior

ALONG_A, ACROSS_A = 0.4, 0.2
"""Between origins, at most, along the vector that lies along the beam and along others: a quarter of a slice, a voxel."""
MARGIN_PX = 20
"""Atoms this far beside a crop are rendered with it, 4 Å."""
DPS: dict[str, Any] = {"method": "dps", "steps": 100, "batch_size": 160}
PROXIMAL: dict[str, Any] = {"method": "proximal"}
PERFECT, ONE_TILE = {"perfect": True}, {"tile": 128}
CHOICES: dict[str, dict[str, Any]] = {
    "dps": DPS,
    "dps, one tile": DPS | ONE_TILE,
    "dps, perfect": DPS | PERFECT,
    "dps, perfect, one tile": DPS | PERFECT | ONE_TILE,
    "dps, perfect, all patterns, 40 steps": DPS | PERFECT | {"steps": 40, "batch_size": None},
    "dps, perfect, all patterns, 40 steps, g 50000": DPS
    | PERFECT
    | {"steps": 40, "batch_size": None, "guidance_scale": 50000.0},
    "dps, perfect, 200 steps": DPS | PERFECT | {"steps": 200},
    "dps, perfect, 200 steps, other noise": DPS | PERFECT | {"steps": 200, "seed": 1},
    "dps, perfect, 200 steps, one tile": DPS | PERFECT | ONE_TILE | {"steps": 200},
    "proximal": PROXIMAL,
    "proximal, perfect": PROXIMAL | PERFECT,
    "proximal, perfect, sigma 100, renewed": PROXIMAL | PERFECT | {"sigma_max": 100.0, "eta": 1.0},
    "proximal, perfect, cold, sigma 800": PROXIMAL | PERFECT | {"warm_passes": 0, "sigma_max": 800.0},
}
METRICS = ("ssim_2d", "ssim_atoms", "nrmse", "depth_correlation", "r_heldout", "deviance_heldout")
COLUMNS = ("crystal", "choice", *METRICS, "seconds", "note")


class PerfectPrior:
    """The expected crop, exactly, where all that is unknown of a crystal is its origin.

    Args:
        crystal: the crystal; axis: its lattice vector along the beam.
        config: of the prior whose voxels and scale it has.

    Attributes:
        crops: (origins, voxels) all crops there are, scaled; half_squares: (origins,) half of their squared norms.
    """

    def __init__(self, crystal: Crystal, axis: Axis, config: PriorConfig) -> None:
        (slices, pixels, _), (depth, pixel, _) = config.shape, config.voxel_size_A
        cell = turned_cell(crystal, axis)
        sides = np.linalg.norm(cell, axis=1)
        steps = np.where(np.arange(3) == "abc".index(axis), ALONG_A, ACROSS_A)
        grids = [np.arange(n) / n for n in np.ceil(sides / steps).astype(int)]
        origins = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 3) @ cell
        n = pixels + 2 * MARGIN_PX
        size = (slices * depth, n * pixel, n * pixel)
        renderer = Renderer((n, n), pixel, slices, depth, config.energy_eV, "cpu")
        self.crops = torch.empty(len(origins), slices * pixels**2)
        for part in np.array_split(np.arange(len(origins)), -(-len(origins) // 64)):
            boxes = [fill_box(cell, crystal.fractional, crystal.numbers, size, tuple(o)) for o in origins[part].tolist()]
            inner = renderer.render(boxes)[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
            self.crops[part[0] : part[-1] + 1] = inner.flatten(1) * config.diffusion.data_scale
        self.half_squares = self.crops.square().sum(1) / 2

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        """(batch, 1, z, y, x) scaled crops with noise of the (batch,) sigma added -> what they are expected to have been."""
        fit = (x.flatten(1) @ self.crops.T - self.half_squares) / added[:, None] ** 2
        return (torch.softmax(fit, 1) @ self.crops).reshape(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crystals", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--axis", choices=("a", "b", "c"), default="c")
    parser.add_argument("--only", help="names of choices, with semicolons between them (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (arguments.out / "scans").mkdir(parents=True, exist_ok=True)
    names = arguments.only.split(";") if arguments.only else list(CHOICES)
    for path in arguments.crystals:
        jobs = {(path.stem, name): partial(measure, arguments.out, path, arguments.axis, name) for name in names}
        fill(arguments.out / "perfect_prior.csv", COLUMNS, jobs)


def wide_prior(out: Path, pixels: int) -> Path:
    """The installed prior as one of wider crops, which its network takes as well."""
    path = out / f"tile-{pixels}.safetensors"
    prior = load_prior(EMBEDDED)
    shape = (prior.config.shape[0], pixels, pixels)
    save_prior(path, prior.network.state_dict(), replace(prior.config, shape=shape), prior.training)
    return path


def measure(out: Path, path: Path, axis: Axis, name: str) -> dict[str, Any]:
    """One choice on one crystal's scan."""
    simulation = SimulationConfig(origin_A=None)
    (case,) = find_cases(path, [axis], None, [simulation.thickness_A], [simulation.dose_e_per_A2])
    task = Task(out.resolve(), case, simulation, {}, "cpu")
    trouble = simulate_case(task)
    if trouble:
        raise SystemExit(trouble)
    scan = load_scan(task.scan)
    choice = CHOICES[name]
    own: Mapping[str, Any] = {k: v for k, v in choice.items() if k not in ("method", "perfect", "tile")}
    prior = wide_prior(out, choice["tile"]) if "tile" in choice else EMBEDDED
    config = method_config(choice["method"], {**own, "engine": "fast", "prior": str(prior)})
    assert isinstance(config, DPSConfig | ProximalConfig)
    perfect = PerfectPrior(read_crystal(path), axis, load_prior(prior).config) if choice.get("perfect") else None
    loop = run_dps if isinstance(config, DPSConfig) else run_proximal
    for state in loop(scan, config, denoise=perfect):  # type: ignore[operator]
        print(f"\r{path.stem}: {name}, step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
    found = judge(scan, state.volume, config.slice_thickness_A, config.heldout_fraction, config.seed, torch.device("cpu"))
    numbers = {metric: f"{found[metric]:.4f}" for metric in METRICS}
    return {**numbers, "seconds": f"{state.seconds:.0f}", "note": state.note}


if __name__ == "__main__":
    main()
