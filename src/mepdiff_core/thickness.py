"""How thick a specimen is, how it leans, how large the source is: each fitted and judged by patterns held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from mepdiff_core.batches import Indices, make_batches, split_patterns
from mepdiff_core.errors import Diverged
from mepdiff_core.fit_settings import ThicknessConfig
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.multislice import Wanted
from mepdiff_core.optics import modes_of_source
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig

SHARE = 0.99
"""Of the probe that the modes of a source hold: with fewer, small sources explain patterns worse than a point does."""


@dataclass(frozen=True)
class Candidate:
    """One thickness, fitted.

    Attributes:
        thickness_A: Å; slices: what it was cut into.
        tilt_mrad: (y, x) by which columns lean on their way down.
        source_size_A: full width at half maximum of the source's image on the specimen, Å; probe_modes: taken for it.
        heldout: Poisson loss of the held-out patterns, nats an electron.
        nats_above: of all held-out patterns together, above the best candidate's: less than some tens say nothing.
    """

    thickness_A: float
    slices: int
    tilt_mrad: tuple[float, float]
    heldout: float
    nats_above: float = 0.0
    source_size_A: float = 0.0
    probe_modes: int = 1

    @property
    def slice_thickness_A(self) -> float:
        return self.thickness_A / self.slices


@dataclass(frozen=True)
class ThicknessStep:
    """Progress: ``step`` of ``total`` passes, and the candidates done so far in the order they were tried."""

    step: int
    total: int
    note: str
    candidates: tuple[Candidate, ...] = ()

    def best(self) -> Candidate:
        """The one that explains the held-out patterns best."""
        return min(self.candidates, key=lambda c: c.heldout)


def fit_thickness(
    scan: Scan, config: ThicknessConfig | None = None, device: torch.device | str = "cpu"
) -> Iterator[ThicknessStep]:
    """Try thicknesses, a step a pass over the patterns.

    Raises:
        InputError: too few patterns to hold any out. Diverged: the learning rate is too high.
    """
    config = config or ThicknessConfig()
    fit, held = split_patterns(scan.n_patterns, config.heldout_fraction, config.seed)
    tried = np.linspace(config.lowest_A, config.highest_A, config.candidates)
    models = _models(scan, config)
    total, done = config.candidates * len(models) * config.iterations, 0
    candidates: tuple[Candidate, ...] = ()
    for thickness, model in product(tried.tolist(), models):
        slices = max(1, round(thickness / config.slice_thickness_A))
        one = _Fit(scan, replace(config, model=model), slices, thickness / slices, device)
        note = f"{thickness:.3g} Å in {slices} slices"
        note += f", source of {model.source_size_A:g} Å" if len(models) > 1 else ""
        for step in range(1, config.iterations + 1):
            one.go_through(fit, step)
            done += 1
            if step == config.iterations:
                source = (model.source_size_A, model.probe_modes)
                found = Candidate(thickness, slices, one.tilt, one.misfit(held), 0.0, *source)
                electrons = scan.electrons_per_pattern * float(one.model.measured(held).sum())
                candidates = _ranked((*candidates, found), electrons)
            yield ThicknessStep(done, total, note, candidates)


def _models(scan: Scan, config: ThicknessConfig) -> list[ModelConfig]:
    """The model with each size of the source that is to be tried."""
    model = config.model
    if not config.source_sizes_A:
        return [model]
    grid, pixel = scan.n_pixels * model.window * model.sampling, scan.pixel_size_A / model.sampling
    return [
        replace(model, source_size_A=size, probe_modes=modes_of_source(scan.optics, grid, pixel, size, SHARE))
        for size in config.source_sizes_A
    ]


def _ranked(candidates: tuple[Candidate, ...], electrons: float) -> tuple[Candidate, ...]:
    lowest = min(c.heldout for c in candidates)
    return tuple(replace(c, nats_above=(c.heldout - lowest) * electrons) for c in candidates)


class _Fit:
    """One thickness under way."""

    def __init__(
        self, scan: Scan, config: ThicknessConfig, slices: int, slice_thickness_A: float, device: torch.device | str
    ) -> None:
        self.model = ForwardModel(scan, slices, slice_thickness_A, config.model, device=device)
        self.tilt = config.model.tilt_mrad
        self._config, self._likelihood = config, Poisson()
        planes = 1 if config.even else slices
        shape = (planes, *self.model.volume_shape[1:])
        self._phase = torch.nn.Parameter(torch.zeros(shape, device=self.model.device, dtype=self.model.real_dtype))
        self._lean = torch.nn.Parameter(torch.tensor(self.tilt, dtype=torch.float64))
        self._optimizer = torch.optim.Adam([self._phase], lr=config.learning_rate)
        self._tilt_optimizer = torch.optim.Adam([self._lean], lr=config.tilt_rate_mrad, betas=(0.9, 0.99))

    def _volume(self) -> torch.Tensor:
        return self._phase.detach().expand(self.model.volume_shape).contiguous()

    def misfit(self, indices: Indices) -> float:
        return self.model.loss(self._volume(), indices, self._likelihood)

    def go_through(self, fit: Indices, step: int) -> None:
        """One pass over the patterns."""
        config, model = self._config, self.model
        wanted: tuple[Wanted, ...] = ("walk",) if config.tilt and step > 1 else ()
        falling = 0.1 ** ((step - 1) / max(1, config.iterations - 1))
        self._tilt_optimizer.param_groups[0]["lr"] = config.tilt_rate_mrad * falling
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * falling
        for batch in make_batches(fit, config.batch_size, np.random.default_rng([config.seed, 5, step])):
            loss, gradient, further = model.gradients(self._volume(), batch, self._likelihood, wanted)
            if not math.isfinite(float(loss)):
                raise Diverged(f"the fit diverged in pass {step}; lower learning_rate ({config.learning_rate:g})")
            self._phase.grad = gradient.sum(0, keepdim=True) if config.even else gradient
            self._optimizer.step()
            with torch.no_grad():
                self._phase.clamp_(min=0)
            if further.walk is not None:
                # walk = slice thickness x tan(tilt) / pixel
                self._lean.grad = further.walk * (1e-3 * model.slice_thickness_A / model.pixel_size_A)
                self._tilt_optimizer.step()
                with torch.no_grad():
                    self._lean.clamp_(-200, 200)
                self.tilt = (float(self._lean.detach()[0]), float(self._lean.detach()[1]))
                model.set_tilt(self.tilt)
