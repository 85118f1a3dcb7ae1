"""mepdiff train"""

from __future__ import annotations

import argparse
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.cli.common import ProgressBar, Stopped, add_json, emit

if TYPE_CHECKING:
    from mepdiff_core.train_config import TrainConfig

EPILOG = """\
Presets: paper (the network and settings of MEP-Diffusion, 107 M parameters, for GPUs) and small (for a laptop).
Data: prototypes (crystals generated from the seed, rendered while training), a store of mepdiff dataset build, or the
crystals.safetensors of one, rendered while training.

The folder holds config.yaml, last.safetensors (the prior), best.safetensors (the prior with the lowest loss on held-out
crystals), state/ (checkpoints), log.csv, validation.csv, pictures/ and tensorboard/.
Every setting and what it means: mepdiff info --settings train
Ctrl-C ends after the step that runs, with a checkpoint; --resume goes on. A training that was killed goes on from its last
checkpoint.

examples:
  mepdiff train --preset small --out prior
  mepdiff train --preset small --set data=store.zarr --set steps=2000 --out prior
  mepdiff train --out prior --resume
  accelerate launch -m mepdiff_core.train config.yaml --out prior
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train", help="train a prior", description="Train a generative prior for crystals (docs/training.md).", epilog=EPILOG
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the training, as a YAML file")
    parser.add_argument("--preset", metavar="NAME", help="start from a preset: paper or small")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make (or to go on with, by --resume)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the file's; repeat for more"
    )
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one) or cpu")
    parser.add_argument(
        "--find-batch-size", action="store_true", help="measure what fits into memory first, and take a batch in such parts"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, with the settings on record")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.train import train
    from mepdiff_core.training_folder import TrainingFolder

    config = _config(arguments)
    main = os.environ.get("RANK", "0") == "0"  # of the processes of accelerate launch, one speaks
    with ProgressBar("train") as bar, _interrupted() as asked:
        state = None
        for state in train(config, arguments.out, arguments.resume, arguments.device, asked):
            if main:
                bar.show(state.step, state.total, _words(state))
    if not main:
        return
    folder = TrainingFolder(Path(arguments.out), config)
    if asked() and state is not None and state.step < config.steps:
        raise Stopped(f"stopped at step {state.step}; go on with: mepdiff train --out {arguments.out} --resume")
    step = config.steps if state is None else state.step
    result = {"folder": str(folder.path), "prior": str(folder.last), "steps": step}
    if state is not None and math.isfinite(state.loss):
        result |= {"loss": state.loss, "seconds": state.seconds}
    if state is not None and state.validation is not None:
        result["validation_loss"] = state.validation.loss
    emit(arguments, result, f"{folder.last}: {step:,} steps; look at it with mepdiff prior inspect {folder.last}")


def _config(arguments: argparse.Namespace) -> TrainConfig:
    from mepdiff_core.batch_size import find_batch, parts_of
    from mepdiff_core.config import check, from_dict, merge, parse_assignments, read_yaml, to_dict
    from mepdiff_core.train_config import TrainConfig, preset
    from mepdiff_core.training_folder import TrainingFolder

    check(
        arguments.config is None or arguments.preset is None,
        "CONFIG.yaml and --preset were both given; choose one (--set changes single settings of it)",
    )
    check(
        bool(arguments.config or arguments.preset or arguments.resume),
        "nothing to train was given; give CONFIG.yaml, --preset small or --preset paper",
    )
    base: dict[str, Any] = {}
    if arguments.resume:
        base = to_dict(TrainingFolder.recorded(arguments.out))
    if arguments.preset is not None:
        base = merge(base, preset(arguments.preset))
    if arguments.config is not None:
        base = merge(base, read_yaml(arguments.config))
    config = from_dict(TrainConfig, merge(base, parse_assignments(arguments.set)), str(arguments.config or "train"))
    if arguments.find_batch_size:
        fits = find_batch(config, arguments.device)
        parts = parts_of(config.batch_size, fits)
        config = from_dict(TrainConfig, merge(to_dict(config), {"accumulate": parts}))
    return config


def _words(state: Any) -> str:
    if state.step == 0:
        return str(state.note)
    words = f"loss {state.loss:.4f}, {state.images_per_s:.1f} images/s"
    if state.validation is not None:
        words += f", held out {state.validation.loss:.4f}"
    return f"{words}, {state.note}" if state.note else words


@contextmanager
def _interrupted() -> Iterator[Any]:
    """Whether Ctrl-C was pressed, so that the step that runs can end first; pressed twice, it stops at once."""
    pressed: list[int] = []

    def handle(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
