"""Which slices of which columns hold an atom, and how strong a one: Gibbs sampling on a quadratic misfit.

The misfit around a crystal is known to second order in the amount of matter in every slice of every column
(``atom_waves``). A move then costs microseconds instead of a multislice calculation, so that birth, death, shift, exchange
and species are drawn from their full conditionals, annealed from hot to cold; the model itself judges what comes out.
Sources: Geman & Geman, IEEE PAMI 6 (1984) 721 for the sampler; Christen & Fox, J. Comput. Graph. Stat. 14 (2005) 795 for
sampling on an approximation that the exact model corrects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quadratic:
    """misfit + gradient (x - centre) + (x - centre) curvature (x - centre) / 2, x the amount of matter in each slot, in nats."""

    misfit: float
    gradient: Array
    curvature: Array
    centre: Array

    def __call__(self, x: Array) -> float:
        step = x - self.centre
        return float(self.misfit + self.gradient @ step + 0.5 * step @ self.curvature @ step)


@dataclass(frozen=True)
class Slots:
    """The places where an atom may be.

    Attributes:
        column: (slots,) which column each belongs to; unit: (slots,) matter of an atom of strength 1 there.
        exclusive: (slots, slots) bool: both can't be taken, they are too near each other.
    """

    column: Labels
    unit: Array
    exclusive: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Occupation:
    """One answer: ``label`` (slots,) is 0 where empty, else 1 + the index into ``strengths`` (classes,)."""

    label: Labels
    strengths: Array
    energy: float

    def amounts(self, slots: Slots) -> Array:
        """(slots,) matter in each slot."""
        return np.concatenate([[0.0], self.strengths])[self.label] * slots.unit


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        sweeps: Gibbs sweeps over all slots; hot, cold: first and last temperature, nats.
        atom_cost: nats an atom costs, so that noise does not make atoms.
        fixed_strengths: the species are known; otherwise a class's strength is drawn too.
        weakest, strongest: range of a strength.
    """

    sweeps: int = 60
    hot: float = 300.0
    cold: float = 1.0
    atom_cost: float = 6.0
    fixed_strengths: bool = False
    weakest: float = 0.2
    strongest: float = 9.0


def search(
    quadratic: Quadratic, slots: Slots, start: Occupation, settings: SearchSettings, rng: np.random.Generator
) -> Occupation:
    """The best occupation met while cooling from ``start``."""
    chain = _Chain(quadratic, slots, start, settings, rng)
    temperatures = settings.hot * (settings.cold / settings.hot) ** (np.arange(settings.sweeps) / max(1, settings.sweeps - 1))
    best = chain.now()
    for temperature in temperatures:
        chain.sweep(float(temperature))
        if chain.energy < best.energy:
            best = chain.now()
    return best


def sample(
    quadratic: Quadratic,
    slots: Slots,
    start: Occupation,
    settings: SearchSettings,
    rng: np.random.Generator,
    count: int,
) -> list[Occupation]:
    """``count`` successive sweeps at temperature 1: draws from the quadratic posterior."""
    chain = _Chain(quadratic, slots, start, settings, rng)
    result = []
    for _ in range(count):
        chain.sweep(1.0)
        result.append(chain.now())
    return result


