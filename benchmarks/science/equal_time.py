"""Quality by time: Adam's 200 passes as the paper ran them, and samplers with fewer and fewer steps.

python benchmarks/science/equal_time.py SCAN.h5 [SCAN.h5 ...] --out equal_time.csv [--threads 1]

Scans with their truth, as 'mepdiff simulate' or 'mepdiff evaluate' makes them. A row for each scan and choice, as it comes;
a second call goes on. All run on the fast engine, Adam too: PtyRAD's own takes about three times as long.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from guidance import compare

CHOICES: dict[str, dict[str, Any]] = {
    "adam, 200 passes": {"method": "adam", "engine": "fast", "heldout_fraction": 0.05},
    "adam-best": {"method": "adam-best", "engine": "fast"},
    "proximal, 30 steps": {"method": "proximal"},
    "proximal, 8 steps": {"method": "proximal", "steps": 8, "warm_passes": 3},
    "proximal, 8 steps of 10": {"method": "proximal", "steps": 8, "batches": 10, "warm_passes": 4},
    "proximal, 4 steps": {"method": "proximal", "steps": 4, "warm_passes": 4},
    "dps, 40 steps": {"method": "dps", "steps": 40},
    "dps, 40 steps of 160 patterns": {"method": "dps", "steps": 40, "batch_size": 160},
    "dps, 12 steps": {"method": "dps", "steps": 12},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compare(arguments.out, arguments.scans, CHOICES)


if __name__ == "__main__":
    main()
