"""Structure files -> crystals: CIF, VASP, extended XYZ and ASE databases."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mepdiff_core import cif
from mepdiff_core.config import check
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.sites import FULL, ReadOptions, Sites, check_cell, check_elements, settle, without_hydrogen
from mepdiff_core.symmetry import find_symmetry

SUFFIXES = {
    ".cif": "cif",
    ".mcif": "cif",
    ".poscar": "vasp",
    ".vasp": "vasp",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".db": "db",
    ".json": "json",
}
MAX_BYTES = 500_000_000
SYMMETRY_TOLERANCE_A = 0.01
"""Of the symmetry of a file written as P 1: coordinates of four digits."""

Structure = tuple[str, Callable[[ReadOptions], tuple[Sites, str]]]
"""The name of a part of a file, and what reads the sites of its unit cell and its space group."""
Frame = tuple[str, Any, Any, Any, Any]
"""The name of a frame, cell, positions, atomic numbers and periodicity."""


@dataclass(frozen=True)
class Rejection:
    """A structure that was not read.

    Attributes:
        file: the file.
        block: the part of the file that holds it (a CIF's block, a frame or a row), "" for the file as a whole.
        reason: why, in one line.
    """

    file: Path
    block: str
    reason: str

    def __str__(self) -> str:
        verb = self.reason.startswith(("is ", "has ", "names "))
        return f"{self.file}{f' ({self.block})' if self.block else ''}{' ' if verb else ': '}{self.reason}"


class Found(NamedTuple):
    """Files below a folder: those that may hold structures, and all others."""

    structures: list[Path]
    others: list[Path]


def find_files(folder: str | Path) -> Found:
    """Sort the files below a folder by name into structure files and others; hidden files and folders are passed over.

    Raises:
        InputError: no such folder.
    """
    folder = Path(folder)
    check(folder.is_dir(), f"{folder}: no such folder")
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root) / name for name in names if not name.startswith(".")]
    files.sort()
    return Found([f for f in files if _kind(f)], [f for f in files if not _kind(f)])


def read_crystal(path: str | Path) -> Crystal:
    """Read the one ordered crystal of a structure file.

    Raises:
        InputError: unreadable, no or several structures, or the reason why the structure is refused: see ``read_crystals``.
    """
    results = list(read_crystals(path))
    names = ", ".join(r.name if isinstance(r, Crystal) else r.block for r in results[:10])
    check(len(results) <= 1, f"{path} holds {len(results)} structures ({names}); split it into files of one each")
    if isinstance(results[0], Rejection):
        raise InputError(str(results[0]))
    return results[0]


def read_crystals(path: str | Path, options: ReadOptions | None = None) -> Iterator[Crystal | Rejection]:
    """Every structure of a file in its order, each as a crystal or as the reason why not; nothing in a file raises.

    Refused are: partial occupancy (unless sampled), missing coordinates, elements beyond the tables, atoms on top of each
    other, symmetry that contradicts the cell or itself, hydrogen that has no site (unless hydrogen is removed), and contents
    that contradict the file's own formula, number of formula units or density.

    A crystal is called like its file, with the name of its block if the file holds several. The structure type of a file in
    P 1 is the space group that its atoms have within ``SYMMETRY_TOLERANCE_A``.
    """
    path, options = Path(path), options or ReadOptions()
    try:
        check(path.exists(), "no such file")
        check(not path.is_dir(), "is a folder; give a CIF file")
        check(path.stat().st_size <= MAX_BYTES, f"is larger than {MAX_BYTES // 10**6} MB; no structure file should be")
        structures = _frames(path, _kind(path)) if _kind(path) in ("vasp", "extxyz", "db", "json") else _blocks(path)
        yield from _named(path, structures, options)
    except (InputError, OSError) as error:
        yield Rejection(path, "", " ".join(str(error).split()))


def _kind(path: Path) -> str:
    """The format that a file's name promises, "" for none."""
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    return "vasp" if re.match(r"(POSCAR|CONTCAR)", path.name) else ""


def _named(path: Path, structures: Iterator[Structure], options: ReadOptions) -> Iterator[Crystal | Rejection]:
    ahead = next(structures, None)
    check(ahead is not None, "has no structures")
    index, alone = 0, True
    while ahead is not None:
        part, read = ahead
        try:
            ahead, broken = next(structures, None), None
        except InputError as error:  # the rest of the file; what came before stays
            ahead, broken = None, error
        alone = alone and ahead is None and broken is None
        try:
            sites, structure_type = read(options)
            atoms = settle(sites, options, index)
            name = path.stem if alone else f"{path.stem}_{re.sub(r'[^A-Za-z0-9.+-]', '_', part)}"
            crystal = Crystal(name, atoms.cell_A, atoms.numbers, atoms.fractional, structure_type)
            if structure_type == "1 P1" and (sites.occupancy > 1 - FULL).all():
                crystal = _with_its_symmetry(crystal)
            yield crystal
        except InputError as error:
            yield Rejection(path, "" if alone else part, str(error))
        if broken:
            yield Rejection(path, f"after {part}", str(broken))
        index += 1


def _with_its_symmetry(crystal: Crystal) -> Crystal:
    """Programs write P 1 for whatever symmetry their atoms have; the structure type is the true one."""
    try:
        return replace(crystal, structure_type=str(find_symmetry(crystal, SYMMETRY_TOLERANCE_A)))
    except InputError:
        return crystal


def _blocks(path: Path) -> Iterator[Structure]:
    for name, block in cif.parse(path.read_bytes()):

        def read(options: ReadOptions, block: Any = block) -> tuple[Sites, str]:
            if isinstance(block, str):
                raise InputError(block)
            return cif.read_block(block, options)

        yield name, read


def _frames(path: Path, kind: str) -> Iterator[Structure]:
    """What ASE reads; its databases hold JSON and arrays, and nothing in them is unpickled."""
    frames = _rows(path, kind) if kind in ("db", "json") else _ase_frames(path, kind)
    while True:
        try:
            part, cell, positions, numbers, periodic = next(frames)
        except StopIteration:
            return
        except InputError:
            raise
        except Exception as error:  # ASE's readers raise whatever the first bad line leads to
            name = {"vasp": "POSCAR", "extxyz": "extended XYZ"}.get(kind, "ASE database")
            words = " ".join(str(error).split())[:200]
            raise InputError(f"is not a readable {name} file ({words or type(error).__name__})") from None

        def read(
            options: ReadOptions,
            cell: Any = cell,
            positions: Any = positions,
            numbers: Any = numbers,
            periodic: Any = periodic,
        ) -> tuple[Sites, str]:
            check(bool(np.any(cell)), "has no unit cell (Lattice)")
            check(
                bool(np.all(periodic)), f"is not periodic in all directions (pbc {' '.join('FT'[int(p)] for p in periodic)})"
            )
            check(bool(np.isfinite(cell).all() and np.isfinite(positions).all()), "has lengths that are no numbers")
            check(len(numbers) > 0, "has no atoms")
            check_cell(cell, options)
            fractional = np.linalg.solve(cell.T, positions.T).T % 1.0
            fractional[fractional > 1 - 1e-12] = 0.0
            sites = Sites.ordered(cell, fractional, numbers)
            check_elements(sites)
            return (without_hydrogen(sites) if options.hydrogen == "remove" else sites), ""

        yield part, read


def _ase_frames(path: Path, kind: str) -> Iterator[Frame]:
    import ase.io

    for index, atoms in enumerate(ase.io.iread(path, index=":", format=kind)):
        yield str(index), *_arrays(atoms.cell.array, atoms.positions, atoms.numbers, atoms.pbc)


def _rows(path: Path, kind: str) -> Iterator[Frame]:
    import ase.db

    if kind == "db":  # ASE would make its tables in any database it is given
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'systems'").fetchone()
        check(tables[0] == 1, "is not an ASE database (it has no table 'systems')")
    connect: Any = ase.db.connect  # untyped
    for row in connect(path, type=kind, use_lock_file=False).select():
        yield str(row.id), *_arrays(row.cell, row.positions, row.numbers, row.pbc)


def _arrays(cell: Any, positions: Any, numbers: Any, periodic: Any) -> tuple[Any, Any, Any, Any]:
    return (
        np.array(cell, float).reshape(3, 3),
        np.array(positions, float).reshape(-1, 3),
        np.array(numbers, np.int64),
        np.array(periodic, bool),
    )
