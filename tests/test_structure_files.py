"""Structure files as journals, databases and programs write them: read right, or refused with the true reason."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections import Counter
from importlib import resources
from pathlib import Path

import ase.db
import ase.io
import ase.spacegroup
import numpy as np
import pytest
from ase import Atoms as AseAtoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.cif import symmetry_operations
from mepdiff_core.config import from_dict, to_dict
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.sites import ReadOptions
from mepdiff_core.species import parse_formula
from mepdiff_core.structure_files import SYMMETRY_TOLERANCE_A, Rejection, find_files, read_crystal, read_crystals
from mepdiff_core.symmetry import find_symmetry

CELL = "".join(
    f"_cell_{name} {{}}\n" for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
)
CUBE = CELL.format(4, 4, 4, 90, 90, 90)
SITES = (
    "loop_\n_atom_site_label\n_atom_site_type_symbol\n"
    "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
)
P1 = "_space_group_name_H-M_alt 'P 1'\n"
STRONTIUM = "Sr1 Sr 0 0 0 1\n"
OPERATIONS = "loop_\n_space_group_symop_operation_xyz\n"


def cif(sites: str = STRONTIUM, symmetry: str = P1, cell: str = CUBE, name: str = "x") -> str:
    return f"data_{name}\n{cell}{symmetry}{SITES}{sites}"


def read_text(folder: Path, text: str) -> Crystal:
    path = folder / "made.cif"
    path.write_text(text)
    return read_crystal(path)


# reading


def test_symmetry_fills_the_cell_of_strontium_titanate(tmp_path: Path) -> None:
    sites = "Sr1 Sr 0 0 0 1\nTi1 Ti 0.5 0.5 0.5 1\nO1 O 0.5 0.5 0 1\n"
    crystal = read_text(tmp_path, cif(sites, "_space_group_name_H-M_alt 'P m -3 m'\n", CELL.format(*[3.905] * 3, *[90] * 3)))
    assert crystal.name == "made"
    assert crystal.formula == "O3SrTi"
    np.testing.assert_allclose(crystal.cell_A, 3.905 * np.eye(3), atol=1e-9)
    found = {(int(z), *map(float, f)) for z, f in zip(crystal.numbers, crystal.fractional, strict=True)}
    assert found == {(38, 0, 0, 0), (22, 0.5, 0.5, 0.5), (8, 0.5, 0.5, 0), (8, 0.5, 0, 0.5), (8, 0, 0.5, 0.5)}


def test_the_packaged_crystal_is_the_one_built_by_hand(perovskite: Crystal) -> None:
    with resources.as_file(resources.files("mepdiff_core") / "data" / "SrTiO3.cif") as path:
        crystal = read_crystal(path)
    assert crystal.formula == perovskite.formula
    np.testing.assert_allclose(crystal.cell_A, perovskite.cell_A, atol=1e-9)
    a, b = (sorted(zip(c.numbers.tolist(), c.fractional.tolist(), strict=True)) for c in (crystal, perovskite))
    assert a == b


def test_listed_operations_are_used_also_where_no_group_has_them(tmp_path: Path) -> None:
    operations = OPERATIONS + "x,y,z\n-x+1/4,-y,-z\n"
    crystal = read_text(tmp_path, cif("Sr1 Sr 0.2 0.3 0.1 1\n", operations))
    np.testing.assert_allclose(sorted(crystal.fractional.tolist()), [[0.05, 0.7, 0.9], [0.2, 0.3, 0.1]], atol=1e-9)


def test_rounded_special_positions_are_not_doubled(tmp_path: Path) -> None:
    """0.3333 stands for a third: the two magnesium atoms of the cell do not become four."""
    cell = CELL.format(3.2, 3.2, 5.2, 90, 90, 120)
    crystal = read_text(tmp_path, cif("Mg1 Mg 0.3333 0.6667 0.25 1\n", "_space_group_name_H-M_alt 'P 63/m m c'\n", cell))
    assert crystal.numbers.tolist() == [12, 12]
    assert abs(np.linalg.det(crystal.cell_A)) == pytest.approx(3.2**2 * np.sin(np.pi / 3) * 5.2)


def test_rows_of_the_cell_are_its_lattice_vectors(tmp_path: Path) -> None:
    crystal = read_text(tmp_path, cif(cell=CELL.format(4, 5, 6, 70, 80, 95)))
    a, b, c = crystal.cell_A
    np.testing.assert_allclose([np.linalg.norm(v) for v in (a, b, c)], [4, 5, 6])
    angles = [np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))) for u, v in ((b, c), (a, c), (a, b))]
    np.testing.assert_allclose(angles, [70, 80, 95])
    assert np.linalg.det(crystal.cell_A) > 0


@pytest.mark.parametrize(
    ("site", "number"),
    [("Sr1 Sr2+ 0 0 0 1", 38), ("D1 D 0 0 0 1", 1), ("Sr1 Sr 0.25(3) 0 0 1.0(1)", 38), ("Sr1 Sr 0 0 0 ?", 38)],
)
def test_ions_deuterium_uncertainties_and_unstated_occupancy_are_read(tmp_path: Path, site: str, number: int) -> None:
    assert read_text(tmp_path, cif(site + "\n")).numbers.tolist() == [number]


def test_coordinates_are_wrapped_into_the_cell(tmp_path: Path) -> None:
    crystal = read_text(tmp_path, cif("Sr1 Sr -0.25 1.5 7 1\n"))
    np.testing.assert_allclose(crystal.fractional, [[0.75, 0.5, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cif("Sr1 Sr 0 0 0 0.5\nCa1 Ca 0 0 0 0.5\n"), "site Sr1 is occupied to 0.5; only ordered crystals"),
        (cif("Sr1 Sr 0 0 0 0.97\n"), "site Sr1 is occupied to 0.97"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O ? 0.5 0.5 1\n"), "site O1 has no coordinates"),
        (cif("Sr1 Sr 0 . 0 1\n"), "site Sr1 has no coordinates"),
        (f"data_x\n{CUBE}{P1}", "has no atoms"),
        ("", "has no atoms"),
        (cif() + cif(name="y"), "holds 2 structures (made_x, made_y); split it into files of one each"),
        (cif() + cif(), "holds 2 structures (made_x, made_x)"),
        ("hello, this is no crystal\n", "is not a readable CIF file"),
        (cif(""), "has no atoms"),
        (f"data_x\n{CUBE}{P1}loop_\n_atom_site_fract_x\n0.5\n", "has no atoms"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O 0.1 0 0 1\n"), "Sr1 and O1 are 0.40 Å apart"),
        (cif("Sr1 Sr 0 0 0 1\nO1 O 0.9 0 0 1\n"), "Sr1 and O1 are 0.40 Å apart"),
        (cif("Sr1 Sr 0 0 0 1\nSr2 Sr 0 0 0 1\n"), "Sr1 and Sr2 are 0.00 Å apart"),
        (cif("Xx1 Xx 0 0 0 1\n"), "site Xx1 is 'Xx', which is no element"),
        (cif("Q1 Q 0 0 0 1\n"), "site Q1 is 'Q', which is no element"),
        (cif("Rf1 Rf 0 0 0 1\n"), "site Rf1 is 'Rf', which is no element up to Z = 103"),
        (cif(symmetry=""), "space group '' is not known and no symmetry operations are listed"),
        (cif(symmetry="_space_group_name_H-M_alt 'P 7'\n"), "space group 'P 7' is not known"),
        (cif(symmetry=OPERATIONS + "x,y,z\nfoo\n"), "symmetry operation 'foo' cannot be read"),
        (cif(cell=""), "_cell_length_a is missing or no number"),
        (cif(cell=CELL.format(4, 4, 4, 90, 30, 170)), "no unit cell has its angles"),
        (cif(symmetry=P1 + "_chemical_formula_sum 'Sr Ti O3'\n"), "its atoms make Sr, its formula says 'Sr Ti O3'"),
    ],
)
def test_a_file_that_cannot_be_simulated_says_why_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "made.cif"))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x89HDF\r\n\x1a\n" + bytes(99), "data_x\n".encode("utf-16")])
def test_unreadable_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "made.cif"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_crystal(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.cif: no such file"):
        read_crystal(tmp_path / "none.cif")
    with pytest.raises(InputError, match="is a folder; give a CIF file"):
        read_crystal(tmp_path)


@pytest.mark.parametrize("formula", ["Sr", "Sr4", "'Sr 1'", "?", "'Sr1.00'", "'see text'"])
def test_a_formula_agrees_by_ratio_or_says_nothing(tmp_path: Path, formula: str) -> None:
    assert read_text(tmp_path, cif(symmetry=P1 + f"_chemical_formula_sum {formula}\n")).formula == "Sr"


# from the wild

PREAMBLE = """#\\#CIF_1.1
_audit_creation_method            'SHELXL-2018/3'
_publ_section_title
;
 A structure; with semicolons, and a line like
 data_none inside
