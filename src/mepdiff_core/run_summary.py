"""What run folders say of themselves: for tables, and to lay several answers for one scan side by side."""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.config import check, read_yaml
from mepdiff_core.errors import InputError

if TYPE_CHECKING:
    from mepdiff_core.scan import Scan
    from mepdiff_core.sections import PlacedVolume

DEPTH = 3
"""Folders within folders that are searched for runs: an evaluation keeps them two below."""


@dataclass(frozen=True)
class RunSummary:
    """A run folder's words about itself.

    Attributes:
        path: the folder.
        record: ``run.yaml``.
        metrics: ``metrics.json``; of a run without one, steps and seconds by its history.
    """

    path: Path
    record: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """What a person calls the run: that of its folder."""
        return self.path.name

    @property
    def method(self) -> str:
        return str(self.record["method"])

    @property
    def status(self) -> str:
        """One word: finished, stopped, running, diverged, failed."""
        return str(self.record["status"]).partition(":")[0]

    @property
    def question(self) -> tuple[Any, ...]:
        """Runs with an equal one can be compared by their held-out patterns: same scan, same patterns held out."""
        config = self.record["config"]
        return self.record["input_sha256"], config.get("heldout_fraction"), config.get("seed")

    def row(self) -> dict[str, Any]:
        """Name, method, status and metrics, for a table."""
        return {**self.metrics, "run": self.name, "method": self.method, "status": self.status}

    def volume(self) -> PlacedVolume:
        """The volume where it lies.

        Raises:
            InputError: there is none yet, or its file is damaged.
        """
        from mepdiff_core.sections import PlacedVolume
        from mepdiff_core.volume_files import read_volume

        volume = read_volume(self.path / "volume.ome.tif")
        return PlacedVolume(volume, tuple(self.record["voxel_size_A"]), tuple(self.record["origin_A"]))


def read_summary(path: str | Path) -> RunSummary:
    """A run folder's summary, finished or not.

    Raises:
        InputError: no run, or a damaged one.
    """
    path = Path(path)
    check((path / "run.yaml").exists(), f"{path} holds no run (no run.yaml); choose the folder of a run")
    record = read_yaml(path / "run.yaml")
    for name in ("method", "config", "status", "input_sha256", "voxel_size_A", "origin_A"):
        check(name in record, f"{path / 'run.yaml'} lacks '{name}'; it was not written by mepdiff, or is damaged")
    metrics = path / "metrics.json"
    if not metrics.exists():
        return RunSummary(path, record, _progress(path / "history.csv"))
    try:
        values = json.loads(metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{metrics} is damaged ({error}); remove it, and resume the run to make it again") from None
    check(isinstance(values, dict), f"{metrics} is damaged; remove it, and resume the run to make it again")
    return RunSummary(path, record, values)


def find_runs(folder: str | Path) -> tuple[list[RunSummary], list[str]]:
    """The runs in a folder, or in those inside it, by name; and a line on each that cannot be read.

    Raises:
        InputError: there is none.
    """
    folder = Path(folder)
    found, refused = [], []
    for place, inside, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        inside[:] = sorted(n for n in inside if not n.startswith(".")) if depth < DEPTH and "run.yaml" not in files else []
        if "run.yaml" not in files:
            continue
        try:
            found.append(read_summary(place))
        except InputError as error:
            refused.append(str(error))
    check(
        bool(found),
        refused[0] if refused else f"{folder} holds no runs; choose a run folder, or the folder that several are in",
    )
    return found, refused


def comparable(runs: Sequence[RunSummary]) -> bool:
    """Whether held-out patterns can decide between these: one scan, the same patterns never fitted by any."""
    return len({run.question for run in runs}) == 1


def scan_of(run: RunSummary, candidates: Sequence[Path] = ()) -> Scan | None:
    """The scan that a run was made from, calibrated as the run was; None where its file is not found.

    Args:
        candidates: files it may be, tried after the place on record.

    Raises:
        InputError: the run's probe is gone, or a calibration that does not fit.
    """
    from mepdiff_core.calibration import calibrate

    recorded = run.record.get("input_path")
    for path in [*([Path(recorded)] if recorded else []), *candidates]:
        if not path.is_file():
            continue
        changed_at = path.stat().st_mtime_ns
        if _digest(path, changed_at) == run.record["input_sha256"]:
            scan = calibrate(_scan(path, changed_at), run.record.get("calibration") or {})
            if run.record.get("probe") is None:
                return scan
            from mepdiff_core.probe import with_probe

            return with_probe(scan, run.record["probe"]["path"])
    return None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, changed_at: int) -> str:
    """sha256 of a file as it was when it last changed."""
    from mepdiff_core.runs import sha256

    return sha256(path)


@functools.lru_cache(maxsize=1)
def _scan(path: Path, changed_at: int) -> Scan:
    """The scan that was read last is kept: people look at several runs on one."""
    from mepdiff_core.scan import load_scan

    return load_scan(path)


def _progress(history: Path) -> dict[str, Any]:
    """How far a run without metrics has come."""
    if not history.exists():
        return {}
    with history.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    try:
        return {"steps": int(rows[-1]["step"]), "seconds": float(rows[-1]["seconds"])}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{history} is damaged ({error}); resume the run to make it again") from None
