"""The baselines: PtyRAD[Adam] and PtyRAD[L-BFGS] as the paper ran them, and adam-best as an expert would.

Source: MEP-Diffusion, appendix C. What it leaves open, and what was measured to decide, stands in docs/method.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.batches import Indices, make_batches, split_patterns
from mepdiff_core.config import check
from mepdiff_core.errors import Diverged
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import make_likelihood
from mepdiff_core.ptyrad_adapter import Constrainer, PtyRADEngine
from mepdiff_core.refinement import Refinement
from mepdiff_core.scan import Scan, specimen_slices
from mepdiff_core.settings import AdamConfig, Constraints, EngineName, LBFGSConfig, LikelihoodName
from mepdiff_core.states import Checkpoint, Refined, State

DIVERGED_PASSES = 2
"""This many passes in a row with a loss above that of no specimen at all, and the reconstruction has diverged."""


class Engine(Protocol):
    """Loss, gradient and constraints of a volume (slices, y, x)."""

    def loss_and_gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]: ...

    def loss(self, volume: Tensor, indices: Indices) -> float: ...

    def constrain(self, volume: Tensor, iteration: int) -> Tensor: ...


class FastEngine:
    """PtyRAD's losses on our forward model and adjoint; its constraints are PtyRAD's own."""

    def __init__(
        self,
        model: ForwardModel,
        likelihood: str,
        constraints: Constraints | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        self.model, self.refinement = model, refinement
        self.likelihood = make_likelihood(likelihood)
        active = constraints is not None and constraints != Constraints()
        self._constrainer = Constrainer(constraints, model.device) if active and constraints else None

    def loss_and_gradient(self, volume: Tensor, indices: Indices) -> tuple[float, Tensor]:
        wanted = self.refinement.wanted() if self.refinement is not None else ()
        loss, gradient, further = self.model.gradients(volume, indices, self.likelihood, wanted)
        if self.refinement is not None:
            self.refinement.take(indices, further)
        return float(loss), gradient

    def loss(self, volume: Tensor, indices: Indices) -> float:
        return self.model.loss(volume, indices, self.likelihood)

    def constrain(self, volume: Tensor, iteration: int) -> Tensor:
        if self._constrainer is not None:
            volume = self._constrainer.constrain(volume, iteration)
        if self.refinement is not None:
            self.refinement.end_pass(iteration, volume, self.likelihood)
        return volume


def make_engine(
    name: EngineName,
    model: ForwardModel,
    likelihood: LikelihoodName,
    constraints: Constraints,
    refinement: Refinement | None = None,
) -> Engine:
    """The engine of that name on a model; the fast one refines what a refinement says."""
    if name == "ptyrad":
        return PtyRADEngine(model, likelihood, constraints)
    return FastEngine(model, likelihood, constraints, refinement)


def run_adam(
    scan: Scan,
    config: AdamConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[State]:
    """Adam on the phase of every voxel, a state a pass over the patterns.

    Args:
        scan: the measurement.
        config: settings.
        device: torch device.
        start: (slices, y, x) volume to start from; zeros by default.
        checkpoint: of a state of the same run, to go on from there.

    Raises:
        Diverged: the loss is no longer finite, or stays above that of no specimen at all; the last state holds the last
            good volume.
    """
    model = _make_model(scan, config, device)
    fit, held = split_patterns(scan.n_patterns, config.heldout_fraction, config.seed)
    refinement = Refinement(model, scan, config.refine, held) if config.refine.active else None
    engine = make_engine(config.engine, model, config.likelihood, config.constraints, refinement)
    batches = make_batches(fit, config.batch_size, np.random.default_rng([config.seed, 1]))

    volume = torch.nn.Parameter(_start_volume(model, start))
    optimizer = torch.optim.Adam([volume], lr=config.learning_rate)
    done, bad_passes, best_misfit, best_step, seconds = 0, 0, math.inf, 0, 0.0
    vacuum = engine.loss(torch.zeros_like(volume), fit) if checkpoint is None else float(checkpoint["vacuum"])
    best, best_refined = _output(model, volume), refinement.result() if refinement is not None else None
    if checkpoint is not None:
        done, best_step = int(checkpoint["step"]), int(checkpoint["best_step"])
        bad_passes = int(checkpoint["bad_passes"])
        best_misfit, seconds = float(checkpoint["best_misfit"]), float(checkpoint["seconds"])
        best = np.asarray(checkpoint["best"], np.float32)
        volume.data.copy_(torch.as_tensor(np.array(checkpoint["volume"])))
        optimizer.state[volume] = {
            "step": torch.tensor(float(done * len(batches))),
            "exp_avg": torch.as_tensor(np.array(checkpoint["exp_avg"])).to(model.device),
            "exp_avg_sq": torch.as_tensor(np.array(checkpoint["exp_avg_sq"])).to(model.device),
        }
        if refinement is not None and best_refined is not None:
            refinement.restore(checkpoint)
            best_refined = replace(
                best_refined,
                probe=np.asarray(checkpoint["best_probe"], np.complex64),
                positions_A=np.asarray(checkpoint["best_positions_A"], np.float64),
            )

    for step in range(done + 1, config.iterations + 1):
        if config.patience is not None and step - 1 - best_step >= config.patience:
            return
        began = time.perf_counter()
        if config.reshuffle:
            batches = make_batches(fit, config.batch_size, np.random.default_rng([config.seed, 1, step]))
        losses = []
        for batch in batches:
            loss, volume.grad = engine.loss_and_gradient(volume.detach(), batch)
            if not math.isfinite(loss):
                raise Diverged(_advice(step, f"its loss is {loss:g}", config.learning_rate))
            losses.append(loss)
            optimizer.step()
        with torch.no_grad():
            volume.copy_(engine.constrain(volume.detach(), step))
        check_finite(volume, step)
        mean_loss = float(np.mean(losses))
        # the mean of the batches' losses is near that of all patterns, but not the same: look twice before a verdict
        worse = mean_loss > vacuum and engine.loss(volume.detach(), fit) > vacuum
        bad_passes = bad_passes + 1 if worse else 0
        if bad_passes == DIVERGED_PASSES:
            reason = f"its loss {mean_loss:.4g} stays above {vacuum:.4g}, that of no specimen at all"
            raise Diverged(_advice(step, reason, config.learning_rate))
        misfit = engine.loss(volume.detach(), held) if len(held) else None
        if not bad_passes and (misfit is None or misfit < best_misfit):
            best, best_step = _output(model, volume), step
            best_refined = refinement.result() if refinement is not None else None
            best_misfit = math.inf if misfit is None else misfit
        seconds += time.perf_counter() - began
        moments = optimizer.state[volume]
        yield State(
            step=step,
            total=config.iterations,
            volume=best,
            volume_step=best_step,
            loss=mean_loss,
            heldout=misfit,
            seconds=seconds,
            refined=best_refined,
            checkpoint={
                "step": np.array(step),
                "best_step": np.array(best_step),
                "vacuum": np.array(vacuum),
                "bad_passes": np.array(bad_passes),
                "best_misfit": np.array(best_misfit),
                "seconds": np.array(seconds),
                "best": best,
                "volume": _copy(volume),
                "exp_avg": _copy(moments["exp_avg"]),
                "exp_avg_sq": _copy(moments["exp_avg_sq"]),
                **_saved(refinement, best_refined),
            },
        )


class _StepDiverged(Exception):
    """Leaves torch's L-BFGS in the middle of a step."""


