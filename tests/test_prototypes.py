"""Generated crystals: structure types against the literature, and what every crystal of a set must satisfy."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest
from ase.data import covalent_radii
from scipy.spatial import cKDTree

from mepdiff_core.cif import symmetry_operations
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.prototype_crystals import LONGEST_A, _model, build, compositions, expand_sites, generate, shares
from mepdiff_core.prototypes import prototypes

COUNT = 2000


@cache
def crystals() -> list[Crystal]:
    return [generate(index, 7) for index in range(COUNT)]


def lengths(crystal: Crystal) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(crystal.cell_A, axis=1))


def closest(crystal: Crystal, reach_A: float) -> float:
    """Smallest distance in sums of covalent radii, by a search through all images, and not below 1 Å."""
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.cell_A), axis=0)
    spans = [np.arange(-n, n + 1) for n in np.ceil(reach_A / heights).astype(int)]
    shifts = np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, 3)
    images = ((crystal.fractional[None] + shifts[:, None]) @ crystal.cell_A).reshape(-1, 3)
    home = crystal.fractional @ crystal.cell_A
    near = ((images > home.min(0) - reach_A) & (images < home.max(0) + reach_A)).all(1)
    numbers = np.tile(crystal.numbers, len(shifts))[near]
    pairs = cKDTree(home).sparse_distance_matrix(cKDTree(images[near]), reach_A, output_type="ndarray")
    pairs = pairs[pairs["v"] > 1e-6]
    if len(pairs) == 0:
        return np.inf
    assert pairs["v"].min() >= 1.0
    radii = covalent_radii[crystal.numbers[pairs["i"]]] + covalent_radii[numbers[pairs["j"]]]
    return float((pairs["v"] / radii).min())


def bonds(crystal: Crystal, centre: str, partner: str, window: float) -> tuple[float, float]:
    """Shortest distance between two elements, Å, and the mean number of partners within window times it."""
    symbols = np.array(crystal.symbols)
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    home = (crystal.fractional @ crystal.cell_A)[symbols == centre]
    images = ((crystal.fractional[symbols == partner][None] + shifts[:, None]) @ crystal.cell_A).reshape(-1, 3)
    distances = np.linalg.norm(images[None] - home[:, None], axis=-1)
    distances[distances < 1e-6] = np.inf
    return float(distances.min()), float((distances < window * distances.min()).sum() / len(home))


# structure types against the literature

EXAMPLES = {
    "fcc": ("Cu4", (3.6149, 3.6149, 3.6149)),
    "bcc": ("W2", (3.1652, 3.1652, 3.1652)),
    "hcp": ("Mg2", (3.2094, 3.2094, 5.2108)),
    "diamond": ("Si8", (5.4309, 5.4309, 5.4309)),
    "rocksalt": ("Cl4Na4", (5.6402, 5.6402, 5.6402)),
    "wurtzite": ("S2Zn2", (3.8227, 3.8227, 6.2607)),
    "rutile": ("O4Ti2", (4.5937, 4.5937, 2.9587)),
    "corundum": ("Al12O18", (4.7602, 4.7602, 12.9933)),
    "perovskite-Pnma": ("Ca4O12Ti4", (5.4405, 7.6436, 5.3812)),
    "spinel": ("Al16Mg8O32", (8.0832, 8.0832, 8.0832)),
    "garnet": ("Al40O96Y24", (12.0, 12.0, 12.0)),
    "monazite": ("La4O16P4", (6.8313, 7.0705, 6.5034)),
    "cuprate-123": ("Ba2Cu3O7Y", (3.8227, 3.8872, 11.6802)),
    "laves-C15": ("Cu16Mg8", (7.034, 7.034, 7.034)),
    "tetradymite": ("Bi2Te3", (10.473, 10.473, 10.473)),  # rhombohedral: c of the hexagonal cell is 30.487 Å
    "ruddlesden-popper-2": ("O7Sr3Ti2", (10.552, 10.552, 10.552)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_type_has_its_formula_and_lattice_constants(name: str) -> None:
    formula, expected = EXAMPLES[name]
    assert build(name).formula == formula
    np.testing.assert_allclose(lengths(build(name)), expected, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "centre", "partner", "distance", "neighbours", "window"),
    [
        ("fcc", "Cu", "Cu", 2.556, 12, 1.1),
        ("bcc", "W", "W", 2.741, 8, 1.1),
        ("diamond", "Si", "Si", 2.352, 4, 1.1),
        ("arsenic", "As", "As", 2.517, 3, 1.1),
        ("selenium", "Se", "Se", 2.373, 2, 1.1),
        ("black-phosphorus", "P", "P", 2.22, 3, 1.1),
        ("rocksalt", "Na", "Cl", 2.82, 6, 1.1),
        ("zincblende", "Zn", "S", 2.342, 4, 1.1),
        ("nickel-arsenide", "Ni", "As", 2.44, 6, 1.1),
        ("fluorite", "Ca", "F", 2.365, 8, 1.1),
        ("rutile", "Ti", "O", 1.949, 6, 1.1),
        ("anatase", "Ti", "O", 1.934, 6, 1.1),
        ("pyrite", "S", "S", 2.16, 1, 1.1),
        ("quartz", "Si", "O", 1.605, 4, 1.1),
        ("corundum", "Al", "O", 1.855, 6, 1.1),
        ("bixbyite", "In", "O", 2.12, 6, 1.1),
        ("molybdenite-2H", "Mo", "S", 2.42, 6, 1.1),
        ("perovskite-cubic", "Sr", "O", 2.761, 12, 1.1),
        ("perovskite-Pnma", "Ti", "O", 1.95, 6, 1.1),
        ("perovskite-R3c", "Fe", "O", 1.95, 6, 1.2),
        ("elpasolite", "W", "O", 1.93, 6, 1.1),
        ("spinel", "Mg", "O", 1.92, 4, 1.1),
        ("hausmannite", "Mn", "O", 1.93, 4, 1.1),
        ("olivine", "Si", "O", 1.615, 4, 1.1),
        ("triphylite", "P", "O", 1.52, 4, 1.1),
        ("garnet", "Y", "O", 2.30, 8, 1.1),
        ("pyrochlore", "Ti", "O", 1.96, 6, 1.1),
        ("scheelite", "W", "O", 1.78, 4, 1.1),
        ("zircon", "Si", "O", 1.62, 4, 1.1),
        ("monazite", "P", "O", 1.52, 4, 1.1),
        ("calcite", "C", "O", 1.28, 3, 1.1),
        ("apatite", "P", "O", 1.53, 4, 1.1),
        ("barite", "S", "O", 1.46, 4, 1.1),
        ("diopside", "Si", "O", 1.585, 4, 1.1),
        ("sodalite", "Si", "O", 1.74, 4, 1.1),
        ("nasicon", "P", "O", 1.52, 4, 1.1),
        ("skutterudite", "Co", "Sb", 2.53, 6, 1.1),
        ("laves-C15", "Cu", "Cu", 2.487, 6, 1.1),
        ("chalcopyrite", "Cu", "S", 2.30, 4, 1.1),
        ("tetradymite", "Bi", "Te", 3.07, 6, 1.1),
    ],
)
def test_atoms_have_the_neighbours_of_the_literature(
    name: str, centre: str, partner: str, distance: float, neighbours: float, window: float
) -> None:
    found, count = bonds(build(name), centre, partner, window)
    assert found == pytest.approx(distance, rel=0.02)
    assert count == pytest.approx(neighbours)


@pytest.mark.parametrize(
    ("name", "elements", "a_A"),
    [
        ("fcc", "Au", 4.078),
        ("fcc", "Pb", 4.951),
        ("bcc", "Fe", 2.866),
        ("bcc", "Nb", 3.301),
        ("hcp", "Ti", 2.951),
        ("diamond", "Ge", 5.658),
        ("rocksalt", "Mg O", 4.212),
        ("rocksalt", "K Br", 6.600),
        ("rocksalt", "Pb Te", 6.462),
        ("cscl", "Tl Br", 3.986),
        ("zincblende", "Ga As", 5.653),
        ("zincblende", "Cd Te", 6.482),
        ("wurtzite", "Ga N", 3.189),
        ("fluorite", "Ce O", 5.411),
        ("fluorite", "Ba F", 6.200),
        ("rutile", "Sn O", 4.738),
        ("cadmium-iodide", "Mg Br", 3.81),
        ("molybdenite-2H", "W Se", 3.282),
        ("corundum", "Cr O", 4.959),
        ("perovskite-cubic", "Ba Zr O", 4.193),
        ("perovskite-cubic", "K Mg F", 3.989),
        ("perovskite-cubic", "Cs Pb Cl", 5.605),
        ("elpasolite", "Cs Ag Bi Br", 11.27),
        ("potassium-hexachloroplatinate", "Cs Sn I", 11.63),
        ("spinel", "Zn Ga O", 8.334),
        ("spinel", "Fe Fe O", 8.396),
        ("garnet", "Gd Ga Ga O", 12.376),
        ("pyrochlore", "La Zr O O", 10.805),
        ("alpha-NaFeO2", "Na Co O", 2.889),
        ("scheelite", "Pb Mo O", 5.433),
        ("calcite", "Mg C O", 4.633),
        ("laves-C15", "Zr Fe", 7.07),
        ("heusler", "Co Mn Si", 5.654),
        ("half-heusler", "Zr Ni Sn", 6.11),
        ("auricupride", "Pt Cu", 3.702),
        ("chalcopyrite", "Cu In Se", 5.781),
        ("tetradymite", "Sb Te", 10.41),
    ],
)
def test_radii_foretell_other_compounds(name: str, elements: str, a_A: float) -> None:
    crystal = build(name, dict(zip(prototypes()[name].slots, elements.split(), strict=True)))
    assert lengths(crystal)[0] == pytest.approx(a_A, rel=0.06)


@pytest.mark.parametrize("name", sorted(prototypes()))
def test_free_coordinates_keep_a_position_special(name: str) -> None:
    """Elsewhere in the ranges as many atoms coincide as at the typical values."""
    prototype = prototypes()[name]
    typical = np.array([p.typical for p in prototype.parameters])
    other = np.array([p.low + 0.317 * (p.high - p.low) for p in prototype.parameters])
    for site in prototype.sites:
        constant, coefficients = np.array(site.constant), np.reshape(site.coefficients, (3, -1))
        here, there = (len(expand_sites(prototype.spacegroup, constant, coefficients, p)[0]) for p in (typical, other))
        assert here == there


@pytest.mark.parametrize("name", sorted(prototypes()))
def test_symmetry_maps_the_example_onto_itself(name: str) -> None:
    """Distances too: the metric of the cell is the group's."""
    prototype, crystal = prototypes()[name], build(name)
    if prototype.primitive:
        pytest.skip("the operations are those of the conventional cell")
    metric = crystal.cell_A @ crystal.cell_A.T
    for rotation, translation in symmetry_operations(prototype.spacegroup):
        np.testing.assert_allclose(rotation.T @ metric @ rotation, metric, atol=1e-6)
        images = crystal.fractional @ rotation.T + translation
        apart = images[:, None] - crystal.fractional[None]
        match = (np.abs(apart - np.round(apart)).max(-1) < 1e-4) & (crystal.numbers[:, None] == crystal.numbers[None])
        assert (match.sum(1) == 1).all()
        if len(crystal.numbers) > 50:
            break


