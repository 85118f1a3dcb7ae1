"""CIF files of crystals to judge by that nothing here was made with: real compounds of the AFLOW library of prototypes.

pip install --no-deps pymatgen && python benchmarks/science/held_out.py OUT [--n 12] [--seed 1]

Drawn by chance from those that are ordered, have two elements or more, no hydrogen, edges of the conventional cell that the
paper's field of 12.8 Å holds (10 Å at most), and a formula that the installed prior was not trained on. No method's answer
was seen before they were drawn, and none is drawn anew. Source: Mehl et al., Comput. Mater. Sci. 136 (2017) S1, as pymatgen
ships it.
"""

from __future__ import annotations

import argparse
import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.data import atomic_numbers
from ase.io import write

from mepdiff_core.crystal_set import reduced_formula
from mepdiff_core.prototype_crystals import generate

FILE = "analysis/prototypes/aflow_prototypes.json.gz"
LONGEST_A = 10.0
TRAINED_ON, SEED_OF_TRAINING = 20_000, 0
"""Crystals that the installed prior's training drew from, and their seed (docs/prior.md)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    crystals = [crystal for entry in library() if (crystal := conventional(entry["snl"])) is not None]
    shown = {reduced_formula(generate(i, SEED_OF_TRAINING).numbers) for i in range(TRAINED_ON)}
    fitting = [c for c in crystals if c.cell.lengths().max() <= LONGEST_A and reduced_formula(c.numbers) not in shown]
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(crystals)} crystals, {len(fitting)} of them fit and were not shown to the prior")
    names: set[str] = set()
    for index in np.random.default_rng(arguments.seed).permutation(len(fitting)):
        crystal = fitting[index]
        name = crystal.get_chemical_formula(empirical=True)
        if name in names:
            continue
        names.add(name)
        write(arguments.out / f"{name}.cif", crystal)
        print(name, len(crystal), "atoms, cell", crystal.cell.cellpar().round(2).tolist())
        if len(names) == arguments.n:
            break


def library() -> list[dict[str, Any]]:
    """Its entries; ``snl`` is the structure."""
    packed = resources.files("pymatgen").joinpath(FILE).read_bytes()
    return list(json.loads(gzip.decompress(packed)))


def conventional(structure: dict[str, Any]) -> Atoms | None:
    """The conventional cell, or None where it is disordered, an element or has hydrogen."""
    species = [site["species"] for site in structure["sites"]]
    if any(len(kinds) > 1 or kinds[0]["occu"] != 1 for kinds in species):
        return None
    symbols = [kinds[0]["element"] for kinds in species]
    if len(set(symbols)) < 2 or "H" in symbols:
        return None
    places = [site["abc"] for site in structure["sites"]]
    numbers = [atomic_numbers[symbol] for symbol in symbols]
    cell, fractional, found = spglib.standardize_cell((structure["lattice"]["matrix"], places, numbers), symprec=1e-3)
    return Atoms(found, scaled_positions=fractional, cell=cell, pbc=True)


if __name__ == "__main__":
    main()
