"""The crystal solver from scan to atoms; its truths are abTEM's, drawn at 0.1 Å as its own atoms are."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mepdiff_core import atoms
from mepdiff_core.atoms import run_crystal
from mepdiff_core.column_search import ColumnSearch, what_is_known
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystals import Crystal
from mepdiff_core.depth import Arrangement, Repeat, make_slots, periods_like, shortest_repeat
from mepdiff_core.errors import InputError, Refused
from mepdiff_core.metrics import expected_deviance, volume_metrics
from mepdiff_core.scan import Scan
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.stacking import Stacking
from mepdiff_core.states import CrystalState
from mepdiff_core.unit_cell import from_crystal, lattice_error, match

A = 3.905
PEROVSKITE = Crystal(
    "SrTiO3",
    A * np.eye(3),
    np.array([38, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    "221 Pm-3m",
)
ORIGIN = (1.1, 0.7, 2.3)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(PEROVSKITE, SimulationConfig(scan_shape=(14, 14), origin_A=ORIGIN, seed=3))


@pytest.fixture(scope="module")
def states(scan: Scan) -> list[CrystalState]:
    return list(run_crystal(scan, CrystalConfig(rounds=2, patterns=24, samples=2)))


@pytest.mark.slow
def test_a_crystal_is_solved_from_its_scan_alone(scan: Scan, states: list[CrystalState]) -> None:
    last = states[-1]
    assert scan.truth is not None
    assert scan.thickness_A is not None
    assert volume_metrics(last.volume, scan.truth.phase)["ssim_2d"] > 0.97
    assert last.cell is not None
    true = from_crystal(PEROVSKITE, "c", ORIGIN, scan.thickness_A)
    assert lattice_error(last.cell, true) < 0.005
    agreement = match(last.cell, true, (scan.thickness_A, 6, 6), (0, 0, 0), depth_cutoff_A=1.6)
    assert agreement.matched == 1
    assert agreement.right_species >= 0.8  # titanium and its neighbours scatter nearly alike
    assert agreement.rms_in_plane_A < 0.03
    assert "counting statistics" in last.verdict
    assert {8, 38} <= set(last.cell.numbers.tolist())


@pytest.mark.slow
def test_states_tell_how_it_forms(scan: Scan, states: list[CrystalState]) -> None:
    stages = [state.stage for state in states]
    assert [s for i, s in enumerate(stages) if i == 0 or s != stages[i - 1]] == [
        "projection",
        "lattice",
        "columns",
        "depth",
        "posterior",
    ]
    assert [state.step for state in states] == list(range(1, len(states) + 1))
    assert all(state.total >= state.step for state in states)
    assert all(state.note for state in states)
    last = states[-1]
    steps = last.steps
    assert steps is not None
    assert steps.lattice_A is not None
    assert abs(np.linalg.det(steps.lattice_A)) == pytest.approx(A**2, rel=0.01)
    assert steps.places is not None
    assert steps.periods_A is not None
    assert len(steps.places) == 4  # strontium, titanium with oxygen, two oxygens
    assert np.nanmin(np.abs(steps.periods_A - A)) < 0.1
    assert np.isnan(steps.periods_A).sum() == 1
    assert last.samples is not None
    assert last.samples.shape == (2, *last.volume.shape)
    assert last.cell is not None
    assert np.isfinite(last.cell.spread_A).all()
    assert all(0.99 <= sum(p for _, p in c) <= 1.01 for c in last.cell.candidates)


@pytest.mark.slow
@pytest.mark.parametrize("sampling_A", [0.1, 0.05])
def test_the_patterns_say_how_atoms_were_drawn(scan: Scan, sampling_A: float) -> None:
    """abTEM at 0.1 Å spreads atoms over pixels as wide as the model's; at 0.05 Å it puts them nearly where they are."""
    if sampling_A < 0.1:
        finer = SimulationConfig(scan_shape=(14, 14), origin_A=ORIGIN, seed=3, sampling_A=sampling_A)
        scan = simulate_scan(PEROVSKITE, finer)
    columns = ColumnSearch(scan, CrystalConfig(), "cpu").columns()
    notes = []
    while True:
        try:
            notes.append(next(columns).note)
        except StopIteration as end:
            model = end.value
            break
    assert model.waves.imaging.exact == (sampling_A < 0.1)
    assert notes[-1].startswith("atoms are drawn where they are") == (sampling_A < 0.1)


SOLVED_SOON = CrystalConfig(rounds=2, patterns=12, composition="SrTiO3", period_A=A)


