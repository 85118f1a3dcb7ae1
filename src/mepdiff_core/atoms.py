"""The crystal solver: from a scan to the atoms of a repeated cell, judged by the Poisson likelihood of the patterns.

Five stages, each with its states: the projection; its lattice; its columns, refined and completed; their atoms' depths,
elements and number, for every period along the beam that may be; and draws from what the patterns leave open. Nothing is
trained, nothing needs to be known beforehand; docs/method.md tells what was measured on the way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.batches import Indices
from mepdiff_core.column_search import (
    COPIES_PATTERNS,
    DENSITY_PATTERNS,
    EVEN_PATTERNS,
    SCORED_GROUPS,
    SCORED_PATTERNS,
    ColumnSearch,
)
from mepdiff_core.columns import add_missing
from mepdiff_core.config import check
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystal_verdict import WRONG_NATS, Evidence, Fit, cell_fails, doubtful, explained, limits
from mepdiff_core.defect_search import find_defects
from mepdiff_core.defects import Defect, with_defects
from mepdiff_core.depth import SHORTEST_PERIOD_A, Arrangement, DepthSearch, Matter, Repeat, periods_like, shortest_repeat
from mepdiff_core.imaging import preferred_slices, refine_imaging
from mepdiff_core.polish import draw_cell, polish
from mepdiff_core.projection import illumination
from mepdiff_core.renderer import Renderer
from mepdiff_core.scan import Scan
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.states import Checkpoint, CrystalState
from mepdiff_core.unit_cell import UnitCell

Array = npt.NDArray[np.float64]

PATTERNS_A_STATE = 8
POLISHING_PATTERNS, POLISHING_STEPS, LAST_PATTERNS = 16, 3, 48
SWEEPS_FIRST, SWEEPS, CHAINS = 8, 20, 3
HOT_FIRST, HOT = 100.0, 200.0
SHIFTED_CHAINS = 12
DEFECT_PATTERNS = 160
MORE_ROUNDS, ATTEMPTS = 2, 2
"""At most, while free matter would still gain more than by chance: rounds beyond those asked for where cells shift; starts
where they do not."""
HOPELESS_ROUNDS, HOPELESS_NATS = 2, 120.0
"""After so many rounds where cells shift, patterns missed by so many nats are no longer explained by more of them: right
crystals are below 10 by then, titanate at 270."""
PERIOD_STEP_A = 0.1
PERIODS_KEPT, JUDGED = 10, 8
SETTLING_PATTERNS, SCREENING_PATTERNS, SETTLING_KEPT, SCREENED_NATS = 96, 16, 2, 20.0
SETTLING_TURNS, SETTLING_TRIED, SETTLING_NATS = 4, 5, 60.0
MODEL_NATS = 0.3
"""A pattern: what the model's own error can make of two elements instead of one; 0.2 for tungsten with a tantalum in it."""
EQUAL_NATS = 5.0
"""Two answers whose exact misfits on a round's patterns differ by less are equally likely."""
MARGIN_A = 4.0


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
class _Found:
    """Arrangements of a round, the best first, and their energies by the model itself, nats."""

    pool: list[Arrangement] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Attempt:
    """What came of one, and whether free matter would gain no more than by chance."""

    model: CrystalModel
    search: DepthSearch
    found: _Found
    right: bool


