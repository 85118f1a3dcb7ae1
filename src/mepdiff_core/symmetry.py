"""The space group that a crystal's atoms have. The one place that knows spglib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from mepdiff_core.cif import spacegroup_symbol
from mepdiff_core.config import check
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Symmetry:
    """A space group.

    Attributes:
        number: 1 to 230; symbol: its short Hermann-Mauguin symbol in the standard setting, like "Pm-3m".
        tolerance_A: how far atoms may lie from where the group wants them, Å.
    """

    number: int
    symbol: str
    tolerance_A: float

    def __str__(self) -> str:
        return f"{self.number} {self.symbol}"


def find_symmetry(crystal: Crystal, tolerance_A: float = 0.1) -> Symmetry:
    """The space group of a crystal's atoms.

    Source: A. Togo, K. Shinohara, I. Tanaka, Spglib, Sci. Technol. Adv. Mater. Methods 4 (2024) 2384822.

    Raises:
        InputError: none is found, for atoms closer than the tolerance among others.
    """
    import spglib

    dataset = _ask(crystal, tolerance_A, spglib.get_symmetry_dataset)
    return Symmetry(int(dataset.number), spacegroup_symbol(int(dataset.number)), tolerance_A)


def symmetrised(crystal: Crystal, tolerance_A: float = 0.1) -> Crystal:
    """The crystal with its atoms where its space group wants them, in the standardised conventional cell.

    The cell is that of the standard setting (a along x, b in the x-y plane), so its axes may be others than before, and so
    may the number of its atoms.

    Raises:
        InputError: as ``find_symmetry``.
    """
    import spglib

    found = find_symmetry(crystal, tolerance_A)
    cell, fractional, numbers = _ask(crystal, tolerance_A, spglib.standardize_cell)
    places = fractional % 1.0
    places[places > 1 - 1e-12] = 0.0
    return replace(
        crystal,
        cell_A=np.asarray(cell, np.float64),
        numbers=np.asarray(numbers, np.int64),
        fractional=places,
        structure_type=str(found),
    )


def _ask(crystal: Crystal, tolerance_A: float, question: Callable[..., Answer | None]) -> Any:
    import spglib.error

    check(tolerance_A > 0, f"tolerance_A is {tolerance_A:g}; expected more than 0")
    spglib.error.OLD_ERROR_HANDLING = False  # raise; the old way warns at each call
    reason = ""
    try:
        answer = question((crystal.cell_A, crystal.fractional, crystal.numbers), symprec=tolerance_A)
        if answer is not None:
            return answer
    except spglib.error.SpglibError as error:
        reason = f" ({' '.join(str(error).split())})"
    raise InputError(
        f"{crystal.name}: spglib finds no space group within {tolerance_A:g} Å{reason}; take another tolerance, or check "
        "for atoms on top of each other"
    )
