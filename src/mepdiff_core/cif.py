"""CIF text -> the sites of a unit cell, read right or refused with the reason.

With ``cif_cells``, which writes, the one place that knows gemmi.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.sites import (
    FULL,
    SAME_PLACE_A,
    FloatArray,
    ReadOptions,
    Sites,
    check_apart,
    check_cell,
    check_elements,
    check_ordered,
    without_hydrogen,
)
from mepdiff_core.species import HYDROUS, Statement, check_contents, parse_formula, read_element

Operations = list[tuple[npt.NDArray[np.int64], FloatArray]]

OPERATION_TAGS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
HALL_TAGS = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
NAME_TAGS = (
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_full",
    "_space_group_name_H-M",
)
NUMBER_TAGS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
REFUSED_TAGS = {
    "_space_group_symop_magn_operation.xyz": "is a magnetic structure; give the crystal without its magnetic space group",
    "_space_group_symop_magn_operation_xyz": "is a magnetic structure; give the crystal without its magnetic space group",
    "_cell_modulation_dimension": "is an incommensurately modulated structure, which has no unit cell",
    "_space_group_ssg_name": "is an incommensurately modulated structure, which has no unit cell",
}
OTHER_ATOMS = {
    "_atom_site.Cartn_x": "is a macromolecular file (mmCIF); give a small-molecule CIF with _atom_site_fract_x",
    "_atom_site.fract_x": "has dotted tags (_atom_site.fract_x); give a CIF with _atom_site_fract_x",
    "_atom_site_Cartn_x": "has only Cartesian coordinates (_atom_site_Cartn_x), of unsaid axes; give fractional ones",
}
MAX_IMAGES = 5_000_000


def symmetry_operations(spacegroup: int | str) -> Operations:
    """(3x3 integer rotation, translation in [0, 1)) of every operation, in the order of the tables, centring included.

    Args:
        spacegroup: number 1 to 230 for the standard setting (monoclinic unique axis b, origin 2, hexagonal axes), or a
            Hermann-Mauguin symbol, where unsaid with origin 2 and hexagonal axes.
    """
    import gemmi

    if isinstance(spacegroup, str):
        group = _group_named(spacegroup, 90.0, 120.0, prefer="2H")
        check(group is not None, f"space group '{spacegroup}' is not known; give a number or a symbol like 'P 63/m m c'")
    else:
        check(1 <= spacegroup <= 230, f"space group {spacegroup} does not exist; expected 1 to 230")
        group = gemmi.get_spacegroup_reference_setting(spacegroup)
    rotations, translations = _matrices(group.operations())
    return list(zip(rotations, translations, strict=True))


def spacegroup_number(spacegroup: str) -> int:
    """The number, 1 to 230, of a Hermann-Mauguin symbol."""
    group = _group_named(spacegroup, 90.0, 120.0, prefer="2H")
    check(group is not None, f"space group '{spacegroup}' is not known; give a symbol like 'P 63/m m c'")
    return int(group.number)


def spacegroup_symbol(number: int) -> str:
    """The short Hermann-Mauguin symbol of a number, 1 to 230, in the standard setting, like "Fm-3m"."""
    import gemmi

    return _symbol(gemmi.get_spacegroup_reference_setting(number))


def parse(content: bytes) -> list[tuple[str, Any]]:
    """(name, block) of each block with atoms; a block that cannot be parsed is the reason, a string.

    Raises:
        InputError: not CIF at all, or no atoms in it.
    """
    import gemmi

    check(b"\0" not in content or content[:2] in (b"\xff\xfe", b"\xfe\xff"), "is not a readable CIF file (binary)")
    text = _plain_text(content)
    try:
        document = gemmi.cif.read_string(text)
        blocks: list[tuple[str, Any]] = [(block.name.strip(), block) for block in document]
    except (ValueError, RuntimeError):
        blocks = []
        for name, part in _split(text):
            try:
                blocks.append((name, gemmi.cif.read_string(part).sole_block()))
            except (ValueError, RuntimeError) as error:
                if not name or "_atom_site_" in part.lower():
                    why = re.sub(r"string:(\d+)(?::\d+\(\d+\))?", r"line \1", " ".join(str(error).split()))
                    blocks.append((name, f"is not a readable CIF file ({why})"))
    atoms = ("_atom_site_fract_x", *OTHER_ATOMS)
    found = [(name, b) for name, b in blocks if isinstance(b, str) or any(len(b.find_values(tag)) for tag in atoms)]
    check(len(found) > 0, "has no atoms (no _atom_site_fract_x); give a CIF with coordinates")
    return found


def read_block(block: Any, options: ReadOptions) -> tuple[Sites, str]:
    """All sites of the unit cell that a block describes, and its space group like "221 Pm-3m".

    Listed symmetry operations go before a Hall symbol, that before a Hermann-Mauguin symbol, that before a number. Where
    only a name stands that leaves the origin or the axes open, the choice that agrees with all else in the file is taken.

    Raises:
        InputError: with the reason.
    """
    for tag, reason in REFUSED_TAGS.items():
        check(not values(block, tag), reason)
    asymmetric, statement = _read_atoms(block, options)
    check_elements(asymmetric)
    check_cell(asymmetric.cell_A, options)
    if options.hydrogen == "remove":
        asymmetric = without_hydrogen(asymmetric)
    if options.disorder == "reject":
        check_ordered(asymmetric)

    candidates, doubt = _symmetry(block, asymmetric.cell_A)
    results, reasons = [], []
    for operations, group in candidates:
        try:
            _check_metric(block, asymmetric.cell_A, operations[0])
            sites = _expand(asymmetric, operations)
            check_apart(sites[np.flatnonzero(sites.occupancy > 1 - FULL)])
            agrees = check_contents(sites, statement, options.hydrogen == "remove")
            check(not doubt or agrees, doubt)
            results.append((sites, group))
        except InputError as error:
            reasons.append(error)
    if not results:
        raise reasons[0]
    check(
        len(results) == 1,
        f"space group {results[0][1]} has several origins, the file does not say which, and more than one fits; list the "
        "symmetry operations",
    )
    return results[0]


# text


def _plain_text(content: bytes) -> str:
    """CIF is ASCII; what editors and journals put in besides must not stop a reader."""
    for bom, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(bom):
            text = content.decode(encoding, errors="replace")
            break
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = re.sub(
            r"[^\x00-\x7f]", "_", re.sub("[\u2212\u2010-\u2014]", "-", re.sub("[\xa0\u2000-\u200b\ufeff]", " ", text))
        )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)


def _split(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each data block, its lines at their numbers; headers inside text fields are none."""
    starts: list[tuple[int, str]] = []
    inside = False
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if line.startswith(";"):
            inside = not inside
        elif not inside and line[:5].lower() == "data_":
            starts.append((i, line[5:].split("#")[0].strip()))
    if not starts:
        yield "", text
    for (start, name), (end, _) in itertools.pairwise([*starts, (len(lines), "")]):
        yield name, "\n" * start + "\n".join(lines[start:end])


