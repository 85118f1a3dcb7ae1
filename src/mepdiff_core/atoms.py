"""The crystal solver: from a scan to the atoms of a repeated cell, judged by the Poisson likelihood of the patterns.

Five stages, each with its states: the projection; its lattice; its columns, refined and completed; their atoms' depths,
elements and number, for every period along the beam that may be; and draws from what the patterns leave open. Nothing is
trained, nothing needs to be known beforehand; docs/method.md tells what was measured on the way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.batches import Indices
from mepdiff_core.column_search import COPIES_PATTERNS, DENSITY_PATTERNS, EVEN_PATTERNS, FINAL_PATTERNS, ROUND_STEPS
from mepdiff_core.columns import add_missing, refine
from mepdiff_core.config import check
from mepdiff_core.crystal_answer import (
    POLISHING_PATTERNS,
    POLISHING_STEPS,
    SETTLING_NATS,
    SETTLING_PATTERNS,
    CrystalAnswer,
    Found,
)
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystal_verdict import EXPLAINED_NATS, SHIFTING, doubtful
from mepdiff_core.depth import SHORTEST_PERIOD_A, Arrangement, DepthSearch, Matter, Repeat, periods_like, shortest_repeat
from mepdiff_core.folding import FoldedModel, FoldedSearch, fold
from mepdiff_core.polish import polish
from mepdiff_core.scan import Scan
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.stacking import Stacking
from mepdiff_core.states import Checkpoint, CrystalState

Array = npt.NDArray[np.float64]

SWEEPS_FIRST, SWEEPS, CHAINS = 8, 20, 3
HOT_FIRST, HOT = 100.0, 200.0
PLACED_CHAINS = 12
FOLDED_ROUNDS, LISTED = 3, 16
"""In a smaller cell: at most, and arrangements judged by the model itself in each."""
FREED_ROUNDS, FREED_PATTERNS = 5, 16
"""Steps from even columns to free matter, and patterns of each."""
FEW_PERIODS = 2
"""In the specimen; fewer may be the parts that copies show of one that is longer than it is thick. Tungsten, doubted for the
model's own error, has four: the search for a longer one took it from two minutes to five."""
MORE_ROUNDS = 2
"""At most, while free matter would still gain more than by chance: rounds beyond those asked for, places refined in each."""
HOPELESS_ROUNDS, HOPELESS_NATS = 2, 120.0
"""After so many rounds, patterns are no longer explained by more of them that are missed by so many nats where cells shift
or differ: right crystals are below 10 by then, titanate at 177 to 270."""
PERIOD_STEP_A = 0.1
PERIODS_KEPT, JUDGED, MERGED_TRIED = 10, 8, 2
SCREENING_PATTERNS, SETTLING_KEPT, SCREENED_NATS = 16, 2, 20.0
SETTLING_TURNS, SETTLING_TRIED = 4, 5
MODEL_NATS = 0.3
"""A pattern: what the model's own error can make of two elements instead of one; 0.2 for tungsten with a tantalum in it."""


def run_crystal(
    scan: Scan,
    config: CrystalConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
    probe: npt.NDArray[np.complex64] | None = None,
    positions_A: Array | None = None,
) -> Iterator[CrystalState]:
    """Solve the crystal, as a stream of states; the last one holds the answer, its spread and its limits.

    Args:
        scan: the measurement, with its thickness.
        config: settings; device: torch device.
        start, checkpoint: not taken: the solver starts from the patterns and is over in minutes.
        probe: (modes, y, x) instead of the scan's own; positions_A: (n, 2) where it really was, on the scan's object field.

    Raises:
        InputError: a start or checkpoint was given, or what is said to be known does not fit the projection.
    """
    check(start is None, "the crystal solver takes no start volume; give --start FILE.cif for what is known of the crystal")
    check(not checkpoint, "a run of the crystal solver cannot be continued; start it again")
    yield from _Solver(scan, config, device, probe, positions_A).run()


