"""Which atoms lie at which depths of which columns: Gibbs sampling, a column at a time, on a quadratic misfit.

The misfit around a crystal is known to second order in the amount of matter in every slot (``atom_waves``), so that the
energy of an arrangement costs microseconds instead of a multislice calculation. A column's arrangements - none to a few
atoms, of any elements, at any depths - are listed and one is drawn from its full conditional, annealed from hot to cold:
birth, death, shift, exchange and species at once. The model itself judges what comes out. Sources: Geman & Geman, IEEE PAMI
6 (1984) 721 for the sampler; Christen & Fox, J. Comput. Graph. Stat. 14 (2005) 795 for sampling on an approximation that the
exact model corrects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

LONGEST_LIST = 40_000
"""Arrangements of one column that are listed at most; columns of more atoms are varied a few atoms at a time."""


@dataclass(frozen=True)
class Problem:
    """The misfit as a function of atoms in slots, and the prior.

    Attributes:
        misfit: nats with every slot empty.
        gradient: (columns, slots, features); curvature: (columns, slots, features, columns, slots, features), nats by the
            features of the atoms in the slots.
        table: (elements, features): what an atom of each element is.
        element_cost: (elements,) nats an atom of it costs; slot_cost: (slots,) nats an atom there costs besides.
        first_cost: nats that an element costs once, however many atoms.
        near: (columns, slots, columns, slots) bool: two atoms there would be too near each other.
    """

    misfit: float
    gradient: Array
    curvature: Array
    table: Array
    element_cost: Array
    slot_cost: Array
    first_cost: float
    near: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Occupation:
    """One answer: ``label`` (columns, slots), 0 where empty, else 1 + the element's row in the table; its energy in nats."""

    label: Labels
    energy: float = np.inf