def values(block: Any, *tags: str) -> list[str]:
    """The values of the first of the tags that has any but ? and a dot."""
    from gemmi import cif

    for tag in tags:
        values = [" ".join(cif.as_string(value).split()) for value in block.find_values(tag) if value not in ("?", ".")]
        if values:
            return values
    return []


def _number(block: Any, tag: str) -> float | None:
    from gemmi import cif

    given = values(block, tag)
    number = cif.as_number(given[0]) if given else math.nan
    return number if math.isfinite(number) else None


# atoms


def _read_atoms(block: Any, options: ReadOptions) -> tuple[Sites, Statement]:
    """The sites as listed. Dummies and sites of occupancy 0 are no atoms."""
    from gemmi import cif

    axes = [f"_atom_site_fract_{axis}" for axis in "xyz"]
    more = ("label", "type_symbol", "occupancy", "calc_flag", "disorder_assembly", "disorder_group")
    table = block.find(axes + [f"?_atom_site_{name}" for name in more])
    for tag, reason in OTHER_ATOMS.items():
        check(len(table) > 0 or not len(block.find_values(tag)), reason)
    check(len(table) > 0, f"has no atoms with all of {', '.join(axes)}")
    text = next(iter(values(block, "_chemical_formula_sum")), "")
    formula = parse_formula(text)

    fractional, numbers, occupancies = [], [], []
    labels: list[str] = []
    groups: list[str] = []
    hydrous = ""
    for row in table:
        given = [cif.as_string(row[i]) if row.has(i) and row[i] not in ("?", ".") else "" for i in range(3, 9)]
        label, symbol, occupied, flag, assembly, group = given
        name = label or symbol or "without a label"
        occupancy = cif.as_number(occupied) if occupied else 1.0
        check(math.isfinite(occupancy), f"site {name} has occupancy '{occupied}', which is no number")
        check(0 <= occupancy <= 1.01, f"site {name} is occupied to {occupancy:g}; expected 0 to 1")
        if flag.lower() == "dum" or occupancy == 0:
            continue
        number = read_element(label, symbol, formula)
        if number == 1 and options.hydrogen == "remove":
            continue
        if HYDROUS.fullmatch(symbol or label):
            hydrous = name
        position = []
        for i in range(3):
            check(row[i] not in ("?", "."), f"site {name} has no coordinates")
            position.append(_coordinate(cif.as_string(row[i]), name))
        fractional.append(position)
        numbers.append(number)
        occupancies.append(1.0 if abs(occupancy - 1) < FULL else min(occupancy, 1.0))
        labels.append(label or f"{symbol}{len(labels) + 1}")
        groups.append(f"{assembly}/{group}" if group not in ("", "0") else "")
    check(len(numbers) > 0, "has no atoms; all of its sites are dummies, empty or removed hydrogen")
    sites = Sites(
        _read_cell(block),
        np.array(fractional),
        np.array(numbers, dtype=np.int64),
        np.array(occupancies),
        tuple(labels),
        tuple(groups),
    )
    units, density = (
        stated if (stated := _number(block, tag)) and stated > 0 else None
        for tag in ("_cell_formula_units_Z", "_exptl_crystal_density_diffrn")
    )
    return sites, Statement(text, units, density, "" if 1 in numbers else hydrous)


