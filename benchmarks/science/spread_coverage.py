"""Whether the truth lies within the spread of samples: the share of voxels within 1 and 2 standard deviations of their mean.

python benchmarks/science/spread_coverage.py SCAN.h5 [SCAN.h5 ...] --out coverage.csv [--methods proximal,dps,crystal]
    [--samples 8]

Scans with their truth, as 'mepdiff simulate' or 'mepdiff evaluate' makes them. Only voxels that electrons reached count, and
of those also the ones where atoms are, and the others. "expected" is what as few samples would cover if the truth were one
more of them. A row for each scan and method, as it comes; a second call goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t
from table import fill

from mepdiff_core.ensemble import coverage, errors_and_spread
from mepdiff_core.metrics import atom_mask
from mepdiff_core.posterior import ILLUMINATED
from mepdiff_core.projection import illumination
from mepdiff_core.reconstruction import reconstruct
from mepdiff_core.scan import load_scan

SETTINGS: dict[str, dict[str, Any]] = {"proximal": {}, "dps": {"steps": 40, "batch_size": 160}, "crystal": {}}
CLASSES = ("all", "atoms", "background")
COLUMNS = (
    *("scan", "method", "samples", "expected_1", "expected_2"),
    *(f"{name}_{k}" for name in CLASSES for k in (1, 2)),
    *("in_95", "atoms_in_95", "error_rad", "spread_rad", "seconds", "verdict"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="proximal,dps,crystal")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    methods, count = arguments.methods.split(","), arguments.samples
    jobs = {(path.stem, method): partial(measure, path, method, count) for method in methods for path in arguments.scans}
    fill(arguments.out, COLUMNS, jobs)


def measure(path: Path, method: str, count: int) -> dict[str, Any]:
    """Samples of one method on one scan, beside its truth."""
    scan = load_scan(path)
    assert scan.truth is not None
    began = time.perf_counter()
    for state in reconstruct(scan, method, device="cpu", samples=count, **SETTINGS[method]):
        print(f"\r{path.stem}: {method}, step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
    if state.samples is None or len(state.samples) < 2:
        return {"samples": 0, "verdict": state.verdict}
    lit = illumination(scan) > ILLUMINATED
    samples, truth = np.asarray(state.samples), scan.truth.phase
    error, spread = errors_and_spread(samples, truth, lit)
    atoms = atom_mask(truth)[:, lit]
    row: dict[str, Any] = {"samples": len(samples), "verdict": state.verdict}
    for k in (1, 2):
        row[f"expected_{k}"] = f"{1 - 2 * t.sf(k / np.sqrt(1 + 1 / len(samples)), len(samples) - 1):.3f}"
        within = np.abs(error) <= k * spread
        for name, voxels in zip(CLASSES, (np.ones_like(atoms), atoms, ~atoms), strict=True):
            row[f"{name}_{k}"] = f"{within[voxels].mean():.3f}"
    return row | {
        "in_95": f"{coverage(samples, truth, lit):.3f}",
        "atoms_in_95": f"{coverage(samples, truth, lit, atoms=True):.3f}",
        "error_rad": f"{np.sqrt(np.mean(error**2)):.4f}",
        "spread_rad": f"{np.sqrt(np.mean(spread**2)):.4f}",
        "seconds": f"{time.perf_counter() - began:.0f}",
    }


if __name__ == "__main__":
    main()
