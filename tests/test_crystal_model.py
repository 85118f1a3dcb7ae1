"""Columns, arrangements and matter drawn in more than one way, which must agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.columns import Columns, refine, split_cosets
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystals import Crystal
from mepdiff_core.depth import Arrangement, DepthSearch, Matter, make_slots, too_near
from mepdiff_core.element_features import FEATURES, element_table
from mepdiff_core.expansion import quadratic
from mepdiff_core.optics import Optics
from mepdiff_core.polish import draw_cell
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.stacking import Stacking
from mepdiff_core.unit_cell import from_crystal

LATTICE = np.array([[3.9, 0.0], [0.3, 4.1]])
PERIOD, THICKNESS = 4.3, 6.4
COLUMN, NUMBER, DEPTH = np.array([0, 0, 1]), np.array([38, 8, 22]), np.array([0.7, 2.6, 1.9])


@pytest.fixture(scope="module")
def waves(perovskite: Crystal) -> AtomWaves:
    config = SimulationConfig(
        optics=Optics(overfocus_A=60.0),
        scan_shape=(3, 3),
        detector_pixels=64,
        thickness_A=THICKNESS,
        origin_A=(0.3, 0.2, 0.4),
    )
    return AtomWaves(simulate_scan(perovskite, config), 4, 1.6)


def columns_of(periods: float) -> Columns:
    """Columns whose amounts are those of the atoms, so many times."""
    amounts = np.zeros((2, FEATURES))
    np.add.at(amounts, COLUMN, element_table().features[NUMBER] * periods)
    return Columns(LATTICE, np.array([1.0, 1.2]), np.array([[0.1, 0.2], [0.6, 0.7]]), amounts)


@pytest.fixture(scope="module")
def flat(waves: AtomWaves) -> tuple[CrystalModel, Arrangement]:
    slots = make_slots(PERIOD, 4, 1.6)
    slot = np.array([int(np.abs(slots.depth_A - z).argmin()) for z in DEPTH])
    arrangement = Arrangement(PERIOD, COLUMN, NUMBER, slots.depth_A[slot], slot, slots.slices[slot], 0.0, 0.0)
    return CrystalModel(waves, columns_of(THICKNESS / PERIOD)), arrangement


@pytest.fixture(scope="module")
def shifted(waves: AtomWaves) -> tuple[CrystalModel, Arrangement]:
    shift = np.array([0.37, 0.0])
    model = CrystalModel(waves, columns_of(THICKNESS / PERIOD), Stacking(PERIOD, shift, 0.0))
    slot = (DEPTH / PERIOD * model.bins).astype(int)
    arrangement = Arrangement(PERIOD, COLUMN, NUMBER, DEPTH, slot, np.eye(model.bins)[slot], 0.0, 0.0, shift)
    return model, arrangement


def distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def test_atoms_in_slots_are_the_cells_atoms(flat: tuple[CrystalModel, Arrangement]) -> None:
    model, arrangement = flat
    assert distance(model.phase(arrangement), draw_cell(model.waves, model.cell(arrangement))) < 1e-3


def test_matter_of_atoms_draws_the_atoms(flat: tuple[CrystalModel, Arrangement]) -> None:
    """To what the features leave, and the even spread of all but the first; slices in a wrong order would be off by 1."""
    model, arrangement = flat
    drawn = model.phase_of_matter(model.matter(arrangement))
    true = model.phase(arrangement)
    assert distance(drawn.sum(0), true.sum(0)) < 0.03
    assert distance(drawn, true) < 0.25
    assert distance(drawn.flip(0), true) > 0.5


def test_a_search_among_few_elements_finds_no_others(flat: tuple[CrystalModel, Arrangement]) -> None:
    model, _ = flat
    search = DepthSearch(model.expand(model.even, model.even_matter, np.arange(9)), model.columns, 1.6)
    found = search.search(PERIOD, np.random.default_rng(0), 100.0, 4, among=np.array([8, 22]))
    assert len(found.number)
    assert set(found.number) <= {8, 22}
    free = search.search(PERIOD, np.random.default_rng(0), 100.0, 4)
    assert not set(free.number) <= {8, 22}
    assert free.energy < found.energy


def test_a_cell_grows_where_its_copies_differ_but_not_beyond_the_field() -> None:
    """Rows of strontium and oxygen taken for one kind, in half of the cell."""
    crystal = Crystal("SrO", 3.9 * np.eye(3), np.array([38, 8]), np.array([[0, 0, 0], [0, 0.5, 0]]))
    origin = (0.3, 0.2, 0.4)
    config = SimulationConfig(
        optics=Optics(overfocus_A=60.0), scan_shape=(4, 4), detector_pixels=64, thickness_A=THICKNESS, origin_A=origin
    )
    waves = AtomWaves(simulate_scan(crystal, config), 4, 1.6)
    cell = from_crystal(crystal, "c", origin, THICKNESS)
    half = cell.lattice_A[:2, 1:].copy()
    long = int(np.argmax(np.abs(np.diff(cell.positions_A, axis=0)[0, 1:] @ np.linalg.inv(half))))
    half[long] /= 2
    amounts = element_table().features[[20]] * THICKNESS / 3.9
    columns = Columns(half, cell.positions_A[0, 1:], np.zeros((1, 2)), amounts)
    patterns = np.arange(16)
    wider = split_cosets(waves, columns, patterns, largest_A2=15.3)
    assert wider.area_A2 == pytest.approx(3.9**2)
    assert len(wider) == 2
    assert split_cosets(waves, columns, patterns, largest_A2=15.2) is columns


@pytest.fixture(scope="module")
def pair() -> tuple[AtomWaves, Columns]:
    """A straight column of strontium and one of titanium whose atoms lie 0.14 Å to either side along x; what refinement from
    their mean places makes of them."""
    a, origin = 4.0, (0.3, 0.2, 0.4)
    crystal = Crystal(
        "pair", a * np.eye(3), np.array([38, 22, 22]), np.array([[0, 0, 0], [0.535, 0.5, 0.25], [0.465, 0.5, 0.75]])
    )
    config = SimulationConfig(scan_shape=(6, 6), thickness_A=2 * a, origin_A=origin)
    waves = AtomWaves(simulate_scan(crystal, config), 4, a / 2)
    cell = from_crystal(crystal, "c", origin, 2 * a)
    lattice, places = cell.lattice_A[:2, 1:], cell.positions_A[:, 1:]
    fractional = np.array([places[0], places[1:].mean(0)]) @ np.linalg.inv(lattice)
    table = element_table().features
    columns = Columns(lattice, np.zeros(2), fractional, np.array([2 * table[38], 4 * table[22]]))
    for _ in range(2):
        columns = refine(waves, columns, np.arange(36)).columns
    return waves, columns


def test_shapes_of_columns_stay_near_those_of_atoms(pair: tuple[AtomWaves, Columns]) -> None:
    """However often they are refined; else they would make up for what is not even, and amounts be no atoms'."""
    waves, columns = pair
    for _ in range(6):
        columns = refine(waves, columns, np.arange(36)).columns
    spread = element_table().spread * columns.amounts[:, :1]
    assert np.abs(columns.amounts[:, 1:] / spread).max() < 5.0  # 8 if free
    assert columns.amounts[0, 0] == pytest.approx(2 * element_table().features[38, 0], rel=0.03)


