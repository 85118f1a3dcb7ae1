"""Numbers with units, as people type and read them: "10 nm", "300 kV", "0.04 1/Å"."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from mepdiff_core.errors import InputError

SUFFIXES = {"_invA": "1/Å", "_e_per_A2": "e/Å²", "_A": "Å", "_eV": "eV", "_mrad": "mrad", "_deg": "°"}
"""The unit that the end of a field's name says it has."""
_STEPS = {"eV": (("keV", 1e3), ("eV", 1.0)), "Å": (("mm", 1e7), ("µm", 1e4), ("Å", 1.0))}
_PINT = {"Å": "angstrom", "1/Å": "1/angstrom", "eV": "eV", "mrad": "mrad", "°": "degree"}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*")


def unit_of(name: str) -> str:
    """The unit of a field of that name; "" for a plain number."""
    return next((unit for suffix, unit in SUFFIXES.items() if name.endswith(suffix)), "")


def show_quantity(value: float, unit: str) -> str:
    """A number with its unit in as few digits as it takes to read it back exactly enough (nine digits)."""
    for larger, factor in _STEPS.get(unit, ()):
        if abs(value) >= factor * (1 if factor == 1 or unit == "eV" else 10):
            return f"{value / factor:.9g} {larger}"
    return f"{value:.9g} {unit}".rstrip()


def read_quantity(text: str, unit: str) -> float:
    """The number that a text means, in ``unit``; a bare number is in that unit already.

    Raises:
        InputError: no number, or a unit that measures something else.
    """
    match = _NUMBER.fullmatch(text.replace("\N{MINUS SIGN}", "-").replace(",", "."))
    if match is None:
        raise InputError(f"'{text}' is no number{f' in {unit}' if unit else ''}")
    number, given = float(match[1]), match[2]
    if re.search(r"(?<![\d.])[1-9]\d{0,2},\d{3}(?!\d)", text):
        raise InputError(f"'{text}' can be read in two ways; write it without a comma")
    if not given or given == unit:
        return number
    if not unit or unit not in _PINT:
        raise InputError(f"'{text}': expected a number{f' in {unit}' if unit else ' without a unit'}")
    return number * _factor(given, unit)


@cache
def _factor(given: str, unit: str) -> float:
    import pint

    # A is the ampere and V the volt to a physicist; here they can only be meant as these
    spelled = re.sub(r"\bA\b", "angstrom", given).replace("Å", "angstrom").replace("Å", "angstrom")
    spelled = spelled.replace("°", "degree")
    if len(re.findall(r"\*\*|\^", spelled)) > 1 or len(spelled) > 30:  # pint would work a power of powers out
        raise InputError(f"'{given}' is no unit that converts to {unit}")
    if unit == "eV":
        spelled = re.sub(r"\b(k|M)?V\b", r"\1eV", spelled)
    registry: Any = pint.get_application_registry()  # type: ignore[no-untyped-call]
    try:
        return float(registry.Quantity(1, spelled).to(_PINT[unit]).magnitude)
    except Exception as error:  # pint raises many kinds, some of them from its tokenizer
        raise InputError(f"'{given}' is no unit that converts to {unit}") from error


def show_duration(seconds: float) -> str:
    """A time as people say it: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 or seconds == 0 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
