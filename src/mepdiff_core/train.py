"""The trainer: steps of AdamW on Accelerate, each decided by its number alone, yielded as states.

Also a program, for several processes: accelerate launch -m mepdiff_core.train CONFIG.yaml --out DIR

Source of loss and optimiser: MEP-Diffusion, appendix E.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from mepdiff_core.batch_size import fitting, mixed_precision, parts_of
from mepdiff_core.config import check
from mepdiff_core.crystal_set import CrystalSet
from mepdiff_core.diffusion import Weighting, losses
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.loader import Crops, load, open_crops
from mepdiff_core.seeds import seeded
from mepdiff_core.train_config import TrainConfig, differing
from mepdiff_core.training_figures import draw_pictures
from mepdiff_core.training_folder import LOG, TrainingFolder
from mepdiff_core.unet import UNet
from mepdiff_core.validation import Validation, validate
from mepdiff_core.weights import Prior, PriorConfig, save_prior

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


@dataclass(frozen=True)
class TrainState:
    """One step of a training.

    Attributes:
        step: steps done so far; ``total`` is how many there will be.
        loss: of this step's batch, weighted, before the step; not a number while crystals are made.
        grad_norm: of the gradients, before they were shortened.
        learning_rate: of this step.
        images: seen so far.
        images_per_s: over the last steps.
        seconds: of training so far, without the time the consumer took.
        validation: on held-out crystals, where this step has one.
        note: what a person should know about this step.
    """

    step: int
    total: int
    loss: float
    grad_norm: float
    learning_rate: float
    images: int
    images_per_s: float
    seconds: float
    validation: Validation | None = None
    note: str = ""


def train(
    config: TrainConfig,
    out: str | Path,
    resume: bool = False,
    device: str = "auto",
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainState]:
    """Train a prior into a folder (``training_folder`` says what is in it).

    Closed at any state, it leaves a checkpoint of that step behind. On several processes every one of them calls this; the
    main one writes.

    Args:
        config: the training; with ``resume`` it may differ from the recorded one in ``MAY_CHANGE`` alone.
        out: the folder, new or empty, or with ``resume`` that of a training.
        resume: go on from the last checkpoint.
        device: auto (the GPU if there is one) or cpu.
        stop: asked after each step whether to stop there; one process's yes counts for all.

    Yields:
        ``TrainState`` after each step, and, with step 0, while crystals are made.

    Raises:
        InputError: bad input, a full disk, a batch that does not fit into memory (it says which does).
        Diverged: a loss or gradient that is not a finite number; the last checkpoint is as it was.
    """
    check(device in ("auto", "cpu"), f"device is '{device}'; expected auto or cpu (CUDA_VISIBLE_DEVICES chooses a GPU)")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision(config, device))
    shares = accelerator.num_processes * config.accumulate
    check(
        config.batch_size % shares == 0,
        f"batch_size is {config.batch_size}; expected a multiple of {accelerator.num_processes} processes times "
        f"{config.accumulate} parts",
    )
    given = (
        None if config.data == "prototypes" else open_crops(config.data, config.crops, accelerator.device, config.exclude)
    )
    folder = _open_folder(config, out, resume, accelerator)
    if given is None:
        yield from _prototypes(config, folder, accelerator)
        given = open_crops(folder.crystals, config.crops, accelerator.device, config.exclude)
    crops, held_out = given
    trainer = _Trainer(config, folder, accelerator, crops, held_out)
    if resume:
        trainer.restore()
    yield from trainer.run(stop)


def _open_folder(config: TrainConfig, out: str | Path, resume: bool, accelerator: Accelerator) -> TrainingFolder:
    if resume:
        names = differing(config, TrainingFolder.recorded(out))
        check(
            not names,
            f"the training in {out} has another {', '.join(names)}; leave these as they are to go on, or start another",
        )
    folder = TrainingFolder(Path(out), config)
    if accelerator.is_main_process:
        folder = TrainingFolder.reopen(out, config) if resume else TrainingFolder.create(out, config)
    accelerator.wait_for_everyone()
    return folder


def _prototypes(config: TrainConfig, folder: TrainingFolder, accelerator: Accelerator) -> Iterator[TrainState]:
    """Make the crystals, unless they are there."""
    from mepdiff_core.prototype_crystals import generate

    if accelerator.is_main_process and not folder.crystals.exists():
        crystals = []
        start = time.perf_counter()
        for index in range(config.crystals):
            crystals.append(generate(index, config.seed))
            if (index + 1) % 1000 == 0:
                note = f"{index + 1:,} of {config.crystals:,} crystals made"
                seconds = time.perf_counter() - start
                yield TrainState(0, config.steps, math.nan, math.nan, 0.0, 0, 0.0, seconds, note=note)
        CrystalSet.pack(crystals).save(folder.crystals)
    accelerator.wait_for_everyone()


class _Trainer:
    """What changes from step to step, and what it takes to make a step."""

    def __init__(
        self,
        config: TrainConfig,
        folder: TrainingFolder,
        accelerator: Accelerator,
        crops: Crops,
        held_out: Crops | None,
    ) -> None:
        self.config, self.folder, self.accelerator, self.crops = config, folder, accelerator, crops
        device = accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = UNet(config.network)
        self.network = network.to(device)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False).train(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        model = torch.compile(self.network) if config.compile else self.network
        self.model, self.prepared = accelerator.prepare(model, self.optimizer)
        self.weighting = Weighting(config.diffusion)
        self.step, self.best = 0, math.inf
        self.clock = _Clock()
        self.validation: Validation | None = None
        self.held_out: Tensor | None = None
        if held_out is not None and config.validation_crops:
            items = [held_out.draw(i % len(held_out), i // len(held_out)) for i in range(config.validation_crops)]
            self.held_out = held_out.assemble(items)

    @property
    def images(self) -> int:
        """Seen so far."""
        return self.step * self.config.batch_size

    # the state that lasts

    def restore(self) -> None:
        """Go to the last checkpoint, if there is any."""
        found = self.folder.load_checkpoint()
        if self.accelerator.is_main_process:
            self.folder.cut_logs(0 if found is None else found[1]["step"])
        self.accelerator.wait_for_everyone()
        if found is None:
            return
        arrays, about = found
        averages = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[f"weights.{name}"]))
                averages[name].copy_(torch.from_numpy(arrays[f"average.{name}"]))
                kept = {"step": torch.tensor(float(about["step"]), device=parameter.device)}
                for slot in MOMENTS:
                    kept[slot] = torch.empty_like(parameter).copy_(torch.from_numpy(arrays[f"{slot}.{name}"]))
                self.optimizer.state[parameter] = kept
        self.step, self.clock.seconds = int(about["step"]), float(about["seconds"])
        self.best = math.inf if about["best"] is None else float(about["best"])
        self.validation = None if about["validation"] is None else Validation(**about["validation"])

    def save(self) -> None:
        """A checkpoint and the prior, by the main process."""
        if self.accelerator.is_main_process:
            arrays: dict[str, npt.NDArray[np.generic]] = {}
            averages = dict(self.average.named_parameters())
            for name, parameter in self.network.named_parameters():
                kept = self.optimizer.state[parameter]
                tensors = {"weights": parameter, "average": averages[name]} | {slot: kept[slot] for slot in MOMENTS}
                arrays |= {f"{slot}.{name}": value.detach().float().cpu().numpy() for slot, value in tensors.items()}
            about = {
                "seconds": self.clock.seconds,
                "best": self.best if math.isfinite(self.best) else None,
                "validation": None if self.validation is None else asdict(self.validation),
            }
            self.folder.save_checkpoint(self.step, arrays, about)
            self.save_prior(self.folder.last)
        self.accelerator.wait_for_everyone()

    def save_prior(self, path: Path) -> None:
        """The moving average, with what is known of it; the same bytes for the same training, however often it stopped."""
        c = self.config
        training: dict[str, Any] = {
            "data": Path(c.data).name,
            "items": len(self.crops),
            "steps": self.step,
            "images": self.images,
            "seed": c.seed,
        }
        if self.validation is not None:
            training["validation"] = asdict(self.validation)
        save_prior(path, dict(self.average.named_parameters()), prior_config(c), training)

    # the loop

    def run(self, stop: Callable[[], bool]) -> Iterator[TrainState]:
        c, main = self.config, self.accelerator.is_main_process
        saved, ended, speed = self.step, False, 0.0
        recent: list[float] = []
        board, note = _board(self.folder.path, self.step) if main else (None, "")
        with contextlib.closing(load(self.crops, self._batches(), c.seed, self._workers())) as batches:
            while self.step < c.steps and not ended:
                before = self.clock.start()
                loss, norm, rate = self._advance(batches)
                recent.append(loss)
                now = c.batch_size / (self.clock.stop() - before)
                speed = now if speed == 0 else 0.9 * speed + 0.1 * now
                self.clock.start()
                validation = self._validate() if self._due(c.validate_every) else None
                if main and self._due(c.log_every):
                    values = (self.step, self.images, sum(recent) / len(recent), norm, rate, speed, self.clock.stop())
                    self._log("log.csv", board, dict(zip(LOG, values, strict=True)))
                    recent = []
                if main and validation is not None:
                    self._log("validation.csv", board, {"step": self.step, "images": self.images, **validation.rows()})
                if main and c.pictures_every and (self.images % c.pictures_every < c.batch_size or self.step == c.steps):
                    self._draw()
                ended = self._any(stop())
                if self._due(c.checkpoint_every) or ended:
                    self.save()
                    saved = self.step
                seconds = self.clock.stop()
                try:
                    yield TrainState(self.step, c.steps, loss, norm, rate, self.images, speed, seconds, validation, note)
                except GeneratorExit:
                    if saved != self.step:
                        self.save()
                    raise
                note = ""

    def _advance(self, batches: Iterator[Tensor]) -> tuple[float, float, float]:
        """One step; returns loss, norm of the gradients and learning rate."""
        c, accelerator, device = self.config, self.accelerator, self.accelerator.device
        # drawn for the whole batch, whatever share of it is this process's: two learn what one would
        log_snr, weights = self.weighting.draw(c.batch_size, seeded(c.seed, self.step))
        log_snr, weights = log_snr.float().to(device), weights.float().to(device)
        shape = (c.batch_size, 1, c.crops.slices, c.crops.pixels, c.crops.pixels)
        noise = torch.randn(shape, device=device, generator=seeded(c.seed, self.step, device=device))
        total = torch.zeros((), device=device)
        for number, part in enumerate(self._parts()):
            x = next(batches).to(device) * c.diffusion.data_scale
            held_back = number < c.accumulate - 1
            try:
                with accelerator.no_sync(self.model) if held_back else contextlib.nullcontext():
                    loss = (losses(self.model, x, noise[part], log_snr[part]) * weights[part]).mean() / c.accumulate
                    accelerator.backward(loss)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                raise self._too_large() from None
            total += loss.detach()
        norm = float(accelerator.clip_grad_norm_(self.network.parameters(), c.clip_norm))
        mean = float(accelerator.reduce(total, "mean"))
        if not math.isfinite(norm) or not math.isfinite(mean):
            kept = self.folder.checkpoints()
            where = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
            raise Diverged(
                f"step {self.step + 1}: the loss is {mean:g}, the gradients' norm {norm:g}; {where}; "
                "take a lower learning_rate, a longer warm-up or precision float32"
            )
        rate = c.learning_rate * min(1.0, (self.step + 1) / max(1, c.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        decay = min(c.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.network.parameters()], 1 - decay)
        return mean, norm, rate

    def _parts(self) -> list[slice]:
        """Of the whole batch, what this process takes, one after the other."""
        share = self.config.batch_size // self.accelerator.num_processes
        first, size = share * self.accelerator.process_index, share // self.config.accumulate
        return [slice(first + i * size, first + (i + 1) * size) for i in range(self.config.accumulate)]

    def _batches(self) -> Iterator[range]:
        for step in range(self.step, self.config.steps):
            first = step * self.config.batch_size
            yield from (range(first + part.start, first + part.stop) for part in self._parts())

    def _workers(self) -> int:
        if self.config.workers is not None:
            return self.config.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.accelerator.num_processes - 1) if self.accelerator.device.type == "cuda" else 0

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _any(self, mine: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return mine
        votes = self.accelerator.reduce(torch.tensor(float(mine), device=self.accelerator.device), "sum")
        return float(votes) > 0

    def _validate(self) -> Validation | None:
        """Measure the moving average on held-out crystals; keep it where it is the best so far."""
        if self.held_out is None or not self.accelerator.is_main_process:
            return None

        def network(x: Tensor, log_snr: Tensor) -> Tensor:
            with self.accelerator.autocast():
                v: Tensor = self.average(x, log_snr)
            return v

        found = validate(network, self.held_out, self.config.diffusion)
        self.validation = found
        if found.loss < self.best:
            self.best = found.loss
            self.save_prior(self.folder.best)
        return found

    def _draw(self) -> None:
        prior = Prior(prior_config(self.config), self.average, {}, "")
        held_out = None if self.held_out is None else self.held_out[:2]
        draw_pictures(prior, held_out, self.folder, self.images, self.config.seed)

    def _log(self, name: str, board: Any, row: Mapping[str, Any]) -> None:
        self.folder.log(row, name)
        if board is not None:
            for key, value in row.items():
                if key not in ("step", "images"):
                    board.add_scalar(f"{name.removesuffix('.csv')}/{key}", value, self.step)

    def _too_large(self) -> InputError:
        self.prepared.zero_grad()
        share = self.config.batch_size // self.accelerator.num_processes
        fits = fitting(self.config, self.network, self.accelerator)
        return InputError(
            f"a batch of {share // self.config.accumulate} volumes does not fit into memory at once, {fits} do; "
            f"add --set accumulate={parts_of(share, fits)} (what is learned is the same) or --find-batch-size"
        )


class _Clock:
    """Seconds of training, without those in between."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> float:
        self._since = time.perf_counter()
        return self.seconds

    def stop(self) -> float:
        if self._since is not None:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now
        return self.seconds


def prior_config(config: TrainConfig) -> PriorConfig:
    """What the prior of a training is."""
    c = config.crops
    return PriorConfig(
        config.network,
        config.diffusion,
        (c.slices, c.pixels, c.pixels),
        (c.slice_thickness_A, c.pixel_size_A, c.pixel_size_A),
        c.energy_eV,
    )


def _board(path: Path, step: int) -> tuple[Any, str]:
    """What writes for TensorBoard, and a word where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None, "TensorBoard is not installed; log.csv and validation.csv have the same"
    return SummaryWriter(path / "tensorboard", purge_step=step + 1), ""


def main() -> None:
    """``mepdiff train`` under another name, for ``accelerate launch -m``."""
    from mepdiff_core.cli import main as command

    sys.exit(command(["train", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
