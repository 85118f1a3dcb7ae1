"""Structure types, read from ``data/prototypes.yaml``: space group, asymmetric unit, and the species that it takes.

``prototype_crystals`` draws crystals of them.

Sources: radii from Shannon, Acta Cryst. A32, 751 (1976), Pearson (1972) and Cordero et al., Dalton Trans. 2832 (2008)
(ase's covalent radii).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mepdiff_core.cif import spacegroup_number
from mepdiff_core.config import read_yaml

Floats = npt.NDArray[np.float64]

FREE_A = 0.08
"""A coordinate marked as free moves by this much (±) along its axis."""


class Species(NamedTuple):
    """An element in a slot; the charge is 0 where bonds are not ionic, the radius in Å."""

    number: int
    symbol: str
    charge: int
    radius_A: float


class Site(NamedTuple):
    """A Wyckoff position: its slot's index, and coordinates ``constant + coefficients @ parameters``, (3,) and (3, p)."""

    slot: int
    constant: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]


class Parameter(NamedTuple):
    """A free coordinate in fractions of the cell. A rigid one keeps the bond between two slots (their indices)."""

    typical: float
    low: float
    high: float
    rigid: tuple[int, int] | None


@dataclass(frozen=True)
class Prototype:
    """A structure type.

    Attributes:
        name: what to call it; a key of ``PROTOTYPES``.
        label: Strukturbericht symbol, or Pearson's where there is none.
        spacegroup: Hermann-Mauguin symbol with its setting, like "R -3 m:H".
        constants: a, b, c in Å and alpha, beta, gamma in degrees of the example, from the literature.
        sites: the asymmetric unit.
        parameters: free coordinates.
        slots: names of the slots.
        species: what each slot takes, in the order of slots.
        ratios: (slot, slot, low, high): bounds on the ratio of radii.
        tolerance: (A, B, X, low, high): bounds on the tolerance factor; empty: none.
        alike: pairs of slots that may hold the same element; all others differ.
        spread: c/a and b/a vary by this fraction (±).
        primitive: cells are primitive, as the conventional one is too long.
        example: element of each slot, in the order of slots.
    """

    name: str
    label: str
    spacegroup: str
    constants: tuple[float, ...]
    sites: tuple[Site, ...]
    parameters: tuple[Parameter, ...]
    slots: tuple[str, ...]
    species: tuple[tuple[Species, ...], ...]
    ratios: tuple[tuple[int, int, float, float], ...]
    tolerance: tuple[tuple[int, int, int, float, float], ...]
    alike: frozenset[frozenset[int]]
    spread: float
    primitive: bool
    example: tuple[str, ...]


def __getattr__(name: str) -> dict[str, Prototype]:
    if name == "PROTOTYPES":
        return prototypes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def prototypes() -> dict[str, Prototype]:
    """All structure types by name."""
    with resources.as_file(resources.files("mepdiff_core") / "data" / "prototypes.yaml") as path:
        data = read_yaml(path)
    return {name: _read(name, entry, data) for name, entry in data["types"].items()}


def _read(name: str, entry: dict[str, Any], data: dict[str, Any]) -> Prototype:
    slots = tuple(entry["slots"])
    parameters: dict[str, Parameter] = {}
    for word, (typical, low, high) in entry.get("free", {}).items():
        pair = entry.get("rigid", {}).get(word)
        rigid = None if pair is None else (slots.index(pair[0]), slots.index(pair[1]))
        parameters[word] = Parameter(typical, low, high, rigid)
    constants = _constants(spacegroup_number(entry["group"]), entry["cell"])
    rows: list[tuple[int, list[dict[str, float]]]] = []
    for text in entry["sites"]:
        slot, *words = text.split()
        terms = []
        for axis, word in enumerate(words):
            if word.startswith("~"):
                value, reach = float(word[1:]), FREE_A / constants[axis]
                parameters[f"{len(rows)}{axis}"] = Parameter(value, value - reach, value + reach, None)
                terms.append({f"{len(rows)}{axis}": 1.0})
            else:
                terms.append(_linear(word))
        rows.append((slots.index(slot), terms))
    sites = tuple(
        Site(
            slot,
            tuple(term.get("", 0.0) for term in terms),
            tuple(tuple(term.get(word, 0.0) for word in parameters) for term in terms),
        )
        for slot, terms in rows
    )
    bounds = [entry["tolerance"]] if "tolerance" in entry else []
    return Prototype(
        name,
        entry["label"],
        entry["group"],
        constants,
        sites,
        tuple(parameters.values()),
        slots,
        tuple(_species(entry["radii"], slot, data) for slot in entry["slots"].values()),
        tuple((slots.index(a), slots.index(b), low, high) for a, b, low, high in entry.get("ratios", [])),
        tuple((slots.index(a), slots.index(b), slots.index(x), *t) for a, b, x, *t in bounds),
        frozenset(frozenset(slots.index(slot) for slot in pair) for pair in entry.get("alike", [])),
        entry.get("spread", 0.02),
        entry.get("primitive", False),
        tuple(entry["example"][slot] for slot in slots),
    )


def _linear(word: str) -> dict[str, float]:
    """ "1/2-2u" as {"": 0.5, "u": -2}."""
    terms: dict[str, float] = {}
    for sign, factor, name in re.findall(r"([+-]?)([\d./]*)([a-z]?)", word):
        if factor or name:
            terms[name] = terms.get(name, 0.0) + float(Fraction(factor or "1")) * (-1 if sign == "-" else 1)
    return terms


def _species(radii: str, slot: dict[str, Any], data: dict[str, Any]) -> tuple[Species, ...]:
    from ase.data import atomic_numbers, covalent_radii

    charged: dict[str, list[int]] = {symbol: list(charges) for symbol, charges in data["ionic"].items()}
    for symbol, charge in data["pnictides"].items():
        charged[symbol] = sorted({*charged[symbol], charge})
    allowed = [s for word in slot.get("of", list(charged)) for s in data["groups"].get(word, [word])]
    low, high = slot.get("radius", (0.0, 9.0))
    found = []
    for symbol in dict.fromkeys(allowed):
        number = int(atomic_numbers[symbol])
        for charge in [q for q in slot["charges"] if q in charged[symbol]] if "charges" in slot else [0]:
            if radii == "covalent":
                radius = float(covalent_radii[number])
            else:
                radius = (data["metallic"] if radii == "metallic" else data["ionic"][symbol]).get(
                    symbol if radii == "metallic" else charge, -1.0
                )
            if low <= radius <= high:
                found.append(Species(number, symbol, charge, radius))
    return tuple(found)


def _constants(number: int, free: list[float]) -> tuple[float, ...]:
    """a, b, c, alpha, beta, gamma from those that the crystal system leaves free."""
    a = free[0]
    if number >= 195:
        return (a, a, a, 90.0, 90.0, 90.0)
    if number >= 75:
        return (a, a, free[1], 90.0, 90.0, 120.0 if number >= 143 else 90.0)
    return (a, free[1], free[2], 90.0, free[3] if number < 16 else 90.0, 90.0)


def lattice(constants: tuple[float, ...]) -> Floats:
    """(3, 3) rows a, b, c in Å, unique axis b or c: a lies in the x-z plane where beta is free, else along x."""
    a, b, c, _, beta, gamma = constants
    cos, sin = (
        [(0.0 if angle == 90 else float(np.cos(np.radians(angle)))) for angle in (beta, gamma)],
        np.sin(np.radians(gamma)),
    )
    return np.array([[a, 0, 0], [b * cos[1], b * sin, 0], [c * cos[0], 0, c * np.sqrt(1 - cos[0] ** 2)]])
