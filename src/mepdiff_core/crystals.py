"""Crystal files -> crystals -> oriented boxes of atoms."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

Axis = Literal["a", "b", "c"]

MIN_DISTANCE_A = 0.7
"""Atoms closer than this are an error of the file (hydrogen on top of its neighbour, a site given twice)."""
HEAVIEST = 103
"""Lobato's parametrization ends here."""


@dataclass(frozen=True)
class Crystal:
    """One unit cell.

    Attributes:
        name: what to call it.
        cell_A: (3, 3) float64, rows are the lattice vectors a, b, c in Å.
        numbers: (n,) atomic numbers.
        fractional: (n, 3) float64 fractional coordinates in [0, 1).
    """

    name: str
    cell_A: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]
    fractional: npt.NDArray[np.float64]

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


def read_crystal(path: str | Path) -> Crystal:
    """Read an ordered crystal from a CIF file.

    Raises:
        InputError: unreadable, no or several structures, partial occupancy, missing coordinates, elements beyond the
            tables, atoms on top of each other, or a composition that contradicts the file's own formula.
    """
    import gemmi

    path = Path(path)
    check(path.exists(), f"{path}: no such file")
    check(not path.is_dir(), f"{path} is a folder; give a CIF file")
    try:
        document = gemmi.cif.read(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a readable CIF file ({' '.join(str(error).split())})") from None
    blocks = [block for block in document if block.find_loop("_atom_site_fract_x")]
    check(len(blocks) > 0, f"{path} has no atoms (no loop with _atom_site_fract_x); give a CIF with coordinates")
    names = ", ".join(block.name for block in blocks)
    check(len(blocks) == 1, f"{path} holds {len(blocks)} structures ({names}); split it into files of one each")
    structure = gemmi.make_small_structure_from_block(blocks[0])
    group: object = structure.spacegroup
    check(
        group is not None or len(structure.symops) > 0,
        f"{path}: space group '{structure.spacegroup_hm}' is not known and no symmetry operations are listed",
    )
    if group is None:
        for operation in structure.symops:  # gemmi passes over those it cannot read
            try:
                gemmi.Op(operation)
            except (ValueError, RuntimeError):
                raise InputError(
                    f"{path}: symmetry operation '{operation}' cannot be read; it should be like -x,y+1/2,z"
                ) from None
    check(len(structure.sites) > 0, f"{path} has no atoms in its loop of _atom_site_fract_x, _y and _z")
    cell = structure.cell
    check(cell.volume > 1, f"{path}: the unit cell has volume {cell.volume:g} Å³; check the cell lengths and angles")
    for site in structure.sites:
        xyz = (site.fract.x, site.fract.y, site.fract.z)
        check(all(map(math.isfinite, xyz)), f"{path}: site {site.label} has no coordinates")
        check(
            0 < site.element.atomic_number <= HEAVIEST,
            f"{path}: site {site.label} is '{site.type_symbol}', which is no element up to Z = {HEAVIEST}",
        )
        check(
            abs(site.occ - 1) < 1e-3,
            f"{path}: site {site.label} is occupied to {site.occ:g}; only ordered crystals can be simulated",
        )
    sites = structure.get_all_unit_cell_sites()
    numbers = np.array([site.element.atomic_number for site in sites], dtype=np.int64)
    fractional = np.array([[site.fract.x, site.fract.y, site.fract.z] for site in sites]) % 1.0
    vectors = np.array(cell.orth.mat.tolist()).T  # rows are a, b, c
    _check_distances(path, vectors, fractional, [site.label for site in sites])
    crystal = Crystal(path.stem, vectors, numbers, fractional)
    _check_formula(path, gemmi.cif.as_string(blocks[0].find_value("_chemical_formula_sum") or ""), crystal)
    return crystal


def cut_box(
    crystal: Crystal,
    axis: Axis,
    size_A: tuple[float, float, float],
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Atoms:
    """Fill a box with the crystal, one lattice vector along the beam. Any cell, triclinic too, keeps its true shape.

    Args:
        crystal: the crystal.
        axis: the lattice vector that becomes z; the next one in the order a, b, c, a lies in the x-z plane, towards +x.
        size_A: (z, y, x) extent of the box.
        origin_A: (z, y, x): the point of the turned crystal that becomes the box's corner.

    Returns:
        All atoms with 0 <= coordinate < size; those within 1e-4 Å below a face count as on it.
    """
    first = "abc".index(axis)
    along, beside = crystal.cell_A[first], crystal.cell_A[(first + 1) % 3]
    ez = along / np.linalg.norm(along)
    ex = beside - (beside @ ez) * ez
    ex /= np.linalg.norm(ex)
    turn = np.stack([ez, np.cross(ez, ex), ex])  # rows: z, y, x
    cell = crystal.cell_A @ turn.T  # rows: lattice vectors as (z, y, x)

    size, origin = np.asarray(size_A, float), np.asarray(origin_A, float)
    corners = origin + size * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    reach = corners @ np.linalg.inv(cell)
    low, high = np.floor(reach.min(0)).astype(int) - 1, np.ceil(reach.max(0)).astype(int) + 1
    shifts = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1).reshape(
        -1, 3
    )
    positions = ((crystal.fractional[None] + shifts[:, None]) @ cell - origin).reshape(-1, 3)
    numbers = np.tile(crystal.numbers, len(shifts))
    tolerance = 1e-4
    inside = np.all((positions >= -tolerance) & (positions < size - tolerance), axis=1)
    kept = np.maximum(positions[inside], 0.0)
    return Atoms(kept, numbers[inside], (float(size[0]), float(size[1]), float(size[2])))


def _check_formula(path: Path, stated: str, crystal: Crystal) -> None:
    """Compare atomic fractions with the formula that the file states; one that cannot be read says nothing."""
    joined = "".join(stated.split())
    if not re.fullmatch(r"([A-Z][a-z]?\d*\.?\d*)+", joined):
        return
    expected: dict[str, float] = {}
    for symbol, amount in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", joined):
        element = "H" if symbol == "D" else symbol
        expected[element] = expected.get(element, 0.0) + (float(amount) if amount.strip(".") else 1.0)
    found = Counter(crystal.symbols)
    total, n = sum(expected.values()), len(crystal.numbers)
    check(
        total == 0 or all(abs(expected.get(s, 0.0) / total - found[s] / n) < 0.01 for s in {*expected, *found}),
        f"{path}: its atoms make {crystal.formula}, its formula says '{stated}'; atoms or symmetry operations are missing",
    )


def _check_distances(
    path: Path, cell: npt.NDArray[np.float64], fractional: npt.NDArray[np.float64], labels: list[str]
) -> None:
    from scipy.spatial import cKDTree

    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    images = ((fractional[None] + shifts[:, None]) @ cell).reshape(-1, 3)
    home = fractional @ cell
    distances, nearest = cKDTree(images).query(home, k=2)
    worst = int(np.argmin(distances[:, 1]))
    other = labels[int(nearest[worst, 1]) % len(labels)]
    check(
        distances[worst, 1] >= MIN_DISTANCE_A,
        f"{path}: {labels[worst]} and {other} are {distances[worst, 1]:.2f} Å apart; atoms closer than "
        f"{MIN_DISTANCE_A} Å are an error of the file",
    )
