"""The training folder: config, priors, checkpoints, logs. Killed at any moment, it holds all that it takes to go on.

config.yaml              what is trained
crystals.safetensors     the prototypes it was generated from, where it was
last.safetensors         the prior: moving average of the weights at the last checkpoint
best.safetensors         the prior with the lowest loss on held-out crystals
state/step-*.safetensors the last checkpoints: weights, their average, optimiser
log.csv, validation.csv  a row a step, a row a validation; tensorboard/ has the same where TensorBoard is installed
pictures/                sheets of samples, and what the network sees at different log-SNR
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.arrays import Arrays, Kind
from mepdiff_core.config import check, dump_yaml, from_dict, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.files import make_folder, write_error, write_text
from mepdiff_core.train_config import TrainConfig

CHECKPOINT = Kind("mepdiff-training", 1, "checkpoint of a training")
LOG = ("step", "images", "loss", "grad_norm", "learning_rate", "images_per_s", "seconds")


class TrainingFolder:
    """A folder that a training fills.

    Attributes:
        path: where it is.
        config: what is trained.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, config

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> TrainingFolder:
        """Make a new one.

        Raises:
            InputError: it exists and is not empty, or cannot be made.
        """
        folder = cls(make_folder(path), config)
        folder._write_config()
        return folder

    @classmethod
    def reopen(cls, path: str | Path, config: TrainConfig | None = None) -> TrainingFolder:
        """Open the folder of a training that is to go on, with what may change of it changed (``MAY_CHANGE``).

        Raises:
            InputError: no training there.
        """
        path = Path(path)
        recorded = cls.recorded(path)
        folder = cls(path, recorded if config is None else config)
        if folder.config != recorded:
            folder._write_config()
        return folder

    @staticmethod
    def recorded(path: str | Path) -> TrainConfig:
        """What the training in a folder is.

        Raises:
            InputError: no training there.
        """
        file = Path(path) / "config.yaml"
        check(file.exists(), f"{path} holds no training (no config.yaml); leave out --resume to start one")
        return from_dict(TrainConfig, read_yaml(file), str(file))

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def crystals(self) -> Path:
        return self.path / "crystals.safetensors"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def save_checkpoint(self, step: int, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that are too many.

        Raises:
            InputError: it cannot be written; the older ones are still there.
        """
        try:
            (self.path / "state").mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.path / "state", error) from None
        CHECKPOINT.save(arrays, self._state(step), {"step": step, **about})
        for old in self.checkpoints()[: -self.config.keep]:
            old.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = (self.path / "state").glob("step-*.safetensors")
        return sorted(path for path in found if re.fullmatch(r"step-\d{9}", path.stem))

    def load_checkpoint(self) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, Any]] | None:
        """The newest checkpoint and what it says of itself; None where the training had not come so far.

        Raises:
            InputError: it is damaged, or none of ours.
        """
        found = self.checkpoints()
        if not found:
            return None
        path = found[-1]
        remedy = "remove it to go on from the one before" if len(found) > 1 else "remove it to begin again"
        return CHECKPOINT.load(path, remedy)

    def cut_logs(self, step: int) -> None:
        """Forget rows after a step, and half a row that a killed training left."""
        for name in ("log.csv", "validation.csv"):
            rows = read_log(self.path / name)
            kept = [row for row in rows if row["step"] <= step]
            if kept:
                self._write_rows(name, kept)
            else:
                (self.path / name).unlink(missing_ok=True)

    def log(self, row: Mapping[str, Any], name: str = "log.csv") -> None:
        """Add a row.

        Raises:
            InputError: it cannot be written.
        """
        path = self.path / name
        text = io.StringIO()
        writer = csv.DictWriter(text, [*row], lineterminator="\n")
        if not path.exists():
            writer.writeheader()
        writer.writerow(row)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise write_error(path, error) from None

    def _write_rows(self, name: str, rows: Sequence[Mapping[str, float]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: int(v) if k in ("step", "images") else v for k, v in row.items()} for row in rows)
        write_text(self.path / name, text.getvalue())

    def _state(self, step: int) -> Path:
        return self.path / "state" / f"step-{step:09d}.safetensors"

    def _write_config(self) -> None:
        write_text(self.path / "config.yaml", dump_yaml(to_dict(self.config)))


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The whole rows of log.csv or validation.csv; none where there is no such file.

    Raises:
        InputError: unreadable.
    """
    if not Path(path).exists():
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    rows = []
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):
        if None in row or None in row.values():
            continue
        rows.append({name: float(value) for name, value in row.items()})
    return rows
