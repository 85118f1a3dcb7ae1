"""The sites of a unit cell, and the atoms that sit on them once disorder is settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

FloatArray = npt.NDArray[np.float64]

MIN_DISTANCE_A = 0.7
"""Atoms closer than this are an error of the file (hydrogen on top of its neighbour, a site given twice)."""
SAME_PLACE_A = 0.1
"""Places closer than this are one place: coordinates of two digits in a cell of 10 Å."""
HEAVIEST = 103
"""Lobato's parametrization ends here."""
FULL = 1e-3
"""An occupancy this near to 1 is 1."""


@dataclass(frozen=True)
class ReadOptions:
    """How sites of a structure file become atoms.

    Attributes:
        disorder: reject refuses partly occupied and mixed sites; sample draws an atom or a vacancy for each of the cell.
        seed: of those draws.
        hydrogen: keep, or remove: leave hydrogen and deuterium out, also of the comparison with the file's formula.
        max_length_A: refuse cells with a, b or c at or above this; null: take all.
    """

    disorder: Literal["reject", "sample"] = "reject"
    seed: int = 0
    hydrogen: Literal["keep", "remove"] = "keep"
    max_length_A: float | None = None

    def __post_init__(self) -> None:
        check(self.disorder in ("reject", "sample"), f"disorder is {self.disorder!r}; choose from reject, sample")
        check(self.hydrogen in ("keep", "remove"), f"hydrogen is {self.hydrogen!r}; choose from keep, remove")
        check(self.seed >= 0, f"seed is {self.seed}; expected 0 or more")
        check(
            self.max_length_A is None or self.max_length_A > 0,
            f"max_length_A is {self.max_length_A}; expected more than 0 or nothing",
        )


@dataclass(frozen=True)
class Sites:
    """Places in a unit cell, of its asymmetric part or of all of it.

    Attributes:
        cell_A: (3, 3), rows are the lattice vectors a, b, c in Å.
        fractional: (n, 3) fractional coordinates.
        numbers: (n,) atomic numbers.
        occupancy: (n,) the part of all unit cells that has this atom here.
        labels: what the file calls each.
        groups: the group of atoms that come and go together, "" for none.
    """

    cell_A: FloatArray
    fractional: FloatArray
    numbers: npt.NDArray[np.int64]
    occupancy: FloatArray
    labels: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def ordered(cls, cell_A: FloatArray, fractional: FloatArray, numbers: npt.NDArray[np.int64]) -> Sites:
        """Fully occupied sites that are labelled by element and count, from 1."""
        from ase.data import chemical_symbols

        labels = tuple(
            f"{chemical_symbols[z]}{i}" if z < len(chemical_symbols) else f"{z}" for i, z in enumerate(numbers, 1)
        )
        return cls(cell_A, fractional, numbers, np.ones(len(numbers)), labels, ("",) * len(numbers))

    def __getitem__(self, which: npt.NDArray[np.int64]) -> Sites:
        labels, groups = (tuple(names[i] for i in which) for names in (self.labels, self.groups))
        return Sites(self.cell_A, self.fractional[which], self.numbers[which], self.occupancy[which], labels, groups)


def check_cell(cell_A: FloatArray, options: ReadOptions) -> None:
    """Refuse a cell that is flat, or longer than the options allow."""
    volume = abs(float(np.linalg.det(cell_A)))
    check(volume > 1, f"the unit cell has volume {volume:g} Å³; check the cell lengths and angles")
    for name, length in zip("abc", np.linalg.norm(cell_A, axis=1), strict=True):
        check(
            options.max_length_A is None or length < options.max_length_A,
            f"its cell is {length:.2f} Å long along {name}; max_length_A is {options.max_length_A}",
        )


def check_elements(sites: Sites) -> None:
    """Refuse elements that the scattering tables do not hold."""
    for label, number in zip(sites.labels, sites.numbers, strict=True):
        check(0 < number <= HEAVIEST, f"site {label} has no element up to Z = {HEAVIEST} (its Z is {number})")


def check_ordered(sites: Sites) -> None:
    """Refuse the first site that is not occupied by one element alone."""
    for i in np.flatnonzero(np.abs(sites.occupancy - 1) >= FULL):
        away = sites.fractional - sites.fractional[i]
        here = np.linalg.norm((away - np.round(away)) @ sites.cell_A, axis=1) < SAME_PLACE_A
        others = ", ".join(
            f"{sites.labels[j]} to {sites.occupancy[j]:.4g}" for j in np.flatnonzero(here & (sites.occupancy < 1)) if j != i
        )
        also = f" (at the same place {others})" if others else ""
        raise InputError(
            f"site {sites.labels[i]} is occupied to {sites.occupancy[i]:.4g}; only ordered crystals can be simulated{also}"
        )


