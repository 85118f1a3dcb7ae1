"""Crystals to CIF files; unit cells that were found, with their uncertainties, there and back."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core import __version__
from mepdiff_core.cif import parse, values
from mepdiff_core.config import check
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path
from mepdiff_core.sites import FloatArray
from mepdiff_core.unit_cell import UnitCell

BEAM_COMMENT = """\
# c lies along the beam, which enters the specimen at fract_z = 0. Fractional 0 0 0 is the origin of the scan's positions.
"""


def write_cif(path: str | Path, crystal: Crystal | UnitCell, name: str = "") -> None:
    """Write all atoms of a crystal in P 1, atomically.

    Of a ``UnitCell`` the file also holds standard uncertainties of the coordinates, candidate species of the sites, the
    lattice in the frame of the scan, and that c lies along the beam. Coordinates are true to 1e-4 Å.

    Args:
        path: the file.
        crystal: what to write.
        name: of the data block; by default the crystal's, for a ``UnitCell`` the file's.

    Raises:
        InputError: it cannot be written.
    """
    from ase.data import chemical_symbols
    from gemmi import cif

    found = crystal.right_handed if isinstance(crystal, UnitCell) else None
    written = crystal.to_crystal(Path(path).stem) if isinstance(crystal, UnitCell) else crystal
    document = cif.Document()
    block = document.add_new_block(re.sub(r"[^A-Za-z0-9.+-]+", "_", name or written.name) or "crystal")
    block.set_pair("_audit_creation_method", cif.quote(f"mepdiff {__version__}"))
    if found is not None:
        _describe(block, found)
    counts = Counter(written.symbols)
    block.set_pair(
        "_chemical_formula_sum", cif.quote(" ".join(f"{s}{n if n > 1 else ''}" for s, n in sorted(counts.items())))
    )
    lengths = np.linalg.norm(written.cell_A, axis=1)
    for letter, length in zip("abc", lengths, strict=True):
        block.set_pair(f"_cell_length_{letter}", f"{length:.6f}")
    for letter, (i, j) in {"alpha": (1, 2), "beta": (0, 2), "gamma": (0, 1)}.items():
        cosine = written.cell_A[i] @ written.cell_A[j] / lengths[i] / lengths[j]
        block.set_pair(f"_cell_angle_{letter}", f"{np.degrees(np.arccos(cosine)):.6f}")
    block.set_pair("_cell_volume", f"{abs(np.linalg.det(written.cell_A)):.4f}")
    block.set_pair("_cell_formula_units_Z", "1")
    block.set_pair("_space_group_name_H-M_alt", "'P 1'")
    block.set_pair("_space_group_IT_number", "1")
    block.init_loop("_space_group_symop_", ["operation_xyz"]).add_row(["'x, y, z'"])

    labels = site_labels(written.symbols)
    spread = np.full(written.fractional.shape, np.nan)
    if found is not None:
        spread = found.fractional_spread
    names = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"]
    loop = block.init_loop("_atom_site_", names)
    for label, symbol, place, width in zip(labels, written.symbols, written.fractional, spread, strict=True):
        coordinates = [with_uncertainty(*triple) for triple in zip(place, width, lengths, strict=True)]
        loop.add_row([label, symbol, *coordinates, "1"])
    if found is not None:
        loop = block.init_loop("_mepdiff_site_candidate_", ["label", "type_symbol", "probability"])
        for label, candidates in zip(labels, found.candidates, strict=True):
            for number, probability in candidates:
                loop.add_row([label, chemical_symbols[number], f"{probability:.4f}"])
    with atomic_path(path) as temporary:
        temporary.write_text((BEAM_COMMENT if found is not None else "") + document.as_string(), encoding="utf-8")


def site_labels(symbols: Iterable[str]) -> list[str]:
    """Labels of atoms in their order: Fe1, O1, O2."""
    labels = []
    so_far: Counter[str] = Counter()
    for symbol in symbols:
        so_far[symbol] += 1
        labels.append(f"{symbol}{so_far[symbol]}")
    return labels


def read_cell(path: str | Path) -> UnitCell:
    """Read back what ``write_cif`` wrote of a ``UnitCell``: t1 and t2 right-handed, atoms in the first cell.

    The spread along y and x is that of the file along t1 and t2, shared out evenly where those leave it open.

    Raises:
        InputError: unreadable, or no such file.
    """
    from ase.data import atomic_numbers

    try:
        _, block = parse(Path(path).read_bytes())[0]
        check(not isinstance(block, str), str(block))
        rows = [values(block, f"_mepdiff_lattice_vector_scan_{axis}_A") for axis in "zyx"]
        thickness, periodic = (values(block, f"_mepdiff_{item}") for item in ("specimen_thickness_A", "periodic_along_beam"))
        check(bool(rows[0] and thickness and periodic), "is no unit cell that mepdiff found (no _mepdiff_lattice_vector_id)")
        lattice = np.array(rows, np.float64).T
        columns = [values(block, f"_atom_site_fract_{axis}") for axis in "xyz"]
        labels = values(block, "_atom_site_label")
        symbols = values(block, "_atom_site_type_symbol")
        fractional = np.array([[float(v.partition("(")[0]) for v in column] for column in columns]).reshape(3, -1).T
        uncertain = np.array([[_uncertainty(v) for v in column] for column in columns]).reshape(3, -1).T
        items = [values(block, f"_mepdiff_site_candidate_{item}") for item in ("label", "type_symbol", "probability")]
        candidates: dict[str, list[tuple[int, float]]] = {label: [] for label in labels}
        for label, symbol, probability in zip(*items, strict=True):
            candidates[label].append((atomic_numbers[symbol], float(probability)))
        return UnitCell(
            lattice,
            periodic[0] == "yes",
            float(thickness[0]),
            fractional @ lattice,
            np.array([atomic_numbers[symbol] for symbol in symbols], np.int64),
            _cartesian_spread(lattice, uncertain),
            tuple(tuple(candidates[label]) for label in labels),
        )
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); give a crystal.cif of a run") from None


def _uncertainty(text: str) -> float:
    """0.0067 of "0.1234(67)", NaN of "0.1234"."""
    number, bracket, rest = text.partition("(")
    return float(rest.rstrip(")")) / 10.0 ** len(number.partition(".")[2]) if bracket else math.nan


def _cartesian_spread(lattice_A: FloatArray, fractional_spread: FloatArray) -> FloatArray:
    """(n, 3) spread along z, y, x whose ``UnitCell.fractional_spread`` is this, as nearly as can be."""
    share = np.linalg.inv(lattice_A) ** 2
    variance = np.full(fractional_spread.shape, np.nan)
    scale = share[1:, :2].sum(0)
    # along the diagonals of y and x both have a say alike: rounding must not decide between them
    plane = fractional_spread[:, :2] ** 2 / scale @ np.linalg.pinv(share[1:, :2] / scale, rcond=0.2)
    variance[:, 1:] = plane.clip(0)
    variance[:, 0] = (fractional_spread[:, 2] ** 2 - np.nan_to_num(variance[:, 1:]) @ share[1:, 2]).clip(0) / share[0, 2]
    spread: FloatArray = np.sqrt(variance)
    return spread


def _describe(block: Any, cell: UnitCell) -> None:
    """What a crystallographer's items have no word for."""
    from gemmi import cif

    if cell.periodic_along_beam:
        text = "The cell repeats along c, which lies along the beam, through the thickness of the specimen."
    else:
        text = (
            "The specimen has no period along the beam. c is as long as the specimen is thick: the cell holds one\n"
            "column of it from the entrance to the exit face and must not be repeated along c."
        )
    block.set_pair("_mepdiff_special_details", cif.quote(text))
    block.set_pair("_mepdiff_beam_axis", "c")
    block.set_pair("_mepdiff_periodic_along_beam", "yes" if cell.periodic_along_beam else "no")
    block.set_pair("_mepdiff_specimen_thickness_A", f"{cell.thickness_A:.6g}")
    loop = block.init_loop("_mepdiff_lattice_vector_", ["id", "scan_x_A", "scan_y_A", "scan_z_A"])
    for letter, vector in zip("abc", cell.lattice_A, strict=True):
        loop.add_row([letter, *(f"{value + 0.0:.6f}" for value in vector[::-1])])


def with_uncertainty(value: float, spread: float, length_A: float = 0) -> str:
    """A fractional coordinate like "0.12345(67)", to two digits of its spread.

    Along an axis of ``length_A``, if that is given, to as many more as it takes to round by at most 3e-5 Å.
    """
    if not spread > 0 or not math.isfinite(spread):
        return f"{value:.8f}"
    exact = math.ceil(math.log10(length_A / 5e-5)) if length_A else 0
    digits = min(max(exact, 1 - math.floor(math.log10(spread)), 0), 8)
    return f"{value:.{digits}f}({max(round(spread * 10**digits), 1)})"
