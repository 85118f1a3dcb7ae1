"""Sites that differ from a repeated cell: vacancies and displaced atoms, as they are told, kept and put into a specimen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from mepdiff_core.config import check
from mepdiff_core.crystals import Atoms
from mepdiff_core.errors import InputError
from mepdiff_core.unit_cell import Triple

Kind = Literal["vacancy", "displaced"]


@dataclass(frozen=True)
class Defect:
    """One atom that is not where the repeated cell has it.

    Attributes:
        kind: vacancy, or displaced.
        number: atomic number.
        site_A: (z, y, x) in the frame of the scan's positions, from the entrance face: where the cell has it.
        moved_A: (y, x) from there, Å; zeros for a vacancy.
        gain_nats: by which it lessens the misfit of the patterns it was tried on.
    """

    kind: Kind
    number: int
    site_A: Triple
    moved_A: tuple[float, float]
    gain_nats: float

    def __str__(self) -> str:
        from ase.data import chemical_symbols

        z, y, x = self.site_A
        place = f"{chemical_symbols[self.number]} at ({x:.2f}, {y:.2f}, {z:.2f}) Å"
        if self.kind == "vacancy":
            return f"{place} is missing"
        return f"{place} is displaced by ({self.moved_A[1]:.2f}, {self.moved_A[0]:.2f}) Å"


def defect_from(record: Mapping[str, Any]) -> Defect:
    """From what ``dataclasses.asdict`` made of it and a file kept.

    Raises:
        InputError: an entry is missing or is no number.
    """
    try:
        kind, number, gain = record["kind"], int(record["number"]), float(record["gain_nats"])
        (z, y, x), (dy, dx) = map(float, record["site_A"]), map(float, record["moved_A"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a defect is told as {dict(record)}; expected kind, number, site_A, moved_A, gain_nats") from error
    check(kind in get_args(Kind), f"a defect is a {kind!r}; expected one of {', '.join(get_args(Kind))}")
    return Defect(kind, number, (z, y, x), (dy, dx), gain)


def with_defects(atoms: Atoms, defects: Iterable[Defect], origin_A: Triple) -> Atoms:
    """Atoms of a box with its corner at ``origin_A`` in the scan's frame, the defects among them made."""
    positions = atoms.positions_A.copy()
    kept = np.ones(len(positions), bool)
    for defect in defects:
        away = np.linalg.norm(atoms.positions_A + origin_A - defect.site_A, axis=1) if len(positions) else np.zeros(0)
        if not len(away) or away.min() > 0.1:
            continue
        i = int(away.argmin())
        if defect.kind == "vacancy":
            kept[i] = False
        else:
            positions[i, 1:] += defect.moved_A
    return Atoms(positions[kept], atoms.numbers[kept], atoms.size_A)
