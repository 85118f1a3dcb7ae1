"""Seconds and peak memory of the commands, each in a process of its own.

    python benchmarks/commands.py [--out DIR] [--passes 5]

Reconstructions do a few passes; their time is given for one, from the run's own history.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

METHODS = {
    "adam, PtyRAD": ["--method", "adam"],
    "adam, ours": ["--method", "adam", "--set", "engine=fast"],
    "adam-best, PtyRAD": ["--method", "adam-best"],
    "adam-best, ours": ["--method", "adam-best", "--set", "engine=fast"],
    "lbfgs, ours (one iteration)": [
        "--method",
        "lbfgs",
        "--set",
        "engine=fast",
        "--set",
        "learning_rates=[0.1]",
        "--steps",
        "1",
    ],
}


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of ``mepdiff`` with these arguments."""
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "mepdiff_core", *arguments], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"mepdiff {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    scan = arguments.out / "scan.h5"
    with resources.as_file(resources.files("mepdiff_core") / "data" / "SrTiO3.cif") as crystal:
        rows = [("simulate, 26 x 26", *run(["simulate", str(crystal), str(scan)]), "")]
    for number, (label, options) in enumerate(METHODS.items()):
        out = arguments.out / f"run{number}"
        steps = [] if "--steps" in options else ["--steps", str(arguments.passes)]
        seconds, megabytes = run(["reconstruct", str(scan), "--out", str(out), *options, *steps])
        with (out / "history.csv").open(newline="") as file:
            history = list(csv.DictReader(file))
        rows.append((label, seconds, megabytes, f"{float(history[-1]['seconds']) / len(history):.2f} s a step"))
    print(f"{'':30}{'seconds':>9}{'peak MB':>9}")
    for label, seconds, megabytes, note in rows:
        print(f"{label:30}{seconds:9.1f}{megabytes:9.0f}  {note}")


if __name__ == "__main__":
    main()