def test_a_site_on_a_special_position_is_not_doubled() -> None:
    constants, _ = expand_sites("P 63/m m c", np.array([1 / 3, 2 / 3, 0.25]), np.zeros((3, 0)), np.zeros(0))
    assert len(constants) == 2


def test_all_ionic_compositions_are_neutral() -> None:
    ionic = 0
    for name, prototype in prototypes().items():
        model = _model(name)
        charges = [
            np.array([s.charge for s in species])[i]
            for species, i in zip(prototype.species, model.compositions.T, strict=True)
        ]
        total = sum(q * count for q, count in zip(charges, np.bincount(model.slot), strict=True))
        assert not np.any(total), name
        ionic += bool(np.any(charges))
        assert len(compositions(name)) == len(model.compositions) > 0
    assert ionic > 60


# generated crystals


def test_no_two_atoms_are_too_close() -> None:
    assert min(closest(g, 3.7) for g in crystals()) >= 0.75


def test_cells_are_right_handed_and_short() -> None:
    for crystal in crystals():
        assert np.linalg.det(crystal.cell_A) > 0
        assert lengths(crystal).max() < LONGEST_A
        assert len(crystal.fractional) == len(crystal.numbers)
        assert ((crystal.fractional >= 0) & (crystal.fractional < 1)).all()
        assert crystal.numbers.dtype == np.int64


