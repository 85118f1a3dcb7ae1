"""Structure types + elements -> crystals without end, for those who have no folder of CIF files to train on.

A structure type is a space group, an asymmetric unit and an example from the literature (``prototypes``). A crystal of it
takes other elements that fit: charges add up to zero, ratios of radii and Goldschmidt's tolerance factor stay in the
type's range. Its lattice is the example's, times the mean ratio of its bonds (sums of radii) to those of the example;
then come strain, free coordinates and small displacements.

What such a set lacks against the ICSD: molecules, hydrates and anything else with hydrogen, disorder and partial
occupancy, large cells (edges of 20 Å and more), most triclinic and monoclinic crystals, modulated structures, and
chemistry: whether a compound exists was never asked, oxidation states are the common ones and radii know no
coordination number.

Source of the tolerance factor: Goldschmidt, Naturwissenschaften 14, 477 (1926).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from mepdiff_core.cif import symmetry_operations
from mepdiff_core.config import check
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.prototypes import Floats, Prototype, lattice, prototypes

Ints = npt.NDArray[np.int64]

LONGEST_A = 20.0
"""Lattice vectors are shorter than this."""
CLOSEST_A = 1.0
CLOSEST = 0.75
"""No pair is closer than CLOSEST times the sum of its covalent radii, nor than CLOSEST_A."""
STRAIN, SHEAR, DISPLACEMENT_A = 0.03, 0.01, 0.03
"""Isotropic strain (±), symmetric strain (±, in half of the crystals), largest sigma of displacements (in a third)."""
TWELVEFOLD_A = 0.26
"""Shannon's radii of coordination XII are this much larger than those of VI (K, Sr, Ba, La)."""
LANTHANIDE = 0.35
"""How often a lanthanide is drawn against another element: fourteen of much the same size would fill the set."""
EVENNESS, COMMONEST = 0.6, 0.03
"""A type's share grows with this power of its number of compositions, up to a bound (before normalisation)."""
GOLDEN = 11400714819323198485
"""2^64 over the golden ratio: multiples of it, mod 2^64, keep apart, so that crystals seldom repeat a composition."""
ATTEMPTS, ATTEMPTS_EACH = 200, 5
"""Crystals drawn until one has sensible distances: in all, and of one composition."""


@dataclass(frozen=True)
class _Model:
    """A structure type made ready for drawing.

    Attributes:
        slot: (n,) slot of each atom of the cell.
        constant: (n, 3), coefficients: (n, 3, p): fractional coordinates as of ``Site``.
        basis: (3, 3) rows of the cell's vectors in those of the conventional cell.
        compositions: (m, slots) index of the species of each slot.
        scales: (m,) lattice constants in those of the example.
        shares: (m,) how likely each composition is, cumulated.
        plenty: effective number of compositions.
        pairs: (k, 2) atoms that could come close, and shifts: (k, 3) of the second one, in cells.
        bonded: sums of the example's radii, (slots, slots), Å.
    """

    slot: Ints
    constant: Floats
    coefficients: Floats
    basis: Floats
    compositions: Ints
    scales: Floats
    shares: Floats
    plenty: float
    pairs: Ints
    shifts: Floats
    bonded: Floats


def generate(index: int, seed: int) -> Crystal:
    """Crystal number ``index`` of the set ``seed``: the same in every process, whatever was drawn before.

    Raises:
        InputError: a negative index or seed.
    """
    check(index >= 0 and seed >= 0, f"index is {index} and seed is {seed}; expected 0 or more")
    rng = np.random.default_rng([seed, index])
    turn = index * GOLDEN % 2**64 / 2**64 + float(np.random.default_rng(seed).random())
    for attempt in range(ATTEMPTS):
        if attempt % ATTEMPTS_EACH == 0:
            name, row = _choose(turn % 1.0 if attempt == 0 else float(rng.random()))
        crystal = _draw(name, row, rng, f"{seed}-{index}")
        if crystal is not None:
            return replace(crystal, structure_type=name)
    raise RuntimeError(f"no crystal {index} of set {seed} in {ATTEMPTS} attempts")