def test_atoms_that_are_seen_apart_have_columns_of_their_own(flat: tuple[CrystalModel, Arrangement]) -> None:
    """By more than their places' errors; and by less, they share one."""
    model, arrangement = flat
    cell = model.cell(arrangement)
    for spread, count in ((0.02, 3), (0.06, 2)):
        places = cell.positions_A + np.array([[0.0, 0.1, 0.0], [0.0, -0.1, 0.0], [0.0, 0.0, 0.0]])
        after, found = model.settled(arrangement, replace(cell, positions_A=places, spread_A=np.full((3, 3), spread)))
        assert len(after.columns) == count
        assert found.number.tolist() == arrangement.number.tolist()
        away = after.cell(found).positions_A[:, 1:] - places[:, 1:]
        assert np.abs(away).max() < (1e-9 if count == 3 else 0.21)


def test_even_matter_draws_even_columns(
    flat: tuple[CrystalModel, Arrangement], shifted: tuple[CrystalModel, Arrangement]
) -> None:
    for model, _ in (flat, shifted):
        assert distance(model.phase_of_matter(model.even_matter), model.even) < 1e-4


@pytest.mark.parametrize("which", ["flat", "shifted"])
def test_matter_is_drawn_as_its_sources_add_up(which: str, request: pytest.FixtureRequest) -> None:
    model, _ = request.getfixturevalue(which)
    matter = np.random.default_rng(0).uniform(0, 2, model.even_matter.shape)
    total = torch.zeros_like(model.waves.to_model(model.even))
    values = np.concatenate([matter[:, : model.bins].ravel(), matter[:, model.bins :].ravel()])
    for value, source in zip(values, model.sources, strict=True):
        for s, image in source.items():
            total[s] += float(value) * image
    assert distance(model.waves.to_model(model.phase_of_matter(matter)), total) < 1e-5