class _Chain:
    def __init__(
        self, quadratic: Quadratic, slots: Slots, start: Occupation, settings: SearchSettings, rng: np.random.Generator
    ) -> None:
        self.q, self.slots, self.settings, self.rng = quadratic, slots, settings, rng
        self.label, self.strengths = start.label.copy(), start.strengths.astype(float).copy()
        self.members = [np.flatnonzero(slots.column == c) for c in range(int(slots.column.max()) + 1)]
        self.diagonal = np.diag(quadratic.curvature).copy()
        self._refresh()

    def now(self) -> Occupation:
        return Occupation(self.label.copy(), self.strengths.copy(), self.energy)

    def _refresh(self) -> None:
        """Amounts, energy and slope from scratch, so that rounding does not add up."""
        self.x = np.concatenate([[0.0], self.strengths])[self.label] * self.slots.unit
        self.slope = self.q.gradient + self.q.curvature @ (self.x - self.q.centre)
        self.energy = self.q(self.x) + self.settings.atom_cost * np.count_nonzero(self.label)

    def sweep(self, temperature: float) -> None:
        self._refresh()
        for slot in self.rng.permutation(len(self.label)):
            if self.label[slot] and self.rng.random() < 0.5:
                self._shift(int(slot), temperature)
            else:
                self._redraw(int(slot), temperature)
        for _ in range(len(self.members)):
            self._exchange(temperature)
        if not self.settings.fixed_strengths:
            self._draw_strengths(temperature)

    def _blocked(self, slot: int, ignoring: int = -1) -> bool:
        near = self.slots.exclusive[slot] & (self.label > 0)
        near[slot] = False
        if ignoring >= 0:
            near[ignoring] = False
        return bool(near.any())

    def _redraw(self, slot: int, temperature: float) -> None:
        """Empty, or one of the classes: birth, death and change of species from their full conditional."""
        values = np.concatenate([[0.0], self.strengths * self.slots.unit[slot]])
        if not self.label[slot] and self._blocked(slot):
            return
        step = values - self.x[slot]
        cost = self.slope[slot] * step + 0.5 * self.diagonal[slot] * step**2
        cost[1:] += self.settings.atom_cost
        chosen = self._draw(cost, temperature)
        self._change([slot], [chosen], [step[chosen]], cost[chosen] - cost[self.label[slot]])

    def _shift(self, slot: int, temperature: float) -> None:
        """The same atom in any free slot of its column."""
        label, amount = int(self.label[slot]), self.x[slot]
        column = self.members[self.slots.column[slot]]
        free = np.array([k for k in column if k == slot or (not self.label[k] and not self._blocked(k, slot))])
        added = self.strengths[label - 1] * self.slots.unit[free]
        curvature = self.q.curvature
        cost = (
            -self.slope[slot] * amount
            + 0.5 * self.diagonal[slot] * amount**2
            + self.slope[free] * added
            + 0.5 * self.diagonal[free] * added**2
            - curvature[slot, free] * amount * added
        )
        here = int(np.flatnonzero(free == slot)[0])
        cost[here] = 0.0
        chosen = self._draw(cost, temperature)
        if chosen != here:
            self._change([slot, int(free[chosen])], [0, label], [-amount, added[chosen]], cost[chosen])

    def _exchange(self, temperature: float) -> None:
        """Two atoms of different class change places, or two neighbouring columns' atoms move against each other."""
        taken = np.flatnonzero(self.label)
        if len(taken) < 2:
            return
        first, second = (int(i) for i in self.rng.choice(taken, 2, replace=False))
        if self.rng.random() < 0.5:
            if self.label[first] == self.label[second]:
                return
            slots, labels = [first, second], [int(self.label[second]), int(self.label[first])]
        else:
            a, b = self._neighbour(first), self._neighbour(second)
            if a < 0 or b < 0 or a == b or a == second or b == first:
                return
            slots = [first, a, second, b]
            labels = [0, int(self.label[first]), 0, int(self.label[second])]
        table = np.concatenate([[0.0], self.strengths])
        step = table[labels] * self.slots.unit[slots] - self.x[slots]
        cost = float(self.slope[slots] @ step + 0.5 * step @ self.q.curvature[np.ix_(slots, slots)] @ step)
        if cost <= 0 or self.rng.random() < np.exp(-cost / temperature):
            self._change(slots, labels, step.tolist(), cost)

    def _neighbour(self, slot: int) -> int:
        """A free slot next to this one in its column, or -1."""
        column = self.members[self.slots.column[slot]]
        place = int(np.flatnonzero(column == slot)[0]) + (1 if self.rng.random() < 0.5 else -1)
        if not 0 <= place < len(column) or self.label[column[place]] or self._blocked(int(column[place]), slot):
            return -1
        return int(column[place])

    def _draw_strengths(self, temperature: float) -> None:
        """Each class's strength from its Gaussian conditional, cut off at the range's ends; an idle class starts anew."""
        s = self.settings
        for index in range(len(self.strengths)):
            used = np.flatnonzero(self.label == index + 1)
            if len(used) == 0:
                self.strengths[index] = np.exp(self.rng.uniform(np.log(s.weakest), np.log(s.strongest)))
                continue
            unit = self.slots.unit[used]
            slope = float(self.slope[used] @ unit)
            curvature = float(unit @ self.q.curvature[np.ix_(used, used)] @ unit)
            if curvature <= 0:
                continue
            value = self.strengths[index] - slope / curvature + self.rng.normal() * np.sqrt(temperature / curvature)
            value = float(np.clip(value, s.weakest, s.strongest))
            step = (value - self.strengths[index]) * unit
            self.energy += float(self.slope[used] @ step + 0.5 * step @ self.q.curvature[np.ix_(used, used)] @ step)
            self.slope += self.q.curvature[:, used] @ step
            self.x[used] += step
            self.strengths[index] = value

    def _draw(self, cost: Array, temperature: float) -> int:
        weight = np.exp(-(cost - cost.min()) / temperature)
        return int(np.searchsorted(np.cumsum(weight), self.rng.random() * weight.sum()).clip(0, len(cost) - 1))

    def _change(self, slots: list[int], labels: list[int], steps: list[float], cost: float) -> None:
        for slot, label, step in zip(slots, labels, steps, strict=True):
            if step:
                self.slope += self.q.curvature[:, slot] * step
                self.x[slot] += step
            self.label[slot] = label
        self.energy += float(cost)
