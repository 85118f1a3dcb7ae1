"""A crystal.cif of the crystal solver against the crystal that was simulated, atom by atom, with the spread that it states.

python benchmarks/science/compare_cif.py RUN/crystal.cif TRUE.cif SCAN.h5

Each atom of the found cell is compared with the nearest true one, wherever in the specimen that is. A depth is known within
its slice where cells do not shift: no pattern tells more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from mepdiff_core.cif_cells import read_cell
from mepdiff_core.scan import load_scan
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import from_crystal, lattice_error

MARGIN_A = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path)
    parser.add_argument("true", type=Path)
    parser.add_argument("scan", type=Path, help="simulated, so that it knows axis and origin")
    arguments = parser.parse_args()
    scan, found = load_scan(arguments.scan), read_cell(arguments.found)
    assert scan.thickness_A is not None
    simulation = scan.info["simulation"]
    crystal = read_crystal(arguments.true)
    true = from_crystal(crystal, simulation["axis"], tuple(simulation["origin_A"]), scan.thickness_A)
    corner = np.append(0.0, found.positions_A[:, 1:].min(0) - MARGIN_A)
    extent = np.append(scan.thickness_A, np.ptp(found.positions_A[:, 1:], axis=0) + 2 * MARGIN_A)
    box = true.atoms_in(tuple(extent), tuple(corner))
    places, numbers = box.positions_A + corner, box.numbers
    depths = found.positions_A[:, 0]
    if found.periodic_along_beam:  # the copy that lies in the specimen
        depths = depths % found.lattice_A[2, 0]
    here = np.column_stack([depths, found.positions_A[:, 1:]])
    distance, nearest = cKDTree(places).query(here)
    off = here - places[nearest]
    print(f"{'atom':>5} {'true':>5} {'in plane (Å)':>13} {'stated (Å)':>11} {'depth (Å)':>10} {'stated (Å)':>11}")
    plane, stated = np.hypot(*off[:, 1:].T), np.hypot(*found.spread_A[:, 1:].T)
    for k, number in enumerate(found.numbers):
        row = f"{chemical_symbols[number]:>5} {chemical_symbols[numbers[nearest[k]]]:>5} {plane[k]:13.4f} {stated[k]:11.4f}"
        print(f"{row} {off[k, 0]:10.2f} {found.spread_A[k, 0]:11.2f}")
    right = (found.numbers == numbers[nearest]) & (plane < 0.5)
    ratio = off[:, 1:] / found.spread_A[:, 1:]
    print(
        f"{right.sum()} of {len(right)} atoms in place with their element; in plane {np.sqrt(np.mean(plane**2)):.4f} Å rms, "
        f"{np.sqrt(np.mean(ratio**2)):.2f} stated deviations rms; depth {np.sqrt(np.mean(off[:, 0] ** 2)):.2f} Å rms, "
        f"{np.sqrt(np.mean((off[:, 0] / found.spread_A[:, 0]) ** 2)):.2f} deviations; "
        f"lattice error {lattice_error(found, true):.4f}; farthest {distance.max():.2f} Å"
    )


if __name__ == "__main__":
    main()
