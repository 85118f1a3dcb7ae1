"""The sampler of occupations against exact enumeration, and the search against planted answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mepdiff_core import occupation
from mepdiff_core.element_features import element_table
from mepdiff_core.occupation import Chain, Problem

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SWEEPS = 9_000


def toy(
    seed: int,
    slots: int,
    first_cost: float,
    elements: int = 2,
    coupling: float = 0.0,
    heavy: tuple[int, ...] = (0,),
) -> Problem:
    """Two columns, a random positive definite curvature, one pair of slots too near within a column and one across."""
    rng = np.random.default_rng(seed)
    n = 2 * (slots + 1) + len(heavy) * slots * (slots + 1) // 2
    waves = rng.normal(size=(n + 4, n))
    near = np.zeros((2, slots, 2, slots), bool)
    near[0, 0, 0, 1] = near[0, 1, 0, 0] = True
    near[0, 2, 1, 2] = near[1, 2, 0, 2] = True
    bins = np.eye(slots)
    bins[0, 1] = 0.5  # an atom there lies in two
    return Problem(
        misfit=3.0,
        gradient=0.8 * rng.normal(size=n) - first_cost / 4 - 0.6 * coupling,
        curvature=waves.T @ waves / (n + 4) + coupling,  # the columns know of each other
        centre=rng.uniform(0.0, 0.4, (2, slots + 1)),
        heavy=heavy,
        bins=bins,
        table=rng.uniform(0.5, 1.5, (elements, 2)),
        element_cost=rng.uniform(0.0, 0.5, elements),
        slot_cost=rng.uniform(-0.3, 0.3, slots),
        first_cost=first_cost,
        near=near,
    )


def parameters(problem: Problem, label: Labels) -> Array:
    """Of (columns, slots) labels, one by one, as ``Problem`` defines them."""
    columns = len(label)
    bins, features = problem.bins.shape[1], problem.table.shape[1]
    matter = np.zeros((columns, bins))
    others = np.zeros((columns, features - 1))
    for column, slot in zip(*np.nonzero(label), strict=True):
        atom = problem.table[label[column, slot] - 1]
        matter[column] += atom[0] * problem.bins[slot]
        others[column] += atom[1:] * problem.bins[slot].sum()
    matter -= problem.centre[:, :bins]
    others -= problem.centre[:, bins:]
    both = [
        matter[column, i] * matter[column, j] / (2 if i == j else 1)
        for column in problem.heavy
        for i in range(bins)
        for j in range(i, bins)
    ]
    return np.concatenate([matter.ravel(), others.ravel(), both])


def energies(problem: Problem, labels: Labels) -> Array:
    """(n,) energies of (n, columns, slots) labels, as ``Problem`` defines them; infinite where two atoms are too near."""
    n = len(labels)
    taken = labels > 0
    x = np.array([parameters(problem, label) for label in labels])
    energy = problem.misfit + x @ problem.gradient
    energy += 0.5 * np.einsum("na,ab,nb->n", x, problem.curvature, x, optimize=True)
    energy += np.concatenate([[0.0], problem.element_cost])[labels].sum((1, 2)) + (taken * problem.slot_cost).sum((1, 2))
    for element in range(1, len(problem.table) + 1):
        energy += problem.first_cost * (labels == element).any((1, 2))
    flat = taken.reshape(n, -1).astype(float)
    clashes = np.einsum("na,ab,nb->n", flat, problem.near.reshape(flat.shape[1], -1).astype(float), flat, optimize=True)
    return np.where(clashes > 0, np.inf, energy)


def boltzmann(problem: Problem) -> tuple[Labels, Array]:
    """Every arrangement and its probability at a temperature of 1 nat."""
    columns, slots = problem.near.shape[:2]
    labels = np.array(list(product(range(len(problem.table) + 1), repeat=columns * slots))).reshape(-1, columns, slots)
    energy = energies(problem, labels)
    weight = np.exp(energy.min() - energy)
    return labels, weight / weight.sum()


def scratch(problem: Problem, label: Labels) -> float:
    return float(energies(problem, label[None])[0])


TWINS = {0: (1,), 1: (0,)}


@pytest.mark.parametrize(
    ("seed", "most", "first_cost", "coupling", "longest", "twins"),
    [(6, 3, 3.0, 0.4, 40_000, {}), (1, 2, 1.5, 0.0, 20, {}), (6, 3, 3.0, 0.4, 40_000, TWINS)],
    ids=["coupled columns", "short lists", "twins"],
)
def test_an_exact_chain_samples_boltzmanns_distribution(
    seed: int,
    most: int,
    first_cost: float,
    coupling: float,
    longest: int,
    twins: dict[int, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Total variation from exact enumeration: by the elements and by the atoms in each column < 0.04, by
    arrangement < 1.7 times what as many independent draws leave; lists that hold every arrangement of a column, or few."""
    monkeypatch.setattr(occupation, "LONGEST_LIST", longest)
    monkeypatch.setattr(occupation, "BOX", 2)
    slots = 3
    problem = replace(toy(seed, slots, first_cost, coupling=coupling), twins=twins)
    labels, probability = boltzmann(problem)
    elements = len(problem.table)
    digits = (elements + 1) ** np.arange(2 * slots)[::-1]
    chain = Chain(problem, np.zeros((2, slots), np.int64), np.random.default_rng(seed), most=most, exact=True)
    visited = np.empty(SWEEPS, np.int64)
    for i in range(SWEEPS):
        chain.sweep(1.0)
        visited[i] = chain.label.ravel() @ digits
    seen = np.bincount(visited, minlength=len(labels)) / SWEEPS

    def variation(group: Labels) -> float:
        return 0.5 * float(np.abs(np.bincount(group, seen) - np.bincount(group, probability)).sum())

    held = sum((labels == e).any(2) * 2 ** (e - 1) for e in range(1, elements + 1)) @ np.array([1, 2**elements])
    count = (labels > 0).sum(2) @ np.array([1, slots + 1])
    assert variation(held) < 0.04
    assert variation(count) < 0.04
    independent = 0.5 * float(np.sqrt(2 / np.pi * probability * (1 - probability) / SWEEPS).sum())
    assert variation(np.arange(len(labels))) < 1.7 * independent
    assert seen[probability == 0].sum() == 0


