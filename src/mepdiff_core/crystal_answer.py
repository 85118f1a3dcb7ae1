"""What is said of a crystal that was found: its places polished, its spread, what speaks against it, its volume.

The crystal solver's end, and what its rounds share with it: expansions, imaging, volumes drawn.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.batches import Indices
from mepdiff_core.column_search import DENSITY_PATTERNS, EVEN_PATTERNS, SCORED_GROUPS, SCORED_PATTERNS, ColumnSearch
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystal_verdict import WRONG_NATS, Evidence, Fit, cell_fails, explained, limits
from mepdiff_core.defect_search import find_defects
from mepdiff_core.defects import Defect, with_defects
from mepdiff_core.depth import Arrangement, DepthSearch, Matter, Repeat
from mepdiff_core.folding import FoldedModel
from mepdiff_core.imaging import preferred_slices, refine_imaging
from mepdiff_core.polish import draw_cell, polish
from mepdiff_core.projection import illumination
from mepdiff_core.renderer import Renderer
from mepdiff_core.states import CrystalState
from mepdiff_core.unit_cell import UnitCell

Array = npt.NDArray[np.float64]

PATTERNS_A_STATE = 8
POLISHING_PATTERNS, POLISHING_STEPS, LAST_PATTERNS = 16, 3, 48
DEFECT_PATTERNS = 160
SETTLING_PATTERNS, SETTLING_NATS = 96, 60.0
EQUAL_NATS = 5.0
"""Two answers whose exact misfits on a round's patterns differ by less are equally likely."""
MARGIN_A = 4.0


@dataclass(frozen=True)
class Found:
    """Arrangements of a round, the best first, and their energies by the model itself, nats."""

    pool: list[Arrangement] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)


class CrystalAnswer(ColumnSearch):
    """A search's end: from an arrangement of atoms to the last state."""

    def finish(self, model: CrystalModel, repeat: Repeat, found: Found) -> Iterator[CrystalState]:
        """The last state: the answer, its spread, and the limits."""
        best = repeat.arrangement
        model = self.imaged(model, best)
        placed = self._placed_at_last(model, model.cell(best))
        phase, indices = draw_cell(model.waves, placed), self.batch(DENSITY_PATTERNS)
        matter = yield from self.expanded(model, phase, model.matter(best), indices, "what the patterns leave open")
        here = DepthSearch(matter, model.columns, self.config.slice_thickness_A, self.known.elements, model.stacking)
        cell, samples = self._posterior(here, model, best, placed)
        held = self.held if len(self.held) else self.batch(EVEN_PATTERNS)
        surplus, deviations = yield from self._surplus(model, phase, matter, len(indices), cell)
        misfit = float(model.misfit(phase, held).mean())
        depth = float(model.misfit(model.even, held).mean()) - misfit
        fit = Fit(*model.excess(phase, held), surplus, deviations, len(self.held) > 0, self.brightness, depth)
        if len(self.held):
            self.heldout = misfit
        defects: list[Defect] = []
        if fit.nats < WRONG_NATS:
            defects = yield from self._defects(model, cell)
        if cell_fails(fit, self.change):
            samples = None
            yield from self.matter(cell=cell)
        else:
            self.volume = self.draw_volume(cell, defects)
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

    def imaged(self, model: CrystalModel, best: Arrangement) -> CrystalModel:
        """The model with the overfocus and the thermal motion that the patterns prefer."""
        refined = refine_imaging(
            model.waves, lambda w: replace(model, waves=w).phase(best), self.batch(POLISHING_PATTERNS), thermal=True
        )
        self.overfocus_spread_A = refined.overfocus_spread_A
        return model if refined.waves is model.waves else replace(model, waves=refined.waves)

    def expanded(
        self, model: CrystalModel | FoldedModel, phase: Tensor, centre: Array, indices: Indices, note: str
    ) -> Generator[CrystalState, None, Matter]:
        """The misfit around a crystal, with a state for every few patterns."""
        total: Matter | None = None
        for part in np.array_split(indices, max(1, len(indices) // PATTERNS_A_STATE)):
            more = model.expand(phase, centre, part)
            total = more if total is None else total + more
            yield from self.emit("depth", note)
        assert total is not None
        return total

    def _as_likely(self, model: CrystalModel, second: Arrangement, best: Arrangement) -> bool:
        """Whether more patterns than a round has leave the two equally likely."""
        if second.same_as(best):
            return False
        indices = self.batch(SETTLING_PATTERNS)
        gap = model.misfit(model.phase(second), indices).sum() - model.misfit(model.phase(best), indices).sum()
        return bool(gap + second.prior - best.prior < EQUAL_NATS)

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

    def draw_volume(self, cell: UnitCell, defects: Sequence[Defect] = ()) -> npt.NDArray[np.float32]:
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
        volumes = [self.draw_volume(cell if d.same_as(best) else model.cell(d)) for d in draws[: self.config.samples]]
        return cell, np.stack(volumes)

    def _preferred_thickness(self, model: CrystalModel, cell: UnitCell) -> float:
        """Å, by whole slices: the given one, or one slice more or less where that explains much more."""
        if not cell.periodic_along_beam:
            return self.thickness_A

        def draw(waves: AtomWaves) -> Tensor:
            return draw_cell(waves, replace(cell, thickness_A=waves.slices * waves.slice_thickness_A))

        slices, gain = preferred_slices(model.waves, draw, self.batch(POLISHING_PATTERNS))
        return slices * model.waves.slice_thickness_A if gain > SETTLING_NATS else self.thickness_A
