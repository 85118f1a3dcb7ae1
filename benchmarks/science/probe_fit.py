"""How well a probe is found that was assumed 50 Å out of focus, from default scans of several crystals.

python benchmarks/science/probe_fit.py --structures DIR [--scans 4] [--picture probe_fit.png]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mepdiff_core.figures import probe_figure
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.page import save_figure
from mepdiff_core.probe import fit_probe, probe_overlap
from mepdiff_core.simulate import SimulationConfig, simulate_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--off", type=float, default=50.0, help="error of the assumed over focus, Å")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    scans = []
    for seed, path in enumerate(sorted(arguments.structures.glob("*.cif"))[: arguments.scans]):
        print(f"simulating {path.stem}", file=sys.stderr)
        scans.append(simulate_scan(path, SimulationConfig(seed=seed, origin_A=None)))
    true = scans[0].get_probe()
    assumed = [replace(s, optics=replace(s.optics, overfocus_A=s.optics.overfocus_A + arguments.off)) for s in scans]
    print(f"{'iteration':>9}{'loss':>10}{'overlap':>10}{'seconds':>9}")
    print(f"{0:9}{'':>10}{probe_overlap(assumed[0].get_probe(), true):10.4f}{0:9.0f}")
    state = None
    for state in fit_probe(assumed, ProbeFitConfig(iterations=arguments.iterations)):
        print(f"{state.step:9}{state.loss:10.5f}{probe_overlap(state.probe, true):10.4f}{state.seconds:9.0f}", flush=True)
    assert state is not None
    if arguments.picture:
        probes = {"true": true, "assumed": assumed[0].get_probe(), "fitted": state.probe}
        save_figure(probe_figure(probes, scans[0].pixel_size_A), arguments.picture)


if __name__ == "__main__":
    main()