@dataclass(frozen=True)
class _Attempt:
    """What came of one.

    Attributes:
        right: whether free matter would gain no more than by chance.
        hopeless: whether cells differ, and the patterns are missed by more than further rounds mend.
        periods_A: where cells shift, the range of periods that put the atoms into the same slices.
        surplus: what free matter would still gain before the last round, nats a pattern.
    """

    model: CrystalModel
    search: DepthSearch
    best: Arrangement
    found: Found
    right: bool
    hopeless: bool = False
    periods_A: tuple[float, float] | None = None
    surplus: float = np.inf

    def put_by(self) -> _Attempt:
        """The same without what its model keeps to draw with, which is large."""
        return replace(self, model=replace(self.model))


class _Solver(CrystalAnswer):
    """From the columns to the atoms in them."""

    def run(self) -> Iterator[CrystalState]:
        model = yield from self.columns()
        if model is None:
            return
        self.see_columns(model.columns)
        yield from self._atoms(model) if model.stacking is None else self._shifted_atoms(model)

    def _atoms(self, model: CrystalModel) -> Iterator[CrystalState]:
        """Depths, elements and number of the atoms in the columns of cells that are all alike.

        An answer that free matter would still improve is wrong, and rounds around it seldom leave it: then by a smaller cell
        whose copies the columns are, or with its places refined in every round, columns parted whose atoms lie apart; where
        that leaves the patterns unexplained, from free matter, and around the best of these.
        """
        made = yield from self._attempt(model)
        if not made.right:
            smaller = None if self._repeats(made.best) else fold(model)
            if smaller is not None:
                made = yield from self._better(made, self._folded_attempt(smaller))
            elif not made.hopeless:
                made = yield from self._better(made, self._around(made))
        if self._unexplained(made):
            made = yield from self._better(made, self._freed_attempt(model))
            if self._unexplained(made):
                made = yield from self._better(made, self._around(made))
        best = self._settle_elements(made.search, made.model, made.best)
        yield from self.emit("depth", "elements compared", cell=made.model.cell(best))
        repeat = Repeat(best, made.periods_A)
        if made.model.stacking is None and self.known.period_A is None:
            repeat = shortest_repeat(best, self.slices, self.config.slice_thickness_A)
        yield from self.finish(made.model, repeat, made.found)

    def _better(
        self, made: _Attempt, attempt: Generator[CrystalState, None, _Attempt]
    ) -> Generator[CrystalState, None, _Attempt]:
        """What was made, or what a further attempt makes, as the patterns prefer."""
        made = made.put_by()
        self.total += ROUND_STEPS * (self.config.rounds + 1)
        other = yield from attempt
        indices = self.batch(SETTLING_PATTERNS)
        return min((made, other), key=lambda a: _energy(a.model, a.best, indices))

    def _around(self, made: _Attempt) -> Generator[CrystalState, None, _Attempt]:
        """Once more around what was made."""
        return self._placed_attempt(made.model, "places refined, round", made.best)

    def _attempt(self, model: CrystalModel, freed: Array | None = None) -> Generator[CrystalState, None, _Attempt]:
        """From the even crystal, or from ``freed`` matter, to atoms that free matter does not improve, or as many rounds as
        were asked for."""
        c = self.config
        phase, centre = (model.even, model.even_matter) if freed is None else (model.phase_of_matter(freed), freed)
        found = Found()
        mixed = right = hopeless = False
        surplus = np.inf
        per_round = min(c.patterns, max(12, 480 // len(model.columns)))
        name = "round" if freed is None else "from matter, round"
        for turn in range(c.rounds + 1):
            indices = self.batch(per_round)
            note = f"{name} {turn + 1}: what each atom does to the patterns"
            matter = yield from self.expanded(model, phase, centre, indices, note)
            search = DepthSearch(matter, model.columns, c.slice_thickness_A, self.known.elements)
            if turn > 0 and not mixed:
                surplus, right = self._surplus_nats(model, matter, indices)
            if right or turn == c.rounds:
                break
            tried: list[Arrangement] = []
            rng = np.random.default_rng([c.seed, 3, turn, int(freed is not None)])
            periods = self._periods(found.pool if turn > 1 else [])
            # at last among the elements that were found: longer periods with other elements hide the right one
            few = _elements(found.pool[:3]) if turn > 1 else search.few
            for group in np.array_split(np.array(periods, float), 3):
                tried += [search.search(_period(p), rng, HOT_FIRST, SWEEPS_FIRST, among=few) for p in group]
                yield from self.emit("depth", f"{name} {turn + 1}: periods along the beam", temperature=HOT_FIRST)
            if turn < 2:  # all periods, not those like one alone
                self.see_periods(periods, [a.energy for a in tried])
            best_periods = list(dict.fromkeys(a.period_A for a in sorted(tried, key=lambda a: a.energy)))[:PERIODS_KEPT]
            for period in best_periods:
                tried += [search.search(period, rng, HOT, SWEEPS, among=few) for _ in range(CHAINS if turn > 1 else 0)]
                tried += [search.search(period, rng, HOT, SWEEPS) for _ in range(CHAINS)]
            before = found
            found = self._judged(model, before.pool, tried, indices)
            best = found.pool[0]
            yield from self._show(model, best, f"{name} {turn + 1}", before)
            hopeless = turn + 1 >= HOPELESS_ROUNDS and self.change > SHIFTING and self._hopeless(model, best, indices)
            if hopeless:
                break
            if turn == 0:
                model = self.imaged(model, best)
            phase, centre = model.phase(best), model.matter(best)
            mixed = turn == 0 and c.rounds > 1 and freed is None
            if mixed:  # half-way states keep the next linear model honest about what may be wrong
                phase = 0.8 * phase + 0.2 * model.even
                centre = 0.8 * centre + 0.2 * model.even_matter
        return _Attempt(model, search, best, found, right, hopeless, surplus=surplus)

    def _freed_attempt(self, model: CrystalModel) -> Generator[CrystalState, None, _Attempt]:
        """From matter that is free in every slice, columns refined around it and missing ones added, to atoms.

        Even columns of atoms as heavy as uranium are so far from the patterns that no expansion around them leads to atoms,
        and take the matter of their neighbours; matter alone gets there in some steps.
        """
        centre, phase = model.even_matter, model.even
        for turn in range(FREED_ROUNDS):
            note = f"matter along the beam, step {turn + 1}"
            matter = yield from self.expanded(model, phase, centre, self.batch(FREED_PATTERNS), note)
            centre = model.step(matter)
            refined = refine(model.waves, model.columns, self.batch(EVEN_PATTERNS), phase=model.phase_of_matter(centre))
            moved = CrystalModel(model.waves, refined.columns)
            model, phase, centre = self._with_missing(moved, moved.phase_of_matter(centre), centre)
        self.see_columns(model.columns)
        return (yield from self._attempt(model, freed=centre))

    def _folded_attempt(self, larger: FoldedModel) -> Generator[CrystalState, None, _Attempt]:
        """Atoms of a smaller cell whose copies lie a part of a period deeper; their places are refined at the end alone."""
        c, columns, waves = self.config, larger.folded.columns, larger.larger.waves
        centre, found = larger.even, Found()
        drawn = CrystalModel(waves, columns)
        for turn in range(FOLDED_ROUNDS):
            name = f"smaller cell, round {turn + 1}"
            indices = self.batch(FINAL_PATTERNS)
            note = f"{name}: what each atom does to the patterns"
            matter = yield from self.expanded(larger, larger.phase(centre), centre, indices, note)
            search = FoldedSearch(larger.folded, matter, self.slices, c.slice_thickness_A, self.known.elements)
            stackings = search.stackings(self.known.period_A) if turn == 0 else [_stacking(a) for a in found.pool[:2]]
            tried: list[Arrangement] = []
            for stacking in stackings:
                tried += search.best(stacking, LISTED // 2)
                yield from self.emit("depth", f"{name}: {stacking}")
            before, found = found, self._judged(drawn, found.pool, tried, indices, LISTED)
            yield from self._show(drawn, found.pool[0], name, before)
            if before.pool and found.pool[0].same_as(before.pool[0]):
                break
            centre = larger.matter(found.pool[0])
        best = found.pool[0]
        periods = search.periods_like(_stacking(best))
        # thermal motion not yet: it would make up for a wrong element
        model = CrystalModel(waves, columns, _stacking(best))
        model, best = yield from self._places_refined(model, best, "smaller cell", 0)
        indices = self.batch(FINAL_PATTERNS)
        note = "smaller cell: what each atom does to the patterns"
        matter = yield from self.expanded(model, model.phase(best), model.matter(best), indices, note)
        found = Found([best], found.exact[:1])
        depths = DepthSearch(matter, model.columns, c.slice_thickness_A, self.known.elements, model.stacking)
        surplus, right = self._surplus_nats(model, matter, indices)
        return _Attempt(model, depths, best, found, right, periods_A=periods, surplus=surplus)

    def _places_refined(
        self, model: CrystalModel, best: Arrangement, name: str, turn: int
    ) -> Generator[CrystalState, None, tuple[CrystalModel, Arrangement]]:
        """The model and the arrangement after some steps of its places and, where cells shift, of period and shift."""
        for step in range(POLISHING_STEPS):
            indices = self.batch(POLISHING_PATTERNS)
            polished = polish(model.waves, model.cell(best), indices, step + turn)
            model, best = model.settled(best, polished.cell)
            self.loss = polished.after / len(indices)
            yield from self.emit("depth", f"{name}: places refined", cell=model.cell(best))
        return model, best

    def _shifted_atoms(self, model: CrystalModel) -> Iterator[CrystalState]:
        """The same where cells shift along the beam; where the patterns are not explained, with atoms of a column merged,
        and by the next best stacking too."""
        made = yield from self._placed_attempt(model)
        merged = None if made.right else (yield from self._merged(made))
        if merged is not None:
            made = yield from self._better(made, self._placed_attempt(merged[0], "atoms merged, round", merged[1]))
        if self.rivals and self._unexplained(made):
            made = yield from self._better(made, self._placed_attempt(self.rivals[0], "next stacking, round"))
        best = self._settle_elements(made.search, made.model, made.best)
        yield from self.emit("depth", "elements compared", cell=made.model.cell(best))
        yield from self.finish(made.model, Repeat(best, None), made.found)

    def _placed_attempt(
        self, model: CrystalModel, name: str = "round", best: Arrangement | None = None
    ) -> Generator[CrystalState, None, _Attempt]:
        """From matter, or from atoms, to atoms, whose places are refined in every round."""
        c = self.config
        model = replace(model)  # what it keeps to draw with, 1.3 GB for 19 columns, ends with the first round
        phase, centre = (model.even, model.even_matter) if best is None else (model.phase(best), model.matter(best))
        found = Found()
        right = hopeless = False
        surplus = np.inf
        for turn in range(0 if best is None else 1, 1 + c.rounds + MORE_ROUNDS):
            indices = self.batch(FINAL_PATTERNS if model.stacking is None else DENSITY_PATTERNS)
            note = f"{name} {turn}: what each atom does to the patterns" if turn else "matter along the beam"
            matter = yield from self.expanded(model, phase, centre, indices, note)
            if turn == 0:
                centre = model.step(matter)
                phase = model.phase_of_matter(centre)
                continue
            search = DepthSearch(matter, model.columns, c.slice_thickness_A, self.known.elements, model.stacking)
            if turn > 1:
                surplus, right = self._surplus_nats(model, matter, indices)
            if right:
                break
            rng = np.random.default_rng([c.seed, 3, turn])
            period = model.stacking.period_A if model.stacking else best.period_A if best else None
            tried = [search.search(period, rng, HOT, SWEEPS, start) for start in (None, best) for _ in range(PLACED_CHAINS)]
            if model.stacking is None and best is not None:
                few = _elements([best])
                tried += [search.search(_period(p), rng, HOT, SWEEPS, among=few) for p in self._periods([best])]
            before, found = found, self._judged(model, [] if best is None else [best], tried, indices)
            best = self._of_fewer_elements(search, model, found.pool[0], indices)
            yield from self._show(model, best, f"{name} {turn}", before)
            hopeless = turn >= HOPELESS_ROUNDS and self._hopeless(model, best, indices)
            if turn == c.rounds + MORE_ROUNDS or hopeless:
                break
            if turn == 1:
                model = self.imaged(model, best)
            model, best = yield from self._places_refined(model, best, f"{name} {turn}", turn - 1)
            model, phase, centre = self._with_missing(model, model.phase(best), model.matter(best))
        assert best is not None
        return _Attempt(model, search, best, found, right, hopeless, surplus=surplus)

    def _merged(self, made: _Attempt) -> Generator[CrystalState, None, tuple[CrystalModel, Arrangement] | None]:
        """Atoms of a column merged, where that explains more once places are refined; None where it does not.

        By the last patterns, so that no other step gets others than without this one.
        """
        indices = np.sort(self.order[-SETTLING_PATTERNS:])
        placing = indices[:: SETTLING_PATTERNS // POLISHING_PATTERNS]
        others = sorted(made.search.merged(made.best), key=lambda other: _energy(made.model, other, indices))[:MERGED_TRIED]
        if not others:
            return None
        trials: list[tuple[float, CrystalModel, Arrangement]] = []
        for best in (made.best, *others):
            model = made.model
            for step in range(POLISHING_STEPS):
                model, best = model.settled(best, polish(model.waves, model.cell(best), placing, step).cell)
            trials.append((_energy(model, best, indices), model, best))
            yield from self.emit("depth", "atoms of a column merged, tried", cell=model.cell(best))
        unmerged, *_ = trials
        energy, model, best = min(trials, key=lambda trial: trial[0])
        return (model, best) if energy < unmerged[0] else None

    def _surplus_nats(self, model: CrystalModel, matter: Matter, indices: Indices) -> tuple[float, bool]:
        """Nats a pattern that free matter would gain at the centre of an expansion, and whether that may be by chance."""
        surplus, deviations = model.surplus(matter)
        nats = surplus / len(indices)
        return nats, not doubtful(nats, deviations, self.brightness)

    def _unexplained(self, made: _Attempt) -> bool:
        """Whether free matter would still gain much, and further rounds may."""
        return not (made.right or made.hopeless) and made.surplus > EXPLAINED_NATS

    def _repeats(self, best: Arrangement) -> bool:
        """Whether the specimen holds a period so often that no longer one, of columns that are copies, is thinkable."""
        return best.period_A is not None and FEW_PERIODS * best.period_A <= self.thickness_A

    def _hopeless(self, model: CrystalModel, best: Arrangement, indices: Indices) -> bool:
        """Whether a round's patterns are missed by more than further rounds mend where cells shift or differ."""
        return model.excess(model.phase(best), indices)[0] > HOPELESS_NATS

    def _judged(
        self,
        model: CrystalModel,
        known: Sequence[Arrangement],
        tried: Sequence[Arrangement],
        indices: Indices,
        most: int = JUDGED,
    ) -> Found:
        """The best of the search and what was known before, by the model itself."""
        judged = _distinct(known[:3], 3) + _distinct(sorted(tried, key=lambda a: a.energy), most)
        misfits = [model.misfit(model.phase(a), indices) for a in judged]
        energies = np.array([m.sum() + a.prior for m, a in zip(misfits, judged, strict=True)])
        ranking = np.argsort(energies)
        self.loss = float(misfits[ranking[0]].mean())
        return Found([judged[i] for i in ranking], [float(energies[i]) for i in ranking])

    def _with_missing(self, model: CrystalModel, phase: Tensor, matter: Array) -> tuple[CrystalModel, Tensor, Array]:
        """With columns that the patterns miss, even along the beam; the phase, and the matter."""
        columns = add_missing(model.waves, model.columns, self.batch(COPIES_PATTERNS // 4), phase)
        wider = CrystalModel(model.waves, columns, model.stacking)
        centre = wider.even_matter.copy()
        centre[: len(model.columns)] = matter
        known = wider.even_matter.copy()
        known[len(model.columns) :] = 0.0
        return wider, phase + wider.even - wider.phase_of_matter(known), centre

    def _settle_elements(self, search: DepthSearch, model: CrystalModel, best: Arrangement) -> Arrangement:
        """Elements that scatter nearly alike, compared by the model itself on more patterns than a round has.

        All likely changes on some of them, the best of these on all; at last, like elements are one unless that costs more
        than the model's own error.
        """
        indices = self.batch(SETTLING_PATTERNS)
        few = indices[:: SETTLING_PATTERNS // SCREENING_PATTERNS]
        at_few, at_all = (_energy(model, best, some) for some in (few, indices))
        for _ in range(SETTLING_TURNS):
            here = search.energy(best)
            others = sorted(search.other_elements(best), key=search.energy)[:SETTLING_TRIED]
            others = [other for other in others if search.energy(other) - here < SETTLING_NATS] + search.like_elements(best)
            screened = sorted(((_energy(model, other, few), i) for i, other in enumerate(others)))[:SETTLING_KEPT]
            rivals = [(value, others[i]) for value, i in screened if value < at_few + SCREENED_NATS]
            if not rivals:
                break
            energies = [_energy(model, other, indices) for _, other in rivals]
            if min(energies) >= at_all:
                break
            at_all = min(energies)
            at_few, best = rivals[energies.index(at_all)]
        return self._of_fewer_elements(search, model, best, indices, MODEL_NATS * self.brightness * len(indices))

    def _of_fewer_elements(
        self, search: DepthSearch, model: CrystalModel, best: Arrangement, indices: Indices, allowed: float = 0.0
    ) -> Arrangement:
        """Like elements made one where that costs no more than allowed, nats, by the model itself."""
        limit = _energy(model, best, indices) + allowed
        while True:
            count = len(np.unique(best.number))
            fewer = [a for a in search.like_elements(best) if len(np.unique(a.number)) < count]
            energies = [_energy(model, other, indices) for other in fewer]
            if min(energies, default=np.inf) >= limit:
                return best
            best = fewer[energies.index(min(energies))]
            limit = min(limit, min(energies) + allowed)

    def _periods(self, pool: Sequence[Arrangement]) -> list[float]:
        """Periods to try, nan for none: all, or those like what was found."""
        if self.known.period_A is not None:
            return [self.known.period_A if self.known.period_A < self.thickness_A else np.nan]
        grid = np.arange(SHORTEST_PERIOD_A, self.thickness_A - 1e-6, PERIOD_STEP_A)
        if pool:
            grid = periods_like(pool[:3], self.slices, self.config.slice_thickness_A)
        return [*grid.tolist(), np.nan]

    def _show(self, model: CrystalModel, best: Arrangement, round_: str, before: Found) -> Iterator[CrystalState]:
        cell = model.cell(best)
        self.volume = self.draw_volume(cell)
        if len(self.held):
            self.heldout = float(model.misfit(model.phase(best), self.held).mean())
        accepted = int(not any(best.same_as(p) for p in before.pool))
        note = f"{round_}: {cell.formula}, {_say_period(best)}"
        yield from self.emit("depth", note, cell=cell, temperature=1.0, accepted=accepted)


def _energy(model: CrystalModel, arrangement: Arrangement, indices: Indices) -> float:
    """By the model itself, nats."""
    return float(model.misfit(model.phase(arrangement), indices).sum()) + arrangement.prior


def _stacking(arrangement: Arrangement) -> Stacking:
    """How the cells of an arrangement follow one another."""
    assert arrangement.period_A is not None
    assert arrangement.shift is not None
    return Stacking(arrangement.period_A, arrangement.shift, 0.0)


def _period(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _say_period(arrangement: Arrangement) -> str:
    return "no period along the beam" if arrangement.period_A is None else f"period {arrangement.period_A:.2f} Å"


def _elements(found: Sequence[Arrangement]) -> npt.NDArray[np.int64]:
    """Atomic numbers of all atoms."""
    return np.unique(np.concatenate([a.number for a in found])).astype(np.int64)


def _distinct(found: Sequence[Arrangement], count: int) -> list[Arrangement]:
    """The first ``count`` that differ."""
    result: list[Arrangement] = []
    for arrangement in found:
        if len(arrangement.number) and not any(arrangement.same_as(r) for r in result):
            result.append(arrangement)
        if len(result) == count:
            break
    return result
