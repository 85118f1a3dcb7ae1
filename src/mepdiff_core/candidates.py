"""Two answers to one scan, a crystal's and a prior's, and which of them the patterns held out prefer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core.atoms import run_crystal
from mepdiff_core.batches import split_patterns
from mepdiff_core.defects import defect_from
from mepdiff_core.likelihood import Poisson
from mepdiff_core.metrics import poisson_deviance
from mepdiff_core.posterior import refine_first, run_proximal
from mepdiff_core.refinement import refined_model
from mepdiff_core.scan import Scan
from mepdiff_core.settings import MepdiffConfig, RefineConfig
from mepdiff_core.states import Checkpoint, CrystalState, Refined, SampleState, State
from mepdiff_core.steering import Steering
from mepdiff_core.unit_cell import UnitCell

KEPT = "crystal."
"""What the names of the crystal's answer begin with in a checkpoint of the sampler."""
START = KEPT + "start"
"""The volume that the sampler starts from."""
S = TypeVar("S", bound=State)


def run_mepdiff(
    scan: Scan,
    config: MepdiffConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
    steering: Steering | None = None,
) -> Iterator[State]:
    """The crystal solver; then, where its answer is doubted, the prior's sampler; the held-out patterns decide.

    Args:
        scan: the measurement; config: settings; device: torch device.
        start: (slices, y, x) volume for the sampler to start from, rad; a few passes of Adam by default.
        checkpoint: of a state of the same run, to go on from there; the crystal solver itself begins again. Or what
            ``remembered`` made of a crystal that is solved already, with these settings.
        steering: changes the sampler's guidance while it runs.

    Yields:
        States of both; the last one holds the answer, and its verdict says why it is the answer.

    Raises:
        InputError, Diverged: as ``run_crystal`` and ``run_proximal`` do.
    """
    crystal = None if checkpoint is None else recalled(checkpoint)
    if crystal is None:
        refined: State | None = None
        if config.refine.active:
            refined = yield from refine_first(scan, config, device, start, checkpoint)
            start = refined.volume
        for state in _solved(scan, config, device, refined):
            crystal = state
            yield state
        assert crystal is not None
    elif checkpoint is not None:
        start = np.array(checkpoint[START], np.float32) if START in checkpoint else start
        if "step" not in checkpoint:  # another run's answer, which this one has not yet told
            yield crystal
    if crystal.explained and not config.compare:
        return
    inner: dict[str, npt.NDArray[np.generic]] | None = None
    if checkpoint is not None and "x" in checkpoint:  # the sampler had come beyond its first passes
        inner = {name: array for name, array in checkpoint.items() if not name.startswith(KEPT)}
        inner["step"] = np.array(int(inner["step"]) - crystal.step)
    kept = remembered(crystal) | ({} if start is None else {START: np.array(start, np.float32)})
    sample: SampleState | None = None
    sampler = replace(config, refine=RefineConfig())
    for sample in run_proximal(scan, sampler, device, start, inner, steering, crystal.refined):
        arrays = {**sample.checkpoint, **kept}
        # before the sampler's first step there is nothing to go on from but the crystal
        arrays["step"] = np.array(crystal.step + (sample.step if sample.checkpoint else 0))
        yield _after(crystal, replace(sample, checkpoint=arrays), 1)
    assert sample is not None
    yield _decided(scan, config, device, crystal, sample)


def _solved(scan: Scan, config: MepdiffConfig, device: torch.device | str, before: State | None) -> Iterator[CrystalState]:
    """The crystal solver's states, with the positions and the probe that were refined before."""
    if before is None or before.refined is None:
        yield from run_crystal(scan, config.solver, device)
        return
    # a probe that nobody has refined is better made from its optics, in the solver's own window
    probe = before.refined.probe if config.refine.probe_rate else None
    for state in run_crystal(scan, config.solver, device, probe=probe, positions_A=before.refined.positions_A):
        yield _after(before, replace(state, refined=before.refined))


def _after(before: State, state: S, more: int = 0) -> S:
    """A state of what comes after another as one of the whole run; ``more`` steps come at its end."""
    return replace(
        state,
        step=before.step + state.step,
        total=before.step + state.total + more,
        volume_step=before.step + state.volume_step,
        seconds=before.seconds + state.seconds,
    )


