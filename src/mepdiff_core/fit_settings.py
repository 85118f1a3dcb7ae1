"""The settings of the fits around a reconstruction, of probe and thickness; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mepdiff_core.config import check
from mepdiff_core.settings import LikelihoodName, ModelConfig, check_common


@dataclass(frozen=True)
class ProbeFitConfig:
    """How to fit a probe.

    Attributes:
        iterations: passes over all patterns of all scans.
        batch_size: patterns a mini-batch.
        learning_rate: Adam's for the volumes, rad.
        probe_learning_rate: Adam's for the probe's spectrum, in units of its mean amplitude inside the aperture; it falls
            to a tenth along the fit.
        support: the spectrum is free within this many radii of the aperture and zero outside.
        likelihood: amplitude or poisson.
        positivity: keep the volumes' phase positive.
        slices, slice_thickness_A, seed: as for the reconstructions.
    """

    iterations: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3
    probe_learning_rate: float = 0.1
    support: float = 1.25
    likelihood: LikelihoodName = "poisson"
    positivity: bool = True
    slices: int | None = None
    slice_thickness_A: float = 1.6
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.iterations >= 1, f"iterations is {self.iterations}; expected at least 1")
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected at least 1")
        check(self.learning_rate > 0, f"learning_rate is {self.learning_rate:g}; expected more than 0")
        check(self.probe_learning_rate > 0, f"probe_learning_rate is {self.probe_learning_rate:g}; expected more than 0")
        check(self.support >= 1, f"support is {self.support:g}; expected at least 1")
        check(self.seed >= 0, f"seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class ThicknessConfig:
    """How to find a specimen's thickness, its tilt, and the source's size, by patterns that are not fitted.

    Attributes:
        lowest_A, highest_A: thicknesses to try, Å.
        candidates: how many, evenly from the one to the other.
        slice_thickness_A: Å, about; each thickness is cut into a whole number of slices.
        even: one phase for all depths: columns along the beam, as in a crystal on a zone axis. Far sharper than a volume
            that is free along the beam, and needed to find a tilt.
        tilt: find the tilt too.
        tilt_rate_mrad: Adam's for the tilt, mrad a mini-batch; it falls to a tenth along the fit.
        iterations: passes over the patterns for each thickness.
        batch_size: patterns a mini-batch.
        learning_rate: Adam's, rad; it falls to a tenth along the fit.
        heldout_fraction: part of the patterns kept out of the fit, drawn by the seed.
        source_sizes_A: full widths at half maximum of the source's image on the specimen to try, Å, each with each
            thickness; none: that of the model.
        model: window and sampling of the model, probe modes, and the tilt to begin with.
        seed: of mini-batches and held-out patterns.
    """

    lowest_A: float = 5.0
    highest_A: float = 40.0
    candidates: int = 8
    slice_thickness_A: float = 1.6
    even: bool = True
    tilt: bool = False
    tilt_rate_mrad: float = 0.5
    iterations: int = 15
    batch_size: int = 16
    learning_rate: float = 0.05
    heldout_fraction: float = 0.1
    source_sizes_A: tuple[float, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            0 < self.lowest_A <= self.highest_A <= 5000,
            f"lowest_A is {self.lowest_A:g} and highest_A {self.highest_A:g}; expected the first above 0 and not above the "
            "second, of at most 5000",
        )
        for name in ("candidates", "iterations", "batch_size"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "tilt_rate_mrad"):
            check(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}; expected more than 0")
        sizes = self.source_sizes_A
        check(not sizes or 0 <= min(sizes) <= max(sizes) <= 20, f"source_sizes_A is {list(sizes)}; expected 0 to 20 each")
        check(self.heldout_fraction > 0, "heldout_fraction is 0; thicknesses are judged by patterns held out")
        check(self.even or not self.tilt, "a volume free along the beam leans by itself; set even=true to find a tilt")
        check_common(self.heldout_fraction, None, self.slice_thickness_A, self.seed)