def _coordinate(text: str, name: str) -> float:
    from gemmi import cif

    number = cif.as_number(text)
    if fraction := re.fullmatch(r"([+-]?\d+)/(\d+)", text):
        number = int(fraction[1]) / max(int(fraction[2]), 1)
    check(math.isfinite(number), f"site {name} has coordinate '{text}', which is no number")
    check(abs(number) < 100, f"site {name} has fractional coordinate {number:g}; expected about 0 to 1")
    return float(number)


def _read_cell(block: Any) -> FloatArray:
    import gemmi

    sizes = []
    for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        size = _number(block, f"_cell_{name}")
        stated = bool(values(block, f"_cell_{name}"))
        # the dictionary's default; _check_metric refuses it where symmetry does not ask for 90°
        size = 90.0 if size is None and not stated and name.startswith("angle") else size
        check(size is not None, f"_cell_{name} is missing or no number")
        check(size is None or 0 < size <= 1000, f"_cell_{name} is {size:g}; expected more than 0 and up to 1000")
        sizes.append(size)
    cell = gemmi.UnitCell(*sizes)
    check(math.isfinite(cell.volume), "no unit cell has its angles; the volume is no number")
    return np.array(cell.orth.mat.tolist()).T  # rows are a, b, c


# symmetry


def _group_named(name: str, alpha: float, gamma: float, prefer: str = "") -> Any:
    """The tabulated group of a Hermann-Mauguin symbol in any of its spellings, or None."""
    import gemmi

    name = re.sub(r"\s+\((no\.?\s*)?\d+\)$", "", name.strip(), flags=re.IGNORECASE)
    name = re.sub(r"[_()]|\s*[Zz]$", lambda m: " :2" if m[0].strip() in ("Z", "z") else "", name)
    name = re.sub(r"\s*:?\s*S$", " :1", name)
    name = re.sub(r"\s*:\s*([12HR])$", r" :\1", name, flags=re.IGNORECASE)
    for spelling in (name, name[:1].upper() + name[1:].lower()):
        group = gemmi.find_spacegroup_by_name(spelling, alpha, gamma, prefer)
        if group is not None:
            return group
    return None