def run_lbfgs(
    scan: Scan,
    config: LBFGSConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[State]:
    """L-BFGS once for each learning rate, a state an iteration; the volume is the best of all so far by loss.

    Arguments and errors are those of ``run_adam``. A checkpoint goes on at the learning rate it was taken in: its
    iterations are done again, so that the result is that of an uninterrupted run.
    """
    model = _make_model(scan, config, device)
    engine = make_engine(config.engine, model, config.likelihood, Constraints())
    fit, held = split_patterns(scan.n_patterns, config.heldout_fraction, config.seed)
    initial = _start_volume(model, start)
    best, best_loss, best_step, seconds, first_rate = _output(model, initial), engine.loss(initial, fit), 0, 0.0, 0
    if checkpoint is not None:
        best, best_step = np.asarray(checkpoint["best"], np.float32), int(checkpoint["best_step"])
        best_loss, seconds = float(checkpoint["best_loss"]), float(checkpoint["seconds"])
        first_rate = int(checkpoint["rate"])

    total = len(config.learning_rates) * config.iterations
    for index in range(first_rate, len(config.learning_rates)):
        rate = config.learning_rates[index]
        before = {"rate": index, "best": best, "best_loss": best_loss, "best_step": best_step, "seconds": seconds}
        volume = torch.nn.Parameter(initial.clone())
        optimizer = torch.optim.LBFGS(
            [volume],
            lr=rate,
            max_iter=config.inner_iterations,
            line_search_fn=None if config.line_search == "none" else config.line_search,
        )
        for iteration in range(config.iterations):
            began = time.perf_counter()
            step = index * config.iterations + iteration + 1
            rng = np.random.default_rng([config.seed, 2, index, iteration])
            drawn = make_batches(fit, config.batch_size, rng)[: config.batches_per_iteration]

            def closure(drawn: list[Indices] = drawn, volume: torch.nn.Parameter = volume) -> float:
                loss, gradient = 0.0, torch.zeros_like(volume)
                for batch in drawn:
                    part, part_gradient = engine.loss_and_gradient(volume.detach(), batch)
                    loss += part / len(drawn)
                    gradient += part_gradient / len(drawn)
                if not math.isfinite(loss):
                    raise _StepDiverged
                volume.grad = gradient
                return loss

            note, loss, misfit = f"learning rate {rate:g}", math.inf, None
            try:
                optimizer.step(closure)
                loss = engine.loss(volume.detach(), fit)
            except _StepDiverged:
                note += " diverged"
            diverged = not math.isfinite(loss)
            if not diverged:
                misfit = engine.loss(volume.detach(), held) if len(held) else None
                if loss < best_loss:
                    best, best_loss, best_step = _output(model, volume), loss, step
            seconds += time.perf_counter() - began
            yield State(
                step=step,
                total=total,
                volume=best,
                volume_step=best_step,
                loss=loss,
                heldout=misfit,
                seconds=seconds,
                note=note,
                checkpoint={name: np.asarray(value) for name, value in before.items()}
                | {"step": np.array(index * config.iterations)},
            )
            if diverged:
                break
    if best_step == 0:
        rates = ", ".join(f"{r:g}" for r in config.learning_rates)
        raise Diverged(
            f"L-BFGS diverged at every learning rate ({rates}): its loss stays above that of the start; "
            "give smaller ones, or line_search strong_wolfe"
        )


def _make_model(scan: Scan, config: AdamConfig | LBFGSConfig, device: torch.device | str) -> ForwardModel:
    slices = specimen_slices(scan, config.slices, config.slice_thickness_A)
    return ForwardModel(scan, slices, config.slice_thickness_A, config.model, device=device)


def _start_volume(model: ForwardModel, start: npt.NDArray[np.floating] | None) -> Tensor:
    volume = torch.zeros(model.volume_shape, dtype=model.real_dtype, device=model.device)
    if start is not None:
        expected = (model.volume_shape[0], *model.field.shape)
        check(
            start.shape == expected,
            f"the start volume has shape {start.shape}; this scan's object field has {expected} (slices, y, x)",
        )
        check(bool(np.isfinite(start).all()), "the start volume has values that are not numbers")
        m = model.margin
        inner = volume[:, m : volume.shape[1] - m, m : volume.shape[2] - m]
        inner.copy_(torch.as_tensor(np.array(start, order="C")))
    return volume


def _output(model: ForwardModel, volume: Tensor) -> npt.NDArray[np.float32]:
    """A copy, on the object field."""
    return np.array(model.crop(volume.detach().cpu().numpy()), np.float32)


def _saved(refinement: Refinement | None, best: Refined | None) -> dict[str, npt.NDArray[np.generic]]:
    if refinement is None or best is None:
        return {}
    return {**refinement.checkpoint(), "best_probe": np.array(best.probe), "best_positions_A": np.array(best.positions_A)}


def _copy(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach().cpu().numpy())


def _advice(step: int, reason: str, learning_rate: float) -> str:
    return f"the reconstruction diverged in step {step}: {reason}; lower the learning rate ({learning_rate:g})"


def check_finite(volume: Tensor, step: int) -> None:
    """Raise ``Diverged`` for a volume with values that are not numbers."""
    if not bool(torch.isfinite(volume).all()):
        raise Diverged(
            f"the reconstruction diverged in step {step}: the volume is not finite any more; lower the learning rate"
        )