def _decided(
    scan: Scan, config: MepdiffConfig, device: torch.device | str, crystal: CrystalState, sample: SampleState
) -> State:
    """The answer that explains the held-out patterns better, each judged by the model that is best for it."""
    mine, own = (heldout_deviance(scan, s.volume, config, device, crystal.refined) for s in (sample, crystal))
    assert crystal.heldout is not None
    atoms = min(own, 2 * crystal.heldout / scan.pattern_pixels)
    whole = _after(crystal, sample, 1)
    step, seconds = whole.total, whole.seconds
    if crystal.cell is not None and atoms <= mine:
        words = (
            f"Held-out patterns prefer the crystal solver's volume to the prior's: deviance {atoms:.4f} a pixel against"
            f" {mine:.4f}."
        )
        text = f"{crystal.verdict} {words}".strip()
        return replace(crystal, step=step, total=step, seconds=seconds, note="the crystal", verdict=text)
    words = f"Held-out patterns prefer the prior's volume: deviance {mine:.4f} a pixel."
    if crystal.cell is not None:
        words = (
            f"Held-out patterns prefer the prior's volume to the crystal solver's: deviance {mine:.4f} a pixel against"
            f" {atoms:.4f}."
        )
    text = f"{words} Of the crystal: {crystal.verdict}"
    return replace(whole, step=step, total=step, note="the prior's volume", verdict=text, checkpoint={})


def heldout_deviance(
    scan: Scan,
    volume: npt.NDArray[np.floating],
    config: MepdiffConfig,
    device: torch.device | str = "cpu",
    refined: Refined | None = None,
) -> float:
    """Poisson deviance a pixel of the patterns held out, at a volume (slices, y, x) on the object field, rad."""
    model = refined_model(scan, len(volume), config.slice_thickness_A, config.model, refined, device)
    _, held = split_patterns(scan.n_patterns, config.heldout_fraction, config.seed)
    wide = np.pad(np.asarray(volume, np.float32), [(0, 0), *[(model.margin, model.margin)] * 2])
    electrons = scan.electrons_per_pattern
    predicted = model.predict(torch.as_tensor(wide).to(model.device), held).cpu().numpy()[:, scan.seen] * electrons
    measured = scan.patterns_at(held)[:, scan.seen].astype(np.float64)
    return poisson_deviance(predicted, measured, Poisson().background * electrons)


def remembered(crystal: CrystalState) -> dict[str, npt.NDArray[np.generic]]:
    """A crystal's answer as arrays for a checkpoint."""
    about: dict[str, Any] = {
        name: getattr(crystal, name)
        for name in ("step", "total", "loss", "heldout", "seconds", "volume_step", "note", "stage", "verdict", "explained")
    }
    about |= {
        "cell": None if crystal.cell is None else asdict(crystal.cell),
        "alternative": None if crystal.alternative is None else asdict(crystal.alternative),
        "defects": [asdict(defect) for defect in crystal.defects],
    }
    text = json.dumps(about, default=lambda array: array.tolist())
    arrays = {"about": np.frombuffer(text.encode(), np.uint8), "volume": np.array(crystal.volume)}
    if crystal.samples is not None:
        arrays["samples"] = np.array(crystal.samples)
    if crystal.refined is not None:
        arrays |= {f"refined.{name}": np.array(value) for name, value in asdict(crystal.refined).items()}
    return {KEPT + name: array for name, array in arrays.items()}


def recalled(checkpoint: Checkpoint) -> CrystalState | None:
    """The inverse of ``remembered``; None for a checkpoint without any."""
    if KEPT + "about" not in checkpoint:
        return None
    about = json.loads(bytes(checkpoint[KEPT + "about"].astype(np.uint8)).decode())
    cell, alternative = (None if about[name] is None else _cell(about[name]) for name in ("cell", "alternative"))
    defects = tuple(map(defect_from, about["defects"]))
    samples = checkpoint.get(KEPT + "samples")
    return CrystalState(
        **{
            **about,
            "volume": np.array(checkpoint[KEPT + "volume"], np.float32),
            "samples": None if samples is None else np.array(samples, np.float32),
            "cell": cell,
            "alternative": alternative,
            "defects": defects,
            "refined": _refined(checkpoint),
        }
    )


def _refined(checkpoint: Checkpoint) -> Refined | None:
    if f"{KEPT}refined.probe" not in checkpoint:
        return None
    probe, positions, pixel, energy = (np.array(checkpoint[f"{KEPT}refined.{f.name}"]) for f in fields(Refined))
    return Refined(probe.astype(np.complex64), positions.astype(np.float64), float(pixel), float(energy))


def _cell(record: Mapping[str, Any]) -> UnitCell:
    lattice, positions, spread = (
        np.array(record[name], float).reshape(-1, 3) for name in ("lattice_A", "positions_A", "spread_A")
    )
    return UnitCell(
        lattice,
        bool(record["periodic_along_beam"]),
        float(record["thickness_A"]),
        positions,
        np.array(record["numbers"], np.int64),
        spread,
        tuple(tuple((int(z), float(p)) for z, p in atom) for atom in record["candidates"]),
    )
