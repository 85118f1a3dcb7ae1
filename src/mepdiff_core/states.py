"""The frozen states that every loop yields; command line, window, tests and run folder iterate over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mepdiff_core.crystal_steps import CrystalSteps
    from mepdiff_core.defects import Defect
    from mepdiff_core.unit_cell import UnitCell

FloatArray = npt.NDArray[np.floating]
Checkpoint = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Refined:
    """What was found together with the specimen.

    Attributes:
        probe: (modes, y, x) complex64, centred at n // 2, all intensities together summing to 1.
        positions_A: (n, 2) float64 as (y, x), Å, in the frame of the scan's own.
        pixel_size_A: of the probe, Å; energy_eV: of the beam.
    """

    probe: npt.NDArray[np.complex64]
    positions_A: npt.NDArray[np.float64]
    pixel_size_A: float
    energy_eV: float

    def __post_init__(self) -> None:
        self.probe.flags.writeable = self.positions_A.flags.writeable = False


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
        verdict: the honest limits of the answer in words; in the last state alone, "" for none.
        samples: (K, z, y, x) float32 volumes drawn from the posterior (of the crystal solver in its last state alone) or
            from a prior, rad; None without any.
        refined: positions and probe found together with the specimen; None where they were not refined.
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
    verdict: str = ""
    samples: FloatArray | None = None
    refined: Refined | None = None
    checkpoint: Checkpoint = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for array in (self.volume, *self.checkpoint.values()):
            array.flags.writeable = False
        if self.samples is not None:
            self.samples.flags.writeable = False

    def mean(self) -> npt.NDArray[np.float32] | None:
        """(z, y, x) mean of the samples, rad; None without any."""
        if self.samples is None or not len(self.samples):
            return None
        return np.asarray(self.samples.mean(0, dtype=np.float64), np.float32)

    def spread(self) -> npt.NDArray[np.float32] | None:
        """(z, y, x) standard deviation of the samples, rad; None for fewer than two."""
        if self.samples is None or len(self.samples) < 2:
            return None
        return np.asarray(self.samples.std(0, ddof=1, dtype=np.float64), np.float32)


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


@dataclass(frozen=True)
class SampleState(State):
    """One step of a posterior sampler; ``volume`` is the denoised one that the held-out patterns like best.

    Attributes:
        log_snr: -2 ln sigma.
        noisy: (z, y, x) what the volume was denoised from, with noise of ``sigma`` added, rad.
        grad_norm: of the data misfit's gradient.
        network_calls: tiles that the network has denoised so far, over all samples.
        network_s, physics_s: seconds of this step in the network and in the model of the patterns.
        illuminated: (y, x) where electrons went: elsewhere the volume is the prior's invention.
    """

    log_snr: float = float("nan")
    noisy: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    grad_norm: float = float("nan")
    network_calls: int = 0
    network_s: float = 0.0
    physics_s: float = 0.0
    illuminated: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))


@dataclass(frozen=True)
class CrystalState(State):
    """One step of the crystal solver; ``loss`` and ``heldout`` are those of its own model.

    Attributes:
        cell: the atoms so far; None before there are any.
        temperature: of the annealing, nats; 0 outside it.
        accepted: changes accepted in this step.
        stage: projection, lattice, columns, depth or posterior.
        alternative: a second candidate for ``cell`` where two are equally likely.
        defects: sites that differ from the repeated cell; ``volume`` has them, ``cell`` and samples have not.
        explained: whether the patterns are explained to within counting statistics; in the last state alone.
        steps: what was found before the atoms.
    """

    cell: UnitCell | None = None
    temperature: float = 0.0
    accepted: int = 0
    stage: str = ""
    alternative: UnitCell | None = None
    defects: tuple[Defect, ...] = ()
    explained: bool = False
    steps: CrystalSteps | None = None