def test_shifted_matter_follows_its_cells(shifted: tuple[CrystalModel, Arrangement]) -> None:
    """An atom smeared over its bin and beyond still lies about where it is: nearer than without the shift."""
    model, arrangement = shifted
    true = model.phase(arrangement)
    level = CrystalModel(model.waves, model.columns, Stacking(PERIOD, np.zeros(2), 0.0))
    here = distance(model.phase_of_matter(model.matter(arrangement)), true)
    assert here < 0.5
    assert distance(level.phase_of_matter(model.matter(arrangement)), true) > 1.5 * here


def test_a_step_finds_the_least_misfit_without_negative_matter(shifted: tuple[CrystalModel, Arrangement]) -> None:
    """Of a quadratic form with its minimum at known matter, the prior being weak beside it."""
    model, _ = shifted
    goal = model.even_matter.copy()
    goal[:, : model.bins] = 0.0
    goal[0, 1], goal[1, 3] = 3.0, 2.0
    x = Matter(0.0, np.zeros(goal.size), np.eye(goal.size), model.even_matter, ()).parameters(goal)
    curvature = 1e6 * np.eye(goal.size)
    expansion = Matter(0.0, -curvature @ x, curvature, model.even_matter, ())
    np.testing.assert_allclose(model.step(expansion), goal, atol=1e-3)
    goal[1, 3] = -2.0
    x = expansion.parameters(goal)
    assert model.step(replace(expansion, gradient=-curvature @ x))[:, : model.bins].min() >= -1e-6


def test_a_polished_cell_becomes_columns_again(shifted: tuple[CrystalModel, Arrangement]) -> None:
    model, arrangement = shifted
    cell = model.cell(arrangement)
    moved = cell.positions_A + np.array([[0.2, 0.02, 0.0], [0.2, 0.02, 0.0], [-0.1, 0.0, -0.03]])
    lattice = cell.lattice_A + np.array([[0.1, 0.0, 0.01], [0.0, 0.01, 0.0], [0.05, 0.0, 0.0]])
    polished = replace(cell, positions_A=moved, lattice_A=lattice)
    after, found = model.settled(arrangement, polished)
    again = after.cell(found)
    away = (again.positions_A - moved) @ np.linalg.inv(again.lattice_A)
    np.testing.assert_allclose(away - np.rint(away), 0.0, atol=1e-9)
    np.testing.assert_allclose(again.lattice_A, lattice, atol=1e-9)
    assert distance(after.phase(found), draw_cell(model.waves, polished)) < 1e-4