class _Solver(ColumnSearch):
    """From the columns to the atoms in them."""

    def run(self) -> Iterator[CrystalState]:
        model = yield from self.columns()
        if model is None:
            return
        yield from self._atoms(model) if model.stacking is None else self._shifted_atoms(model)

    def _atoms(self, model: CrystalModel) -> Iterator[CrystalState]:
        """Depths, elements and number of the atoms in the columns of cells that are all alike.

        An answer that free matter would still improve is wrong, and rounds around it seldom leave it: then once more from
        the even crystal, with other patterns.
        """
        attempts: list[_Attempt] = []
        while len(attempts) < ATTEMPTS and not (attempts and attempts[-1].right):
            attempts.append((yield from self._attempt(model, len(attempts))))
        indices = self.batch(SETTLING_PATTERNS)
        made = min(attempts, key=lambda a: _energy(a.model, a.found.pool[0], indices)) if attempts[1:] else attempts[0]
        best = self._settle_elements(made.search, made.model, made.found.pool[0])
        yield from self.emit("depth", "elements compared", cell=made.model.cell(best))
        repeat = shortest_repeat(best, self.slices, self.config.slice_thickness_A)
        yield from self._finish(made.model, repeat, made.found)

    def _attempt(self, model: CrystalModel, number: int) -> Generator[CrystalState, None, _Attempt]:
        """From the even crystal to atoms that free matter does not improve, or as many rounds as were asked for."""
        c = self.config
        phase, centre = model.even, model.even_matter
        found = _Found()
        mixed = right = False
        per_round = min(c.patterns, max(12, 480 // len(model.columns)))
        name = "round" if number == 0 else "once more, round"
        for turn in range(c.rounds + 1):
            indices = self.batch(per_round)
            note = f"{name} {turn + 1}: what each atom does to the patterns"
            matter = yield from self._expand(model, phase, centre, indices, note)
            search = DepthSearch(matter, model.columns, c.slice_thickness_A, self.known.elements)
            right = turn > 0 and not mixed and not self._doubtful(model, matter, indices)
            if right or turn == c.rounds:
                break
            tried: list[Arrangement] = []
            rng = np.random.default_rng([c.seed, 3, turn, number])
            periods = self._periods(found.pool if turn > 1 else [])
            # at last among the elements that were found: longer periods with other elements hide the right one
            few = _elements(found.pool[:3]) if turn > 1 else search.few
            for group in np.array_split(np.array(periods, float), 3):
                tried += [search.search(_period(p), rng, HOT_FIRST, SWEEPS_FIRST, among=few) for p in group]
                yield from self.emit("depth", f"{name} {turn + 1}: periods along the beam", temperature=HOT_FIRST)
            best_periods = list(dict.fromkeys(a.period_A for a in sorted(tried, key=lambda a: a.energy)))[:PERIODS_KEPT]
            for period in best_periods:
                tried += [search.search(period, rng, HOT, SWEEPS, among=few) for _ in range(CHAINS if turn > 1 else 0)]
                tried += [search.search(period, rng, HOT, SWEEPS) for _ in range(CHAINS)]
            before = found
            found = self._judged(model, before.pool, tried, indices)
            best = found.pool[0]
            yield from self._show(model, best, f"{name} {turn + 1}", before)
            if turn == 0:
                model = self._imaged(model, best)
            phase, centre = model.phase(best), model.matter(best)
            mixed = turn == 0 and c.rounds > 1
            if mixed:  # half-way states keep the next linear model honest about what may be wrong
                phase = 0.8 * phase + 0.2 * model.even
                centre = 0.8 * centre + 0.2 * model.even_matter
        return _Attempt(model, search, found, right)

    def _shifted_atoms(self, model: CrystalModel) -> Iterator[CrystalState]:
        """The same where cells shift along the beam: from matter to atoms, whose places are refined in every round."""
        c = self.config
        phase, centre = model.even, model.even_matter
        found = _Found()
        best: Arrangement | None = None
        for turn in range(1 + c.rounds + MORE_ROUNDS):
            indices = self.batch(DENSITY_PATTERNS)
            note = f"round {turn}: what each atom does to the patterns" if turn else "matter along the beam"
            matter = yield from self._expand(model, phase, centre, indices, note)
            if turn == 0:
                centre = model.step(matter)
                phase = model.phase_of_matter(centre)
                continue
            search = DepthSearch(matter, model.columns, c.slice_thickness_A, self.known.elements, model.stacking)
            if turn > 1 and not self._doubtful(model, matter, indices):
                break
            rng = np.random.default_rng([c.seed, 3, turn])
            period = None if model.stacking is None else model.stacking.period_A
            tried = [search.search(period, rng, HOT, SWEEPS, start) for start in (None, best) for _ in range(SHIFTED_CHAINS)]
            before, found = found, self._judged(model, [] if best is None else [best], tried, indices)
            best = self._of_fewer_elements(search, model, found.pool[0], indices)
            yield from self._show(model, best, f"round {turn}", before)
            hopeless = turn >= HOPELESS_ROUNDS and model.excess(model.phase(best), indices)[0] > HOPELESS_NATS
            if turn == c.rounds + MORE_ROUNDS or hopeless:
                break
            if turn == 1:
                model = self._imaged(model, best)
            for step in range(POLISHING_STEPS):
                indices = self.batch(POLISHING_PATTERNS)
                polished = polish(model.waves, model.cell(best), indices, step + turn - 1)
                model, best = model.settled(best, polished.cell)
                self.loss = polished.after / len(indices)
                yield from self.emit("depth", f"round {turn}: places refined", cell=model.cell(best))
            model, phase, centre = self._with_missing(model, best)
        assert best is not None
        best = self._settle_elements(search, model, best)
        yield from self.emit("depth", "elements compared", cell=model.cell(best))
        yield from self._finish(model, Repeat(best, None), found)

    def _doubtful(self, model: CrystalModel, matter: Matter, indices: Indices) -> bool:
        """Whether free matter would gain more at the centre of an expansion than chance gives it."""
        surplus, deviations = model.surplus(matter)
        return doubtful(surplus / len(indices), deviations, self.brightness)

    def _judged(
        self, model: CrystalModel, known: Sequence[Arrangement], tried: Sequence[Arrangement], indices: Indices
    ) -> _Found:
        """The best of the search and what was known before, by the model itself."""
        judged = _distinct(known[:3], 3) + _distinct(sorted(tried, key=lambda a: a.energy), JUDGED)
        misfits = [model.misfit(model.phase(a), indices) for a in judged]
        energies = np.array([m.sum() + a.prior for m, a in zip(misfits, judged, strict=True)])
        ranking = np.argsort(energies)
        self.loss = float(misfits[ranking[0]].mean())
        return _Found([judged[i] for i in ranking], [float(energies[i]) for i in ranking])

    def _finish(self, model: CrystalModel, repeat: Repeat, found: _Found) -> Iterator[CrystalState]:
        """The last state: the answer, its spread, and the limits."""
        best = repeat.arrangement
        model = self._imaged(model, best)
        placed = self._placed_at_last(model, model.cell(best))
        phase, indices = draw_cell(model.waves, placed), self.batch(DENSITY_PATTERNS)
        matter = yield from self._expand(model, phase, model.matter(best), indices, "what the patterns leave open")
        here = DepthSearch(matter, model.columns, self.config.slice_thickness_A, self.known.elements, model.stacking)
        cell, samples = self._posterior(here, model, best, placed)
        held = self.held if len(self.held) else self.batch(EVEN_PATTERNS)
        surplus, deviations = yield from self._surplus(model, phase, matter, len(indices), cell)
        depth = float((model.misfit(model.even, held) - model.misfit(phase, held)).mean())
        fit = Fit(*model.excess(phase, held), surplus, deviations, len(self.held) > 0, self.brightness, depth)
        if len(self.held):
            self.heldout = float(model.misfit(phase, self.held).mean())
        defects: list[Defect] = []
        if fit.nats < WRONG_NATS:
            defects = yield from self._defects(model, cell)
        if cell_fails(fit, self.change):
            samples = None
            yield from self.matter(cell=cell)
        else:
            self.volume = self._draw_volume(cell, defects)
        rest = zip(found.pool[1:], found.exact[1:], strict=True)
        second = next((a for a, e in rest if e - found.exact[0] < EQUAL_NATS and not a.same_as(best)), None)
        alternative = None if second is None or not self._as_likely(model, second, best) else model.cell(second)
        evidence = Evidence(
            fit,
            periodic=best.period_A is not None,
            periods_A=repeat.periods_A,
            change=self.change,
            imaging=model.waves.imaging,
            overfocus_spread_A=self.overfocus_spread_A,
            thickness_A=self.thickness_A,
            preferred_thickness_A=self._preferred_thickness(model, cell),
            defects=tuple(defects),
            alternative=None if alternative is None else alternative.formula,
        )
        words = limits(evidence)
        yield from self.emit(
            "posterior",
            "; ".join(words),
            cell=cell,
            samples=samples,
            alternative=alternative,
            defects=tuple(defects),
            explained=explained(fit),
            verdict=". ".join(w[0].upper() + w[1:] for w in words) + ".",
        )

    def _placed_at_last(self, model: CrystalModel, cell: UnitCell) -> UnitCell:
        """The cell with its places polished once more, where other patterns agree; with their spread in any case.

        Atoms near a slice's face pass it for a few nats on the patterns of the step, and cost the others hundreds.
        """
        polished = polish(model.waves, cell, self.batch(LAST_PATTERNS), POLISHING_STEPS).cell
        judging = self.batch(LAST_PATTERNS)
        before, after = (model.misfit(draw_cell(model.waves, c), judging).sum() for c in (cell, polished))
        return polished if after < before else replace(cell, spread_A=polished.spread_A)

    def _surplus(
        self, model: CrystalModel, phase: Tensor, matter: Matter, patterns: int, cell: UnitCell
    ) -> Generator[CrystalState, None, tuple[float, float]]:
        """What free matter would gain, nats a pattern, and in deviations, by many patterns; ``matter`` of fewer ones."""
        indices, count = self.batch(SCORED_PATTERNS), matter.centre.size
        scores = []
        for part in np.array_split(indices, min(SCORED_GROUPS, len(indices))):
            scores.append(model.score(phase, part))
            yield from self.emit("posterior", f"what free matter would gain: {len(scores)} of {SCORED_GROUPS}", cell=cell)
        fisher = matter.fisher[:count, :count] * (len(indices) / patterns)
        surplus, deviation = model.surplus_of(np.array(scores), fisher)
        return surplus / len(indices), surplus / deviation

    def _imaged(self, model: CrystalModel, best: Arrangement) -> CrystalModel:
        """The model with the overfocus and the thermal motion that the patterns prefer."""
        refined = refine_imaging(
            model.waves, lambda w: replace(model, waves=w).phase(best), self.batch(POLISHING_PATTERNS), thermal=True
        )
        self.overfocus_spread_A = refined.overfocus_spread_A
        return model if refined.waves is model.waves else replace(model, waves=refined.waves)

    def _with_missing(self, model: CrystalModel, best: Arrangement) -> tuple[CrystalModel, Tensor, Array]:
        """With columns that the patterns miss, even along the beam; the phase, and the matter."""
        phase = model.phase(best)
        columns = add_missing(model.waves, model.columns, self.batch(COPIES_PATTERNS // 4), phase)
        wider = CrystalModel(model.waves, columns, model.stacking)
        centre = wider.even_matter.copy()
        centre[: len(model.columns)] = model.matter(best)
        known = wider.even_matter.copy()
        known[len(model.columns) :] = 0.0
        return wider, phase + wider.even - wider.phase_of_matter(known), centre

    def _expand(
        self, model: CrystalModel, phase: Tensor, centre: Array, indices: Indices, note: str
    ) -> Generator[CrystalState, None, Matter]:
        """The misfit around a crystal, with a state for every few patterns."""
        total: Matter | None = None
        for part in np.array_split(indices, max(1, len(indices) // PATTERNS_A_STATE)):
            more = model.expand(phase, centre, part)
            total = more if total is None else total + more
            yield from self.emit("depth", note)
        assert total is not None
        return total

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

    def _as_likely(self, model: CrystalModel, second: Arrangement, best: Arrangement) -> bool:
        """Whether more patterns than a round has leave the two equally likely."""
        if second.same_as(best):
            return False
        indices = self.batch(SETTLING_PATTERNS)
        gap = model.misfit(model.phase(second), indices).sum() - model.misfit(model.phase(best), indices).sum()
        return bool(gap + second.prior - best.prior < EQUAL_NATS)

    def _periods(self, pool: Sequence[Arrangement]) -> list[float]:
        """Periods to try, nan for none: all, or those like what was found."""
        if self.known.period_A is not None:
            return [self.known.period_A if self.known.period_A < self.thickness_A else np.nan]
        grid = np.arange(SHORTEST_PERIOD_A, self.thickness_A - 1e-6, PERIOD_STEP_A)
        if pool:
            grid = periods_like(pool[:3], self.slices, self.config.slice_thickness_A)
        return [*grid.tolist(), np.nan]

    def _defects(self, model: CrystalModel, cell: UnitCell) -> Generator[CrystalState, None, list[Defect]]:
        """Sites that differ from the cell, looked for in some of the patterns."""
        where, pixel = np.asarray(self.field.origin_A), self.scan.pixel_size_A
        search = find_defects(model.waves, cell, illumination(self.scan), where, pixel, self.batch(DEFECT_PATTERNS))
        while True:
            try:
                done = next(search)
            except StopIteration as end:
                found: list[Defect] = end.value
                return found
            yield from self.emit("posterior", f"vacancies and displaced atoms: {100 * done:.0f} %", cell=cell)

    def _draw_volume(self, cell: UnitCell, defects: Sequence[Defect] = ()) -> npt.NDArray[np.float32]:
        """The cell's atoms on the object field, as every volume is drawn."""
        pixel = self.scan.pixel_size_A
        margin = int(np.ceil(MARGIN_A / pixel))
        shape = (self.field.shape[0] + 2 * margin, self.field.shape[1] + 2 * margin)
        corner = np.asarray(self.field.origin_A) - margin * pixel
        box = cell.atoms_in((self.thickness_A, shape[0] * pixel, shape[1] * pixel), (0.0, *corner))
        box = with_defects(box, defects, (0.0, float(corner[0]), float(corner[1])))
        thickness = self.config.slice_thickness_A
        renderer = Renderer(shape, pixel, self.slices, thickness, self.scan.optics.energy_eV, self.device)
        volume = renderer.render([box])[0].cpu().numpy()
        return np.ascontiguousarray(volume[:, margin:-margin, margin:-margin], np.float32)

    def _show(self, model: CrystalModel, best: Arrangement, round_: str, before: _Found) -> Iterator[CrystalState]:
        cell = model.cell(best)
        self.volume = self._draw_volume(cell)
        if len(self.held):
            self.heldout = float(model.misfit(model.phase(best), self.held).mean())
        accepted = int(not any(best.same_as(p) for p in before.pool))
        note = f"{round_}: {cell.formula}, {_say_period(best)}"
        yield from self.emit("depth", note, cell=cell, temperature=1.0, accepted=accepted)

    def _posterior(
        self, search: DepthSearch, model: CrystalModel, best: Arrangement, placed: UnitCell
    ) -> tuple[UnitCell, npt.NDArray[np.float32] | None]:
        """Draws from the quadratic posterior around the answer: spread, candidates and sample volumes."""
        rng = np.random.default_rng([self.config.seed, 4])
        chain, slots = search.chain(best, rng)
        candidates = []
        for column, slot in zip(best.column, best.slot, strict=True):
            probability = chain.candidates(int(column), int(slot))
            top = np.argsort(-probability)[:5]
            chosen = {int(search.numbers[t]): float(probability[t]) for t in top if probability[t] > 0.01}
            candidates.append(
                tuple(sorted(chosen.items(), key=lambda item: -item[1])) or ((int(search.numbers[top[0]]), 1.0),)
            )
        draws = []
        for _ in range(max(16, self.config.samples)):
            for _ in range(3):
                chain.sweep(1.0)
            draws.append(search.arrangement(chain.now(), best.period_A))
        spread = np.full((len(best.number), 3), np.nan)
        spread[:, 1:] = placed.spread_A[:, 1:]
        for k, (column, slot) in enumerate(zip(best.column, best.slot, strict=True)):
            width = float(slots.width_A[slot]) / np.sqrt(12)
            steps = [width if best.shift is None else float(placed.spread_A[k, 0])]
            for draw in draws:
                depths = draw.depth_A[draw.column == column]
                if len(depths):
                    step = np.abs(depths - best.depth_A[k])
                    steps.append(float((np.minimum(step, best.period_A - step) if best.period_A else step).min()))
            spread[k, 0] = float(np.hypot(steps[0], np.sqrt(np.mean(np.square(steps[1:])))) if len(steps) > 1 else steps[0])
        cell = replace(placed, spread_A=spread, candidates=tuple(candidates))
        if not self.config.samples:
            return cell, None
        volumes = [self._draw_volume(cell if d.same_as(best) else model.cell(d)) for d in draws[: self.config.samples]]
        return cell, np.stack(volumes)

    def _preferred_thickness(self, model: CrystalModel, cell: UnitCell) -> float:
        """Å, by whole slices: the given one, or one slice more or less where that explains much more."""
        if not cell.periodic_along_beam:
            return self.thickness_A

        def draw(waves: AtomWaves) -> Tensor:
            return draw_cell(waves, replace(cell, thickness_A=waves.slices * waves.slice_thickness_A))

        slices, gain = preferred_slices(model.waves, draw, self.batch(POLISHING_PATTERNS))
        return slices * model.waves.slice_thickness_A if gain > SETTLING_NATS else self.thickness_A


def _energy(model: CrystalModel, arrangement: Arrangement, indices: Indices) -> float:
    """By the model itself, nats."""
    return float(model.misfit(model.phase(arrangement), indices).sum()) + arrangement.prior


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
