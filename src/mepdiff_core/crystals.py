"""Crystals, and oriented boxes of atoms cut from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Axis = Literal["a", "b", "c"]
FACE_A = 1e-4
"""An atom this little below a face of a box lies on it."""


@dataclass(frozen=True)
class Crystal:
    """One unit cell.

    Attributes:
        name: what to call it.
        cell_A: (3, 3) float64, rows are the lattice vectors a, b, c in Å.
        numbers: (n,) atomic numbers.
        fractional: (n, 3) float64 fractional coordinates in [0, 1).
        structure_type: of a file, number and Hermann-Mauguin symbol of the space group, like "221 Pm-3m"; of a generated
            crystal, the name of its prototype, like "spinel"; "" where unknown.
    """

    name: str
    cell_A: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]
    fractional: npt.NDArray[np.float64]
    structure_type: str = ""

    @property
    def formula(self) -> str:
        """Composition of the cell in Hill's order, like "O3SrTi"."""
        from ase.symbols import Symbols

        return str(Symbols(self.numbers).get_chemical_formula())

    @property
    def symbols(self) -> list[str]:
        """The element of each atom, like "Sr"."""
        from ase.data import chemical_symbols

        return [chemical_symbols[number] for number in self.numbers]


@dataclass(frozen=True)
class Atoms:
    """Atoms in a box whose beam direction is z.

    Attributes:
        positions_A: (n, 3) float64 as (z, y, x) in Å, the box's corner at the origin.
        numbers: (n,) atomic numbers.
        size_A: (z, y, x) extent of the box, Å.
    """

    positions_A: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]
    size_A: tuple[float, float, float]


def cut_box(
    crystal: Crystal,
    axis: Axis,
    size_A: tuple[float, float, float],
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
    rotation_deg: float = 0.0,
) -> Atoms:
    """Fill a box with the crystal, one lattice vector along the beam. Any cell, triclinic too, keeps its true shape.

    Args:
        crystal: the crystal.
        axis: the lattice vector that becomes z; the next one in the order a, b, c, a lies in the x-z plane, towards +x.
        size_A: (z, y, x) extent of the box.
        origin_A: (z, y, x): the point of the turned crystal that becomes the box's corner.
        rotation_deg: turns the crystal about the beam before, from +x towards +y.

    Returns:
        All atoms with 0 <= coordinate < size; those within ``FACE_A`` below a face count as on it.
    """
    return fill_box(turned_cell(crystal, axis, rotation_deg), crystal.fractional, crystal.numbers, size_A, origin_A)


def turned_cell(crystal: Crystal, axis: Axis, rotation_deg: float = 0.0) -> npt.NDArray[np.float64]:
    """(3, 3), rows are the lattice vectors a, b, c as (z, y, x) in Å, turned as ``cut_box`` says."""
    first = "abc".index(axis)
    along, beside = crystal.cell_A[first], crystal.cell_A[(first + 1) % 3]
    ez = along / np.linalg.norm(along)
    ex = beside - (beside @ ez) * ez
    ex /= np.linalg.norm(ex)
    ey = np.cross(ez, ex)
    c, s = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    turn = np.stack([ez, c * ey + s * ex, c * ex - s * ey])  # rows: z, y, x
    cell: npt.NDArray[np.float64] = crystal.cell_A @ turn.T
    return cell


def fill_box(
    cell_A: npt.NDArray[np.float64],
    fractional: npt.NDArray[np.float64],
    numbers: npt.NDArray[np.int64],
    size_A: tuple[float, float, float],
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Atoms:
    """Fill a box with a repeated cell; its faces share out the atoms as those of ``cut_box``.

    Args:
        cell_A: (3, 3), rows are lattice vectors as (z, y, x).
        fractional: (n, 3) in [0, 1); numbers: (n,).
        size_A: (z, y, x) extent of the box; origin_A: its corner.
    """
    size, origin = np.asarray(size_A, float), np.asarray(origin_A, float)
    corners = origin + size * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    reach = corners @ np.linalg.inv(cell_A)
    low, high = np.floor(reach.min(0)).astype(int) - 1, np.ceil(reach.max(0)).astype(int) + 1
    shifts = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1).reshape(
        -1, 3
    )
    positions = ((fractional[None] + shifts[:, None]) @ cell_A - origin).reshape(-1, 3)
    repeated = np.tile(numbers, len(shifts))
    inside = np.all((positions >= -FACE_A) & (positions < size - FACE_A), axis=1)
    kept = np.maximum(positions[inside], 0.0)
    return Atoms(kept, repeated[inside], (float(size[0]), float(size[1]), float(size[2])))