def build(name: str, elements: Mapping[str, str] | None = None) -> Crystal:
    """The typical, unstrained crystal of a structure type.

    Args:
        name: a key of ``prototypes()``.
        elements: slot to element; None: those of the type's example, with its lattice constants from the literature.

    Raises:
        InputError: no such type or slot, or elements that the type does not take.
    """
    check(name in prototypes(), f"structure type '{name}' is not known; choose from {', '.join(prototypes())}")
    prototype, model = prototypes()[name], _model(name)
    chosen = dict(zip(prototype.slots, prototype.example, strict=True)) if elements is None else dict(elements)
    slots = ", ".join(prototype.slots)
    check(set(chosen) == set(prototype.slots), f"{name}: elements of {', '.join(chosen)}; expected those of {slots}")
    row = _find(prototype, model.compositions, tuple(chosen[slot] for slot in prototype.slots))
    if row is None:
        raise InputError(f"{name} does not take {chosen}; their charges or radii do not fit")
    scale = model.scales[row]
    numbers, fractional = _atoms(prototype, model, row, scale, np.array([p.typical for p in prototype.parameters]))
    return Crystal(name, model.basis @ lattice(prototype.constants) * scale, numbers, fractional)


def compositions(name: str) -> list[tuple[str, ...]]:
    """All that a structure type takes: the element of each slot, once for each set of oxidation states."""
    prototype = prototypes()[name]
    return [tuple(s[i].symbol for s, i in zip(prototype.species, row, strict=True)) for row in _model(name).compositions]


def expand_sites(
    spacegroup: str, constant: Floats, coefficients: Floats, parameters: Floats, tolerance: float = 1e-3
) -> tuple[Floats, Floats]:
    """All positions of a site, as far as they differ.

    Args:
        spacegroup: its symbol with setting.
        constant, coefficients: (3,) and (3, p): the site is ``constant + coefficients @ parameters``.
        parameters: (p,) typical values; positions that coincide there are one.
        tolerance: in fractions of the cell.

    Returns:
        Constants (n, 3) and coefficients (n, 3, p) of the n positions.
    """
    operations = symmetry_operations(spacegroup)
    rotations, translations = (np.array(part, float) for part in zip(*operations, strict=True))
    constants = rotations @ constant + translations
    slopes = rotations @ coefficients
    places = constants + slopes @ parameters
    apart = places[:, None] - places[None]
    same = (np.abs(apart - np.round(apart)) < tolerance).all(-1)
    first = same.argmax(1) == np.arange(len(places))
    return constants[first], slopes[first]


