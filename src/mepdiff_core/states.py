"""The frozen states that every loop yields; command line, window, tests and run folder iterate over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Checkpoint = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class State:
    """One step of a reconstruction.

    Attributes:
        step: steps done so far, from 1; ``total`` is how many the loop will do at most.
        volume: (z, y, x) float32, rad: the loop's best answer so far, on the grid of the object field.
        volume_step: the step that ``volume`` comes from; smaller than ``step`` where a loop keeps its best.
        loss: the loop's own loss, averaged over this step's patterns.
        heldout: the same loss over the patterns kept out of the fit; None where a method holds none out.
        seconds: time spent in the loop so far, without the time the consumer took.
        sigma: noise level of a diffusion sampler; None for the baselines.
        note: what a person should know about this step, in a few words.
        checkpoint: everything the loop needs to go on from here, as arrays by name.
    """

    step: int
    total: int
    volume: FloatArray
    loss: float
    seconds: float
    volume_step: int
    heldout: float | None = None
    sigma: float | None = None
    note: str = ""
    checkpoint: Checkpoint = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for array in (self.volume, *self.checkpoint.values()):
            array.flags.writeable = False


@dataclass(frozen=True)
class ProbeState(State):
    """One step of a probe fit; ``volume`` is that of the first scan.

    Attributes:
        probe: (modes, y, x) complex64, the sum of its intensity is 1, centred at index n // 2.
    """

    probe: npt.NDArray[np.complex64] = field(default_factory=lambda: np.zeros((0, 0, 0), np.complex64))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.probe.flags.writeable = False
