"""The settings of every loop, as frozen configs; nothing here computes, so forms and help read them at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

EngineName = Literal["ptyrad", "fast"]
LikelihoodName = Literal["amplitude", "poisson"]
EMBEDDED = "embedded"
"""Name of the prior that is installed with the package."""
MOST_MODES = 10
"""Of a probe that is refined."""
_HEAVIEST = 92
"""Uranium, the heaviest element that a composition may name."""


@dataclass(frozen=True)
class ModelConfig:
    """How a scan is modelled.

    Attributes:
        window: width of the modelled window in widths of the detector's window (1 / k_step). 2 lets the tails of a
            defocused probe leave, which otherwise wrap around.
        sampling: model pixels along one detector-limited pixel (1 / (2 k_max)). 2 models the scattering beyond k_max.
        paraxial: abTEM's paraxial propagator instead of the exact one.
        probe_modes: incoherent modes of the probe that the optics give.
        source_size_A: full width at half maximum of the source's image on the specimen, Å; more than one mode needs it.
        tilt_mrad: (y, x) by which the specimen's columns lean on their way down; the volume shows them upright.
    """

    window: int = 1
    sampling: int = 1
    paraxial: bool = False
    probe_modes: int = 1
    source_size_A: float = 0.0
    tilt_mrad: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("window", "sampling"):
            check(1 <= getattr(self, name) <= 8, f"model {name} is {getattr(self, name)}; expected 1 to 8")
        modes, source = self.probe_modes, self.source_size_A
        check(1 <= modes <= 49, f"model probe_modes is {modes}; expected 1 to 49")
        check(source >= 0, f"model source_size_A is {source:g}; expected 0 or more")
        check((modes > 1) == (source > 0), f"probe_modes is {modes} and source_size_A {source:g}; several modes need a size")
        check(max(map(abs, self.tilt_mrad)) <= 200, f"model tilt_mrad is {list(self.tilt_mrad)}; expected -200 to 200")


@dataclass(frozen=True)
class Constraints:
    """PtyRAD's constraints on the object's phase, applied after each pass over the patterns.

    Attributes:
        positivity: clip negative phases to 0 (objp_postiv).
        depth_blur_slices: standard deviation of a Gaussian blur along depth, in slices; 0 is off (obj_zblur).
        kz_beta: strength of the arctan filter that regularises depth; 0 is off (kz_filter).
        kz_alpha: that filter's lateral damping.
    """

    positivity: bool = False
    depth_blur_slices: float = 0.0
    kz_beta: float = 0.0
    kz_alpha: float = 1.0

    def __post_init__(self) -> None:
        for name in ("depth_blur_slices", "kz_beta", "kz_alpha"):
            check(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}; expected 0 or more")


@dataclass(frozen=True)
class RefineConfig:
    """What is found together with the specimen by the fast engine; by default nothing.

    Attributes:
        position_rate_A: Adam's for the positions, Å a pass over the patterns; 0.05 finds drift of some tenths of an Å. 0:
            they stay.
        probe_rate: Adam's for the probe's spectrum, a mini-batch, in units of its mean amplitude inside the aperture; 0.01
            mends small errors of the optics. 0: it stays.
        probe_support: the spectrum is free within this many radii of the aperture and zero outside.
        probe_modes: incoherent modes of the probe; what the model's own lack begins with a hundredth of the beam each.
        start: the first pass that refines.
    """

    position_rate_A: float = 0.0
    probe_rate: float = 0.0
    probe_support: float = 1.25
    probe_modes: int = 1
    start: int = 1

    def __post_init__(self) -> None:
        for name in ("position_rate_A", "probe_rate"):
            check(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}; expected 0 or more")
        check(self.probe_support >= 1, f"probe_support is {self.probe_support:g}; expected at least 1")
        modes = self.probe_modes
        check(1 <= modes <= MOST_MODES, f"refine probe_modes is {modes}; expected 1 to {MOST_MODES}")
        check(
            modes == 1 or self.probe_rate > 0, f"refine probe_modes is {modes}, which a probe_rate of 0 leaves empty; set it"
        )
        check(self.start >= 1, f"refine start is {self.start}; expected at least 1")

    @property
    def active(self) -> bool:
        return self.position_rate_A > 0 or self.probe_rate > 0


def check_common(heldout: float, slices: int | None, thickness: float, seed: int) -> None:
    """Raise ``InputError`` for what no loop can have."""
    check(0 <= heldout <= 0.5, f"heldout_fraction is {heldout:g}; expected 0 to 0.5")
    check(slices is None or 1 <= slices <= 1000, f"slices is {slices}; expected 1 to 1000")
    check(thickness > 0, f"slice_thickness_A is {thickness:g}; expected more than 0")
    check(seed >= 0, f"seed is {seed}; expected 0 or more")


@dataclass(frozen=True)
class AdamConfig:
    """PtyRAD[Adam]; the defaults are the paper's (appendix C), ``ADAM_BEST`` holds an expert's.

    Attributes:
        iterations: passes over all patterns, at most.
        batch_size: patterns a mini-batch.
        learning_rate: Adam's, rad.
        reshuffle: draw new mini-batches for each pass; PtyRAD keeps those of the first.
        likelihood: amplitude (PtyRAD's loss_single) or poisson (its loss_poissn).
        constraints: PtyRAD's constraints on the phase after each pass.
        heldout_fraction: part of the patterns kept out of the fit, drawn by the seed.
        patience: stop after this many passes without a lower held-out misfit; null: do all. With held-out patterns the
            volume of the lowest misfit is the answer.
        slices: number of slices; null: the scan's thickness over slice_thickness_A.
        slice_thickness_A: Å.
        engine: ptyrad (its own model and loss) or fast (ours, equal to 1e-5).
        model: window and sampling of the fast engine's model; probe modes and tilt of both.
        refine: positions and probe, found together with the specimen by the fast engine.
        seed: of mini-batches and held-out patterns.
    """

    iterations: int = 200
    batch_size: int = 32
    learning_rate: float = 5e-4
    reshuffle: bool = False
    likelihood: LikelihoodName = "amplitude"
    constraints: Constraints = field(default_factory=Constraints)
    heldout_fraction: float = 0.0
    patience: int | None = None
    slices: int | None = None
    slice_thickness_A: float = 1.6
    engine: EngineName = "ptyrad"
    model: ModelConfig = field(default_factory=ModelConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check(not self.refine.active or self.engine == "fast", "refine needs engine fast; set engine=fast")
        check(self.iterations >= 1, f"iterations is {self.iterations}; expected at least 1")
        check(self.learning_rate > 0, f"learning_rate is {self.learning_rate:g}; expected more than 0")
        check(self.patience is None or self.patience >= 1, f"patience is {self.patience}; expected at least 1 or null")
        check(
            self.patience is None or self.heldout_fraction > 0,
            "patience needs held-out patterns; set heldout_fraction, to 0.05 for instance, or patience to null",
        )
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected at least 1")
        check_common(self.heldout_fraction, self.slices, self.slice_thickness_A, self.seed)


ADAM_BEST = AdamConfig(
    iterations=100,
    learning_rate=2e-3,
    reshuffle=True,
    likelihood="poisson",
    constraints=Constraints(positivity=True, depth_blur_slices=1.5),
    heldout_fraction=0.05,
    patience=5,
)
"""What an expert gets from PtyRAD; how each value was chosen: docs/method.md."""


@dataclass(frozen=True)
class LBFGSConfig:
    """PtyRAD[L-BFGS] as the paper ran it (appendix C).

    Attributes:
        learning_rates: each gives a run from the start; the one with the lowest loss over all patterns is the answer.
        iterations: optimiser steps a run.
        batches_per_iteration: mini-batches drawn at random for an iteration; its closure is their mean loss.
        inner_iterations: L-BFGS iterations on that closure (torch's and PtyRAD's default).
        line_search: none (PtyRAD's default) or strong_wolfe.
        batch_size, likelihood, heldout_fraction, slices, slice_thickness_A, engine, model, seed: as for Adam.
    """

    learning_rates: tuple[float, ...] = (1.0, 0.1, 0.01)
    iterations: int = 5
    batch_size: int = 32
    batches_per_iteration: int = 20
    inner_iterations: int = 20
    line_search: Literal["none", "strong_wolfe"] = "none"
    likelihood: LikelihoodName = "amplitude"
    heldout_fraction: float = 0.0
    slices: int | None = None
    slice_thickness_A: float = 1.6
    engine: EngineName = "ptyrad"
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        rates = self.learning_rates
        check(len(rates) > 0 and min(rates) > 0, f"learning_rates is {list(rates)}; expected numbers above 0")
        for name in ("iterations", "batches_per_iteration", "inner_iterations"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected at least 1")
        check_common(self.heldout_fraction, self.slices, self.slice_thickness_A, self.seed)


@dataclass(frozen=True)
class CrystalConfig:
    """Atoms in a repeated cell, found by the patterns' likelihood; what is known of the crystal helps.

    Attributes:
        rounds: times that the columns are searched, each on other patterns.
        patterns: patterns a round; more, four times as many at most, where each has few electrons.
        composition: formula of the crystal, like LiMnPO4; null: not known.
        lattice_A: lengths of the two in-plane lattice vectors, Å; null: found from the projection.
        angle_deg: angle between them.
        period_A: the crystal's repeat along the beam, Å; null: found from the patterns.
        start: CIF file whose lattice, period and composition are taken as known; null: none.
        axis: the lattice vector of that file that lies along the beam.
        samples: volumes drawn from the posterior at the end; 0: none.
        heldout_fraction: part of the patterns kept out of the fit, drawn by the seed.
        slices: number of slices; null: the scan's thickness over slice_thickness_A.
        slice_thickness_A: Å.
        model: probe modes, tilt and propagator; window and sampling are the solver's own.
        seed: of patterns, moves and samples.
    """

    rounds: int = 3
    patterns: int = 32
    composition: str | None = None
    lattice_A: tuple[float, float] | None = None
    angle_deg: float | None = None
    period_A: float | None = None
    start: str | None = None
    axis: Literal["a", "b", "c"] = "c"
    samples: int = 8
    heldout_fraction: float = 0.05
    slices: int | None = None
    slice_thickness_A: float = 1.6
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        own = self.model.window == self.model.sampling == 1
        check(own, "the crystal solver has a window and a sampling of its own; leave those of the model at 1")
        check(self.rounds >= 1, f"rounds is {self.rounds}; expected at least 1")
        check(self.patterns >= 1, f"patterns is {self.patterns}; expected at least 1")
        check(self.samples >= 0, f"samples is {self.samples}; expected 0 or more")
        lengths, angle, period = self.lattice_A, self.angle_deg, self.period_A
        check(lengths is None or min(lengths) > 0, f"lattice_A is {list(lengths or ())}; expected two lengths above 0")
        check(angle is None or 0 < angle < 180, f"angle_deg is {angle}; expected more than 0 and less than 180")
        check(period is None or period > 0, f"period_A is {period}; expected more than 0")
        check((lengths is None) == (angle is None), "lattice_A and angle_deg go together; give both or neither")
        for name in ("composition", "lattice_A", "period_A"):
            known = self.start is not None and getattr(self, name) is not None
            check(not known, f"start says what {name} is; leave one of the two out")
        if self.composition is not None:
            parse_composition(self.composition)
        check_common(self.heldout_fraction, self.slices, self.slice_thickness_A, self.seed)


def parse_composition(formula: str) -> dict[int, int]:
    """Atoms of each atomic number in a formula like LiMnPO4 or Ca(OH)2.

    Raises:
        InputError: no formula, or an element beyond uranium.
    """
    from ase.data import atomic_numbers
    from ase.formula import Formula

    text = "".join(formula.split())
    try:
        counts = {} if re.search(r"(?<!\d)0", text) else Formula(text).count()  # SrTi03 is a slip
    except (ValueError, KeyError):
        counts = {}
    counts = {symbol: count for symbol, count in counts.items() if count > 0}
    known = all(0 < atomic_numbers.get(symbol, 0) <= _HEAVIEST for symbol in counts)
    if not counts or not known:
        raise InputError(f"composition is '{formula}'; expected a formula of elements up to Z = {_HEAVIEST}, like LiMnPO4")
    return {atomic_numbers[symbol]: count for symbol, count in counts.items()}


@dataclass(frozen=True)
class SamplerConfig:
    """What all posterior samplers have in common.

    Attributes:
        prior: embedded (the one that is installed with the package), or a file of one, as mepdiff train writes it.
        steps: of the sampler, each one call of the network for each tile.
        sigma_min, sigma_max: ends of the schedule, of noise added to scaled volumes.
        rho: exponent of the schedule; 1 makes neighbouring sigmas of equal ratio.
        eta: how much of the noise is renewed: 0 follows the ODE, 1 the SDE.
        samples: drawn from the posterior; the volume is that which the held-out patterns like best.
        first_sample: number of the first: a run of three is the same as three of one, whose first_sample is 0, 1 and 2.
        likelihood: amplitude (PtyRAD's loss_single) or poisson.
        batch_size: patterns a mini-batch; null: all that are not held out.
        batches: mini-batches a step.
        warm_passes: passes of Adam over all patterns that the first volume comes from, beneath the noise; 0: noise alone.
        positivity: keep phases from falling below 0.
        tile_batch: tiles that the network takes at once.
        heldout_fraction: part of the patterns kept out of the guidance, drawn by the seed.
        slices: number of slices; null: the scan's thickness over slice_thickness_A.
        slice_thickness_A: Å, that of the prior's voxels.
        engine: ptyrad (its own model and loss) or fast (ours, equal to 1e-5).
        model: window and sampling of the fast engine's model; probe modes and tilt of both.
        refine: positions and probe, found by Adam before everything else.
        refine_passes: over the patterns, for that.
        seed: of noise, mini-batches and held-out patterns.
    """

    prior: str = EMBEDDED
    steps: int = 100
    sigma_min: float = 0.1
    sigma_max: float = 800.0
    rho: float = 1.0
    eta: float = 1.0
    samples: int = 1
    first_sample: int = 0
    likelihood: LikelihoodName = "amplitude"
    batch_size: int | None = None
    batches: int = 1
    warm_passes: int = 0
    positivity: bool = False
    tile_batch: int = 8
    heldout_fraction: float = 0.05
    slices: int | None = None
    slice_thickness_A: float = 1.6
    engine: EngineName = "fast"
    model: ModelConfig = field(default_factory=ModelConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    refine_passes: int = 80
    seed: int = 0

    def __post_init__(self) -> None:
        check(not self.refine.active or self.engine == "fast", "refine needs engine fast; set engine=fast")
        for name in ("steps", "samples", "batches", "tile_batch", "refine_passes"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        check(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}; expected the first to be less, and above 0",
        )
        check(self.rho > 0, f"rho is {self.rho:g}; expected more than 0")
        check(0 <= self.eta <= 1, f"eta is {self.eta:g}; expected 0 to 1")
        check(self.warm_passes >= 0, f"warm_passes is {self.warm_passes}; expected 0 or more")
        check(self.first_sample >= 0, f"first_sample is {self.first_sample}; expected 0 or more")
        check(self.batch_size is None or self.batch_size >= 1, f"batch_size is {self.batch_size}; expected at least 1")
        check_common(self.heldout_fraction, self.slices, self.slice_thickness_A, self.seed)


@dataclass(frozen=True)
class DPSConfig(SamplerConfig):
    """The paper's sampler (MEP-Diffusion, table 4).

    Attributes:
        guidance_scale: g(λ) is this times sigmoid(guidance_log_snr - λ)^½, for an illuminated area of 212 Å², the
            paper's; for another in proportion to it.
        guidance_log_snr: where the guidance fades.
    """

    guidance_scale: float = 5000.0
    guidance_log_snr: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.guidance_scale >= 0, f"guidance_scale is {self.guidance_scale:g}; expected 0 or more")


@dataclass(frozen=True)
class ProximalConfig(SamplerConfig):
    """From a few passes of Adam, data steps between denoising and renoising.

    Attributes:
        learning_rate: of the data steps, rad, at most.
        openness: r of the data steps in units of what the prior's denoiser leaves open.
    """

    steps: int = 30
    sigma_max: float = 1.5
    eta: float = 0.0
    likelihood: LikelihoodName = "poisson"
    batch_size: int | None = 32
    batches: int = 20
    warm_passes: int = 5
    positivity: bool = True
    learning_rate: float = 4e-3
    openness: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "openness"):
            check(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}; expected more than 0")


@dataclass(frozen=True)
class MepdiffConfig(ProximalConfig):
    """The crystal solver first; the prior's sampler where its answer is doubted, and then the held-out patterns decide.

    Attributes:
        crystal: settings of the crystal solver; its slices, model, held-out patterns and seed are the sampler's.
        compare: sample from the prior even where the crystal explains the patterns.
    """

    crystal: CrystalConfig = field(default_factory=CrystalConfig)
    compare: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.heldout_fraction > 0,
            "heldout_fraction is 0, but held-out patterns decide between two answers; set it to 0.05",
        )
        check(
            self.refine.probe_rate == 0 or self.model.window == self.model.sampling == 1,
            "the crystal solver takes a refined probe in the detector's own window; leave window and sampling of the model "
            "at 1, or take the method proximal",
        )

    @property
    def solver(self) -> CrystalConfig:
        """The crystal solver's settings, on the slices and patterns of the sampler."""
        return replace(
            self.crystal,
            slices=self.slices,
            slice_thickness_A=self.slice_thickness_A,
            heldout_fraction=self.heldout_fraction,
            model=replace(self.model, window=1, sampling=1),
            seed=self.seed,
        )