@cache
def _model(name: str) -> _Model:
    """Expand the sites, list the compositions that fit and the pairs of atoms to watch."""
    prototype = prototypes()[name]
    typical = np.array([p.typical for p in prototype.parameters])
    slot, constant, coefficients, basis = _expanded(prototype, typical)
    cell = basis @ lattice(prototype.constants)
    numbers = [np.array([s.number for s in species]) for species in prototype.species]
    radii = [np.array([s.radius_A for s in species]) for species in prototype.species]
    covalent = _covalent()

    rows = _fitting(prototype, np.bincount(slot, minlength=len(prototype.slots)))
    origin = _find(prototype, rows, prototype.example)
    if origin is None:
        raise InputError(f"structure type '{name}' does not take its own example {prototype.example}")
    own = np.array([r[i] for r, i in zip(radii, rows[origin], strict=True)])
    bonded = own[:, None] + own[None]
    fractional = constant + coefficients @ typical
    n = len(prototype.slots)

    # bonds between slots, from the example; what its lattice constants become with other radii
    reach = 1.3 * float(bonded.max())
    pairs, shifts, distances = _neighbours(cell, fractional, reach)
    nearest, contacts = np.full((n, n), np.inf), np.zeros((n, n))
    kinds = np.sort(slot[pairs], axis=1)
    for i, j in product(range(n), range(n)):
        between = distances[(kinds == (i, j)).all(1)]
        if i <= j and len(between):
            nearest[i, j] = nearest[j, i] = between.min()
            contacts[i, j] = (between < 1.1 * between.min()).sum()
    charges = np.array([prototype.species[k][i].charge for k, i in enumerate(rows[origin])])
    weights = _bond_weights(nearest / bonded, contacts, charges, np.bincount(slot, minlength=n))
    sums = {(i, j): radii[i][rows[:, i]] + radii[j][rows[:, j]] for i, j in product(range(n), range(n))}
    scales = sum(weights[i, j] * sums[i, j] / bonded[i, j] for i, j in sums) / weights.sum()

    limits = {(i, j): covalent[numbers[i][rows[:, i]]] + covalent[numbers[j][rows[:, j]]] for i, j in sums}
    keep = np.linalg.norm(cell, axis=1).max() * scales < LONGEST_A / (1 + STRAIN)
    for i, j in sums:
        keep &= nearest[i, j] * scales > np.maximum(CLOSEST_A, CLOSEST * limits[i, j])
    check(bool(keep[origin]), f"structure type '{name}': atoms of its example are too close or its cell too long")
    farthest = max(float((np.maximum(CLOSEST_A, CLOSEST * limits[i, j]) / scales)[keep].max()) for i, j in sums)
    pairs, shifts, _ = _neighbours(cell, fractional, 1.1 * farthest + 0.5)

    rows, scales = rows[keep], scales[keep]
    rare = [np.where((z >= 57) & (z <= 71), LANTHANIDE, 1.0) for z in numbers]
    likely = np.prod([w[rows[:, k]] for k, w in enumerate(rare)], axis=0)
    return _Model(
        slot,
        constant,
        coefficients,
        basis,
        rows,
        scales,
        np.cumsum(likely),
        float(likely.sum() ** 2 / (likely**2).sum()),
        pairs,
        shifts,
        bonded,
    )


def _expanded(prototype: Prototype, typical: Floats) -> tuple[Ints, Floats, Floats, Floats]:
    """Slot, constant and coefficients of every atom, and the basis of the cell."""
    parts = [
        (
            site.slot,
            *expand_sites(prototype.spacegroup, np.array(site.constant), np.reshape(site.coefficients, (3, -1)), typical),
        )
        for site in prototype.sites
    ]
    slot = np.concatenate([np.full(len(c), k) for k, c, _ in parts])
    constant = np.concatenate([c for _, c, _ in parts])
    coefficients = np.concatenate([m for _, _, m in parts])
    basis = np.eye(3)
    if prototype.primitive:
        third, half = 1 / 3, 1 / 2
        basis = {
            "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) * third,
            "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) * half,
        }[prototype.spacegroup[0]]
        inverse = np.linalg.inv(basis)
        constant, coefficients = constant @ inverse, np.einsum("nip,ij->njp", coefficients, inverse)
        places = constant + coefficients @ typical
        apart = places[:, None] - places[None]
        same = (np.abs(apart - np.round(apart)) < 1e-3).all(-1) & (slot[:, None] == slot[None])
        first = same.argmax(1) == np.arange(len(places))
        slot, constant, coefficients = slot[first], constant[first], coefficients[first]
    return slot, constant, coefficients, basis