def without_hydrogen(sites: Sites) -> Sites:
    """All sites but those of hydrogen, deuterium and tritium."""
    kept = sites[np.flatnonzero(sites.numbers != 1)]
    check(len(kept.numbers) > 0, "nothing is left without its hydrogen")
    return kept


def settle(sites: Sites, options: ReadOptions, draw: int = 0) -> Sites:
    """The atoms of one unit cell.

    Args:
        sites: all sites of the unit cell.
        options: what to do with disorder.
        draw: counts the crystals of a file, so that each has draws of its own.

    Raises:
        InputError: disorder that is to be refused or that independent draws cannot describe, or atoms too close.
    """
    if options.disorder == "reject":
        check_ordered(sites)
    else:
        sites = _sample(sites, np.random.default_rng([options.seed, draw]))
        check(len(sites.numbers) > 0, "all of its sites were drawn empty; take another seed")
    check_apart(sites)
    return sites


def check_apart(sites: Sites) -> None:
    """Refuse atoms closer than ``MIN_DISTANCE_A``, the closest pair by name."""
    first, second, distance = _close_pairs(sites, MIN_DISTANCE_A)
    if len(distance):
        worst = int(np.argmin(distance))
        pair = [
            f"hydrogen {sites.labels[i]}" if sites.numbers[i] == 1 else sites.labels[i]
            for i in (first[worst], second[worst])
        ]
        hint = "; hydrogen=remove leaves hydrogen out" if 1 in sites.numbers[[first[worst], second[worst]]] else ""
        raise InputError(
            f"{pair[0]} and {pair[1]} are {distance[worst]:.2f} Å apart; atoms closer than {MIN_DISTANCE_A} Å are an error "
            f"of the file{hint}"
        )


def _sample(sites: Sites, rng: np.random.Generator) -> Sites:
    """Draw one atom or none for each place; sites too close to hold two atoms at once share one draw."""
    import scipy.sparse
    from scipy.sparse.csgraph import connected_components

    n = len(sites.numbers)
    first, second, distance = _close_pairs(sites, MIN_DISTANCE_A)
    graph = scipy.sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    place = connected_components(graph, directed=False)[1]
    total = np.bincount(place, sites.occupancy)
    partial = sites.occupancy < 1 - FULL
    disordered = np.bincount(place, partial) > 0
    if (disordered & (total > 1.01)).any():
        crowded = int(np.argmax(np.where(disordered, total, 0)))
        names = ", ".join(dict.fromkeys(sites.labels[i] for i in np.flatnonzero(place == crowded)))
        raise InputError(
            f"sites within {MIN_DISTANCE_A} Å of each other ({names}) are occupied to {total[crowded]:.4g}; expected up to 1"
        )
    shared = set(np.concatenate([first, second])[np.tile(distance < SAME_PLACE_A, 2)].tolist())
    moving: dict[str, set[str]] = {}
    for i in map(int, np.flatnonzero(partial)):
        if sites.groups[i] and i not in shared:
            moving.setdefault(sites.groups[i], set()).add(sites.labels[i])
    for labels in moving.values():
        check(
            len(labels) == 1,
            f"sites {', '.join(sorted(labels))} are a disorder group, which comes and goes together; only single "
            "sites can be drawn",
        )
    kept: list[int] = []
    chance = rng.random(len(total))
    before = np.zeros(len(total))
    for i in range(n):
        start = before[place[i]]
        before[place[i]] += sites.occupancy[i]
        if not disordered[place[i]] or start <= chance[place[i]] < before[place[i]]:
            kept.append(i)
    return sites[np.array(kept, dtype=np.int64)]


def _close_pairs(
    sites: Sites, radius_A: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs (first, second, distance) nearer than the radius, neighbouring cells included, in cells of any shape."""
    from scipy.spatial import cKDTree

    fractional = sites.fractional % 1.0
    margin = radius_A * np.linalg.norm(np.linalg.inv(sites.cell_A), axis=0)  # the radius over the distance of the faces
    images, origin = fractional, np.arange(len(fractional))
    for axis, width in enumerate(margin):
        steps = range(-int(np.ceil(width)), int(np.ceil(width)) + 1)
        shifted = [images + step * np.eye(3)[axis] for step in steps]
        near = [(x[:, axis] > -width) & (x[:, axis] < 1 + width) for x in shifted]
        images, origin = (
            np.concatenate([x[k] for x, k in zip(shifted, near, strict=True)]),
            np.concatenate([origin[k] for k in near]),
        )
    home = cKDTree(fractional @ sites.cell_A)
    found = home.sparse_distance_matrix(cKDTree(images @ sites.cell_A), radius_A, output_type="coo_matrix")
    first, second, distance = found.row.astype(np.int64), origin[found.col], found.data
    itself = (first == second) & np.all(np.abs(images[found.col] - fractional[first]) < 1e-9, axis=1)
    kept = ~itself & (first <= second)
    return first[kept], second[kept], distance[kept]