def test_the_toy_holds_what_short_lists_lack() -> None:
    """Else the test above would not tell a chain that leaves such arrangements for good."""
    labels, probability = boltzmann(toy(1, 3, 1.5))
    mixed = (labels == 1).any(2) & (labels == 2).any(2)
    assert probability[mixed.any(1)].sum() > 0.1
    assert probability[((labels > 0).sum(2) > 2).any(1)].sum() > 0.1


def test_candidates_are_the_conditional_of_one_slot() -> None:
    problem = toy(8, 3, 1.0, elements=4)
    label = np.array([[0, 2, 0], [1, 3, 0]])
    assert np.isfinite(scratch(problem, label))
    chain = Chain(problem, label, np.random.default_rng(0))
    for column, slot in ((0, 1), (1, 0), (1, 1)):
        trials = np.repeat(label[None], 4, axis=0)
        trials[:, column, slot] = np.arange(1, 5)
        weight = np.exp(-energies(problem, trials))
        assert chain.candidates(column, slot) == pytest.approx(weight / weight.sum(), rel=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_energy_after_many_sweeps_is_that_from_scratch(exact: bool) -> None:
    problem, _ = planted(0, columns=5, slots=6)
    chain = Chain(problem, np.zeros((5, 6), np.int64), np.random.default_rng(1), exact=exact)
    met = set()
    for temperature in np.geomspace(1000, 1, 30):
        chain.sweep(float(temperature))
        now = chain.now()
        assert now.energy == pytest.approx(scratch(problem, now.label), rel=1e-9, abs=1e-6)
        met.add(round(now.energy, 3))
    assert len(met) > 10


@pytest.mark.parametrize("exact", [False, True])
def test_forbidden_neighbours_and_elements_never_occur(exact: bool) -> None:
    """Hot, and with every slot worth an atom: what is not forbidden fills up."""
    problem = toy(3, 4, 0.0, elements=3)
    pull = replace(problem, gradient=problem.gradient - 300.0, element_cost=np.array([0.1, np.inf, 0.2]))
    chain = Chain(pull, np.zeros((2, 4), np.int64), np.random.default_rng(2), most=4, exact=exact)
    taken, elements = np.zeros((2, 4), bool), set()
    for _ in range(300):
        chain.sweep(300.0)
        label = chain.now().label
        occupied = (label > 0).ravel()
        assert not problem.near.reshape(8, 8)[np.ix_(occupied, occupied)].any()
        taken |= label > 0
        elements.update(np.unique(label))
    assert taken.all()
    assert elements == {0, 1, 3}


@pytest.mark.parametrize("exact", [False, True])
def test_the_seed_makes_it_repeatable(exact: bool) -> None:
    problem, _ = planted(0, columns=3, slots=6)
    start = np.zeros((3, 6), np.int64)
    walks = []
    for seed in (5, 5, 6):
        chain = Chain(problem, start, np.random.default_rng(seed), exact=exact)
        walk = []
        for _ in range(20):
            chain.sweep(300.0)
            walk.append(chain.now().label)
        walks.append(np.array(walk))
    assert np.array_equal(walks[0], walks[1])
    assert not np.array_equal(walks[0], walks[2])
    assert not start.any()


def planted(
    seed: int, columns: int, slots: int, each: tuple[int, ...] = (1, 2), strength: float = 300.0
) -> tuple[Problem, Labels]:
    """A misfit of 0 at an arrangement whose columns hold ``each`` of the elements in use; other misfits are hundreds."""
    rng = np.random.default_rng(seed)
    table = element_table().features[[3, 6, 8, 11, 14, 20, 22, 26, 38, 56]]
    features = table.shape[1]
    use = rng.choice(len(table), max(each), replace=False) + 1
    label = np.zeros((columns, slots), np.int64)
    for row in label:
        row[rng.choice(slots, len(each), replace=False)] = use[np.array(each) - 1]
    n = columns * (slots + features - 1)
    waves = rng.normal(size=(4 * n, n)) * np.sqrt(strength / (2 * n))
    problem = Problem(
        misfit=0.0,
        gradient=np.zeros(n),
        curvature=waves.T @ waves,
        centre=np.zeros((columns, slots + features - 1)),
        heavy=(),
        bins=np.eye(slots),
        table=table,
        element_cost=np.full(len(table), 6.0),
        slot_cost=np.zeros(slots),
        first_cost=5.0,
        near=np.zeros((columns, slots, columns, slots), bool),
    )
    x = parameters(problem, label)
    gradient = -problem.curvature @ x
    problem = replace(problem, misfit=-0.5 * float(gradient @ x), gradient=gradient)
    return problem, label


@pytest.mark.parametrize(("columns", "each"), [(12, (1, 1)), (8, (1, 2))], ids=["one element", "two elements"])
def test_search_finds_what_was_planted(columns: int, each: tuple[int, ...]) -> None:
    """From nothing, in one of three tries; the planted arrangement is the best there is."""
    problem, label = planted(4, columns, 6, each)
    found = []
    for seed in range(3):
        chain = Chain(problem, np.zeros_like(label), np.random.default_rng(seed))
        found.append(chain.search(300.0, 1.0, 60))
        assert found[-1].energy == pytest.approx(scratch(problem, found[-1].label), rel=1e-9, abs=1e-6)
    best = min(found, key=lambda f: f.energy)
    assert best.energy <= scratch(problem, label) + 1e-6
    assert np.array_equal(best.label, label)


def test_a_column_too_full_for_any_list_is_mended() -> None:
    """Five atoms of three elements in twelve slots, one of them wrong."""
    problem, label = planted(1, 1, 12, (1, 2, 3, 1, 2))
    start = label.copy()
    slot = int(np.flatnonzero(label[0])[2])
    start[0, slot] = 0
    start[0, (np.flatnonzero(label[0] == 0))[0]] = label[0, slot]
    best = Chain(problem, start, np.random.default_rng(0)).search(30.0, 1.0, 60)
    assert best.energy <= scratch(problem, label) + 1e-6


def test_a_chain_leaves_the_other_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products are made by one thread, and who asked has as many as before."""

    def threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    seen: list[int] = []
    descend, draw = Chain._descend, Chain._draw_element
    monkeypatch.setattr(Chain, "_descend", lambda self: (seen.extend(threads()), descend(self)))
    monkeypatch.setattr(Chain, "_draw_element", lambda self, t: (seen.extend(threads()), draw(self, t)))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        Chain(toy(0, 3, 0.5), np.zeros((2, 3), np.int64), np.random.default_rng(0)).search(10.0, 1.0, 2)
        assert threads() == before
    assert 2 in before
    assert set(seen) == {1}


@pytest.mark.parametrize("twins", [{}, TWINS], ids=["single columns", "twins"])
def test_twins_pass_an_atom_on(twins: dict[int, tuple[int, ...]]) -> None:
    """Columns whose matter together costs hundreds of nats to change, and whose it is two: neither can let an atom go before
    the other has it, and one beside the other is too near."""
    slots, elements, features = 5, 3, element_table().features.shape[1]
    total, whose = np.array([1.0, 1.0]), np.array([1.0, -1.0])
    of_slots = np.kron(300 * np.outer(total, total) + 3 * np.outer(whose, whose), np.eye(slots))
    curvature = np.zeros((2 * (slots + features - 1),) * 2)
    curvature[: 2 * slots, : 2 * slots] = of_slots
    problem, _ = planted(0, 2, slots)
    near = np.tile(np.eye(slots, dtype=bool)[None, :, None], (2, 1, 2, 1))
    near[[0, 1], :, [0, 1], :] = False
    problem = replace(
        problem, curvature=curvature, near=near, table=problem.table[:elements], element_cost=np.zeros(elements), twins=twins
    )
    label = np.zeros((2, slots), np.int64)
    label[0, 1] = label[1, 4] = 1
    x = parameters(problem, label)
    problem = replace(problem, gradient=-curvature @ x, misfit=0.5 * float(x @ curvature @ x))
    found = Chain(problem, label[::-1], np.random.default_rng(0)).search(1.0, 1.0, 40)
    assert np.array_equal(found.label, label if twins else label[::-1])


def test_search_never_ends_worse_than_it_began() -> None:
    problem, label = planted(4, 4, 6)
    best = Chain(problem, label, np.random.default_rng(0)).search(1e4, 1e3, 3)
    assert np.array_equal(best.label, label)
    assert best.energy == pytest.approx(scratch(problem, label))
