"""Random crystals by pyxtal: any space group, any composition, no chemistry. An optional extra: pip install ".[pyxtal]"."""

from __future__ import annotations

import numpy as np

from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.sites import MIN_DISTANCE_A

ELEMENTS = (*range(3, 10), *range(11, 18), *range(19, 36), *range(37, 54), *range(55, 61), *range(62, 84), 90, 92)
"""No hydrogen, no noble gases, nothing that decays within years."""
ATTEMPTS = 200


def generate(index: int, seed: int) -> Crystal:
    """Crystal number ``index`` of the set ``seed``: the same in every process.

    Returns:
        A crystal of one to three elements with a, b and c under 20 Å in a random space group.

    Raises:
        InputError: pyxtal is not installed.
    """
    try:
        from pyxtal import pyxtal
        from pyxtal.msg import Comp_CompatibilityError, ReadSeedError, VolumeError
    except ImportError:
        raise InputError('pyxtal is not installed; run pip install "napari-mepdiff[pyxtal]"') from None
    from ase.data import chemical_symbols

    rng = np.random.default_rng([seed, index])
    for _ in range(ATTEMPTS):
        group = int(rng.integers(2, 231))
        kinds = int(rng.integers(1, 4))
        species = [chemical_symbols[int(z)] for z in rng.choice(ELEMENTS, kinds, replace=False)]
        counts = [int(n) for n in rng.choice([1, 2, 3, 4, 6, 8, 12, 16], kinds)]
        made = pyxtal()
        try:
            made.from_random(3, group, species, counts, random_state=int(rng.integers(2**31)))
        except (Comp_CompatibilityError, ReadSeedError, VolumeError, RuntimeError, ValueError):
            continue  # that group has no sites for this composition
        if not made.valid:
            continue
        atoms = made.to_ase()
        cell = np.asarray(atoms.cell[:], float)
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
        if np.linalg.norm(cell, axis=1).max() >= 20 or (len(distances) and distances.min() < MIN_DISTANCE_A):
            continue
        fractional = np.asarray(atoms.get_scaled_positions(), float) % 1.0
        title = f"{group} random"
        return Crystal(f"random-{seed}-{index}", cell, np.asarray(atoms.numbers, np.int64), fractional, title)
    raise InputError(f"pyxtal made no crystal number {index} of seed {seed} in {ATTEMPTS} attempts; take another seed")