def rounds_of(scan: Scan, config: CrystalConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Repeat]:
    """What is said until the rounds are over, and what they found."""
    ends: list[Repeat] = []
    monkeypatch.setattr(atoms._Solver, "finish", lambda _self, _model, repeat, _found: ends.append(repeat) or ())
    notes = " ".join(state.note for state in run_crystal(scan, config))
    return notes, ends[0]


@pytest.mark.slow
def test_a_hopeless_cell_is_not_searched_again(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds show that neither a third nor better places will help; a smaller cell is asked for if little repeats."""
    asked: list[object] = []
    monkeypatch.setattr(atoms, "fold", asked.append)
    monkeypatch.setattr(atoms, "FEW_PERIODS", 9)
    monkeypatch.setattr(atoms, "doubtful", lambda *_: True)
    monkeypatch.setattr(atoms, "SHIFTING", 0.0)
    monkeypatch.setattr(atoms, "HOPELESS_NATS", -np.inf)
    notes, _ = rounds_of(scan, SOLVED_SOON, monkeypatch)
    assert "round 2" in notes
    assert "round 3" not in notes
    assert "places refined" not in notes
    assert len(asked) == 1


@pytest.mark.slow
def test_a_doubted_answer_is_kept_where_its_places_are_refined(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a period sought that is longer than the specimen is thick where one repeats three times."""
    monkeypatch.setattr(atoms, "fold", lambda _: pytest.fail("a smaller cell was asked for"))
    monkeypatch.setattr(atoms, "doubtful", lambda *_: True)
    notes, repeat = rounds_of(scan, SOLVED_SOON, monkeypatch)
    assert "round 3: what each atom" in notes
    assert "places refined, round 1: what each atom" in notes
    assert "places refined, round 5" not in notes
    assert "from matter" not in notes
    assert repeat.arrangement.period_A == A  # as it was told, though others would put the atoms into the same slices
    assert repeat.periods_A is None


def change_columns(monkeypatch: pytest.MonkeyPatch, change: Callable[[atoms._Solver, CrystalModel], CrystalModel]) -> None:
    """What the search for columns found, made worse."""
    search = atoms._Solver.columns

    def changed(solver: atoms._Solver) -> Generator[CrystalState, None, CrystalModel | None]:
        model = yield from search(solver)
        assert model is not None
        return change(solver, model)

    monkeypatch.setattr(atoms._Solver, "columns", changed)


@pytest.mark.slow
def test_the_next_stacking_is_tried_where_the_best_explains_too_little(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, the one of a wrong period leaves the patterns unexplained."""

    def stacked(solver: atoms._Solver, model: CrystalModel) -> CrystalModel:
        wrong, right = (replace(model, stacking=Stacking(period, np.zeros(2), 0.0)) for period in (1.25 * A, A))
        solver.rivals = [right]
        return wrong

    change_columns(monkeypatch, stacked)
    monkeypatch.setattr(atoms, "HOPELESS_NATS", np.inf)
    monkeypatch.setattr(atoms, "MORE_ROUNDS", 0)
    notes, repeat = rounds_of(scan, CrystalConfig(rounds=2, composition="SrTiO3"), monkeypatch)
    assert "next stacking, round 2" in notes
    assert repeat.arrangement.period_A == pytest.approx(A, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("split", [True, False])
def test_a_heavy_atom_told_as_two_is_put_together(split: bool, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strontium as titanium with oxygen 1.2 Å deeper; where nothing is split, nothing is merged."""
    attempt = atoms._Solver._placed_attempt

    def told(
        solver: atoms._Solver, model: CrystalModel, name: str = "round", best: Arrangement | None = None
    ) -> Generator[CrystalState, None, atoms._Attempt]:
        made = yield from attempt(solver, model, name, best)
        if best is not None:
            return made
        found = made.best
        number, heavy = found.number.copy(), int(np.argmax(found.number))
        number[heavy] = 22
        slot = (found.slot[heavy] + 2) % made.model.bins
        apart = replace(
            found,
            column=np.append(found.column, found.column[heavy]),
            number=np.append(number, 8),
            depth_A=np.append(found.depth_A, (found.depth_A[heavy] + 1.2) % A),
            slot=np.append(found.slot, slot),
            occupied=np.concatenate([found.occupied, np.eye(made.model.bins)[[slot]]]),
        )
        return replace(made, best=apart if split else found, right=False)

    change_columns(monkeypatch, lambda _, model: replace(model, stacking=Stacking(A, np.zeros(2), 0.0)))
    monkeypatch.setattr(atoms._Solver, "_placed_attempt", told)
    notes, repeat = rounds_of(scan, CrystalConfig(rounds=2, composition="SrTiO3"), monkeypatch)
    assert ("atoms merged, round 1" in notes) == split
    assert sorted(repeat.arrangement.number) == [8, 8, 8, 22, 38]


@pytest.mark.slow
def test_free_matter_leads_to_atoms_where_even_columns_do_not(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of oxygen alone are missing, which no round around the others adds."""

    def fewer(_solver: atoms._Solver, model: CrystalModel) -> CrystalModel:
        columns = model.columns.sorted()
        assert len(columns) == 4
        return replace(model, columns=replace(columns, fractional=columns.fractional[:2], amounts=columns.amounts[:2]))

    change_columns(monkeypatch, fewer)
    monkeypatch.setattr(atoms, "doubtful", lambda *_: True)
    monkeypatch.setattr(atoms, "EXPLAINED_NATS", -np.inf)
    monkeypatch.setattr(atoms, "HOPELESS_NATS", np.inf)
    notes, repeat = rounds_of(scan, SOLVED_SOON, monkeypatch)
    assert "places refined, round 1" in notes
    assert "from matter, round 1" in notes
    assert notes.rindex("places refined, round 1") > notes.index("from matter, round 1")
    assert sorted(repeat.arrangement.number) == [8, 8, 8, 22, 38]


@pytest.mark.slow
def test_places_are_refined_where_no_start_explains_the_patterns(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oxygen column 0.25 Å from where it is, which no search among columns mends."""

    def displaced(_solver: atoms._Solver, model: CrystalModel) -> CrystalModel:
        columns = model.columns.sorted()
        columns.fractional[3, 0] += 0.25 / A
        return replace(model, columns=columns)

    ends: list[CrystalModel] = []
    change_columns(monkeypatch, displaced)
    monkeypatch.setattr(atoms._Solver, "finish", lambda _self, model, _repeat, _found: ends.append(model) or ())
    monkeypatch.setattr(atoms, "HOPELESS_NATS", np.inf)
    monkeypatch.setattr(atoms._Solver, "_freed_attempt", lambda solver, model: solver._attempt(model))
    notes = " ".join(state.note for state in run_crystal(scan, SOLVED_SOON))
    assert "places refined, round 1" in notes
    places = ends[0].columns.sorted().fractional
    # titanium and the oxygens beside it, from strontium, in halves of the cell
    away = (2 * (places - places[0]) + 0.5) % 2 - 0.5
    assert sorted((np.round(away, 1) + 0.0).tolist()) == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    assert np.abs(away - np.round(away)).max() < 0.02


def test_noise_without_a_crystal_is_refused_in_words(scan: Scan) -> None:
    shuffled = np.random.default_rng(0).permutation(scan.counts.reshape(-1, *scan.counts.shape[2:]))
    last = list(run_crystal(replace(scan, counts=shuffled.reshape(scan.counts.shape), truth=None), CrystalConfig(rounds=1)))[
        -1
    ]
    assert "no lattice" in last.verdict.lower() or "not explained" in last.verdict or "no columns" in last.verdict.lower()


def test_a_lattice_that_does_not_fit_is_refused_with_the_distance(scan: Scan) -> None:
    config = CrystalConfig(lattice_A=(5.6, 7.1), angle_deg=90.0)
    with pytest.raises(Refused, match=r"does not fit the projection: the nearest that does is .* % off"):
        list(run_crystal(scan, config))


def test_start_volumes_and_checkpoints_are_refused(scan: Scan) -> None:
    with pytest.raises(InputError, match="takes no start volume"):
        next(run_crystal(scan, CrystalConfig(), start=np.zeros((8, 10, 10))))
    with pytest.raises(InputError, match="cannot be continued"):
        next(run_crystal(scan, CrystalConfig(), checkpoint={"step": np.array(1)}))


def test_a_start_file_gives_lattice_period_and_elements() -> None:
    path = Path(__file__).parent.parent / "src/mepdiff_core/data/SrTiO3.cif"
    known = what_is_known(CrystalConfig(start=str(path), axis="a"), 12.8)
    assert known.elements == (8, 22, 38)
    assert known.lattice_A is not None
    assert known.period_A == pytest.approx(A, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(known.lattice_A, axis=1), known.period_A, rtol=1e-6)


@pytest.mark.parametrize("period", [2.7, float(np.nextafter(2.7, 0)), 3.905, 4.1 + 2 / 7, 9.05, 12.79])
def test_slots_are_the_depths_that_share_their_slices(period: float) -> None:
    slots = make_slots(period, 8, 1.6)
    for depth, width, row in zip(slots.depth_A, slots.width_A, slots.slices, strict=True):
        for shift in (-0.499 * width, 0.0, 0.499 * width):
            copies = np.arange(depth + shift, 12.8, period)
            expected = np.bincount((copies / 1.6).astype(int), minlength=8)
            np.testing.assert_array_equal(row, expected)
    ends = [0.0, *(slots.depth_A + slots.width_A / 2), period]  # nothing is left out but what is narrow
    starts = [0.0, *(slots.depth_A - slots.width_A / 2), period]
    assert np.max(np.subtract(starts[1:], ends[:-1])) < 0.05
    assert slots.width_A.sum() > period - 0.5
    assert len(np.unique(slots.slices, axis=0)) == len(slots.slices)


def test_without_a_period_each_slice_is_a_slot() -> None:
    slots = make_slots(None, 8, 1.6)
    np.testing.assert_array_equal(slots.slices, np.eye(8))
    np.testing.assert_allclose(slots.depth_A, np.arange(8) * 1.6 + 0.8)


def test_expected_deviance_is_that_of_poisson_draws() -> None:
    rng = np.random.default_rng(0)
    for mean in (1e-3, 0.03, 0.5, 4.0, 60.0, 900.0):
        draws = rng.poisson(mean, 2_000_000).astype(float)
        positive = np.where(draws > 0, draws, 1.0)
        sampled = 2 * (mean - draws + draws * np.log(positive / mean))
        tolerance = 5 * sampled.std() / np.sqrt(len(draws)) + 1e-3 * sampled.mean()
        assert expected_deviance(np.array([mean]))[0] == pytest.approx(sampled.mean(), abs=tolerance)


def test_the_period_is_the_one_that_leaves_depths_most_room() -> None:
    """Layers in slices 0, 3, 5 and 2, 4, 7 may lie anywhere in half a slice each if the period is 4 Å, in less if not."""
    column, slot = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 3, 5, 2, 4, 7])
    number = np.array([22, 38])[column]
    told = Arrangement(None, column, number, slot * 1.6 + 0.8, slot, np.eye(8)[slot], 0.0, 36.0)
    repeat = shortest_repeat(told, 8, 1.6)
    assert repeat.periods_A == pytest.approx((3.75, 4.75), abs=0.011)
    assert repeat.arrangement.period_A == pytest.approx(4.0, abs=0.011)
    np.testing.assert_allclose(repeat.arrangement.depth_A, [1.2, 3.6], atol=0.03)
    assert repeat.arrangement.same_as(told)


@pytest.mark.parametrize("first", [0.3, 1.567])
@pytest.mark.parametrize("period", [3.905, 3.945, 5.41, 9.05])
def test_the_shortest_period_is_found_from_the_slices(period: float, first: float) -> None:
    # three columns of one atom a period, told slice by slice, as if there were no period
    depths = (first, first + period / 2, first + 0.6 + period / 3)
    rows = [(column, int(z / 1.6)) for column, start in enumerate(depths) for z in np.arange(start % period, 12.8, period)]
    column, slot = (np.array(values, np.int64) for values in zip(*rows, strict=True))
    number = np.array([38, 22, 8])[column]
    told = Arrangement(None, column, number, slot * 1.6 + 0.8, slot, np.eye(8)[slot], 0.0, 6.0 * len(slot))
    repeat = shortest_repeat(told, 8, 1.6)
    assert repeat.periods_A is not None
    low, high = repeat.periods_A
    assert len(repeat.arrangement.number) == 3
    assert low - 0.011 <= period <= high + 0.011
    assert repeat.arrangement.same_as(told)


def test_periods_like_what_was_found_hold_the_half_of_any_that_fits() -> None:
    """LaB6 in cells of 8.78 Å fits from 8.0 to 9.5 Å: its own 4.16 Å is no half of 8.78 Å, but of one that fits."""
    slots = make_slots(8.78, 8, 1.6)
    slot = np.array([int(np.argmin(np.abs(slots.depth_A - depth))) for depth in (3.61, 7.2)])
    found = Arrangement(
        8.78, np.zeros(2, np.int64), np.full(2, 57), slots.depth_A[slot], slot, slots.slices[slot], 0.0, 12.0
    )
    periods = periods_like([found, replace(found, period_A=None)], 8, 1.6)
    assert np.abs(periods - 4.16).min() < 0.03
    assert np.abs(periods - 8.78).min() < 0.03
    assert periods.min() >= 2.2
    assert periods.max() < 12.8
    assert not len(periods_like([replace(found, period_A=None)], 8, 1.6))
