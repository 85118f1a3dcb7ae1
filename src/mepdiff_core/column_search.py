"""The crystal solver's first half: from a scan to the columns of a repeated cell, and how cells follow one another."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core import lattice as plane
from mepdiff_core.atom_waves import AtomWaves, Imaging
from mepdiff_core.batches import Indices, split_patterns
from mepdiff_core.columns import Columns, Painter, add_missing, drop_empty, refine, split_cosets, widen
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.crystal_verdict import SHIFTING, WITHOUT_CELL
from mepdiff_core.element_features import element_table
from mepdiff_core.errors import Refused
from mepdiff_core.forward import object_field
from mepdiff_core.imaging import refine_imaging
from mepdiff_core.measured import MeasuredPatterns
from mepdiff_core.memory import release_freed
from mepdiff_core.projection import illumination, matter_by_depth, project
from mepdiff_core.scan import Scan, specimen_slices
from mepdiff_core.settings import CrystalConfig, parse_composition
from mepdiff_core.stacking import (
    PARAMETER_NATS,
    CopyGains,
    Stacking,
    added_matter,
    best_superlattice,
    copy_gains,
    crossed_gain,
    find_stackings,
    superlattice_gain,
)
from mepdiff_core.states import CrystalState
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import from_crystal

Array = npt.NDArray[np.float64]

PASSES = 3
EVEN_SLICES = 4
ELECTRONS, MOST_TIMES = 2**18, 4.0
"""A pattern, that the numbers of patterns below are meant for (the paper's); where there are fewer, more patterns are taken:
by the square root of the ratio, which shares the loss out between certainty and time, and so many times at most."""
EVEN_PATTERNS, COSET_PATTERNS, FINAL_PATTERNS = 8, 12, 24
PLACING_PATTERNS, PLACING_STEPS, PLACING_DEVIATIONS, PLACING_SHAPES = 32, 2, 3.0, 2.0
COLUMN_ROUNDS = 6
COPIES_PATTERNS, STACKINGS, DENSITY_PATTERNS = 96, 5, 12
PARTS_TAKEN = (0.5, 1.0)
"""Of the matter that a stacking's linear gain comes from."""
NEARLY = 0.6
"""Stackings that gain less than this part of the best are not tried."""
EVEN_OVERFOCUS_A = 2.0
"""Columns that are even along the beam tell the overfocus to about half an Å; less than this is left for the atoms."""
LATTICE_TOLERANCE = 0.03
LIT = 0.1
"""Part of the highest illumination above which a place counts as seen."""
SCORED_PATTERNS, SCORED_GROUPS = 160, 20
STEPS_AT_MOST = PASSES + 1 + 4 + 4 * COLUMN_ROUNDS + 4 + SCORED_GROUPS
ROUND_STEPS = 10


@dataclass(frozen=True)
class Known:
    """What the user knows: elements, in-plane lattice and period; None each where not."""

    elements: tuple[int, ...] | None = None
    lattice_A: Array | None = None
    period_A: float | None = None


def what_is_known(config: CrystalConfig, thickness_A: float) -> Known:
    """From the settings, or from the file they name.

    Raises:
        InputError: a file that can't be read.
    """
    if config.start is not None:
        crystal = read_crystal(config.start)
        cell = from_crystal(crystal, config.axis, (0.0, 0.0, 0.0), thickness_A)
        elements = tuple(sorted(set(cell.numbers.tolist())))
        return Known(elements, plane.reduce_basis(cell.lattice_A[:2, 1:]), float(cell.lattice_A[2, 0]))
    vectors = None
    if config.lattice_A is not None and config.angle_deg is not None:
        a, b = config.lattice_A
        angle = np.radians(config.angle_deg)
        vectors = plane.reduce_basis(np.array([[0.0, a], [b * np.sin(angle), b * np.cos(angle)]]))
    composition = config.composition
    return Known(None if composition is None else tuple(sorted(parse_composition(composition))), vectors, config.period_A)


@dataclass
class ColumnSearch:
    """A scan on its way to columns, and what every later stage shares: patterns in turn, states, settings, what is known."""

    scan: Scan
    config: CrystalConfig
    device: torch.device | str
    probe: npt.NDArray[np.complex64] | None = None
    positions_A: Array | None = None
    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    heldout: float | None = None
    change: float = 0.0
    overfocus_spread_A: float = float("nan")
    steps: CrystalSteps | None = None
    rivals: Sequence[CrystalModel] = ()
    """Of other stackings than the one that explains most, the best first."""

    def __post_init__(self) -> None:
        c, scan = self.config, self.scan
        self.slices = specimen_slices(scan, c.slices, c.slice_thickness_A)
        self.thickness_A = self.slices * c.slice_thickness_A
        self.known = what_is_known(c, self.thickness_A)
        self.fit, self.held = split_patterns(scan.n_patterns, c.heldout_fraction, c.seed)
        self.order = np.random.default_rng([c.seed, 1]).permutation(self.fit)
        self.used = 0
        self.brightness = scan.electrons_per_pattern / ELECTRONS
        self.times = float(np.clip(self.brightness**-0.5, 1.0, MOST_TIMES))
        self.field = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
        self.beam = replace(  # the scan as the beam really went
            scan,
            probe=scan.probe if self.probe is None else self.probe,
            positions_A=scan.positions_A if self.positions_A is None else self.positions_A,
        )
        self.total = STEPS_AT_MOST + ROUND_STEPS * c.rounds + 1
        self.resumed = time.perf_counter()
        self.volume = np.zeros((self.slices, *self.field.shape), np.float32)

    @cached_property
    def largest_cell_A2(self) -> float:
        """Half of the illuminated area: a larger cell is nowhere repeated."""
        weight = illumination(self.scan)
        return float((weight > LIT * weight.max()).sum()) * self.scan.pixel_size_A**2 / 2

    def batch(self, count: int) -> Indices:
        """The next patterns in a random order, ``count`` of them or, if each has few electrons, more; all have their turn
        before one comes again."""
        count = min(round(count * self.times), len(self.order))
        places = np.arange(self.used, self.used + count) % len(self.order)
        self.used += len(places)
        return np.sort(self.order[places])

    def state(self, stage: str, note: str = "", **more: Any) -> CrystalState:
        """The next state; the time until the next one is wanted is not counted."""
        self.step += 1
        self.seconds += time.perf_counter() - self.resumed
        return CrystalState(
            step=self.step,
            total=max(self.total, self.step),
            volume=self.volume.copy(),
            loss=self.loss,
            seconds=self.seconds,
            volume_step=self.step,
            heldout=self.heldout,
            note=note,
            stage=stage,
            steps=self.steps,
            **more,
        )

    def emit(self, stage: str, note: str = "", **more: Any) -> Iterator[CrystalState]:
        release_freed()
        yield self.state(stage, note, **more)
        self.resumed = time.perf_counter()

    def columns(self) -> Generator[CrystalState, None, CrystalModel | None]:
        """Projection, lattice, columns and stacking, with a state for each step; None where there is no crystal."""
        scan = self.scan
        rng = np.random.default_rng([self.config.seed, 2])
        projected, weight = np.zeros(self.field.shape), illumination(scan).astype(np.float32)
        beam = self.config.model, self.probe, self.positions_A
        for step in project(scan, self.thickness_A, self.fit, PASSES, rng, self.device, *beam):
            projected = step.phase
            self.steps = CrystalSteps(
                projected.astype(np.float32),
                weight,
                np.asarray(self.field.origin_A, np.float64),
                np.array(scan.pixel_size_A),
            )
            self.volume = np.repeat((projected / self.slices).astype(np.float32)[None], self.slices, 0)
            yield from self.emit("projection", f"projection, pass {step.step} of {step.total}")

        even = self._waves(EVEN_SLICES, self.thickness_A / EVEN_SLICES)
        waves = self._waves(self.slices, self.config.slice_thickness_A, even.measured)
        columns = self._columns(projected, even)
        if columns is None:
            yield from self._give_up("no lattice: the projection does not repeat within the field, so this is no crystal")
            return None
        self.see_columns(columns)
        yield from self.emit("lattice", f"lattice {plane.describe(columns.lattice_A)}, {len(columns)} columns")
        for result in self._settle(columns, even):
            columns = result
            self._show_even(even, columns)
            yield from self.emit("columns", f"{len(columns)} columns, misfit {self.loss:.0f} nats a pattern")
        even, waves = self._focused(columns, even, waves)
        if self.change > SHIFTING:
            note, matrix, gains, stackings = self._how_cells_differ(columns, waves)
            yield from self.emit("columns", note)
            if stackings:
                model: CrystalModel | None = None
                for model in self._complete_shifted(columns, waves, gains, stackings):
                    yield from self.emit("columns", f"{len(model.columns)} columns, misfit {self.loss:.0f} nats a pattern")
                return model
            if matrix is not None:
                for result in self._settle(widen(columns, matrix), even):
                    columns = result
                    yield from self.emit("columns", f"{len(columns)} columns, misfit {self.loss:.0f} nats a pattern")
        for result in self._complete(columns, even, waves):
            columns = result
            self._show_even(even, columns)
            yield from self.emit("columns", f"{len(columns)} columns, misfit {self.loss:.0f} nats a pattern")
        if not len(columns):
            yield from self._give_up("no columns: nothing in the averaged cell stands out from what surrounds it")
            return None
        matrix = self._turns(columns, waves)
        if matrix is not None:
            columns = widen(columns, matrix)
            yield from self.emit("columns", f"cells differ in turns, along the beam: {plane.describe(columns.lattice_A)}")
        columns = refine(even, columns.sorted(), self.batch(FINAL_PATTERNS)).columns
        columns, imaging, gain = self._placed(columns, even)
        if imaging.exact:
            yield from self.emit(
                "columns", f"atoms are drawn where they are, not as abTEM does: {gain:.1f} nats a pattern less"
            )
        return CrystalModel(waves.changed(imaging=imaging), columns)

    def see_columns(self, columns: Columns) -> None:
        """The columns as they are now, for pictures."""
        assert self.steps is not None
        found = self.steps.with_lattice(columns.lattice_A, columns.origin_A)
        self.steps = found.with_columns(columns.fractional, columns.amounts[:, 0])

    def see_periods(self, periods_A: Sequence[float], energies: Sequence[float]) -> None:
        """Periods along the beam that were compared, nan for none, for pictures."""
        assert self.steps is not None
        self.steps = self.steps.with_periods(periods_A, energies)

    def _waves(self, slices: int, slice_thickness_A: float, measured: MeasuredPatterns | None = None) -> AtomWaves:
        model = self.config.model
        return AtomWaves(self.beam, slices, slice_thickness_A, device=self.device, measured=measured, model=model)

    def _columns(self, projected: Array, even: AtomWaves) -> Columns | None:
        """Lattice and columns as the projection shows them."""
        scan, weight = self.scan, illumination(self.scan)
        pixel = scan.pixel_size_A
        known = self.known.lattice_A is not None  # it may be any cell of the lattice, a centred one for instance
        candidates = plane.find_lattices(projected, weight, pixel, 1000 if known else 40, larger=known)
        if not candidates or max(c.correlation for c in candidates) < 0.5:
            return None
        middle, first = scan.positions_A.mean(0), np.asarray(self.field.origin_A)
        if self.known.lattice_A is not None:
            lattices = [_nearest(candidates, self.known.lattice_A)]
        else:  # where no cell repeats as it is, a smaller one may do as well
            lattices = [plane.choose_lattice(candidates, c).vectors_A for c in (plane.CLOSER, plane.CLOSER_SHIFTED)]
        for vectors in lattices:
            cell = plane.fold(projected, weight, vectors, pixel, middle - first)
            places, heights = plane.find_columns(cell, vectors)
            if not len(places):
                return None
            there = places @ vectors + middle - first
            self.change = plane.cell_to_cell_change(projected, weight, vectors, there, pixel)
            if self.change <= SHIFTING:
                break
        atom = float(even.draw_flat(middle[None], 22).max())
        amounts = np.outer(np.maximum(heights / (0.55 * atom), 0.3), element_table().features[22])
        return Columns(vectors, middle, places, amounts)

    def _settle(self, columns: Columns, even: AtomWaves) -> Iterator[Columns]:
        """Columns refined."""
        for turn in range(3):
            indices = self.batch(EVEN_PATTERNS)
            result = refine(even, columns, indices, with_lattice=turn > 0)
            columns, self.loss = result.columns, result.misfit / len(indices)
            yield columns

    def _focused(self, columns: Columns, even: AtomWaves, waves: AtomWaves) -> tuple[AtomWaves, AtomWaves]:
        """The models with the overfocus that the columns prefer, if it is far from the scan's."""
        indices = self.batch(EVEN_PATTERNS)
        imaging = refine_imaging(waves, lambda w: _even_phase(w, columns), indices, thermal=False).waves.imaging
        if abs(imaging.overfocus_A) < EVEN_OVERFOCUS_A:
            return even, waves
        return even.changed(imaging=imaging), waves.changed(imaging=imaging)

    def _placed(self, columns: Columns, even: AtomWaves) -> tuple[Columns, Imaging, float]:
        """The columns and the imaging with atoms drawn as the patterns prefer, and what that gains, nats a pattern.

        Either spread over the four nearest pixels, as abTEM draws them and simulated patterns may have them, or where they
        are, as in a microscope. Each has amounts and shapes of its own, refined on half of the patterns; the other half
        decides.
        """
        # the last ones, so that no other step gets others than without this one
        patterns = self.order[-round(PLACING_PATTERNS * self.times) :]
        fitted, judged = np.sort(patterns[::2]), np.sort(patterns[1::2])
        models = [even.changed(imaging=replace(even.imaging, exact=exact)) for exact in (False, True)]
        refined = [columns, columns]
        for _ in range(PLACING_STEPS):
            steps = [refine(m, r, fitted, shape_spread=PLACING_SHAPES) for m, r in zip(models, refined, strict=True)]
            refined = [step.columns for step in steps]
            phases = [_even_phase(m, r) for m, r in zip(models, refined, strict=True)]
            misfits = [m.misfit(m.transmission(p), judged) for m, p in zip(models, phases, strict=True)]
            gains = misfits[0] - misfits[1]
            gain = float(gains.mean())
            enough = PLACING_DEVIATIONS * float(gains.std()) / np.sqrt(len(gains))
            if gain < -enough:  # no further step turns that
                break
        if gain > enough:
            return refine(models[1], columns, fitted).columns, models[1].imaging, gain
        return columns, even.imaging, 0.0

    def _how_cells_differ(
        self, columns: Columns, waves: AtomWaves
    ) -> tuple[str, npt.NDArray[np.int64] | None, CopyGains, list[Stacking]]:
        """What it is in words, the superlattice if it is one, what the copies gain, and the stackings that explain more."""
        gains = self._copy_gains(columns, waves, self.batch(COPIES_PATTERNS), self.batch(EVEN_PATTERNS))
        matrix, gain = self._superlattice(columns, gains)
        stackings = find_stackings(gains, self.thickness_A, self.known.period_A, STACKINGS)
        if stackings and stackings[0].gain > max(gain, 0.0):
            stackings = [s for s in stackings if s.gain > NEARLY * stackings[0].gain]
            return f"cells shift along the beam: {stackings[0]}", None, gains, stackings
        if matrix is not None:
            return f"cells differ in turns: {plane.describe(matrix @ columns.lattice_A)}", matrix, gains, []
        return "cells differ, by no rule that was found", None, gains, []

    def _copy_gains(self, columns: Columns, waves: AtomWaves, indices: Indices, fewer: Indices) -> CopyGains:
        where, pixel = np.asarray(self.field.origin_A), self.scan.pixel_size_A
        return copy_gains(waves, columns, illumination(self.scan), where, pixel, indices, fewer)

    def _last_gains(self, columns: Columns, waves: AtomWaves) -> CopyGains:
        """By the last patterns, so that no other step gets others than without this one."""
        last = self.order[-round(COPIES_PATTERNS * self.times) :]
        return self._copy_gains(columns, waves, np.sort(last), np.sort(last[:: COPIES_PATTERNS // EVEN_PATTERNS]))

    def _superlattice(self, columns: Columns, gains: CopyGains) -> tuple[npt.NDArray[np.int64] | None, float]:
        if self.known.lattice_A is not None:
            return None, 0.0
        return best_superlattice(gains, int(self.largest_cell_A2 / columns.area_A2))

    def _turns(self, columns: Columns, waves: AtomWaves) -> npt.NDArray[np.int64] | None:
        """The superlattice, where cells look alike along the beam but are not: every second one upside down, say."""
        if self.known.lattice_A is not None or 2 * columns.area_A2 > self.largest_cell_A2:
            return None
        gains = self._last_gains(columns, waves)
        matrix, _ = self._superlattice(columns, gains)
        return matrix if matrix is not None and crossed_gain(gains, matrix) > 0 else None

    def _wider(self, columns: Columns, even: AtomWaves, waves: AtomWaves) -> Columns:
        """The columns in a larger cell, where the projection says so and what every copy gains does not deny it."""
        wider = split_cosets(even, columns, self.batch(COSET_PATTERNS), self.largest_cell_A2)
        if wider is columns:
            return columns
        gains = self._last_gains(columns, waves)
        matrix = np.rint(wider.lattice_A @ np.linalg.inv(columns.lattice_A)).astype(np.int64)
        return wider if min(superlattice_gain(gains, matrix), crossed_gain(gains, matrix)) > 0 else columns

    def _complete_shifted(
        self, columns: Columns, waves: AtomWaves, gains: CopyGains, stackings: Sequence[Stacking]
    ) -> Iterator[CrystalModel]:
        """The stacking whose matter explains most, by the model itself; columns refined, and the missing ones added."""
        judged = self.batch(FINAL_PATTERNS)

        def cost(model: CrystalModel, phase: Tensor) -> float:
            misfit = model.misfit(phase, judged)
            self.loss = float(misfit.mean())
            return float(misfit.sum()) + PARAMETER_NATS * len(columns) * model.bins

        rough: list[tuple[float, CrystalModel, Array]] = []
        for stacking in stackings:
            model = CrystalModel(waves, columns, stacking)
            for part in PARTS_TAKEN:
                matter = model.even_matter.copy()
                matter[:, : model.bins] += part * added_matter(gains, stacking, model.bins)
                rough.append((cost(model, model.phase_of_matter(matter)), model, matter))
            yield model
        indices = self.batch(EVEN_PATTERNS)
        fine: list[tuple[float, CrystalModel, Tensor]] = []
        for stacking in stackings:
            _, model, matter = min((trial for trial in rough if trial[1].stacking is stacking), key=lambda trial: trial[0])
            # a model of its own: what it keeps to draw with is large
            expansion = CrystalModel(waves, columns, model.stacking).expand(model.phase_of_matter(matter), matter, indices)
            phase = model.phase_of_matter(model.step(expansion))
            fine.append((cost(model, phase), model, phase))
            yield model
        self.see_periods([s.period_A for s in stackings], [trial[0] for trial in fine])
        (_, model, phase), *others = sorted(fine, key=lambda trial: trial[0])
        self.rivals = [CrystalModel(waves, columns, rival.stacking) for _, rival, _ in others]  # without what those keep
        result = refine(waves, columns, self.batch(EVEN_PATTERNS), phase=phase)
        more = add_missing(waves, result.columns, self.batch(COPIES_PATTERNS // 4), phase)
        yield CrystalModel(waves, more, model.stacking)

    def _complete(self, columns: Columns, even: AtomWaves, waves: AtomWaves) -> Iterator[Columns]:
        """The missing columns added, the cell widened where it repeats only there."""
        for _ in range(COLUMN_ROUNDS):
            before = len(columns)
            if self.known.lattice_A is None:
                columns = self._wider(columns, even, waves)
            columns = add_missing(even, columns, self.batch(EVEN_PATTERNS))
            changed = len(columns) != before
            for turn in range(2 if changed else 1):
                indices = self.batch(EVEN_PATTERNS)
                result = refine(even, columns, indices)
                columns, self.loss = result.columns, result.misfit / len(indices)
                if turn:
                    kept = drop_empty(columns, result.spread)
                    if len(kept) < len(columns):
                        columns, changed = kept, True
                yield columns
            if not changed:
                break

    def _show_even(self, waves: AtomWaves, columns: Columns) -> None:
        """The columns, even along the beam, as the volume."""
        flat = Painter(waves, columns).flat().cpu().numpy()
        factor = round(self.scan.pixel_size_A / waves.drawn_pixel_A)
        first = np.round((np.asarray(self.field.origin_A) - waves.origin_A) / waves.drawn_pixel_A).astype(int)
        height, width = self.field.shape
        part = flat[first[0] : first[0] + factor * height : factor, first[1] : first[1] + factor * width : factor]
        self.volume = np.repeat((part / self.slices).astype(np.float32)[None], self.slices, 0)

    def _give_up(self, words: str) -> Iterator[CrystalState]:
        yield from self.matter()
        words = f"{words}; {WITHOUT_CELL}"
        yield from self.emit("posterior", words, verdict=words[0].upper() + words[1:] + ".")

    def matter(self, **more: Any) -> Iterator[CrystalState]:
        """The volume, and the misfit of what is held out, without a crystal: passes of free matter in every slice."""
        rng = np.random.default_rng([self.config.seed, 5])
        beam = self.config.model, self.probe, self.positions_A
        thickness = self.config.slice_thickness_A
        for step in matter_by_depth(self.scan, self.slices, thickness, self.fit, self.held, rng, self.device, *beam):
            self.volume, self.heldout = step.volume, step.heldout
            yield from self.emit("posterior", f"matter without a cell, pass {step.step} of {step.total}", **more)


def _even_phase(model: AtomWaves, columns: Columns) -> Tensor:
    """(slices, drawn, drawn) phase of columns that are even along the beam, rad."""
    return (Painter(model, columns).flat() / model.slices)[None].repeat(model.slices, 1, 1)


def _nearest(candidates: Sequence[plane.Lattice], wanted: Array) -> Array:
    """The candidate of the wanted lengths and angle.

    Raises:
        Refused: none is; says by how much the nearest misses.
    """
    goal = _shape(wanted)
    misses = [float(np.abs(_shape(c.vectors_A) / goal - 1).max()) for c in candidates]
    best = int(np.argmin(misses))
    if misses[best] > LATTICE_TOLERANCE:
        raise Refused(
            f"the lattice {plane.describe(wanted)} does not fit the projection: the nearest that does is"
            f" {plane.describe(candidates[best].vectors_A)}, {100 * misses[best]:.1f} % off; leave the lattice out, or check"
            " axis and calibration"
        )
    return candidates[best].vectors_A


def _shape(vectors: Array) -> Array:
    """Lengths of a reduced basis and of its sum and difference: what a turn leaves as it is."""
    a, b = plane.reduce_basis(vectors)
    ends = sorted([np.linalg.norm(a + b), np.linalg.norm(a - b)])
    return np.array([np.linalg.norm(a), np.linalg.norm(b), *ends])