;
_chemical_name_systematic         ?
loop_
_atom_type_symbol
_atom_type_description
_atom_type_scat_dispersion_real
'O' 'O' 0.0106
'C' 'C' 0.0033
"""
REFINEMENT = """
_refine_ls_R_factor_all           0.0312
_refine_special_details
;
 Refinement of F^2^ against ALL reflections.
;
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
A1 0.0123(4)
loop_
_refln_index_h
_refln_index_k
_refln_index_l
_refln_F_squared_meas
1 0 0 12.3
2 0 0 .
_shelx_hkl_file
;
   1   0   0   12.30    0.10   1
   0   0   0    0.00    0.00   0
;
"""
CUBIC, HEXAGONAL = (90, 90, 90), (90, 90, 120)
TAGS = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", "calc_flag", "disorder_group")


def name(symbol: str) -> str:
    return f"_symmetry_space_group_name_H-M '{symbol}'\n"


def listed(*operations: str, old: bool = False) -> str:
    tag = "_symmetry_equiv_pos_as_xyz" if old else "_space_group_symop_operation_xyz"
    return f"loop_\n{tag}\n" + "".join(f"'{operation}'\n" for operation in operations)


def table(*rows: str, tags: tuple[str, ...] = TAGS[:5]) -> str:
    return "loop_\n" + "".join(f"_atom_site_{tag}\n" for tag in tags) + "\n".join(rows) + "\n"


def paper(
    lengths: tuple[object, ...], angles: tuple[object, ...], symmetry: str, atoms: str, formula: str = "", z: int = 0
) -> str:
    """A CIF as a journal's supplement has it."""
    stated = f"_chemical_formula_sum '{formula}'\n" * bool(formula) + f"_cell_formula_units_Z {z}\n" * bool(z)
    return f"data_I\n{PREAMBLE}{stated}{CELL.format(*lengths, *angles)}{symmetry}{atoms}{REFINEMENT}"


GENERAL = ("A1 Sr 0.1234(5) 0.1345(6) 0.3456(7)", "O1 O 0.4012(3) 0.0511(3) 0.1007(2)")
MONOCLINIC = (("5.1234(5)", "6.2345(6)", "7.3456(7)"), (90, "99.12(1)", 90))
QUARTZ = ("Si1 Si4+ 0.4697 0 0.66667", "O1 O2- 0.4133 0.2672 0.7855")
SPINEL = ("Mg1 Mg 0.125 0.125 0.125", "Al1 Al 0.5 0.5 0.5", "O1 O 0.2624(1) 0.2624(1) 0.2624(1)")
CORUNDUM = ("Al1 Al 0 0 0.35220(1)", "O1 O 0.30624(4) 0 0.25")
ANATASE_2 = ("Ti1 Ti 0 0.25 0.375", "O1 O 0 0.25 0.1666")
ANATASE_1 = ("Ti1 Ti 0 0 0", "O1 O 0 0 0.2081")
BENZENE = ("C1 C -0.0569 0.1387 -0.0054", "C2 C -0.1335 0.0460 0.1264", "C3 C -0.0774 -0.0925 0.1295")
BENZENE_H = ("H1 H -0.0976 0.2447 -0.0177", "H2 H -0.2409 0.0794 0.2218", "H3 H -0.1371 -0.1631 0.2312")
A8 = (8.0806,) * 3
CELL_BENZENE = (7.398, 9.435, 6.778)
RUTILE = ("Ti1 Ti 0 0 0", "O1 O 0.3053(1) 0.3053(1) 0")