def test_a_crystal_is_the_same_in_every_process() -> None:
    def digest(items: list[Crystal]) -> str:
        parts = [g.cell_A.tobytes() + g.numbers.tobytes() + g.fractional.tobytes() for g in items]
        return sha256(b"".join(parts)).hexdigest()

    code = (
        "from hashlib import sha256; from mepdiff_core.prototype_crystals import generate; "
        "c = [generate(i, 7) for i in (999, 5, 40)]; "
        "print(sha256(b''.join(x.cell_A.tobytes() + x.numbers.tobytes() + x.fractional.tobytes() for x in c)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == digest([crystals()[i] for i in (999, 5, 40)])
    assert there != digest([generate(i, 8) for i in (999, 5, 40)])


def test_few_crystals_repeat_a_composition() -> None:
    kinds = {(g.structure_type, g.name.split("-")[0]) for g in crystals()}
    assert len(kinds) > 0.98 * COUNT


def test_all_types_appear_and_none_prevails() -> None:
    assert len(prototypes()) >= 60
    found = Counter(g.structure_type for g in crystals())
    assert max(found.values()) < 0.05 * COUNT
    assert max(shares().values()) < 0.05
    common = {name for name, share in shares().items() if share > 3 / COUNT}
    assert common <= set(found)
    assert {generate(index, 1).structure_type for index in range(12000)} == set(prototypes())


def test_half_of_the_crystals_are_sheared() -> None:
    """Cubic types: lengths and angles differ in half of them."""
    cubic = [
        g for g in crystals() if prototypes()[g.structure_type].constants[:3] == (lengths(build(g.structure_type))[0],) * 3
    ]
    skewed = [np.ptp(lengths(c)) > 1e-9 for c in cubic]
    assert len(cubic) > 100
    assert 0.4 < np.mean(skewed) < 0.6


@pytest.mark.parametrize(
    ("name", "elements", "message"),
    [
        ("adamantane", None, "structure type 'adamantane' is not known"),
        ("rocksalt", {"A": "Na"}, "elements of A; expected those of A, X"),
        ("rocksalt", {"A": "Na", "X": "O"}, "does not take"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, elements: dict[str, str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, elements)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(InputError, match="index is -1"):
        generate(-1, 0)