def _fitting(prototype: Prototype, counts: Ints) -> Ints:
    """(m, slots) species of all compositions that are neutral, of different elements, and of radii in range."""
    n = len(prototype.slots)
    grid = np.meshgrid(*[np.arange(len(species)) for species in prototype.species], indexing="ij", sparse=True)
    number = [np.array([s.number for s in species])[g] for species, g in zip(prototype.species, grid, strict=True)]
    charge = [np.array([s.charge for s in species])[g] for species, g in zip(prototype.species, grid, strict=True)]
    radius = [np.array([s.radius_A for s in species])[g] for species, g in zip(prototype.species, grid, strict=True)]
    fits = np.ones([len(species) for species in prototype.species], bool)
    total = sum(q * int(count) for q, count in zip(charge, counts, strict=True))
    fits &= total == 0
    for i in range(n):
        for j in range(i):
            if frozenset((i, j)) not in prototype.alike:
                fits &= number[i] != number[j]
    for i, j, low, high in prototype.ratios:
        ratio = radius[i] / radius[j]
        fits &= (ratio >= low) & (ratio <= high)
    for a, b, x, low, high in prototype.tolerance:
        factor = (radius[a] + TWELVEFOLD_A + radius[x]) / (np.sqrt(2) * (radius[b] + radius[x]))
        fits &= (factor >= low) & (factor <= high)
    return np.argwhere(fits)


def _find(prototype: Prototype, rows: Ints, elements: tuple[str, ...]) -> int | None:
    """The first composition of these elements."""
    fits = np.ones(len(rows), bool)
    for k, symbol in enumerate(elements):
        fits &= np.array([s.symbol == symbol for s in prototype.species[k]])[rows[:, k]]
    return int(fits.argmax()) if fits.any() else None


def _bond_weights(reduced: Floats, contacts: Floats, charges: Ints, counts: Ints) -> Floats:
    """How much each pair of slots says about the lattice constants, (slots, slots).

    Ionic: cation with its anions, by the cation's charge. Others: all that touch, by the number of contacts.
    """
    n = len(charges)
    weights = np.zeros((n, n))
    if charges.any():
        for i in np.flatnonzero(charges > 0):
            anions = np.flatnonzero(charges < 0)
            touching = anions[reduced[i, anions] < 1.25 * reduced[i, anions].min()]
            weights[i, touching] = charges[i] * counts[i] / len(touching)
        return weights
    return np.where(reduced < 1.12 * reduced.min(), contacts, 0.0)


def _neighbours(cell: Floats, fractional: Floats, reach_A: float) -> tuple[Ints, Floats, Floats]:
    """Pairs (k, 2) of atoms i <= j closer than reach, the second one's shift (k, 3) in cells as stored, distances (k,)."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    spans = [np.arange(-m, m + 1) for m in np.ceil(reach_A / heights).astype(int) + 1]
    shifts = np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, 3)
    home = np.floor(fractional)
    found = []
    wrapped = fractional - home
    for i, place in enumerate(wrapped):
        apart = (wrapped[i:, None] + shifts[None] - place) @ cell
        squares = (apart**2).sum(-1)
        j, k = np.nonzero((squares < reach_A**2) & (squares > 1e-6))
        found.append((np.full(len(j), i), j + i, shifts[k] - home[j + i] + home[i], np.sqrt(squares[j, k])))
    first, second, moved, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.stack([first, second], 1), moved, distances


@cache
def _covalent() -> Floats:
    from ase.data import covalent_radii

    return np.asarray(covalent_radii, dtype=np.float64)


@cache
def shares() -> dict[str, float]:
    """How often each structure type is drawn."""
    plenty = np.array([_model(name).plenty for name in prototypes()])
    grown = plenty**EVENNESS
    bounded = np.minimum(grown / grown.sum(), COMMONEST)
    return dict(zip(prototypes(), (bounded / bounded.sum()).tolist(), strict=True))


@cache
def _cumulated() -> tuple[list[str], Floats]:
    return list(shares()), np.cumsum(list(shares().values()))


def _choose(place: float) -> tuple[str, int]:
    """Structure type and composition at a place in [0, 1) of all of them, put side by side by their shares."""
    names, ends = _cumulated()
    k = min(int(np.searchsorted(ends, place, side="right")), len(names) - 1)
    start = ends[k - 1] if k else 0.0
    within = _model(names[k]).shares
    row = int(np.searchsorted(within, (place - start) / (ends[k] - start) * within[-1], side="right"))
    return names[k], min(row, len(within) - 1)


def _atoms(prototype: Prototype, model: _Model, row: int, scale: float, parameters: Floats) -> tuple[Ints, Floats]:
    """Atomic numbers (n,) and fractional coordinates (n, 3) in [0, 1) of a composition."""
    fractional = _places(prototype, model, row, scale, parameters)
    species = model.compositions[row]
    numbers = np.array([prototype.species[k][i].number for k, i in enumerate(species)], dtype=np.int64)[model.slot]
    return numbers, _wrapped(fractional)


def _wrapped(fractional: Floats) -> Floats:
    wrapped = fractional - np.floor(fractional)
    wrapped[wrapped > 1 - 1e-9] = 0.0  # a hair below a whole number
    return wrapped


def _places(prototype: Prototype, model: _Model, row: int, scale: float, parameters: Floats) -> Floats:
    """Fractional coordinates (n, 3), not wrapped; rigid parameters keep their bond's length."""
    for k, parameter in enumerate(prototype.parameters):
        if parameter.rigid is not None:
            a, b = parameter.rigid
            first, second = (prototype.species[s][model.compositions[row, s]].radius_A for s in (a, b))
            parameters[k] = parameters[k] * (first + second) / model.bonded[a, b] / scale
    places: Floats = model.constant + model.coefficients @ parameters
    return places