READ = {  # id: (text, atoms in the cell, space group)
    "P 1 21/m 1": (paper(*MONOCLINIC, name("P 1 21/m 1"), table(*GENERAL)), "Sr4O4", "11 P21/m"),
    "P 1 21/n 1": (paper(*MONOCLINIC, name("P 1 21/n 1"), table(*GENERAL), "O Sr", 4), "Sr4O4", "14 P21/n"),
    "P n": (paper(*MONOCLINIC, name("P n"), table(*GENERAL), "Sr O", 2), "Sr2O2", "7 Pn"),
    "C 1 2/c 1": (
        paper(
            (4.6837, 3.4226, 5.1288), (90, 99.54, 90), name("C 1 2/c 1"), table("Cu1 Cu2+ 0.25 0.25 0", "O1 O 0 0.4184 0.25")
        ),
        "Cu4O4",
        "15 C2/c",
    ),
    "P2(1)/c": (paper(*MONOCLINIC, name("P2(1)/c"), table(*GENERAL)), "Sr4O4", "14 P21/c"),
    "P 21/c (No. 14)": (paper(*MONOCLINIC, name("P 21/c (No. 14)"), table(*GENERAL)), "Sr4O4", "14 P21/c"),
    "unique axis c": (
        paper((5.1, 6.2, 7.3), (90, 90, 99.1), name("P 1 1 21/b"), table(*GENERAL), "Sr O", 4),
        "Sr4O4",
        "14 P1121/b",
    ),
    "P4_2/mnm": (paper((4.594, 4.594, 2.958), CUBIC, name("P4_2/mnm"), table(*RUTILE), "Ti O2", 2), "Ti2O4", "136 P42/mnm"),
    "F d -3 m S": (
        paper((5.431,) * 3, CUBIC, name("F d -3 m S"), table("Si1 Si 0 0 0"), "Si", 8),
        "Si8",
        "227 Fd-3m",
    ),
    "F d -3 m Z": (paper(A8, CUBIC, name("F d -3 m Z"), table(*SPINEL), "Al2 Mg O4", 8), "Mg8Al16O32", "227 Fd-3m"),
    "F d -3 m :2": (paper(A8, CUBIC, name("F d -3 m :2"), table(*SPINEL)), "Mg8Al16O32", "227 Fd-3m"),
    "F d -3 m, the formula says which origin": (
        paper(A8, CUBIC, name("F d -3 m"), table(*SPINEL), "Al2 Mg O4", 8),
        "Mg8Al16O32",
        "227 Fd-3m",
    ),
    "anatase, origin 2": (
        paper((3.785, 3.785, 9.514), CUBIC, name("I 41/a m d Z"), table(*ANATASE_2), "O2 Ti", 4),
        "Ti4O8",
        "141 I41/amd",
    ),
    "anatase, origin 1": (
        paper((3.785, 3.785, 9.514), CUBIC, name("I 41/a m d :1"), table(*ANATASE_1), "O2 Ti", 4),
        "Ti4O8",
        "141 I41/amd",
    ),
    "R -3 c H": (
        paper((4.7589, 4.7589, 12.991), HEXAGONAL, name("R -3 c H"), table(*CORUNDUM), "Al2 O3", 6),
        "Al12O18",
        "167 R-3c",
    ),
    "R -3 c by its cell": (
        paper((4.7589, 4.7589, 12.991), HEXAGONAL, name("R -3 c"), table(*CORUNDUM)),
        "Al12O18",
        "167 R-3c",
    ),
    "R -3 c on rhombohedral axes": (
        paper((5.128,) * 3, (55.28,) * 3, name("R -3 c"), table("Al1 Al 0.3522 0.3522 0.3522", "O1 O 0.5563 0.9437 0.25")),
        "Al4O6",
        "167 R-3c",
    ),
    "Hall symbol alone": (
        paper(
            ("5.6402(2)",) * 3,
            CUBIC,
            "_symmetry_space_group_name_Hall '-F 4 2 3'\n",
            table("Na1 Na+ 0 0 0", "Cl1 Cl- .5 .5 .5"),
        ),
        "Na4Cl4",
        "225 Fm-3m",
    ),
    "number alone": (
        paper((5.64,) * 3, CUBIC, "_space_group_IT_number 225\n", table("Na1 Na 0 0 0", "Cl1 Cl 1/2 1/2 1/2"), "Cl Na", 4),
        "Na4Cl4",
        "225 Fm-3m",
    ),
    "old tag": (paper(*MONOCLINIC, listed("x,y,z", "-x,1/2+y,-z", old=True), table(*GENERAL)), "Sr2O2", "4 P21"),
    "new tag": (paper(*MONOCLINIC, listed("x, y, z", "-X, Y+0.5, -Z"), table(*GENERAL)), "Sr2O2", "4 P21"),
    "the listed operations know the origin": (
        paper((5, 5, 5), CUBIC, name("P -1") + listed("x,y,z", "-x+1/4,-y,-z"), table(*GENERAL)),
        "Sr2O2",
        "2 P-1",
    ),
    "operations against the name, the formula decides": (
        paper(*MONOCLINIC, name("P 1 21/c 1") + listed("x,y,z", "-x,1/2+y,-z"), table(*GENERAL), "Sr O", 2),
        "Sr2O2",
        "4 P21",
    ),
    "quartz with charges": (
        paper((4.913, 4.913, 5.4052), HEXAGONAL, name("P 32 2 1"), table(*QUARTZ), "O2 Si", 3),
        "Si3O6",
        "154 P3221",
    ),
    "0.3333 in graphite": (
        paper(
            (2.464, 2.464, 6.711), HEXAGONAL, name("P 63/m m c"), table("C1 C 0 0 0.25", "C2 C 0.3333 0.6667 0.25"), "C", 4
        ),
        "C4",
        "194 P63/mmc",
    ),
    "0.33 in magnesium": (
        paper((3.209, 3.209, 5.211), HEXAGONAL, name("P 63/m m c"), table("Mg1 Mg 0.33 0.67 0.25"), "Mg", 2),
        "Mg2",
        "194 P63/mmc",
    ),
    "no type symbols": (
        paper((5.418,) * 3, CUBIC, name("P a -3"), table("Fe1A 0 0 0", "S1 .3847 .3847 .3847", tags=("label", *TAGS[2:5]))),
        "Fe4S8",
        "205 Pa-3",
    ),
    "capital labels, the formula decides": (
        paper(
            (5.463,) * 3,
            CUBIC,
            name("F m -3 m"),
            table("CA1 0 0 0", "F1 .25 .25 .25", tags=("label", *TAGS[2:5])),
            "Ca F2",
            4,
        ),
        "Ca4F8",
        "225 Fm-3m",
    ),
    "deuterium and a formula with D": (
        paper((4.0,) * 3, CUBIC, name("F m -3 m"), table("Li1 Li 0 0 0", "D1 D .5 .5 .5"), "D Li", 4),
        "Li4H4",
        "225 Fm-3m",
    ),
    "dummy atoms, empty sites and unstated occupancy": (
        paper(
            *((4.0,) * 3, CUBIC, P1),
            table("Sr1 Sr 0 0 0 ? d .", "Cg1 C ? ? ? 1 dum .", "O9 O .5 .5 .5 0 d .", "O1 O .5 0 0 1.000 d .", tags=TAGS),
            "Sr O",
        ),
        "SrO",
        "123 P4/mmm",
    ),
    "Z and density of zero say nothing": (
        paper((4,) * 3, CUBIC, P1 + "_cell_formula_units_Z 0\n_exptl_crystal_density_diffrn 0\n", table("Po1 Po 0 0 0")),
        "Po",
        "221 Pm-3m",
    ),
    "benzene": (
        paper(CELL_BENZENE, CUBIC, name("P b c a"), table(*BENZENE, *BENZENE_H), "C6 H6", 4),
        "C24H24",
        "61 Pbca",
    ),
    "missing right angles": (
        f"data_x\n{''.join(CUBE.splitlines(True)[:3])}{name('P m -3 m')}{table('Po1 Po 0 0 0')}",
        "Po",
        "221 Pm-3m",
    ),
    "one atom without a loop": (
        f"data_x\n{CUBE}{name('P m -3 m')}_atom_site_label Po1\n" + "".join(f"_atom_site_fract_{i} 0\n" for i in "xyz"),
        "Po",
        "221 Pm-3m",
    ),
    "pymatgen's formula of the whole cell": (
        paper((4.594, 4.594, 2.958), CUBIC, name("P4_2/mnm"), table(*RUTILE), "Ti2 O4", 2),
        "Ti2O4",
        "136 P42/mnm",
    ),
    "fifths among the translations, by name": (
        paper((8.0, 8.0, 12.0), HEXAGONAL, name("P 65 2 2"), table("Si1 Si 0.1 0.3 0.05"), "Si", 12),
        "Si12",
        "179 P6522",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_journals_file_is_read_right(tmp_path: Path, case: str) -> None:
    text, atoms, group = READ[case]
    crystal = read_text(tmp_path, text)
    assert Counter(crystal.symbols) == parse_formula(atoms)
    assert crystal.structure_type == group


ASE_IS_WRONG = {
    "F d -3 m, the formula says which origin": "takes origin 1",
    "R -3 c on rhombohedral axes": "takes hexagonal axes",
    "Hall symbol alone": "takes P1",
    "the listed operations know the origin": "takes the named group",
    "0.33 in magnesium": "keeps 0.33: six atoms for two",
    "capital labels, the formula decides": "takes carbon for calcium",
    "missing right angles": "loses the cell",
}


def assert_same_places(crystal: Crystal, other: AseAtoms, tolerance_A: float) -> None:
    assert len(other) == len(crystal.numbers)
    np.testing.assert_allclose(other.cell.cellpar(), AseAtoms(cell=crystal.cell_A).cell.cellpar(), atol=1e-9)
    away = crystal.fractional[:, None] - other.get_scaled_positions()[None]
    distance = np.linalg.norm((away - np.round(away)) @ crystal.cell_A, axis=-1)
    distance[crystal.numbers[:, None] != other.numbers] = np.inf
    assert sorted(distance.argmin(1)) == list(range(len(other)))
    assert distance.min(1).max() < tolerance_A


def read_by_ase(path: Path) -> AseAtoms | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (atoms,) = ase.io.read(path, index=":", format="cif")
        except Exception:  # it fails in many ways
            return None
    return atoms


def test_what_ase_reads_right_is_the_same_here(tmp_path: Path) -> None:
    compared = 0
    for case in READ.keys() - ASE_IS_WRONG.keys():
        crystal = read_text(tmp_path, READ[case][0])
        if other := read_by_ase(tmp_path / "made.cif"):
            assert_same_places(crystal, other, 1e-3)
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize(
    ("case", "symbols", "group", "setting", "basis"),
    [
        ("F d -3 m Z", "MgAlO", 227, 2, [[0.125] * 3, [0.5] * 3, [0.2624] * 3]),
        ("F d -3 m :2", "MgAlO", 227, 2, [[0.125] * 3, [0.5] * 3, [0.2624] * 3]),
        ("F d -3 m, the formula says which origin", "MgAlO", 227, 2, [[0.125] * 3, [0.5] * 3, [0.2624] * 3]),
        ("F d -3 m S", "Si", 227, 1, [[0, 0, 0]]),
        ("anatase, origin 1", "TiO", 141, 1, [[0, 0, 0], [0, 0, 0.2081]]),
        ("anatase, origin 2", "TiO", 141, 2, [[0, 0.25, 0.375], [0, 0.25, 0.1666]]),
        ("R -3 c H", "AlO", 167, 1, [[0, 0, 0.3522], [0.30624, 0, 0.25]]),
        ("R -3 c on rhombohedral axes", "AlO", 167, 2, [[0.3522] * 3, [0.5563, 0.9437, 0.25]]),
        ("Hall symbol alone", "NaCl", 225, 1, [[0, 0, 0], [0.5] * 3]),
        ("number alone", "NaCl", 225, 1, [[0, 0, 0], [0.5] * 3]),
        ("P4_2/mnm", "TiO", 136, 1, [[0, 0, 0], [0.3053, 0.3053, 0]]),
        ("C 1 2/c 1", "CuO", 15, 1, [[0.25, 0.25, 0], [0, 0.4184, 0.25]]),
        ("P2(1)/c", "SrO", 14, 1, [[0.1234, 0.1345, 0.3456], [0.4012, 0.0511, 0.1007]]),
        ("P 1 21/m 1", "SrO", 11, 1, [[0.1234, 0.1345, 0.3456], [0.4012, 0.0511, 0.1007]]),
        ("0.3333 in graphite", "CC", 194, 1, [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]),
        ("0.33 in magnesium", "Mg", 194, 1, [[1 / 3, 2 / 3, 0.25]]),
    ],
)
def test_symmetry_agrees_with_ases_own_tables(
    tmp_path: Path, case: str, symbols: str, group: int, setting: int, basis: list[list[float]]
) -> None:
    crystal = read_text(tmp_path, READ[case][0])
    cell = AseAtoms(cell=crystal.cell_A).cell.cellpar()
    other = ase.spacegroup.crystal(AseAtoms(symbols).symbols, basis, spacegroup=group, setting=setting, cellpar=cell)
    assert_same_places(crystal, other, 1e-6)


REFUSED = {  # id: (text, reason)
    "a question mark": (paper((4,) * 3, CUBIC, P1, table("O1 O ? 0 0")), "site O1 has no coordinates"),
    "a comma": (paper((4,) * 3, CUBIC, P1, table("O1 O 0,25 0 0")), "site O1 has coordinate '0,25', which is no number"),
    "Wat": (
        paper((4,) * 3, CUBIC, P1, table("Wat 0 0 0", tags=("label", *TAGS[2:5]))),
        "hydrogen is not located; site Wat stands",
    ),
    "O-H": (
        paper((4,) * 3, CUBIC, P1, table("O-H 0 0 0", tags=("label", *TAGS[2:5]))),
        "hydrogen is not located; site O-H stands",
    ),
    "a length out of range": (paper((1e300, 4, 4), CUBIC, P1, table("O1 O 0 0 0")), "_cell_length_a is 1e+300; expected"),
    "OH": (paper((4,) * 3, CUBIC, P1, table("O1 OH 0 0 0")), "hydrogen is not located; site O1 stands for a group"),
    "CO3": (paper((4,) * 3, CUBIC, P1, table("X1 CO3 0 0 0")), "site X1 is 'CO3', which is no element"),
    "a dummy type": (paper((4,) * 3, CUBIC, P1, table("Q1 Q 0 0 0")), "site Q1 is 'Q', which is no element up to Z = 103"),
    "too heavy": (paper((4,) * 3, CUBIC, P1, table("Og1 Og 0 0 0")), "site Og1 is 'Og', which is no element up to Z = 103"),
    "a label of two readings": (
        paper((4,) * 3, CUBIC, P1, table("CA1 0 0 0", tags=("label", *TAGS[2:5]))),
        "site CA1 has no type symbol and can be Ca or C",
    ),
    "hydrogen of the formula": (
        paper(CELL_BENZENE, CUBIC, name("P b c a"), table(*BENZENE), "C6 H6", 4),
        "hydrogen is not located; the formula 'C6 H6' asks for 24 in the cell, 0 have a site; hydrogen=remove leaves",
    ),
    "some of the hydrogen": (
        paper(CELL_BENZENE, CUBIC, name("P b c a"), table(*BENZENE, BENZENE_H[0]), "C6 H6", 4),
        "asks for 24 in the cell, 8 have a site",
    ),
    "hydrogen on its neighbour": (
        paper((8,) * 3, CUBIC, P1, table("O1 O 0 0 0", "H1 H 0.08 0 0")),
        "O1 and hydrogen H1 are 0.64 Å apart",
    ),
    "a mixed site": (
        paper((4,) * 3, CUBIC, P1, table("Fe1 Fe 0 0 0 0.5", "Mn1 Mn 0 0 0 0.5", tags=TAGS[:6])),
        "site Fe1 is occupied to 0.5; only ordered crystals can be simulated (at the same place Mn1 to 0.5)",
    ),
    "an occupancy over 1": (
        paper((4,) * 3, CUBIC, P1, table("O1 O 0 0 0 1.5", tags=TAGS[:6])),
        "site O1 is occupied to 1.5",
    ),
    "operations against the name": (
        paper(*MONOCLINIC, name("P 1 21/c 1") + listed("x,y,z", "-x,1/2+y,-z"), table(*GENERAL), "Sr O"),
        "its 2 symmetry operations are those of 4 P21, but it names 14 P21/c, and no formula with Z",
    ),
    "operations lost, Z tells": (
        paper(*MONOCLINIC, name("P 1 21/c 1") + listed("x,y,z"), table(*GENERAL), "Sr O", 4),
        "its cell holds 2 atoms, 4 times 'Sr O' are 8; atoms or symmetry operations are missing",
    ),
    "half a group": (
        paper((5,) * 3, CUBIC, listed("x,y,z", "y,z,x"), table(*GENERAL)),
        "its 2 symmetry operations are no group (y,z,x times y,z,x is missing)",
    ),
    "a singular operation": (
        paper((5,) * 3, CUBIC, listed("x,y,z", "x,x,z"), table(*GENERAL)),
        "symmetry operation 'x,x,z' cannot be read",
    ),
    "another setting": (
        paper((5.1, 6.2, 7.3), (90, 90, 99), name("P 1 21/c 1"), table(*GENERAL)),
        "its symmetry operations do not fit its cell's lengths and angles",
    ),
    "two groups": (
        paper((5,) * 3, CUBIC, name("P -1") + "_space_group_IT_number 62\n", table(*GENERAL)),
        "names different space groups (2, 62) and lists no symmetry operations",
    ),
    "an unsaid origin": (
        paper((8, 9, 10), CUBIC, name("P n n n"), table("Sr1 Sr 0.12 0.13 0.14")),
        "space group 48 Pnnn has several origins, the file does not say which",
    ),
    "the number of atoms": (
        paper((5.64,) * 3, CUBIC, name("F m -3 m"), table("Na1 Na 0 0 0", "Cl1 Cl .5 .5 .5"), "Na Cl", 3),
        "its cell holds 8 atoms, 3 times 'Na Cl' are 6",
    ),
    "one atom too few among many": (
        paper((18,) * 3, CUBIC, P1, table(*(f"O{i} O {i / 20:.3f} 0 0" for i in range(19)), "Sr1 Sr 0 .5 .5"), "Sr O20"),
        "its atoms make O19Sr, its formula says 'Sr O20'",
    ),
    "the density": (
        paper((5.64,) * 3, CUBIC, P1 + "_exptl_crystal_density_diffrn 2.165\n", table("Na1 Na 0 0 0", "Cl1 Cl .5 .5 .5")),
        "its atoms weigh 0.541 g/cm³, it states 2.165",
    ),
    "Cartesian coordinates": (
        f"data_x\n{CUBE}{P1}{table('O1 O 0 0 0').replace('fract', 'Cartn')}",
        "has only Cartesian coordinates",
    ),
    "mmCIF": (
        f"data_x\n{CUBE}loop_\n_atom_site.id\n_atom_site.type_symbol\n_atom_site.Cartn_x\n1 C 0\n",
        "is a macromolecular file (mmCIF)",
    ),
    "a magnetic structure": (
        paper((4,) * 3, CUBIC, "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n", table("Mn1 Mn 0 0 0")),
        "is a magnetic structure",
    ),
    "a modulated structure": (
        paper((4,) * 3, CUBIC, P1 + "_cell_modulation_dimension 1\n", table("Mn1 Mn 0 0 0")),
        "is an incommensurately modulated structure",
    ),
    "no volume": (paper((4, 4, 4), (90, 90, 180), P1, table("O1 O 0 0 0")), "the unit cell has volume"),
    "impossible angles": (paper((4, 4, 4), (20, 20, 120), P1, table("O1 O 0 0 0")), "no unit cell has its angles"),
    "a length of zero": (paper((0, 4, 4), CUBIC, P1, table("O1 O 0 0 0")), "_cell_length_a is 0; expected more than 0"),
    "a missing angle": (
        f"data_x\n{''.join(CUBE.splitlines(True)[:3])}{name('P 63/m m c')}{table('Mg1 Mg 0.3333 0.6667 0.25')}",
        "_cell_angle_gamma is missing, and its symmetry does not make it 90°",
    ),
    "missing angles of P1": (
        f"data_x\n{''.join(CUBE.splitlines(True)[:3])}{P1}{table('Mg1 Mg 0.3333 0.6667 0.25')}",
        "_cell_angle_alpha is missing",
    ),
    "an unstated angle": (paper((4, 4, 4), (90, "?", 90), P1, table("O1 O 0 0 0")), "_cell_angle_beta is missing"),
    "a truncated loop": (
        paper((4,) * 3, CUBIC, P1, table("O1 O 0 0 0"))[:-1] + "\n" + table("O2 O 0"),
        "Wrong number of values in loop",
    ),
    "an unfinished text": (paper((4,) * 3, CUBIC, P1, table("O1 O 0 0 0")) + "_a\n;never ends\n", "unterminated text field"),
    "half off a mirror": (
        paper((10,) * 3, CUBIC, name("P -1"), table("O1 O 0.03 0 0")),
        "O1 and O1 are 0.60 Å apart",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_journals_file_is_refused_with_the_true_reason(tmp_path: Path, case: str) -> None:
    text, reason = REFUSED[case]
    with pytest.raises(InputError) as error:
        read_text(tmp_path, text)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def read_all(folder: Path, text: str | bytes, **options: object) -> list[Crystal | Rejection]:
    path = folder / "made.cif"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_crystals(path, from_dict(ReadOptions, options)))


def only(results: list[Crystal | Rejection]) -> Crystal:
    (crystal,) = results
    assert isinstance(crystal, Crystal), crystal
    return crystal


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + cif().encode(),
        cif().replace("\n", "\r\n").encode(),
        cif().replace("\n", "\r").encode(),
        cif().encode("utf-16"),
        f"{cif()}_publ_author_name 'M\xfcller'\n".encode("latin-1"),
        f"{cif()}_publ_author_name M\xfcller\n".encode(),
        cif().replace("0 0 0", "\u22120.25 0\xa00").encode(),
        cif().encode() + b"\x1a",
    ],
    ids=["BOM", "CRLF", "CR", "UTF-16", "latin-1", "UTF-8", "minus sign", "end of DOS file"],
)
def test_every_encoding_is_read(tmp_path: Path, content: bytes) -> None:
    assert only(read_all(tmp_path, content)).formula == "Sr"


def test_a_bad_block_does_not_lose_the_good_ones(tmp_path: Path) -> None:
    broken = cif(name="broken") + "loop_\n_a\n_b\n1 2 3\n"
    text = (
        "data_global\n_publ_section_title 'x'\n"
        + cif(name="one")
        + cif("O1 O ? 0 0 1\n", name="bad/2")
        + broken
        + cif(name="one")
    )
    results = read_all(tmp_path, text)
    assert [r.name if isinstance(r, Crystal) else r.block for r in results] == ["made_one", "bad/2", "broken", "made_one"]
    reasons = [r.reason for r in results if isinstance(r, Rejection)]
    assert reasons[0] == "site O1 has no coordinates"
    line = text[: text.index("loop_\n_a\n_b")].count("\n") + 1
    assert reasons[1] == f"is not a readable CIF file (line {line}: Wrong number of values in loop _*)"
    assert str(results[1]) == f"{tmp_path / 'made.cif'} (bad/2): site O1 has no coordinates"


def test_a_publication_block_is_passed_over(tmp_path: Path) -> None:
    crystal = only(read_all(tmp_path, "data_global\n_publ_section_title 'x'\n" + cif()))
    assert crystal.name == "made"


# options


@given(
    st.builds(
        ReadOptions,
        disorder=st.sampled_from(["reject", "sample"]),
        seed=st.integers(0, 2**63),
        hydrogen=st.sampled_from(["keep", "remove"]),
        max_length_A=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    )
)
def test_options_survive_yaml(options: ReadOptions) -> None:
    assert from_dict(ReadOptions, to_dict(options)) == options


@pytest.mark.parametrize("wrong", [{"disorder": "fill"}, {"seed": -1}, {"hydrogen": "add"}, {"max_length_A": 0.0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ReadOptions(**wrong)  # type: ignore[arg-type]


def test_long_cells_are_refused_at_the_limit(tmp_path: Path) -> None:
    text = cif(cell=CELL.format(4, 20, 4, 90, 90, 90))
    (rejection,) = read_all(tmp_path, text, max_length_A=20.0)
    assert "its cell is 20.00 Å long along b; max_length_A is 20.0" in str(rejection)
    assert only(read_all(tmp_path, text, max_length_A=20.1)).formula == "Sr"
    assert only(read_all(tmp_path, text)).formula == "Sr"


def test_hydrogen_is_left_out_by_option_alone(tmp_path: Path) -> None:
    located = paper(CELL_BENZENE, CUBIC, name("P b c a"), table(*BENZENE, *BENZENE_H), "C6 H6", 4)
    lost = paper(CELL_BENZENE, CUBIC, name("P b c a"), table(*BENZENE, "H1 H ? ? ?"), "C6 H6", 4)
    water = paper((4,) * 3, CUBIC, P1, table("Wat 0 0 0", tags=("label", *TAGS[2:5])), "H2 O", 1)
    assert [only(read_all(tmp_path, t, hydrogen="remove")).formula for t in (located, lost, water)] == ["C24", "C24", "O"]
    assert only(read_all(tmp_path, located)).formula == "C24H24"
    (nothing,) = read_all(tmp_path, paper((4,) * 3, CUBIC, P1, table("H1 H 0 0 0")), hydrogen="remove")
    assert "removed hydrogen" in str(nothing)


MIXED = "Fe1 Fe 0.1 0.1 0.1 0.3 d 1\nMn1 Mn 0.1 0.1 0.101 0.5 d 2\nO1 O 0.35 0.1 0.1 1 d .\n"


def test_mixed_sites_are_drawn_by_their_occupancies(tmp_path: Path) -> None:
    text = paper((10,) * 3, CUBIC, name("P m -3 m"), table(*MIXED.splitlines(), tags=TAGS))
    crystals = [only(read_all(tmp_path, text, disorder="sample", seed=seed)) for seed in range(60)]
    assert {c.symbols.count("O") for c in crystals} == {24}
    places = 8 * len(crystals)
    for symbol, occupancy in (("Fe", 0.3), ("Mn", 0.5)):
        part = sum(c.symbols.count(symbol) for c in crystals) / places
        assert part == pytest.approx(occupancy, abs=4 * np.sqrt(0.25 / places))
    assert max(c.symbols.count("Fe") + c.symbols.count("Mn") for c in crystals) <= 8
    again = only(read_all(tmp_path, text, disorder="sample", seed=3))
    assert again.numbers.tolist() == crystals[3].numbers.tolist()
    assert len({c.fractional.tobytes() for c in crystals}) > 50


def test_a_full_site_is_never_drawn_and_an_ordered_crystal_stays(tmp_path: Path) -> None:
    text = paper(A8, CUBIC, name("F d -3 m Z"), table(*SPINEL))
    kept, drawn = only(read_all(tmp_path, text)), only(read_all(tmp_path, text, disorder="sample", seed=7))
    assert (kept.numbers == drawn.numbers).all()
    assert (kept.fractional == drawn.fractional).all()


def test_two_blocks_have_draws_of_their_own(tmp_path: Path) -> None:
    block = cif("".join(f"Sr{i} Sr 0 {i / 40:.3f} 0 0.5\n" for i in range(40)), cell=CELL.format(4, 80, 4, *CUBIC))
    first, second = read_all(tmp_path, block + block, disorder="sample")
    assert isinstance(first, Crystal)
    assert isinstance(second, Crystal)
    assert first.fractional.tolist() != second.fractional.tolist()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (("Fe1 Fe 0 0 0 0.6", "Mn1 Mn 0 0 0 0.5"), "sites within 0.7 Å of each other (Fe1, Mn1) are occupied to 1.1"),
        (("Fe1 Fe 0 0 0 1", "Mn1 Mn 0 0 0 0.5"), "sites within 0.7 Å of each other (Fe1, Mn1) are occupied to 1.5"),
        (("Fe1 Fe 0 0 0 1", "Mn1 Mn 0.1 0 0 1"), "Fe1 and Mn1 are 0.40 Å apart"),
        (("C1 C 0 0 0 0.5 d 1", "O1 O 0.3 0 0 0.5 d 1"), "sites C1, O1 are a disorder group, which comes and goes together"),
        (("Fe1 Fe 0 0 0 1e-9",), "all of its sites were drawn empty; take another seed"),
    ],
)
def test_disorder_that_cannot_be_drawn_is_refused(tmp_path: Path, rows: tuple[str, ...], reason: str) -> None:
    tags = TAGS if " d " in rows[0] else TAGS[:6]
    (rejection,) = read_all(tmp_path, paper((4,) * 3, CUBIC, P1, table(*rows, tags=tags)), disorder="sample")
    assert reason in str(rejection)


def test_parts_of_mixed_sites_are_drawn_and_split_sites_exclude_each_other(tmp_path: Path) -> None:
    """SHELX writes mixed metals as PART 1 and PART 2; a split oxygen sits on one side of the mirror."""
    rows = [
        "Fe1 Fe 0 0 0 .5 d 1",
        "Mn1 Mn 0 0 0 .5 d 2",
        "Fe2 Fe .5 .5 .5 .5 d 1",
        "Mn2 Mn .5 .5 .5 .5 d 2",
        "O1 O .03 .5 0 .5 d -1",
    ]
    for seed in range(20):
        text = paper((10,) * 3, CUBIC, listed("x,y,z", "-x,y,z"), table(*rows, tags=TAGS), "Fe Mn O", 1)
        crystal = only(read_all(tmp_path, text, disorder="sample", seed=seed))
        counts = Counter(crystal.symbols)
        assert counts["O"] == 1
        assert counts["Fe"] + counts["Mn"] == 2


# other formats

CELL_ZNS = np.array([[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0.0]])


def zinc_blende() -> AseAtoms:
    return AseAtoms("ZnS", cell=CELL_ZNS, scaled_positions=[[0, 0, 0], [0.25, 0.25, 0.25]], pbc=True)


def assert_zinc_blende(crystal: Crystal | Rejection) -> None:
    assert isinstance(crystal, Crystal), crystal
    np.testing.assert_allclose(crystal.cell_A, CELL_ZNS, atol=1e-9)
    np.testing.assert_allclose(crystal.fractional, [[0, 0, 0], [0.25] * 3], atol=1e-9)
    assert crystal.symbols == ["Zn", "S"]
    assert crystal.structure_type == ""


@pytest.mark.parametrize(
    "file", ["POSCAR", "CONTCAR", "POSCAR_ZnS", "x.poscar", "x.vasp", "x.xyz", "x.extxyz", "x.db", "x.json"]
)
def test_other_formats_are_read(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    if path.suffix in (".db", ".json"):
        with ase.db.connect(path) as database:
            database.write(zinc_blende())
    else:
        ase.io.write(path, zinc_blende(), format="extxyz" if path.suffix.endswith("xyz") else "vasp")
    before = path.read_bytes()
    assert_zinc_blende(read_crystal(path))
    assert only(list(read_crystals(path))).name == path.stem
    assert path.read_bytes() == before
    assert find_files(tmp_path) == ([path], [])


@pytest.mark.parametrize("file", ["x.xyz", "x.db"])
def test_frames_are_read_one_by_one(tmp_path: Path, file: str) -> None:
    molecule, slab = AseAtoms("H2O", positions=np.eye(3)), zinc_blende()
    slab.pbc = [True, True, False]
    close = AseAtoms("SrO", cell=np.eye(3) * 4, positions=[[0, 0, 0], [0.5, 0, 0]], pbc=True)
    frames = [zinc_blende(), molecule, slab, close, AseAtoms("X", cell=np.eye(3) * 4, pbc=True), zinc_blende()]
    if file.endswith("db"):
        with ase.db.connect(tmp_path / file) as database:
            for frame in frames:
                database.write(frame)
    else:
        ase.io.write(tmp_path / file, frames, format="extxyz")
    results = list(read_crystals(tmp_path / file))
    assert_zinc_blende(results[0])
    assert_zinc_blende(results[-1])
    reasons = [str(r) for r in results if isinstance(r, Rejection)]
    for said, reason in zip(
        ["no unit cell", "pbc T T F", "Sr1 and O2 are 0.50 Å apart", "no element"], reasons, strict=True
    ):
        assert said in reason


def test_a_broken_frame_does_not_lose_those_before(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    ase.io.write(path, [zinc_blende(), zinc_blende()], format="extxyz")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    results = list(read_crystals(path))
    assert isinstance(results[-1], Rejection)
    assert "is not a readable extended XYZ file" in str(results[-1])


def test_an_alien_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (a)")
    database.close()
    before = path.read_bytes()
    (rejection,) = read_crystals(path)
    assert "is not an ASE database" in str(rejection)
    assert path.read_bytes() == before


@pytest.mark.parametrize("file", ["POSCAR", "x.vasp", "x.xyz", "x.db", "x.json", "x.cif"])
@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)), b'{"a": [1, 2]}', b"\x80\x04\x95."])
def test_rubbish_is_one_rejection(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    (rejection,) = read_crystals(tmp_path / file)
    assert isinstance(rejection, Rejection)
    assert len(str(rejection).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [file]


def test_files_below_a_folder_are_sorted_into_structures_and_others(tmp_path: Path) -> None:
    for file in ("b.CIF", "a/POSCAR", "a/x.txt", "a/.hidden.cif", ".git/x.cif", "c.pickle", "a/z.extxyz", "README"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = find_files(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found.structures] == ["a/POSCAR", "a/z.extxyz", "b.CIF"]
    assert [p.relative_to(tmp_path).as_posix() for p in found.others] == ["README", "a/x.txt", "c.pickle"]
    with pytest.raises(InputError, match="no such folder"):
        find_files(tmp_path / "none")


# properties


@st.composite
def crystals(draw: st.DrawFn) -> Crystal:
    """Atoms on a jittered grid, so that none are close, in a cell of any shape."""
    lengths = [draw(st.floats(4, 9)) for _ in range(3)]
    angles = [draw(st.floats(75, 105)) for _ in range(3)]
    cell = np.array(AseAtoms(cell=[*lengths, *angles]).cell.array)
    places = draw(st.lists(st.integers(0, 26), min_size=1, max_size=8, unique=True))
    grid = np.stack(np.unravel_index(places, (3, 3, 3)), -1) / 3
    jitter = np.array([[draw(st.floats(0, 0.08)) for _ in range(3)] for _ in places])
    numbers = np.array([draw(st.integers(1, 103)) for _ in places])
    return Crystal("made", cell, numbers, grid + jitter, "1 P1")


@given(crystal=crystals(), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_crystal_written_as_p1_reads_back(tmp_path_factory: pytest.TempPathFactory, crystal: Crystal, seed: int) -> None:
    rows = [f"{s} {s} " + " ".join(f"{x:.12f}" for x in f) for s, f in zip(crystal.symbols, crystal.fractional, strict=True)]
    lattice = AseAtoms(cell=crystal.cell_A).cell.cellpar()
    formula = " ".join(f"{s}{n}" for s, n in Counter(crystal.symbols).items())
    text = paper(tuple(lattice[:3]), tuple(lattice[3:]), P1, table(*rows), formula, 1)
    again = only(read_all(tmp_path_factory.mktemp("x"), text, disorder="sample", seed=seed))
    assert (again.numbers == crystal.numbers).all()
    np.testing.assert_allclose(again.fractional, crystal.fractional, atol=1e-11)
    np.testing.assert_allclose(again.cell_A, crystal.cell_A, atol=1e-9)
    assert again.structure_type == str(find_symmetry(again, SYMMETRY_TOLERANCE_A))


@given(number=st.integers(1, 230))
@settings(max_examples=230, deadline=None)
def test_symmetry_operations_are_a_group(number: int) -> None:
    operations = symmetry_operations(number)

    def key(r: object, t: object) -> tuple[int, ...]:
        return (*np.ravel(r).tolist(), *(np.round(np.asarray(t) * 24).astype(int) % 24).tolist())

    known = {key(r, t) for r, t in operations}
    assert len(known) == len(operations)
    for r, t in operations[:8]:
        assert all(key(r @ s, r @ u + t) in known for s, u in operations)
    assert len(known) == len(ase.spacegroup.Spacegroup(number, setting=1).get_op()[0])
    assert operations[0][0].tolist() == np.eye(3).tolist()


def test_symmetry_operations_take_names() -> None:
    assert len(symmetry_operations("F m -3 m")) == len(symmetry_operations(225)) == 192
    assert {len(symmetry_operations(name)) for name in ("R -3 m", "R -3 m:H", "R-3m")} == {36}
    assert len(symmetry_operations("R -3 m:R")) == 12
    for wrong in (0, 231, "P 7", ""):
        with pytest.raises(InputError, match="space group"):
            symmetry_operations(wrong)


def test_a_large_reflection_list_is_read_in_time(tmp_path: Path) -> None:
    reflections = "".join(f"{i % 40} {i % 30} {i % 20} {i / 7:.2f}\n" for i in range(200_000))
    text = cif() + "loop_\n_refln_index_h\n_refln_index_k\n_refln_index_l\n_refln_F_squared_meas\n" + reflections
    start = time.perf_counter()
    assert only(read_all(tmp_path, text)).formula == "Sr"
    assert time.perf_counter() - start < 5