def _symmetry(block: Any, cell_A: FloatArray) -> tuple[list[tuple[Any, str]], str]:
    """((rotations, translations), group) of every reading, and the doubt that only a formula and Z can lift, or ""."""
    import gemmi

    a, b, c = cell_A
    alpha, gamma = (
        float(np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))))
        for u, v in ((b, c), (a, b))
    )
    name = " ".join(values(block, *NAME_TAGS)[:1])
    named = _group_named(name, alpha, gamma)
    stated = [number for tag in NUMBER_TAGS if (number := _number(block, tag))]
    check(all(1 <= number <= 230 for number in stated), f"space group number {stated[:1]} does not exist; expected 1 to 230")
    listed = values(block, *OPERATION_TAGS)
    if listed:
        operations, found = _listed_operations(tuple(listed))
        known = named.number if named else int(stated[0]) if stated else None
        doubt = ""
        if known is not None:
            reference = gemmi.get_spacegroup_reference_setting(known)
            rotations = len({r.tobytes() for r in operations[0]})
            expected = len({r.tobytes() for r in _matrices(reference.operations())[0]})
            if (found is not None and found.number != known) or rotations != expected:
                doubt = (
                    f"its {len(operations[0])} symmetry operations are those of {_title(found) or 'another group'}, but it "
                    f"names {_title(reference)}, and no formula with Z (_cell_formula_units_Z) decides"
                )
        group = found or (named if not doubt else None)
        return [(operations, _title(group))], doubt

    hall = None
    for text in values(block, *HALL_TAGS)[:1]:
        try:
            hall = gemmi.symops_from_hall(text.replace("''", '"').replace("_", " "))
        except RuntimeError:
            continue
    from_hall = gemmi.find_spacegroup_by_ops(hall) if hall else None
    numbers = {group.number for group in (named, from_hall) if group} | {int(number) for number in stated}
    check(
        len(numbers) <= 1,
        f"names different space groups ({', '.join(map(str, sorted(numbers)))}) and lists no symmetry operations",
    )
    if hall is not None:
        return [(_matrices(hall), _title(from_hall or named))], ""
    if named is None and stated and not name:
        named = gemmi.get_spacegroup_reference_setting(int(stated[0]))
        name = named.hm
    check(named is not None, f"space group '{name}' is not known and no symmetry operations are listed")
    open_ = named.ext != "\0" and not re.search(r":|[SZHR]$", name)
    groups = [g for g in gemmi.spacegroup_table() if g.number == named.number and g.hm == named.hm] if open_ else [named]
    return [(_matrices(group.operations()), _title(group)) for group in groups], ""


@functools.lru_cache(maxsize=256)
def _listed_operations(triplets: tuple[str, ...]) -> tuple[tuple[npt.NDArray[np.int64], FloatArray], Any]:
    """The operations of a file and the tabulated group they are, if any."""
    import gemmi

    parsed: list[Any] = []
    for triplet in triplets:
        try:
            operation = gemmi.Op(triplet.replace(" ", "")).wrap()
            singular = abs(round(np.linalg.det(np.array(operation.rot) / operation.DEN))) != 1
        except (ValueError, RuntimeError):
            singular = True
        check(not singular, f"symmetry operation '{triplet}' cannot be read; it should be like -x,y+1/2,z")
        if operation not in parsed:
            parsed.append(operation)
    together = set(parsed)
    found = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(parsed))
    group = found if found and {operation.wrap() for operation in found.operations()} == together else None
    for one, other in itertools.product(parsed, repeat=2) if group is None else ():
        check(
            (one * other).wrap() in together,
            f"its {len(parsed)} symmetry operations are no group ({one.triplet()} times {other.triplet()} is missing)",
        )
    return _matrices(parsed), group


