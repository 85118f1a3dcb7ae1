"""The sampler of occupations against exact enumeration, and the search against planted answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mepdiff_core.occupation import Chain, Problem

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SWEEPS = 10_000


def toy(seed: int, slots: int, elements: int, first_cost: float = 1.0) -> Problem:
    """Two columns, a random positive definite curvature, one pair of slots too near within a column and one across."""
    rng = np.random.default_rng(seed)
    features = 2
    shape = (2, slots, features)
    n = 2 * slots * features
    waves = rng.normal(size=(n + 4, n))
    near = np.zeros((2, slots, 2, slots), bool)
    near[0, 0, 0, 1] = near[0, 1, 0, 0] = True
    near[0, 2, 1, 2] = near[1, 2, 0, 2] = True
    return Problem(
        misfit=3.0,
        gradient=0.8 * rng.normal(size=shape),
        curvature=(waves.T @ waves / (n + 4)).reshape(*shape, *shape),
        table=rng.uniform(0.5, 1.5, (elements, features)),
        element_cost=rng.uniform(0.0, 0.5, elements),
        slot_cost=rng.uniform(-0.3, 0.3, slots),
        first_cost=first_cost,
        near=near,
    )


def energies(problem: Problem, labels: Labels) -> Array:
    """(n,) energies of (n, columns, slots) labels, as ``Problem`` defines them; infinite where two atoms are too near."""
    n, slots = len(labels), problem.gradient.size
    taken = labels > 0
    x = np.concatenate([np.zeros((1, problem.table.shape[1])), problem.table])[labels].reshape(n, slots)
    energy = problem.misfit + x @ problem.gradient.ravel()
    energy += 0.5 * np.einsum("na,ab,nb->n", x, problem.curvature.reshape(slots, slots), x, optimize=True)
    energy += np.concatenate([[0.0], problem.element_cost])[labels].sum((1, 2)) + (taken * problem.slot_cost).sum((1, 2))
    for element in range(1, len(problem.table) + 1):
        energy += problem.first_cost * (labels == element).any((1, 2))
    flat = taken.reshape(n, -1).astype(float)
    clashes = np.einsum("na,ab,nb->n", flat, problem.near.reshape(flat.shape[1], -1).astype(float), flat, optimize=True)
    return np.where(clashes > 0, np.inf, energy)


def boltzmann(problem: Problem, temperature: float) -> tuple[Labels, Array]:
    """Every arrangement and its probability."""
    columns, slots, _ = problem.gradient.shape
    labels = np.array(list(product(range(len(problem.table) + 1), repeat=columns * slots))).reshape(-1, columns, slots)
    energy = energies(problem, labels)
    weight = np.exp(-(energy - energy.min()) / temperature)
    return labels, weight / weight.sum()


def scratch(problem: Problem, label: Labels) -> float:
    return float(energies(problem, label[None])[0])


def variation(a: Array, b: Array) -> float:
    return 0.5 * float(np.abs(a - b).sum())


@pytest.mark.parametrize(
    ("seed", "slots", "elements", "most", "temperature"), [(5, 3, 3, 3, 0.8), (0, 3, 2, 1, 1.0), (2, 4, 2, 2, 0.7)]
)
def test_an_exact_chain_samples_boltzmanns_distribution(
    seed: int, slots: int, elements: int, most: int, temperature: float
) -> None:
    """Total variation: by arrangement within 1.5 of what as many independent draws leave; by which elements each column
    holds and how many atoms, within 0.03. Lists are longer than a column's arrangements, or (``most``) much shorter."""
    problem = toy(seed, slots, elements)
    labels, probability = boltzmann(problem, temperature)
    digits = (elements + 1) ** np.arange(2 * slots)[::-1]
    chain = Chain(problem, np.zeros((2, slots), np.int64), np.random.default_rng(seed), most=most, exact=True)
    visited = np.empty(SWEEPS, np.int64)
    for i in range(SWEEPS):
        chain.sweep(temperature)
        visited[i] = chain.now().label.ravel() @ digits
    seen = np.bincount(visited, minlength=len(labels)) / SWEEPS

    independent = 0.5 * float(np.sqrt(2 / np.pi * probability * (1 - probability) / SWEEPS).sum())
    assert variation(seen, probability) < 1.5 * independent
    held = sum(2 ** (e - 1) * (labels == e).any(2) for e in range(1, elements + 1))
    group = (held * (slots + 1) + (labels > 0).sum(2)) @ np.array([1, 64])
    assert len(np.unique(group)) > 20
    assert variation(np.bincount(group, seen), np.bincount(group, probability)) < 0.03
    mixed = (np.array([[len(np.unique(c[c > 0])) for c in label] for label in labels]) > 1).any(1)
    assert probability[mixed].sum() > 0.08  # arrangements that a list of single elements lacks
    assert float(seen[probability == 0].sum()) == 0
