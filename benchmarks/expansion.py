"""What the crystal solver spends its time on: the misfit to second order in every column's matter, at the true columns.

python benchmarks/expansion.py SCAN.h5 TRUE.cif [--patterns 12] [--threads 1]

The scan is simulated, so that it knows axis and origin. With the cells as they are stacked: level, or each a part of a
period deeper than the one beside it, where every depth of every column is drawn by itself.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.columns import Columns
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.element_features import element_table
from mepdiff_core.scan import load_scan
from mepdiff_core.stacking import Stacking
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import from_crystal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("true", type=Path)
    parser.add_argument("--patterns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scan = load_scan(arguments.scan)
    assert scan.thickness_A is not None
    simulation = scan.info["simulation"]
    crystal = read_crystal(arguments.true)
    cell = from_crystal(crystal, simulation["axis"], tuple(simulation["origin_A"]), scan.thickness_A)
    plane, period = cell.lattice_A[:2, 1:], float(cell.lattice_A[2, 0])
    origin = cell.positions_A[0, 1:]
    amounts = element_table().features[cell.numbers] * scan.thickness_A / period
    columns = Columns(plane, origin, (cell.positions_A[:, 1:] - origin) @ np.linalg.inv(plane), amounts)
    shift = cell.lattice_A[:2, 0] / period
    waves = AtomWaves(scan, round(scan.thickness_A / 1.6), 1.6)
    model = CrystalModel(waves, columns, Stacking(period, shift, 0.0) if np.abs(shift).max() > 1e-6 else None)
    indices = np.linspace(0, len(scan.positions_A) - 1, arguments.patterns).astype(int)
    start = time.perf_counter()
    count = len(model.sources)
    drawn = time.perf_counter()
    expansion = model.expand(model.even, np.array(model.even_matter), indices)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'level' if model.stacking is None else 'shifted'} cells, {len(columns)} columns, {count} sources")
    print(
        f"drawn in {drawn - start:.1f} s, {arguments.patterns} patterns expanded in {done - drawn:.1f} s, peak {peak:.1f} GB"
    )
    print(f"misfit {expansion.misfit:.1f} nats, |gradient| {np.linalg.norm(expansion.gradient):.1f} nats")


if __name__ == "__main__":
    main()