def _draw(name: str, row: int, rng: np.random.Generator, tag: str) -> Crystal | None:
    """A crystal of a composition; None where atoms come too close or the cell gets too long."""
    prototype, model = prototypes()[name], _model(name)
    scale = float(model.scales[row])
    a, b, c, alpha, beta, gamma = prototype.constants
    first, second, tilt = rng.uniform(-1, 1, 3)
    middle = b if b == a else b * (1 + prototype.spread * first)
    last = c if c == a == b else c * (1 + prototype.spread * second)
    opened = beta if beta == 90 else beta + tilt
    strain = np.eye(3) * (1 + rng.uniform(-STRAIN, STRAIN))
    shear = rng.uniform(-SHEAR, SHEAR, (3, 3))
    if rng.random() < 0.5:
        strain = strain + (shear + shear.T) / 2
    conventional = lattice((a, middle, last, alpha, opened, gamma))
    cell = model.basis @ conventional * scale @ strain
    low, high = (np.array([getattr(p, end) for p in prototype.parameters]) for end in ("low", "high"))
    parameters = low + (high - low) * rng.random(len(low))
    places = _places(prototype, model, row, scale, parameters)
    sigma = rng.uniform(0, DISPLACEMENT_A) if rng.random() < 1 / 3 else 0.0
    moved = places + np.clip(rng.standard_normal(places.shape), -3, 3) * sigma @ np.linalg.inv(cell)

    species = [prototype.species[k][i] for k, i in enumerate(model.compositions[row])]
    by_slot = np.array([s.number for s in species], dtype=np.int64)
    numbers = by_slot[model.slot]
    i, j = model.pairs.T
    apart = (moved[j] + model.shifts - moved[i]) @ cell
    radii = _covalent()[numbers]
    limit = np.maximum(CLOSEST_A, CLOSEST * (radii[i] + radii[j]))
    if np.linalg.norm(cell, axis=1).max() >= LONGEST_A or bool(((apart**2).sum(1) < limit**2).any()):
        return None
    counts = np.bincount(model.slot)
    counts = counts // np.gcd.reduce(counts)
    formula = "".join(f"{s.symbol}{count if count > 1 else ''}" for s, count in zip(species, counts, strict=True))
    return Crystal(f"{formula}-{name}-{tag}", cell, numbers, _wrapped(moved))