def test_a_column_goes_with_its_heavy_atom(flat: tuple[CrystalModel, Arrangement]) -> None:
    """Where its oxygen was moved by 0.4 Å; cells that are all alike keep their slots, and columns without atoms go."""
    model, arrangement = flat
    cell = model.cell(arrangement)
    moved = np.array([[0.0, 0.02, 0.0], [0.0, -0.38, 0.0], [0.0, 0.0, 0.01]])
    polished = replace(cell, positions_A=cell.positions_A + moved)
    after, found = model.settled(arrangement, polished)
    np.testing.assert_allclose(after.cell(found).positions_A[0], polished.positions_A[0], atol=0.03)
    np.testing.assert_allclose(after.cell(found).positions_A[2], polished.positions_A[2], atol=1e-9)
    np.testing.assert_allclose(after.even_matter, model.even_matter, rtol=1e-9)
    assert found.same_as(arrangement)
    kept = {name: getattr(arrangement, name)[2:] for name in ("column", "number", "depth_A", "slot", "occupied")}
    alone = replace(arrangement, **kept)
    after, found = model.settled(alone, model.cell(alone))
    assert len(after.columns) == 1
    assert found.column.tolist() == [0]


def test_atoms_are_too_near_by_their_distance_in_space() -> None:
    """A shift brings a neighbour's atom beside one that would be half a period away without it."""
    columns = Columns(np.array([[9.0, 0.0], [0.0, 9.0]]), np.zeros(2), np.array([[0.0, 0.0], [0.9, 0.0]]), np.ones((2, 1)))
    slots = replace(make_slots(None, 8, 0.5), width_A=np.zeros(8))  # eight slots of a period of 4 Å
    level, shifted = (too_near(columns, slots, 4.0, np.array([s, 0.0])) for s in (0.0, 0.5))
    assert level[0, 0, 1, 0]  # 0.9 Å apart
    assert not level[0, 0, 1, 4]  # and 2 Å deeper
    assert not shifted[0, 0, 1, 0]  # the nearest copy is that of the cell before, 2 Å higher
    assert shifted[0, 0, 1, 4]
    assert shifted[1, 4, 0, 0]
    for near in (level, shifted):
        assert not near[0, 2, 0, 2]


@pytest.mark.parametrize("which", ["flat", "shifted"])
def test_a_score_is_the_gradient_of_an_expansion(which: str, request: pytest.FixtureRequest) -> None:
    model, arrangement = request.getfixturevalue(which)
    phase, some = model.phase(arrangement), np.array([0, 4, 5])
    _, gradient, _ = quadratic(model.waves, phase, model.sources, some, far=range(len(model.sources)))
    assert distance(model.score(phase, some), gradient) < 1e-3


def test_the_surplus_of_noise_is_none_and_of_an_error_is_its_misfit(flat: tuple[CrystalModel, Arrangement]) -> None:
    """Drawn scores of a known covariance: no surplus on average, its deviation as stated; with a mean, that of its norm."""
    model, _ = flat
    rng, groups, runs = np.random.default_rng(0), 20, 300
    count = model.even_matter.size
    root = rng.normal(size=(count, count)) * 30
    fisher = root @ root.T
    wrong = 1.2 * fisher  # an estimate
    error = np.linalg.solve(root.T, rng.normal(size=count)) * 3
    noise = rng.normal(size=(runs, groups, count)) @ root.T / np.sqrt(groups)
    found = np.array([model.surplus_of(scores, wrong) for scores in noise])
    assert abs(found[:, 0].mean()) < 3 * found[:, 0].std() / np.sqrt(runs)
    assert found[:, 0].std() == pytest.approx(found[0, 1] / 1.2, rel=0.15)
    shifted = np.array([model.surplus_of(scores + fisher @ error / groups, fisher) for scores in noise])
    assert shifted[:, 0].mean() == pytest.approx(error @ fisher @ error / 2, rel=0.1)
