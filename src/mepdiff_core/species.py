"""What sites and formulas are made of, and whether they agree."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.sites import HEAVIEST, Sites

Amounts = dict[str, float]

HYDROUS = re.compile(r"(?i)(wat|water|hoh|h2o|ow|o-?h2?)[\d.+-]*")
"""Names of oxygen whose hydrogen is meant along."""
VALENCE_TYPES = {"Cval": "C", "Siva": "Si", "Sival": "Si"}
"""Scattering factors of the International Tables that are not called like their element."""
NOT_LOCATED = "hydrogen is not located"
LEAVE_OUT = "hydrogen=remove leaves hydrogen out"


@dataclass(frozen=True)
class Statement:
    """What a file says about its contents besides the atoms.

    Attributes:
        formula: as written, "" for none.
        units: formula units in the cell.
        density: g/cm³, of the structure model.
        hydrous: a site that stands for a group with hydrogen, where no hydrogen has a site; else "".
    """

    formula: str
    units: float | None
    density: float | None
    hydrous: str


def atomic_number(name: str) -> int:
    """Atomic number of an element, or of D and T; 0 for all else."""
    from ase.data import atomic_numbers

    return 1 if name in ("D", "T") else int(atomic_numbers.get(name, 0))


def read_element(label: str, symbol: str, formula: Amounts | None) -> int:
    """Atomic number of a site from its type, like Fe, Fe3+, O2-, D or FE, or else from its label, like Fe1A.

    Raises:
        InputError: no element up to ``HEAVIEST``, or a label that can be two.
    """
    name = label or symbol
    if HYDROUS.fullmatch(symbol or label):
        return 8
    if symbol:
        # CO3 is carbonate, FE3+ is iron
        match = re.fullmatch(r"([A-Z][a-z]?|[a-z]{1,2}|[A-Z]{2}(?![\d.]+$))[\d.+()-]*", symbol)
        number = atomic_number(match[1].capitalize() if match else VALENCE_TYPES.get(symbol, ""))
        check(0 < number <= HEAVIEST, f"site {name} is '{symbol}', which is no element up to Z = {HEAVIEST}")
        return number
    word = re.match(r"[A-Za-z]*", label)
    letters = word[0] if word else ""
    if letters[:1].isupper() and letters[1:2].islower():
        choices = [] if letters[2:3].islower() else [letters[:2]]
    else:  # CA1 is calcium or carbon
        choices = [letters[:2].capitalize(), letters[:1].upper()]
    choices = [c for c in dict.fromkeys(choices) if 0 < atomic_number(c) <= HEAVIEST]
    if formula and len(choices) > 1:
        choices = [c for c in choices if c in formula] or choices
    check(len(choices) > 0, f"site {name} has no type symbol, and its label names no element up to Z = {HEAVIEST}")
    check(
        len(choices) == 1,
        f"site {name} has no type symbol and can be {' or '.join(choices)}; give _atom_site_type_symbol or a formula",
    )
    return atomic_number(choices[0])


def parse_formula(text: str) -> Amounts | None:
    """{"Sr": 1, "O": 3} from a CIF's formula, deuterium as H; None if it cannot be read in one way."""
    joined = "".join(text.split())
    readings = []
    if re.fullmatch(r"([A-Z][a-z]?\d*\.?\d*)+", joined):
        readings.append(_amounts(re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", joined)))
    capitals = [re.fullmatch(r"([A-Z]{1,2})(\d*\.?\d*)", token) for token in text.split()]
    if any(m and len(m[1]) == 2 for m in capitals) and all(capitals):
        readings.append(_amounts([(m[1].capitalize(), m[2]) for m in capitals if m]))
    known = [reading for reading in readings if reading]
    return known[0] if len(known) == 1 else None


def check_contents(sites: Sites, statement: Statement, without_hydrogen: bool) -> bool:
    """Compare elements, number of atoms and density with what the file states; True if formula and Z both agree.

    Raises:
        InputError: a contradiction, or hydrogen that has no site.
    """
    from ase.data import atomic_masses, chemical_symbols

    found: Amounts = {}
    for number, occupancy in zip(sites.numbers, sites.occupancy, strict=True):
        symbol = chemical_symbols[number]
        found[symbol] = found.get(symbol, 0.0) + float(occupancy)
    formula = parse_formula(statement.formula) or {}
    if without_hydrogen:
        formula.pop("H", None)
    else:
        site = f"site {statement.hydrous} stands for a group with hydrogen"
        check(not statement.hydrous, f"{NOT_LOCATED}; {site}; {LEAVE_OUT}")
    if not formula:
        mass = float(atomic_masses[sites.numbers] @ sites.occupancy)
        density = mass * 1.66053907 / abs(float(np.linalg.det(sites.cell_A)))
        check(
            statement.density is None or without_hydrogen or abs(density / statement.density - 1) < 0.05,
            f"its atoms weigh {density:.3f} g/cm³, it states {statement.density}; atoms or symmetry operations are missing",
        )
        return False
    exact = all(amount.is_integer() for amount in formula.values()) and bool((sites.occupancy == 1).all())
    _check_ratio(found, formula, exact, statement.formula)
    return statement.units is not None and _check_number(found, formula, exact, statement.formula, statement.units)


def _check_ratio(found: Amounts, formula: Amounts, exact: bool, text: str) -> None:
    if _same_ratio(found, formula, exact):
        return
    heavy, heavy_formula = ({k: v for k, v in amounts.items() if k != "H"} for amounts in (found, formula))
    if heavy and heavy_formula and _same_ratio(heavy, heavy_formula, exact):
        need = formula.get("H", 0.0) * sum(heavy.values()) / sum(heavy_formula.values())
        have = found.get("H", 0.0)
        check(
            have >= need,
            f"{NOT_LOCATED}; the formula '{text}' asks for {need:g} in the cell, {have:g} have a site; {LEAVE_OUT}",
        )
    raise InputError(
        f"its atoms make {_written(found)}, its formula says '{text}'; atoms or symmetry operations are missing"
    )


def _check_number(found: Amounts, formula: Amounts, exact: bool, text: str, units: float) -> bool:
    atoms, unit = sum(found.values()), sum(formula.values())
    expected = [unit * units]
    if units > 0 and all((amount / units).is_integer() for amount in formula.values()):
        expected.append(unit)  # pymatgen states the formula of the whole cell
    check(
        any(abs(atoms - n) < (0.5 if exact else 0.02 * n) for n in expected),
        f"its cell holds {atoms:g} atoms, {units:g} times '{text}' are {expected[0]:g}; atoms or symmetry operations are "
        "missing, or _cell_formula_units_Z is wrong",
    )
    return True


def _amounts(pairs: list[tuple[str, str]]) -> Amounts | None:
    total: Amounts = {}
    for symbol, amount in pairs:
        name = "H" if symbol in ("D", "T") else symbol
        if not atomic_number(name):
            return None
        total[name] = total.get(name, 0.0) + (float(amount) if amount.strip(".") else 1.0)
    total = {name: amount for name, amount in total.items() if amount > 0}
    return total or None


def _same_ratio(found: Amounts, formula: Amounts, exact: bool) -> bool:
    n, total = sum(found.values()), sum(formula.values())
    tolerance = 1e-9 if exact else 0.01
    return all(abs(formula.get(e, 0.0) / total - found.get(e, 0.0) / n) < tolerance for e in {*found, *formula})


def _written(amounts: Amounts) -> str:
    """In Hill's order."""
    first = [e for e in ("C", "H") if e in amounts] if "C" in amounts else []
    order = [*first, *sorted(e for e in amounts if e not in first)]
    return "".join(f"{e}{'' if amounts[e] == 1 else f'{amounts[e]:.4g}'}" for e in order)
