"""Columns that are copies of one, and the enumeration of all that it may hold, against counting and planted crystals."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.columns import Columns
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystals import Crystal
from mepdiff_core.depth import Matter
from mepdiff_core.element_features import FEATURES, element_table
from mepdiff_core.enumeration import best_occupations
from mepdiff_core.folding import FoldedModel, FoldedSearch, fold_columns
from mepdiff_core.occupation import Problem
from mepdiff_core.polish import draw_cell
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.stacking import Stacking
from mepdiff_core.unit_cell import UnitCell, from_crystal

Array = npt.NDArray[np.float64]

A, C = 2.83, 13.9
HEXAGONAL = np.array([[0.0, A], [A * np.sqrt(3) / 2, -A / 2]])
SLICES, SLICE_A = 8, 1.6
THICKNESS_A = SLICES * SLICE_A
LAYERED = Crystal(
    "LiCoO2",
    np.array([[A, 0, 0], [-A / 2, A * np.sqrt(3) / 2, 0], [0, 0, C]]),
    np.array([27, 3, 8, 8] * 3),
    np.array([[s * 2 / 3, s / 3, (z + s / 3) % 1] for s in range(3) for z in (0.0, 0.5, 0.26, 0.74)]),
    "166 R-3m",
)
"""The oxide of layers, c longer than the specimen is thick."""


def columns_of(fractional: list[tuple[float, float]], strengths: list[float]) -> Columns:
    amounts = np.zeros((len(fractional), FEATURES))
    amounts[:, 0] = strengths
    return Columns(HEXAGONAL, np.array([6.4, 6.4]), np.array(fractional), amounts)


THREE = [(0.1, 0.2), (0.1 + 1 / 3, 0.2 + 2 / 3), (0.1 + 2 / 3, 0.2 + 1 / 3)]


def test_three_copies_are_one_column_of_a_third_of_the_cell() -> None:
    folded = fold_columns(columns_of(THREE, [5.1, 4.7, 4.4]))
    assert folded is not None
    smaller = folded.columns
    assert len(smaller) == 1
    assert smaller.area_A2 == pytest.approx(A**2 * np.sqrt(3) / 2 / 3)
    np.testing.assert_allclose(np.linalg.norm(smaller.lattice_A, axis=1), A / np.sqrt(3), rtol=1e-6)
    assert smaller.amounts[0, 0] == pytest.approx((5.1 + 4.7 + 4.4) / 3)
    # where each of the three columns is, told by the smaller cell
    places = (folded.cells + smaller.fractional) @ smaller.lattice_A
    away = (places - np.array(THREE) @ HEXAGONAL) @ np.linalg.inv(HEXAGONAL)
    np.testing.assert_allclose(away, np.round(away), atol=1e-6)
    # the two ways in which the copies may follow one another, and no cell of the larger lattice deeper than the next
    assert len(folded.shifts) == 2
    larger = np.rint(HEXAGONAL @ np.linalg.inv(smaller.lattice_A))
    for shift in folded.shifts:
        np.testing.assert_allclose(larger @ shift, np.round(larger @ shift), atol=1e-9)
        assert sorted(np.round(folded.cells @ shift * 3) % 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("places", "strengths"),
    [
        (THREE, [5.0, 5.0, 2.0]),
        ([THREE[0]], [5.0]),
        ([(0.0, 0.0), (0.3, 0.5)], [5.0, 5.0]),
        ([(0.0, 0.0), (1 / 3, 2 / 3)], [5.0, 5.0]),
        ([(0.0, 0.0), (0.5, 0.5), (0.5, 0.0)], [5.0, 5.0, 5.0]),
    ],
    ids=["other amounts", "one", "no part of the cell", "a third alone", "three halves of four"],
)
def test_columns_that_are_no_copies_are_not_folded(places: list[tuple[float, float]], strengths: list[float]) -> None:
    assert fold_columns(columns_of(places, strengths)) is None


def test_a_centred_cell_folds_in_two() -> None:
    folded = fold_columns(columns_of([(0.0, 0.0), (0.5, 0.5)], [5.0, 5.0]))
    assert folded is not None
    assert len(folded.shifts) == 1
    assert folded.columns.area_A2 == pytest.approx(A**2 * np.sqrt(3) / 4)


def search(slices: int = SLICES) -> FoldedSearch:
    folded = fold_columns(columns_of(THREE, [5.0, 5.0, 5.0]))
    assert folded is not None
    count = 3 * slices + FEATURES - 1
    size = count + 3 * slices * (3 * slices + 1) // 2
    matter = Matter(0.0, np.zeros(size), np.eye(size), np.zeros((1, count)), (0,))
    return FoldedSearch(folded, matter, slices, SLICE_A)


@pytest.mark.parametrize("period", [5.3, 9.05, 12.8, 14.1, 17.0])
@pytest.mark.parametrize("which", [0, 1])
def test_slots_say_which_slices_the_copies_of_an_atom_lie_in(period: float, which: int) -> None:
    """As the crystal itself has them: a cell with one atom, all its copies in the box, column by column."""
    wanted = search()
    shift = wanted.folded.shifts[which]
    smaller = wanted.folded.columns
    slots = wanted.slots(period, shift)
    vectors = np.zeros((3, 3))
    vectors[:2, 1:], vectors[:2, 0], vectors[2, 0] = smaller.lattice_A, shift * period, period
    places = (wanted.folded.cells + smaller.fractional) @ smaller.lattice_A + smaller.origin_A
    assert len(slots.depth_A) > 3
    corner = np.array([0.0, -13.0, -13.0])
    place = (smaller.fractional @ smaller.lattice_A + smaller.origin_A)[0]
    for depth, row in zip(slots.depth_A, slots.slices, strict=True):
        atom, unknown = np.array([[depth, *place]]), np.full((1, 3), np.nan)
        cell = UnitCell(vectors, True, THICKNESS_A, atom, np.array([8]), unknown, (((8, 1.0),),))
        atoms = cell.atoms_in((THICKNESS_A, 40.0, 40.0), (0.0, -13.0, -13.0)).positions_A + corner
        expected = np.zeros((3, SLICES))
        for copy, where in zip(expected, places, strict=True):
            for z in atoms[np.linalg.norm(atoms[:, 1:] - where, axis=1) < 0.01, 0]:
                copy[int(z / SLICE_A)] += 1
        np.testing.assert_array_equal(row.reshape(3, SLICES), expected)


def test_periods_of_the_same_slots_are_one_range() -> None:
    wanted = search()
    shift = wanted.folded.shifts[0]
    low, high = wanted.periods_like(Stacking(13.5, shift, 0.0))
    assert low < 13.5 < high
    middle = wanted.slots(13.5, shift).slices
    for inside in (low, high):
        np.testing.assert_array_equal(wanted.slots(inside, shift).slices, middle)
    for outside in (low - 0.03, high + 0.03):
        assert not np.array_equal(wanted.slots(outside, shift).slices, middle)


def test_a_range_of_periods_ends_though_long_ones_are_all_alike() -> None:
    """Of two copies further apart than the specimen is thick."""
    two = fold_columns(columns_of([(0.0, 0.0), (0.5, 0.5)], [5.0, 5.0]))
    assert two is not None
    wanted = FoldedSearch(two, search().matter, SLICES, SLICE_A)
    low, high = wanted.periods_like(Stacking(40.0, two.shifts[0], 0.0))
    assert low < high
    assert high == pytest.approx(40.0)


def toy(seed: int, first_cost: float) -> tuple[Problem, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """One column of five slots in four bins, three elements of which two are metals; a strong misfit about two atoms."""
    rng = np.random.default_rng(seed)
    bins, elements, slots = 4, 3, 5
    count = bins + FEATURES - 1 + bins * (bins + 1) // 2
    waves = rng.normal(size=(2 * count, count))
    near = np.zeros((1, slots, 1, slots), bool)
    near[0, 0, 0, 1] = near[0, 1, 0, 0] = True
    metals = near.copy()
    metals[0, 1, 0, 2] = metals[0, 2, 0, 1] = True
    problem = Problem(
        misfit=7.0,
        gradient=3 * rng.normal(size=count),
        curvature=waves.T @ waves,
        centre=rng.uniform(0, 0.5, (1, bins + FEATURES - 1)),
        heavy=(0,),
        bins=rng.integers(0, 2, (slots, bins)).astype(float),
        table=rng.uniform(0.3, 1.5, (elements, FEATURES)),
        element_cost=rng.uniform(0, 1, elements),
        slot_cost=rng.uniform(-1, 1, slots),
        first_cost=first_cost,
        near=near,
    )
    return problem, np.array([True, False, True]), metals


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all_is_found_with_its_energy(seed: int) -> None:
    """Against all 4^5 arrangements, one by one, by what ``Problem`` itself computes."""
    problem, metal, near_metals = toy(seed, 0.0)
    best, least = None, np.inf
    for labels in product(range(4), repeat=5):
        taken = [(i, e) for i, e in enumerate(labels) if e]
        clash = any(
            problem.near[0, i, 0, j] or (near_metals[0, i, 0, j] and metal[e - 1] and metal[f - 1])
            for i, e in taken
            for j, f in taken
        )
        if clash or not taken:
            continue
        label = np.array([labels])
        x = problem.parameters(0, label)[0]
        energy = problem.misfit + problem.gradient @ x + 0.5 * x @ problem.curvature @ x + problem.own_cost(label)[0]
        if energy < least:
            best, least = labels, float(energy)
    found = best_occupations(problem, metal, near_metals, 3)
    assert tuple(found[0].label[0]) == best
    assert found[0].energy == pytest.approx(least)
    assert found[0].energy <= found[1].energy <= found[2].energy


def test_an_element_costs_once() -> None:
    free, dear = (best_occupations(*toy(1, cost), 40) for cost in (0.0, 100.0))
    energies = {tuple(o.label[0]): o.energy for o in free}
    for occupation in dear:
        kinds = len(set(occupation.label[0]) - {0})
        label = tuple(occupation.label[0])
        if label in energies:
            assert occupation.energy == pytest.approx(energies[label] + 100 * kinds)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(LAYERED, SimulationConfig(scan_shape=(14, 14), origin_A=(1.1, 0.7, 0.75), seed=3))


@pytest.fixture(scope="module")
def model(scan: Scan) -> FoldedModel:
    """Of the true lattice, with columns even along the beam of the true mean amounts."""
    true = from_crystal(LAYERED, "c", (1.1, 0.7, 0.75), THICKNESS_A)
    lattice = true.lattice_A[:2, 1:]
    middle = scan.positions_A.mean(0)
    place = (true.positions_A[true.numbers == 27, 1:] - middle) @ np.linalg.inv(lattice)
    features = element_table().features[[27, 3, 8, 8]].sum(0) * THICKNESS_A / C
    larger = Columns(lattice, middle, place, np.tile(features, (3, 1)))
    folded = fold_columns(larger)
    assert folded is not None
    return FoldedModel(CrystalModel(AtomWaves(scan, SLICES, SLICE_A), larger), folded)


@pytest.mark.slow
def test_matter_of_even_columns_is_drawn_as_they_are(model: FoldedModel) -> None:
    np.testing.assert_allclose(model.phase(model.even).numpy(), model.larger.even.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_layered_oxide_is_found_from_even_columns(scan: Scan, model: FoldedModel) -> None:
    """abTEM's scan of a crystal whose period is longer than the specimen is thick: the best of all arrangements has an atom
    at every true depth, in the true order of strength; and the expansion holds where it was found."""
    waves = model.larger.waves
    indices = np.linspace(0, scan.n_patterns - 1, 12).astype(int)
    matter = model.expand(model.phase(model.even), model.even, indices)
    wanted = FoldedSearch(model.folded, matter, SLICES, SLICE_A)
    stackings = [s for s in wanted.stackings() if wanted.periods_like(s)[0] < C < wanted.periods_like(s)[1]]
    assert stackings
    found = sorted((a for s in stackings for a in wanted.best(s, 8)), key=lambda a: a.energy)
    drawn = CrystalModel(waves, model.folded.columns)
    misfits = [float(drawn.misfit(drawn.phase(a), indices).sum()) for a in found[:12]]
    best = found[int(np.argmin(misfits))]
    true = from_crystal(LAYERED, "c", (1.1, 0.7, 0.75), THICKNESS_A)
    truth = float(waves.misfit(waves.transmission(draw_cell(waves, true)), indices).sum())
    assert len(best.number) == 4
    assert min(misfits) - truth < 0.05 * (matter.misfit - truth)
    order = np.argsort(best.depth_A)
    assert sorted(best.number)[0] <= 5
    assert sorted(best.number)[3] >= 20
    heavy = int(np.argmax(best.number[order]))
    light = int(np.argmin(best.number[order]))
    assert (heavy - light) % 4 == 2  # oxygen between cobalt and lithium on both sides
