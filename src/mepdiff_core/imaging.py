"""Overfocus and thermal motion, refined with a crystal in the specimen; and the thickness that the patterns prefer.

Each is one number, on which the misfit depends smoothly: three values of it give a parabola, its lowest point and its width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves, Imaging
from mepdiff_core.batches import Indices

OVERFOCUS_STEP_A, VARIANCE_STEP_A2 = 3.0, 0.002
"""Between the values tried: of overfocus, and of the atoms' mean square displacement."""
FARTHEST_STEPS = 4.0
TIMES = 3
"""Parabolas at most, while the lowest point lies outside what was tried."""
LEAST_NATS = 10.0
"""What a change must gain to be made."""

Draw = Callable[[AtomWaves], Tensor]


@dataclass(frozen=True)
class RefinedImaging:
    """Attributes: ``waves``, imaged as the patterns prefer; ``overfocus_spread_A``: its standard deviation, Å."""

    waves: AtomWaves
    overfocus_spread_A: float


def refine_imaging(waves: AtomWaves, draw: Draw, indices: Indices, thermal: bool) -> RefinedImaging:
    """The imaging that explains patterns best.

    Args:
        waves: the model; draw: the specimen's phase in a model.
        indices: which patterns.
        thermal: whether to refine thermal motion too: only once there are atoms, for a wrong crystal is blurred as well.
    """

    def misfit(imaging: Imaging) -> float:
        model = waves.changed(imaging=imaging)
        return float(model.misfit(model.transmission(draw(model)), indices).sum())

    best = waves.imaging
    best_overfocus, spread = _lowest(
        lambda value: misfit(replace(best, overfocus_A=value)), best.overfocus_A, OVERFOCUS_STEP_A, -np.inf
    )
    best = replace(best, overfocus_A=best_overfocus)
    if thermal:
        variance, _ = _lowest(
            lambda value: misfit(replace(best, thermal_A=float(np.sqrt(value)))),
            best.thermal_A**2,
            VARIANCE_STEP_A2,
            0.0,
        )
        best = replace(best, thermal_A=float(np.sqrt(variance)))
    return RefinedImaging(waves.changed(imaging=best), spread)


def preferred_slices(waves: AtomWaves, draw: Draw, indices: Indices) -> tuple[int, float]:
    """The number of slices, this or one more or less, that explains patterns best, and what it gains, nats.

    Args:
        draw: the phase of a specimen as thick as the model it is given.
    """
    misfits = {}
    for slices in (waves.slices, waves.slices - 1, waves.slices + 1):
        if slices:
            model = waves.changed(slices=slices)
            misfits[slices] = float(model.misfit(model.transmission(draw(model)), indices).sum())
    best = min(misfits, key=lambda slices: misfits[slices])
    return best, misfits[waves.slices] - misfits[best]


def _lowest(misfit: Callable[[float], float], start: float, step: float, least: float) -> tuple[float, float]:
    """Where a misfit is lowest, by parabolas through three values, and the deviation; the start if little is gained."""
    here, value = misfit(start), start
    lowest = here
    spread = float("nan")
    for _ in range(TIMES):
        middle = max(value, least + step)
        below, at, above = (here if v == start else misfit(v) for v in (middle - step, middle, middle + step))
        bend = above + below - 2 * at
        if bend <= 0:
            break
        spread = step / float(np.sqrt(bend))
        steps = float(np.clip((below - above) / (2 * bend), -FARTHEST_STEPS, FARTHEST_STEPS))
        value = max(middle + steps * step, least)
        lowest = at - (below - above) ** 2 / (8 * bend)
        if abs(steps) <= 1:
            break
    return (value, spread) if here - lowest > LEAST_NATS else (start, spread)
