"""All places that the atoms of a single column may take, each with its best elements: where they are few, nothing is missed.

A chain of a column at a time has no other columns to hold on to where there is one alone, and stays in the first
arrangement that explains much. For given places the misfit is a polynomial in the strengths of their few atoms, and an
arrangement costs some hundred multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
import numpy.typing as npt

from mepdiff_core.occupation import CLASH_NATS, Labels, Occupation, Problem, products

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MOST_SETS = 5_000
"""Of places; those of more atoms are left out."""
AT_ONCE = 100_000
"""Arrangements whose energies are computed together."""
FEW, EVERY = 30, 3
"""More elements than these are each third one where those of two atoms are improved together; single atoms have all."""
TURNS = 3
KEPT = 200
"""Sets of as many places, the best by elements improved one at a time, that pairs are tried in."""


def best_occupations(problem: Problem, metal: Mask, near_metals: Mask, count: int) -> list[Occupation]:
    """The ``count`` best sets of places of the one column with their elements, the best first.

    For each set of places elements are improved one at a time from alike, light ones, for the best two at a time: not all
    combinations are tried.

    Args:
        problem: energies; its column is followed to second order.
        metal: (elements,) which elements are metals; near_metals: (1, slots, 1, slots) whether two would be too near there.
        count: how many.
    """
    polynomial = _Polynomial.of(problem, metal, near_metals[0, :, 0, :])
    elements = np.arange(len(problem.table))
    some = elements if len(elements) <= FEW else elements[1::EVERY]
    found: list[Occupation] = []
    for places in _sets(problem.near[0, :, 0, :]):
        atoms = range(places.shape[1])
        singles, pairs = [((k,), some) for k in atoms], [(pair, some) for pair in combinations(atoms, 2)]
        light = np.full(places.shape, len(elements) // 8)
        chosen, energy = _improved(polynomial.at(places), light, singles)
        kept = np.argsort(energy)[:KEPT]
        places, chosen = places[kept], chosen[kept]
        chosen, energy = _improved(polynomial.at(places), chosen, [*pairs, *(((k,), elements) for k in atoms)])
        label = np.zeros((len(places), len(problem.slot_cost)), np.int64)
        np.put_along_axis(label, places, chosen + 1, 1)
        kinds = (np.diff(np.sort(chosen, axis=1), axis=1) > 0).sum(1) + 1
        energy += (label > 0) @ problem.slot_cost + problem.first_cost * kinds
        found += [Occupation(label[i][None], float(energy[i])) for i in np.argsort(energy)[:count]]
    return sorted(found, key=lambda o: o.energy)[:count]


def _improved(terms: _Terms, chosen: Labels, groups: Sequence[tuple[tuple[int, ...], Labels]]) -> tuple[Labels, Array]:
    """(sets, atoms) elements, improved for some atoms after the other, and what they cost.

    Args:
        terms: costs; chosen: elements to begin with.
        groups: atoms that are improved together, and among which elements.
    """
    chosen, energy = chosen.copy(), np.full(len(chosen), np.inf)
    for _ in range(TURNS):
        before = energy.copy()
        for atoms, among in groups:
            contents = np.array(np.meshgrid(*[among] * len(atoms), indexing="ij")).reshape(len(atoms), -1).T
            step = max(1, AT_ONCE // len(contents))
            for first in range(0, len(chosen), step):
                part = slice(first, first + step)
                trials = np.repeat(chosen[part, None], len(contents), 1)
                trials[:, :, list(atoms)] = contents
                costs = terms.energies(part, trials)
                best = costs.argmin(1)
                rows = np.arange(len(best))
                better = costs[rows, best] < energy[part]
                chosen[part] = np.where(better[:, None], trials[rows, best], chosen[part])
                energy[part] = np.where(better, costs[rows, best], energy[part])
        if not (energy < before - 1.0).any():
            break
    return chosen, energy


def _sets(near: Mask) -> list[Labels]:
    """(sets, atoms) slots without two too near, of one atom, of two, and so on while they are not too many."""
    sets, result, total = np.arange(len(near))[:, None], [], len(near)
    while len(sets) and total <= MOST_SETS:
        result.append(sets)
        rows, slots = np.nonzero(~near[sets].any(1) & (np.arange(len(near)) > sets[:, -1:]))
        sets = np.concatenate([sets[rows], slots[:, None]], axis=1)
        total += len(sets)
    return result


@dataclass(frozen=True)
class _Polynomial:
    """The misfit as a polynomial in the strengths of atoms, one in each slot, and in the other features of all together.

    Attributes: ``linear`` (terms,), ``square`` (terms, terms) of the terms 1, each strength, each other feature, and each
    product of two strengths; ``copies`` (slots,); ``near_metals`` (slots, slots); of the elements, ``table`` (elements,
    features), ``cost`` (elements,) nats an atom, ``metal`` (elements,).
    """

    linear: Array
    square: Array
    copies: Array
    near_metals: Mask
    table: Array
    cost: Array
    metal: Mask

    @classmethod
    def of(cls, problem: Problem, metal: Mask, near_metals: Mask) -> _Polynomial:
        bins, others = problem.bins.shape[1], problem.table.shape[1] - 1
        centre, slots = problem.centre[0], problem.bins

        def row(matter: Array, features: Array, second: Array) -> Array:
            return np.concatenate([matter, features, second])

        none = np.zeros(bins)
        rows = [row(-centre[:bins], -centre[bins:], products(centre[None, :bins])[0])]
        rows += [row(slot, np.zeros(others), -_both(centre[:bins], slot)) for slot in slots]
        rows += [row(none, feature, products(none[None])[0]) for feature in np.eye(others)]
        for k, m in _pairs(len(slots)):
            second = products(slots[k][None])[0] if k == m else _both(slots[k], slots[m])
            rows.append(row(none, np.zeros(others), second))
        terms = np.array(rows)
        linear = terms @ problem.gradient
        linear[0] += problem.misfit
        square = 0.5 * terms @ problem.curvature @ terms.T
        return cls(linear, square, slots.sum(1), near_metals, problem.table, problem.element_cost, metal)

    def at(self, places: Labels) -> _Terms:
        """The polynomials of (sets, atoms) places."""
        slots, others = len(self.copies), self.table.shape[1] - 1
        number = {pair: 1 + slots + others + i for i, pair in enumerate(_pairs(slots))}
        shared = [np.full((len(places), 1), 1 + slots + f) for f in range(others)]
        pairs = [[[number[row[k], row[m]]] for row in places.tolist()] for k, m in _pairs(places.shape[1])]
        index = np.concatenate([np.zeros((len(places), 1), np.int64), 1 + places, *shared, *map(np.array, pairs)], axis=1)
        square = self.square[index[:, :, None], index[:, None, :]]
        clash = self.near_metals[places[:, :, None], places[:, None, :]]
        return _Terms(self.linear[index], square, self.copies[places], clash, self.table, self.cost, self.metal)


@dataclass(frozen=True)
class _Terms:
    """Polynomials of some sets of places, as in ``_Polynomial``, and which of their atoms must not both be metals.

    Attributes: ``linear`` (sets, terms), ``square`` (sets, terms, terms), ``copies`` (sets, atoms), ``clash`` (sets, atoms,
    atoms); ``table`` (elements, features), ``cost`` and ``metal`` (elements,).
    """

    linear: Array
    square: Array
    copies: Array
    clash: Mask
    table: Array
    cost: Array
    metal: Mask

    def energies(self, part: slice, trials: Labels) -> Array:
        """(sets, n) misfits and costs, nats, of (sets, n, atoms) rows of the table."""
        features = self.table[trials]
        strength = features[..., 0]
        shared = np.einsum("snaf,sa->snf", features[..., 1:], self.copies[part])
        second = [strength[..., k] * strength[..., m] for k, m in _pairs(trials.shape[2])]
        terms = np.concatenate([np.ones_like(strength[..., :1]), strength, shared, np.stack(second, axis=-1)], axis=-1)
        energy = (terms * (terms @ self.square[part] + self.linear[part, None])).sum(-1) + self.cost[trials].sum(-1)
        metals = self.metal[trials]
        for k, m in combinations(range(trials.shape[2]), 2):
            energy += CLASH_NATS * (metals[..., k] & metals[..., m] & self.clash[part, None, k, m])
        return np.asarray(energy)


def _pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(count), 2))


def _both(a: Array, b: Array) -> Array:
    """What each product of two of ``a + b`` has of both."""
    return np.asarray(products((a + b)[None])[0] - products(a[None])[0] - products(b[None])[0])