class Chain:
    """A Markov chain over occupations, at a temperature of one's choice.

    Args:
        problem: energies.
        start: (columns, slots) labels.
        rng: makes it repeatable.
        most: atoms of one element that a column's listed arrangements have at most.
        exact: leave the Boltzmann distribution invariant: no draw from a list that lacks the present arrangement. A search
            does without, and gets out of a wrong arrangement sooner.
    """

    def __init__(
        self, problem: Problem, start: Labels, rng: np.random.Generator, most: int = 3, exact: bool = False
    ) -> None:
        self.p, self.rng, self.most, self.exact = problem, rng, most, exact
        self.label = start.copy()
        self.columns, self.slots = start.shape
        self.values = np.concatenate([np.zeros((1, problem.table.shape[1])), problem.table])
        self.own = np.stack([problem.curvature[c, :, :, c] for c in range(self.columns)])  # (columns, k, f, k, f)
        self.allowed = np.flatnonzero(np.isfinite(problem.element_cost))
        self.within = [problem.near[c, :, c] for c in range(self.columns)]
        self.alone = [np.einsum("ef,kflg,eg->kle", problem.table, own, problem.table) for own in self.own]
        self._refresh()

    def now(self) -> Occupation:
        return Occupation(self.label.copy(), self.energy)

    def search(self, hot: float, cold: float, sweeps: int) -> Occupation:
        """The best occupation met while cooling."""
        best = self.now()
        for step in range(sweeps):
            self.sweep(hot * (cold / hot) ** (step / max(1, sweeps - 1)))
            if self.energy < best.energy - 1e-9:
                best = self.now()
        return best

    def sweep(self, temperature: float) -> None:
        """Every column once, from a list drawn by chance; then the energy anew."""
        for column in self.rng.permutation(self.columns):
            chance = self.rng.random()
            if self.exact and chance < 0.4:
                self._draw_slot(int(column), temperature)
            elif chance < (0.6 if self.exact else 0.5):
                self._draw_uniform(int(column), temperature)
            else:
                self._draw_mixed(int(column), temperature)
        self._refresh()

    def candidates(self, column: int, slot: int) -> Array:
        """(elements,) probability that the atom there is each of them, all else as it is."""
        cost = self._slot_costs(column, slot)[1:]
        weight = np.exp(-(cost - cost.min()))
        return np.asarray(weight / weight.sum())

    def _slot_costs(self, column: int, slot: int) -> Array:
        """(1 + elements,) energy of the slot empty or with each element, all else as it is, up to a constant."""
        slope, slot_cost, _ = self._conditional(column)
        rest = self.x[column].copy()
        rest[slot] = 0
        slope_here = slope[slot] + np.tensordot(self.own[column][slot], rest, 2)
        table = self.p.table
        others = self.label.copy()
        others[column, slot] = 0
        new = ~np.isin(np.arange(len(table)), others[others > 0] - 1)
        cost = table @ slope_here + 0.5 * self.alone[column][slot, slot] + self.p.element_cost + self.p.first_cost * new
        clash = (self.within[column][slot] & (others[column] > 0)).any()
        return np.concatenate([[0.0], cost + slot_cost[slot] + (1e6 if clash else 0.0)])

    def _draw_slot(self, column: int, temperature: float) -> None:
        """One slot of the column: empty, or any element."""
        slot = int(self.rng.integers(self.slots))
        label = self.label[column].copy()
        label[slot] = self._pick([self._slot_costs(column, slot)], temperature)[1]
        self._set(column, label)

    def _refresh(self) -> None:
        self.x = self.values[self.label]
        self.slope = self.p.gradient + np.tensordot(self.p.curvature, self.x, 3)
        taken = self.label[self.label > 0] - 1
        self.energy = float(
            self.p.misfit
            + 0.5 * np.sum((self.p.gradient + self.slope) * self.x)
            + self.p.element_cost[taken].sum()
            + (self.p.slot_cost * (self.label > 0)).sum()
            + self.p.first_cost * len(np.unique(taken))
        )

    def _conditional(self, column: int) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Slope at an empty column, the slots' costs (large where a neighbour is in the way), which elements are new."""
        slope = self.slope[column] - np.tensordot(self.own[column], self.x[column], 2)
        others = self.label.copy()
        others[column] = 0
        blocked = np.tensordot(self.p.near[column], others > 0, 2) > 0
        new = ~np.isin(np.arange(len(self.p.table)), others[others > 0] - 1)
        return slope, self.p.slot_cost + np.where(blocked, 1e6, 0.0), new

    def _draw_uniform(self, column: int, temperature: float) -> None:
        """All atoms of one element, any element."""
        present = np.unique(self.label[column][self.label[column] > 0])
        if self.exact and (len(present) > 1 or np.count_nonzero(self.label[column]) > self.most):
            return
        slope, slot_cost, new = self._conditional(column)
        elements = self.allowed
        single = slope @ self.p.table[elements].T + slot_cost[:, None]  # (slots, elements)
        pair = self.alone[column][:, :, elements]
        first = self.p.first_cost * new[elements]
        costs, choices = [np.zeros(1)], []
        for size in range(1, self.most + 1):
            sets = _sets(self.slots, size)
            sets = sets[~_clash(sets, self.within[column])]
            if not len(sets):
                break
            cost = sum(single[sets[:, a]] + 0.5 * pair[sets[:, a], sets[:, a]] for a in range(size))
            for a, b in combinations(range(size), 2):
                cost = cost + pair[sets[:, a], sets[:, b]]
            cost = cost + size * self.p.element_cost[elements] + first
            costs.append(np.asarray(cost).ravel())
            choices.append(sets)
        chosen = self._pick(costs, temperature)
        label = np.zeros(self.slots, np.int64)
        if chosen[0] > 0:
            which, element = divmod(chosen[1], len(elements))
            label[choices[chosen[0] - 1][which]] = elements[element] + 1
        self._set(column, label)

    def _draw_mixed(self, column: int, temperature: float) -> None:
        """Atoms of the elements in use, in any mixture; or around the present atoms where that would be too many."""
        slope, slot_cost, new = self._conditional(column)
        others = np.delete(self.label, column, axis=0) if self.exact else self.label
        used = np.unique(others[others > 0]) - 1
        some = self.rng.choice(used, 4, replace=False) if len(used) > 4 else used
        palette = np.unique(np.append(some, self.rng.choice(self.allowed)))
        count = len(palette)
        table = self.p.table[palette]
        single = (slope @ table.T + slot_cost[:, None] + self.p.element_cost[palette]).ravel()  # (slots * palette,)
        pair = np.einsum("pf,kflg,qg->kplq", table, self.own[column], table).reshape(len(single), len(single))
        single = single + 0.5 * np.diag(pair)
        costs, choices = [np.zeros(1)], []
        total, longest = 0, 0
        for size in range(1, self.slots + 1):
            sets = _sets(self.slots, size)
            total += len(sets) * count**size
            if total > LONGEST_LIST:
                break
            sets = sets[~_clash(sets, self.within[column])]
            if not len(sets):
                break
            kinds = _kinds(count, size)
            index = (sets[:, None] * count + kinds[None]).reshape(-1, size)
            fresh = sum(((kinds == p).any(1) for p in np.flatnonzero(new[palette])), np.zeros(len(kinds)))
            cost = single[index].sum(1) + self.p.first_cost * np.tile(fresh, len(sets))
            for a, b in combinations(range(size), 2):
                cost += pair[index[:, a], index[:, b]]
            costs.append(cost)
            choices.append(index)
            longest = size
        present = self.label[column][self.label[column] > 0]
        if self.exact and (len(present) > longest or not np.isin(present - 1, palette).all()):
            return
        chosen = self._pick(costs, temperature)
        label = np.zeros(self.slots, np.int64)
        if chosen[0] > 0:
            places = choices[chosen[0] - 1][chosen[1]]
            label[places // count] = palette[places % count] + 1
        self._set(column, label)

    def _pick(self, costs: list[Array], temperature: float) -> tuple[int, int]:
        flat = np.concatenate(costs)
        weight = np.exp(-(flat - flat.min()) / temperature)
        place = int(np.searchsorted(np.cumsum(weight), self.rng.random() * weight.sum()).clip(0, len(flat) - 1))
        for size, cost in enumerate(costs):
            if place < len(cost):
                return size, place
            place -= len(cost)
        raise AssertionError("a place lies in one of the lists")

    def _set(self, column: int, label: Labels) -> None:
        step = self.values[label] - self.x[column]
        if np.any(step):
            self.slope += np.tensordot(self.p.curvature[:, :, :, column], step, 2)
            self.x[column] += step
        self.label[column] = label


@cache
def _sets(slots: int, size: int) -> Labels:
    return np.array(list(combinations(range(slots), size)), np.int64).reshape(-1, size)


@cache
def _kinds(count: int, size: int) -> Labels:
    return np.array(list(product(range(count), repeat=size)), np.int64).reshape(-1, size)


def _clash(sets: Labels, near: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(sets), bool)
    for a, b in combinations(range(sets.shape[1]), 2):
        result |= near[sets[:, a], sets[:, b]]
    return result