def _matrices(operations: Iterable[Any]) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """(n, 3, 3) rotations and (n, 3) translations in [0, 1)."""
    listed = list(operations)
    scale = listed[0].DEN
    rotations = np.array([operation.rot for operation in listed]) // scale
    return rotations.astype(np.int64), np.array([operation.tran for operation in listed]) / scale % 1.0


def _title(group: Any) -> str:
    """Number and short symbol, the same for every origin and for both axes of a rhombohedral group."""
    return f"{group.number} {_symbol(group)}" if group is not None else ""


def _symbol(group: Any) -> str:
    short = str(group.short_name())
    return "R" + short[1:] if group.ext == "H" else short


def _check_metric(block: Any, cell_A: FloatArray, rotations: npt.NDArray[np.int64]) -> None:
    """The operations must leave the cell's lengths and angles alone, and demand those that the file leaves out."""
    free = np.array([[1, 0.1, 0.2], [0.1, 2, 0.3], [0.2, 0.3, 3]])  # a triclinic metric; its mean shows what is demanded
    demanded = np.mean(rotations.transpose(0, 2, 1) @ free @ rotations, axis=0)
    for name, (i, j) in {"alpha": (1, 2), "beta": (0, 2), "gamma": (0, 1)}.items():
        check(
            bool(values(block, f"_cell_angle_{name}")) or abs(demanded[i, j]) < 1e-9,
            f"_cell_angle_{name} is missing, and its symmetry does not make it 90°",
        )
    metric = cell_A @ cell_A.T
    turned = rotations.transpose(0, 2, 1) @ metric @ rotations
    lengths = np.sqrt(np.diag(metric))
    misfit = float(np.abs((turned - metric) / np.outer(lengths, lengths)).max())
    check(
        misfit < 0.03,
        "its symmetry operations do not fit its cell's lengths and angles; another setting or other axes are meant",
    )


def _expand(asymmetric: Sites, operations: tuple[npt.NDArray[np.int64], FloatArray]) -> Sites:
    """All sites of the cell. A site nearer to a symmetry element than ``SAME_PLACE_A`` is moved onto it: 0.3333 is 1/3."""
    rotations, translations = operations
    count = len(rotations)
    check(len(asymmetric.numbers) * count <= MAX_IMAGES, f"has {len(asymmetric.numbers)} sites under {count} operations")
    start = asymmetric.fractional
    moved = np.einsum("gij,sj->sgi", rotations, start) + translations - start[:, None]
    moved -= np.round(moved)
    stays = np.linalg.norm(moved @ asymmetric.cell_A, axis=-1) < SAME_PLACE_A
    order = stays.sum(1)
    centre = start + (moved * stays[..., None]).sum(1) / order[:, None]
    images = (np.einsum("gij,sj->sgi", rotations, centre) + translations) % 1.0
    steps = 1_000_000  # images of one place differ by rounding alone; the odd offset keeps decimals off the edges
    key = np.floor(images * steps + 1 / np.pi).astype(np.int64) % steps
    site = np.repeat(np.arange(len(start)), count)
    packed = np.concatenate([site[:, None], key.reshape(-1, 3)], axis=1)
    first = np.sort(np.unique(packed, axis=0, return_index=True)[1])
    kept = site[first]
    for i in np.flatnonzero(np.bincount(kept, minlength=len(start)) * order != count):
        raise InputError(
            f"site {asymmetric.labels[i]} lies about {SAME_PLACE_A} Å off a symmetry element, neither on nor off it"
        )
    places = images.reshape(-1, 3)[first]
    places[places > 1 - 1e-12] = 0.0
    whole = asymmetric[kept]
    return Sites(whole.cell_A, places, whole.numbers, whole.occupancy, whole.labels, whole.groups)
