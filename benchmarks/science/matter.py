"""Matter by depth without a cell: how near a few Poisson passes over atoms' weights come to the truth.

python benchmarks/science/matter.py SCAN.h5 [SCAN.h5 ...]

Scans with their truth, as 'mepdiff simulate', 'mepdiff evaluate' or crystal.py make them. A row for each scan: after the
passes with all slices alike, and at the end. Deviance: a pixel of the 5 % of patterns held out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from mepdiff_core.batches import split_patterns
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.projection import EVEN_PASSES, matter_by_depth
from mepdiff_core.scan import load_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    print("| scan | passes | SSIM | nRMSE | depth corr. | deviance held out | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for path in parser.parse_args().scans:
        scan = load_scan(path)
        assert scan.truth is not None
        assert scan.thickness_A is not None
        slices = len(scan.truth.phase)
        fit, held = split_patterns(scan.n_patterns, 0.05, 0)
        start = time.perf_counter()
        for step in matter_by_depth(scan, slices, scan.thickness_A / slices, fit, held, np.random.default_rng(0)):
            if step.step in (EVEN_PASSES, step.total):
                found = volume_metrics(step.volume, scan.truth.phase)
                values = [f"{found[name]:.3f}" for name in ("ssim_2d", "nrmse", "depth_correlation")]
                deviance = 2 * (step.heldout or np.nan) / scan.pattern_pixels
                seconds = time.perf_counter() - start
                print(f"| {path.stem} | {step.step} | {' | '.join(values)} | {deviance:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
