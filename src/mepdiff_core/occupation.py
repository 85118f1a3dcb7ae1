"""Which atoms lie at which depths of which columns: Gibbs sampling, a column at a time, on an approximate misfit.

Around a crystal the waves are known to second order in the matter of every column's slices (``atom_waves``), so that the
energy of an arrangement costs microseconds instead of a multislice calculation. Arrangements of a column are listed and one
is drawn from its full conditional, annealed from hot to cold: birth, death, shift, split, merge, exchange and species at
once. The model itself judges what comes out. Sources: Geman & Geman, IEEE PAMI 6 (1984) 721 for the sampler; Christen & Fox,
J. Comput. Graph. Stat. 14 (2005) 795 for sampling on an approximation that the exact model corrects.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

LONGEST_LIST = 8_000
"""Arrangements of one column that are listed at most; columns of more atoms are varied a few slots at a time."""
UNIFORM_LIST = 30_000
PATTERNS_KEPT = 64
"""Lists that are kept at once, 2 MB each at most: every period along the beam has its own."""
CLASH_NATS = 1e6
TARGETS = 11
"""Elements that another is compared with at once."""
BOX, TWIN_BOX = 4, 2
"""Slots of a column, and of each of two twins, that are filled anew together when the other slots stay."""


@dataclass(frozen=True)
class Problem:
    """The misfit as a function of atoms in slots, and the prior.

    A column's parameters are its matter (the first feature) in each bin of depth, its other features as a whole, and, where
    it is ``heavy``, the products of ``expansion.pairs_of`` its bins, half of the squares; all as differences from
    ``centre``, columns one after the other: first the matter of all, then the other features, then the products.

    Attributes:
        misfit: nats at the centre; gradient: (parameters,); curvature: (parameters, parameters).
        centre: (columns, bins + other features) matter there.
        heavy: columns whose products count.
        bins: (slots, bins) how many copies of an atom in a slot lie in each bin.
        table: (elements, features): what an atom of each element is.
        element_cost: (elements,) nats an atom of it costs; slot_cost: (slots,) nats an atom there costs besides.
        first_cost: nats that an element costs once, however many atoms.
        near: (columns, slots, columns, slots) bool: two atoms there would be too near each other.
        twins: of a column, those so near that an atom of one may as well be the other's.
    """

    misfit: float
    gradient: Array
    curvature: Array
    centre: Array
    heavy: tuple[int, ...]
    bins: Array
    table: Array
    element_cost: Array
    slot_cost: Array
    first_cost: float
    near: npt.NDArray[np.bool_]
    twins: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[npt.NDArray[np.int64]]:
        """Of each column, where its parameters are."""
        return places(len(self.centre), self.bins.shape[1], self.centre.shape[1] - self.bins.shape[1], self.heavy)

    @cached_property
    def blocks(self) -> list[Array]:
        """Of each column, the curvature of its own parameters."""
        return [self.curvature[np.ix_(p, p)] for p in self.places]

    @cached_property
    def values(self) -> Array:
        """(features, 1 + elements) of a label."""
        return np.concatenate([np.zeros((self.table.shape[1], 1)), self.table.T], axis=1)

    def parameters(self, column: int, labels: Labels) -> Array:
        """(n, parameters of the column) of (n, slots) labels."""
        bins, copies = self.bins.shape[1], self.bins.sum(1)
        first, *others = self.values
        matter = np.empty((len(labels), bins + len(others)))
        matter[:, :bins] = first.take(labels) @ self.bins
        for f, value in enumerate(others):
            matter[:, bins + f] = value.take(labels) @ copies
        matter -= self.centre[column]
        return np.concatenate([matter, products(matter[:, :bins])], 1) if column in self.heavy else matter

    @cached_property
    def _uniform(self) -> dict[tuple[int, int], Uniform]:
        return {}

    def uniform(self, column: int, most: int) -> Uniform:
        """Every arrangement of a few atoms of one element."""
        if (column, most) not in self._uniform:
            elements = np.flatnonzero(np.isfinite(self.element_cost))
            patterns = self.patterns(column, 1, most, UNIFORM_LIST // len(elements)).labels
            labels = (patterns[1:, None] * (elements + 1)[:, None]).reshape(-1, patterns.shape[1])
            labels = np.concatenate([patterns[:1], labels])
            parameters = self.parameters(column, labels)
            own = 0.5 * np.einsum("np,np->n", parameters @ self.blocks[column], parameters) + self.own_cost(labels)
            self._uniform[column, most] = Uniform(labels, labels.max(1), (labels > 0).astype(float), parameters, own)
        return self._uniform[column, most]

    def own_cost(self, labels: Labels) -> Array:
        """(n,) nats of (n, slots) labels by the elements' and the slots' costs."""
        of_elements = np.concatenate([[0.0], self.element_cost])[labels] @ np.ones(labels.shape[1])
        return np.asarray(of_elements + (labels > 0) @ self.slot_cost)

    def patterns(self, column: int, kinds: int, most: int, longest: int) -> Patterns:
        """Arrangements of up to ``kinds`` elements, no two atoms too near; of more atoms while the list is short."""
        return _patterns(self.near[column, :, column].tobytes(), self.near.shape[1], kinds, most, longest)


@dataclass(frozen=True)
class Patterns:
    """Attributes: ``labels`` (n, slots): kinds 1, 2, ...; ``taken`` (n, slots): 1 where atoms are; ``atoms`` (n, kinds): how
    many of each kind; ``kinds`` (n, kinds): 1 where there are any."""

    labels: Labels
    taken: Array
    atoms: Array
    kinds: Array


@dataclass(frozen=True)
class Uniform:
    """Attributes: ``labels`` (n, slots); ``label`` (n,): the one they have; ``taken`` (n, slots): 1 where atoms are;
    ``parameters`` (n, parameters of the column); ``own`` (n,): energies that don't depend on the other columns."""

    labels: Labels
    label: Labels
    taken: Array
    parameters: Array
    own: Array


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
        self.allowed = np.flatnonzero(np.isfinite(problem.element_cost))
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
        self.label = best.label.copy()
        self._refresh()
        with _one_thread():
            self._descend()
        return self.now()

    def _descend(self) -> None:
        """Single atoms and whole elements, each made what is best there, until none gains."""
        before = np.inf
        while self.energy < before - 1e-9:
            before = self.energy
            for column in range(self.columns):
                labels = np.repeat(self.label[column][None], self.slots * (1 + len(self.allowed)), axis=0)
                contents = np.tile(np.append(0, self.allowed + 1), self.slots)
                labels[np.arange(len(labels)), np.repeat(np.arange(self.slots), 1 + len(self.allowed))] = contents
                self._set(column, labels[np.argmin(self._costs(column, labels))])
            for old in np.unique(self.label[self.label > 0]):
                self._relabel(int(old), self.allowed + 1, 1e-9)
            self._refresh()

    def sweep(self, temperature: float) -> None:
        """Every column once, from a list drawn by chance, then one element as a whole; then the energy anew."""
        moves = (self._draw_uniform, self._draw_mixed, self._draw_box)
        shares = (0.2, 0.4, 0.4) if self.exact else (0.4, 0.3, 0.3)
        with _one_thread():
            for column in self.rng.permutation(self.columns):
                moves[int(self.rng.choice(3, p=shares))](int(column), temperature)
                if int(column) in self.p.twins:
                    self._draw_twins(int(column), int(self.rng.choice(self.p.twins[int(column)])), temperature)
            self._draw_element(temperature)
            self._refresh()

    def candidates(self, column: int, slot: int) -> Array:
        """(elements,) probability that the atom there is each of them, all else as it is."""
        labels = np.repeat(self.label[column][None], len(self.p.table), axis=0)
        labels[:, slot] = np.arange(1, len(self.p.table) + 1)
        cost = self._costs(column, labels)
        weight = np.exp(-(cost - cost.min()))
        return np.asarray(weight / weight.sum())

    def _refresh(self) -> None:
        p = self.p
        self.x = np.zeros(len(p.gradient))
        for column, place in enumerate(p.places):
            self.x[place] = p.parameters(column, self.label[column : column + 1])[0]
        self.slope = p.gradient + p.curvature @ self.x
        self.energy = float(p.misfit + 0.5 * (p.gradient + self.slope) @ self.x + self._prior(self.label))

    def _prior(self, label: Labels) -> float:
        return float(self.p.own_cost(label).sum() + self.p.first_cost * len(np.unique(label[label > 0])))

    def _around(self, column: int) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """What the other columns do to one: slope of its parameters where they are 0, (slots,) nats for atoms in a
        neighbour's way, (1 + elements,) which labels would be new."""
        place = self.p.places[column]
        slope = self.slope[place] - self.p.blocks[column] @ self.x[place]
        others = self.label.copy()
        others[column] = 0
        blocked = np.tensordot(self.p.near[column], others > 0, 2) > 0
        new = np.ones(1 + len(self.p.table), bool)
        new[others] = new[0] = False
        return slope, np.where(blocked, CLASH_NATS, 0.0), new

    def _costs(self, column: int, labels: Labels) -> Array:
        """(n,) energies of (n, slots) arrangements of a column, all else as it is, up to a constant."""
        slope, blocked, new = self._around(column)
        x = self.p.parameters(column, labels)
        own = 0.5 * np.einsum("np,np->n", x @ self.p.blocks[column], x) + self.p.own_cost(labels)
        clash = self.p.near[column, :, column].astype(float)
        taken = (labels > 0).astype(float)
        own += CLASH_NATS * np.einsum("ns,ns->n", taken @ clash, taken)
        return np.asarray(own + x @ slope + taken @ blocked + self._first(labels, new))

    def _first(self, labels: Labels, new: npt.NDArray[np.bool_]) -> Array:
        """(n,) cost of the elements that no other column has."""
        ordered = np.sort(labels, axis=1)
        fresh = new[ordered]
        fresh[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        return self.p.first_cost * (fresh @ np.ones(labels.shape[1]))

    def _draw_uniform(self, column: int, temperature: float) -> None:
        """All atoms of one element, any element."""
        listed = self.p.uniform(column, self.most)
        if self.exact and not (listed.labels == self.label[column]).all(1).any():
            return
        slope, blocked, new = self._around(column)
        fresh = self.p.first_cost * new[listed.label]
        costs = listed.own + listed.parameters @ slope + listed.taken @ blocked + fresh
        self._set(column, listed.labels[self._pick(costs, temperature)])

    def _palette(self, *columns: int) -> Labels:
        """Labels of some elements of the other columns, and of one by chance."""
        others = np.delete(self.label, columns, axis=0) if self.exact else self.label
        used = np.unique(others[others > 0])
        some = self.rng.choice(used, 3, replace=False) if len(used) > 3 else used
        return np.unique(np.append(some, self.rng.choice(self.allowed) + 1)).astype(np.int64)

    def _draw_mixed(self, column: int, temperature: float) -> None:
        """Atoms of the elements in use, in any mixture."""
        palette = self._palette(column)
        listed = self.p.patterns(column, len(palette), self.slots, LONGEST_LIST)
        labels = np.concatenate([[0], palette])[listed.labels]
        if self.exact and not (labels == self.label[column]).all(1).any():
            return
        slope, blocked, new = self._around(column)
        x = self.p.parameters(column, labels)
        costs = 0.5 * np.einsum("np,np->n", x @ self.p.blocks[column], x) + x @ slope
        costs += listed.taken @ (self.p.slot_cost + blocked)
        costs += listed.atoms @ np.minimum(self.p.element_cost[palette - 1], CLASH_NATS)
        costs += listed.kinds @ (self.p.first_cost * new[palette])
        self._set(column, labels[self._pick(costs, temperature)])

    def _draw_box(self, column: int, temperature: float) -> None:
        """A few slots of the column, any mixture in them, the others as they are; or a single one, with any element."""
        if self.rng.random() < 0.3:
            slots = self.rng.choice(self.slots, 1)
            palette = self.allowed + 1
        else:
            slots = self.rng.choice(self.slots, min(BOX, self.slots), replace=False)
            palette = self._palette(column)
            if self.exact and not np.isin(self.label[column, slots], np.append(palette, 0)).all():
                return
        contents = np.concatenate([[0], palette])[_all_labels(len(palette) + 1, len(slots))]
        labels = np.repeat(self.label[column][None], len(contents), axis=0)
        labels[:, slots] = contents
        self._set(column, labels[self._pick(self._costs(column, labels), temperature)])

    def _draw_twins(self, column: int, other: int, temperature: float) -> None:
        """A few slots of two columns at once, any mixture in them: an atom passed from one to the other is no single
        column's move."""
        two = [column, other]
        slots = self.rng.choice(self.slots, min(TWIN_BOX, self.slots), replace=False)
        palette = self._palette(*two)
        box = np.ix_(two, slots)
        if self.exact and not np.isin(self.label[box], np.append(palette, 0)).all():
            return
        contents = np.concatenate([[0], palette])[_all_labels(len(palette) + 1, 2 * len(slots))]
        labels = np.repeat(self.label[two][None], len(contents), axis=0)
        labels[:, :, slots] = contents.reshape(-1, 2, len(slots))
        chosen = labels[self._pick(self._costs_together(two, labels), temperature)]
        for c, label in zip(two, chosen, strict=True):
            self._set(c, label)

    def _costs_together(self, columns: list[int], labels: Labels) -> Array:
        """(n,) energies of (n, columns, slots) arrangements of some columns, all else as it is, up to a constant."""
        p, place = self.p, np.concatenate([self.p.places[c] for c in columns])
        step = np.concatenate([p.parameters(c, labels[:, k]) for k, c in enumerate(columns)], 1) - self.x[place]
        costs = step @ self.slope[place] + 0.5 * np.einsum("np,np->n", step @ p.curvature[np.ix_(place, place)], step)
        costs += p.own_cost(labels.reshape(-1, self.slots)).reshape(len(labels), -1).sum(1)
        others = self.label.copy()
        others[columns] = 0
        taken = (labels > 0).reshape(len(labels), -1).astype(float)
        clash = p.near[columns][:, :, columns].reshape(taken.shape[1], -1).astype(float)
        blocked = np.tensordot(p.near[columns], others > 0, 2).ravel() > 0
        costs += CLASH_NATS * (np.einsum("ns,ns->n", taken @ clash, taken) + taken @ blocked)
        new = np.ones(1 + len(p.table), bool)
        new[others] = new[0] = False
        return np.asarray(costs + self._first(labels.reshape(len(labels), -1), new))

    def _draw_element(self, temperature: float) -> None:
        """All atoms of one element become another: one that is not in use, or in a search any."""
        used = np.unique(self.label[self.label > 0])
        if not len(used):
            return
        old = int(self.rng.choice(used))
        others = np.setdiff1d(self.allowed + 1, used if self.exact else old)
        some = self.rng.choice(others, min(len(others), TARGETS), replace=False)
        self._relabel(old, np.append(old, some), temperature)

    def _relabel(self, old: int, targets: Labels, temperature: float) -> None:
        mine = self.label == old
        rows = np.where(mine, targets[:, None, None], self.label)
        x = np.tile(self.x, (len(targets), 1))
        columns = [int(column) for column in np.flatnonzero(mine.any(1))]
        for column in columns:
            x[:, self.p.places[column]] = self.p.parameters(column, rows[:, column])
        costs = x @ self.p.gradient + 0.5 * np.einsum("np,np->n", x @ self.p.curvature, x)
        costs += self.p.own_cost(rows.reshape(-1, self.slots)).reshape(len(targets), -1).sum(1)
        costs += self.p.first_cost * ~np.isin(targets, self.label[~mine])
        chosen = rows[self._pick(costs, temperature)]
        for column in columns:
            self._set(column, chosen[column])

    def _pick(self, costs: Array, temperature: float) -> int:
        weight = np.cumsum(np.exp(-(costs - costs.min()) / temperature))
        return int(np.searchsorted(weight, self.rng.random() * weight[-1]).clip(0, len(costs) - 1))

    def _set(self, column: int, label: Labels) -> None:
        if (label == self.label[column]).all():
            return
        place = self.p.places[column]
        step = self.p.parameters(column, label[None])[0] - self.x[place]
        self.slope += self.p.curvature[:, place] @ step
        self.x[place] += step
        self.label[column] = label


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _one_thread() -> AbstractContextManager[Any]:
    """For products of matrices as small as a chain's: threads would wait for each other, and beside another busy process
    three times as long as the products take."""
    limited: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limited


def places(columns: int, bins: int, others: int, heavy: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    """Of each column, where its parameters are among all; see ``Problem``."""
    products_of_one = bins * (bins + 1) // 2
    result = []
    for column in range(columns):
        mine = [np.arange(column * bins, (column + 1) * bins)]
        mine.append(columns * bins + np.arange(column * others, (column + 1) * others))
        if column in heavy:
            first = columns * (bins + others) + heavy.index(column) * products_of_one
            mine.append(np.arange(first, first + products_of_one))
        result.append(np.concatenate(mine))
    return result


def products(matter: Array) -> Array:
    """(n, bins * (bins + 1) / 2) products of each two, half of the squares, in the order of ``expansion.pairs_of``."""
    bins = matter.shape[1]
    result, first = np.empty((len(matter), bins * (bins + 1) // 2)), 0
    for i in range(bins):
        np.multiply(matter[:, i:], matter[:, i : i + 1], out=result[:, first : first + bins - i])
        result[:, first] /= 2
        first += bins - i
    return result


@lru_cache(PATTERNS_KEPT)
def _patterns(near: bytes, slots: int, kinds: int, most: int, longest: int) -> Patterns:
    clash = np.frombuffer(near, bool).reshape(slots, slots)
    parts = [np.zeros((1, slots), np.int64)]
    total = 1
    for size in range(1, min(most, slots) + 1):
        sets = np.array(list(combinations(range(slots), size)), np.int64)
        sets = sets[~_clashing(sets, clash)]
        total += len(sets) * kinds**size
        if not len(sets) or total > longest:
            break
        fillings = _all_labels(kinds, size) + 1
        labels = np.zeros((len(sets), len(fillings), slots), np.int64)
        for row, places_taken in zip(labels, sets, strict=True):
            row[:, places_taken] = fillings
        parts.append(labels.reshape(-1, slots))
    listed = np.concatenate(parts)
    atoms = np.stack([(listed == kind).sum(1) for kind in range(1, kinds + 1)], axis=1).astype(float)
    return Patterns(listed, (listed > 0).astype(float), atoms, (atoms > 0).astype(float))


@cache
def _all_labels(kinds: int, size: int) -> Labels:
    return np.array(list(product(range(kinds), repeat=size)), np.int64).reshape(-1, size)


def _clashing(sets: Labels, near: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(sets), bool)
    for a, b in combinations(range(sets.shape[1]), 2):
        result |= near[sets[:, a], sets[:, b]]
    return result
