"""The run folder: what was asked, how it went, what came out; it can be interrupted at any moment and resumed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mepdiff_core import __version__
from mepdiff_core.arrays import load_arrays, save_arrays
from mepdiff_core.cif_cells import read_cell, write_cif
from mepdiff_core.config import check, dump_yaml, merge, read_yaml, to_dict
from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.defects import defect_from
from mepdiff_core.errors import Diverged, InputError, Refused
from mepdiff_core.files import make_folder, write_text
from mepdiff_core.settings import EMBEDDED, CrystalConfig, MepdiffConfig, SamplerConfig
from mepdiff_core.states import CrystalState, Refined, SampleState, State
from mepdiff_core.steering import Steering, steerable
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.volume_files import read_volume, write_volume

if TYPE_CHECKING:
    from mepdiff_core.cell_report import Answer
    from mepdiff_core.reconstruction import MethodConfig

HISTORY = ("step", "loss", "heldout", "sigma", "seconds", "volume_step", "note")
CRYSTAL_HISTORY = ("stage", "temperature", "accepted")
"""What the history of the crystal solver has besides."""
SAMPLE_HISTORY = ("log_snr", "grad_norm", "network_calls", "network_s", "physics_s")
"""What the history of a posterior sampler has besides."""
CELLS = ("crystal.cif", "crystal-2.cif")
"""The unit cell, and a second one where two are equally likely."""
SAMPLES = ("samples.ome.tif", "mean.ome.tif", "std.ome.tif")
STEPS = "steps.safetensors"
"""What the crystal solver found before the atoms."""
MASK = "illuminated.ome.tif"
"""Where electrons went (1): beyond it, a posterior sampler's volume is the prior's invention."""
REFINED = "refined.h5"
"""Probe and positions that a run has found together with the specimen."""
CHECKPOINT = "checkpoint.safetensors"
FILES = ("run.yaml", "history.csv", "volume.ome.tif", *CELLS, STEPS, *SAMPLES, REFINED, MASK, CHECKPOINT)
"""What a run writes before its metrics and its report."""
SAVE_EVERY_S = 15.0


class RunFolder:
    """A folder that one reconstruction fills.

    Attributes:
        path: where it is.
        record: what ``run.yaml`` says: method, config, input and its sha256, versions, status.
        history: a row for each state so far, as in ``history.csv``.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.history: list[dict[str, Any]] = []
        self._saved_at = -SAVE_EVERY_S
        self._new = self._made = False
        self._voxel: tuple[float, float, float] = tuple(record["voxel_size_A"])
        self._origin: tuple[float, float, float] = tuple(record["origin_A"])

    @classmethod
    def create(cls, path: str | Path, record: Mapping[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            InputError: it exists and is not empty, or cannot be made.
        """
        existed = Path(path).exists()
        path = make_folder(path)
        folder = cls(path, {**record, "versions": versions(), "status": "running"})
        folder._new, folder._made = True, not existed
        folder._write_record()
        return folder

    @classmethod
    def reopen(cls, path: str | Path) -> RunFolder:
        """Open the folder of an interrupted (or finished) run.

        Raises:
            InputError: no run there, or a record that is not complete.
        """
        path = Path(path)
        check((path / "run.yaml").exists(), f"{path} holds no run (no run.yaml); leave out --resume to start one")
        record = read_yaml(path / "run.yaml")
        for name in ("method", "config", "voxel_size_A", "origin_A", "input_sha256", "status"):
            check(name in record, f"{path / 'run.yaml'} lacks '{name}'; this run cannot be resumed")
        folder = cls(path, record)
        finished = record["status"] == "finished"
        checkpoint = folder.load_checkpoint()
        history = path / "history.csv"
        if history.exists() and (finished or checkpoint is not None):
            try:
                with history.open(newline="", encoding="utf-8") as file:
                    folder.history = list(csv.DictReader(file))
                if checkpoint is not None and not finished:
                    folder.history = [row for row in folder.history if int(row["step"]) <= int(checkpoint["step"])]
            except (csv.Error, KeyError, TypeError, ValueError) as error:
                raise InputError(f"{history} is damaged ({error}); remove {path} and start again") from None
        check(not finished or len(folder.history) > 0, f"{history} is missing or empty; remove {path} and start again")
        return folder

    def load_checkpoint(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """The arrays to go on from, None where the run had not come so far.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / CHECKPOINT
        return load_arrays(path) if path.exists() else None

    def follow(self, states: Iterator[State]) -> Generator[State]:
        """Pass the states on, keeping history, volume and checkpoint on disk; whatever happens, the last state is saved.

        A new run whose input is refused leaves nothing behind.
        """
        last: State | None = None
        status, refused = "stopped", False
        try:
            for state in states:
                last = state
                self.history.append({name: _plain(getattr(state, name)) for name in (*HISTORY, *_more(state))})
                if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._save(state)
                yield state
            status = "finished"
        except Diverged as error:
            status = f"diverged: {error}"
            raise
        except Exception as error:
            refused = isinstance(error, Refused)
            status = f"failed: {error}" if isinstance(error, InputError) else f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            self.record["status"] = status
            if last is not None and last.verdict:
                self.record["verdict"] = last.verdict
            if isinstance(last, CrystalState):
                self.record["verdict"] = last.verdict
                self.record["defects"] = [asdict(defect) for defect in last.defects]
            if self._new and (refused or (last is None and status.startswith("failed"))):
                self._remove()
            else:
                if last is not None:
                    self._save(last, checkpoint=status != "finished")
                self._write_record()
            if status == "finished":
                (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _remove(self) -> None:
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def keep_changes(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Put what a person has changed on the way on record, when there is more of it than before."""
        if len(changes) > len(self.record.get("changes") or ()):
            self.record["changes"] = [dict(change) for change in changes]
            self._write_record()

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """``metrics.json``."""
        write_text(self.path / "metrics.json", json.dumps(finite(metrics), indent=2) + "\n")

    def _save(self, state: State, checkpoint: bool = True) -> None:
        from mepdiff_core.probe import save_refined

        write_volume(self.path / "volume.ome.tif", state.volume, self._voxel, self._origin)
        table = io.StringIO()
        names = dict.fromkeys(name for row in self.history for name in row)  # a method may have states of several kinds
        writer = csv.DictWriter(table, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.path / "history.csv", table.getvalue())
        if isinstance(state, CrystalState):
            for name, cell in zip(CELLS, (state.cell, state.alternative), strict=True):
                if cell is None or not len(cell.numbers):
                    (self.path / name).unlink(missing_ok=True)  # what an earlier start may have left
                else:
                    write_cif(self.path / name, cell)
            if state.steps is not None:
                state.steps.save(self.path / STEPS)
        for name, array in zip(SAMPLES, (state.samples, state.mean(), state.spread()), strict=True):
            if array is None or not len(array):
                (self.path / name).unlink(missing_ok=True)
            else:
                write_volume(self.path / name, array, self._voxel, self._origin)
        if state.refined is not None:
            save_refined(state.refined, self.path / REFINED)
        if isinstance(state, SampleState):
            write_volume(self.path / MASK, state.illuminated[None].astype(np.float32), self._voxel, self._origin)
        if checkpoint and state.checkpoint:
            save_arrays(state.checkpoint, self.path / CHECKPOINT)
        self._saved_at = time.monotonic()

    def read_answer(self) -> Answer | None:
        """What a finished run says of the atoms, or of its limits in words; None for methods that say neither.

        Raises:
            InputError: a file that is damaged.
        """
        from mepdiff_core.cell_report import Answer

        if "verdict" not in self.record:
            return None
        cell, alternative = (read_cell(self.path / name) if (self.path / name).exists() else None for name in CELLS)
        defects = tuple(defect_from(entry) for entry in self.record.get("defects") or ())
        steps = CrystalSteps.load(self.path / STEPS) if (self.path / STEPS).exists() else None
        return Answer(cell, alternative, str(self.record["verdict"] or ""), defects, steps)

    def read_refined(self) -> Refined | None:
        """Probe and positions that the run has found; None where it looked for none."""
        from mepdiff_core.probe import load_refined

        return load_refined(self.path / REFINED) if (self.path / REFINED).exists() else None

    def _write_record(self) -> None:
        write_text(self.path / "run.yaml", dump_yaml(self.record))


class Run:
    """A reconstruction of a scan file into a run folder, with metrics and report; iterate over ``states``.

    Args:
        scan_path: our HDF5 scan.
        out: run folder, new, or with ``resume`` that of an interrupted run of the same scan and method.
        method, settings, device: as for ``reconstruct``.
        start: a TIFF volume to start from, or a result of PtyRAD (HDF5).
        probe: a probe file to use instead of the scan's own.
        positions: the refined.h5 of a run whose positions to use instead of the scan's own.
        solved: for the method mepdiff, a crystal that the same solver has found in this scan (``remembered`` arrays).
        calibration: values of the scan's calibration to change, as for ``calibrate``.
        resume: go on where the run stopped, with the settings, start, probe and calibration it has on record. A finished
            run has nothing left to do: only its metrics and report are made again.

    Attributes:
        folder: the run folder.
        scan: the scan, with calibration and probe put in.
        metrics: of the finished run; empty before.
        steering: changes the guidance of a sampler while it runs; what it changed is on record.

    Raises:
        InputError: bad input.
    """

    def __init__(
        self,
        scan_path: str | Path,
        out: str | Path,
        method: str,
        settings: Mapping[str, Any] | MethodConfig | None = None,
        device: str = "auto",
        start: str | Path | None = None,
        probe: str | Path | None = None,
        calibration: Mapping[str, Any] | None = None,
        resume: bool = False,
        positions: str | Path | None = None,
        solved: str | Path | None = None,
    ) -> None:
        from mepdiff_core.calibration import calibrate, calibration_of
        from mepdiff_core.probe import with_positions, with_probe
        from mepdiff_core.ptyrad_import import read_start
        from mepdiff_core.reconstruction import choose_device, method_config, volume_grid
        from mepdiff_core.scan import load_scan

        self.method, self.config = method, method_config(method, settings)
        scan = load_scan(scan_path)
        digest = sha256(scan_path)
        self.device = choose_device(device)
        self.metrics: dict[str, Any] = {}
        self._title = f"{scan.info.get('crystal', Path(scan_path).stem)} by {method}"
        self._checkpoint = None
        changes: Sequence[Mapping[str, Any]] = ()
        if resume:
            self.folder = RunFolder.reopen(out)
            record, self._checkpoint = self.folder.record, self.folder.load_checkpoint()
            check(
                record["input_sha256"] == digest,
                f"{scan_path} is not the scan that the run in {out} was made from (its sha256 differs); give that one",
            )
            check(
                record["method"] == method, f"the run in {out} is of method {record['method']}, not {method}; name that one"
            )
            recorded = method_config(method, record["config"])
            check(
                not settings or self.config == recorded,
                f"the settings given are not those of the run in {out}; leave them out to go on, or start another run",
            )
            self.config = recorded
            start, probe = _recorded_file(record, "start", start), _recorded_file(record, "probe", probe)
            positions = _recorded_file(record, "positions", positions)
            solved = _recorded_file(record, "solved", solved)
            for name, field in _files_of(self.config).items():
                file = _recorded_file(record, name, None)
                if file is not None:  # from whatever folder this is run
                    named_file: Any = str(file)
                    for part in reversed(field.split(".")):
                        named_file = {part: named_file}
                    self.config = method_config(method, merge(to_dict(self.config), named_file))
            kept = record.get("calibration") or {}
            check(
                not calibration or calibration_of(calibrate(scan, calibration)) == calibration_of(calibrate(scan, kept)),
                f"the calibration given is not that of the run in {out}; leave it out to go on, or start another run",
            )
            calibration = kept
            changes = record.get("changes") or ()
        self.steering = Steering(changes)
        scan = calibrate(scan, calibration or {})
        scan = scan if positions is None else with_positions(scan, positions)
        self.scan = scan if probe is None else with_probe(scan, probe)
        thickness = self.config.slice_thickness_A
        self._start = None if start is None or self._checkpoint is not None else read_start(start, self.scan, thickness)
        if solved is not None and self._checkpoint is None:
            self._checkpoint = load_arrays(solved)
        named = {name: attrgetter(field)(self.config) for name, field in _files_of(self.config).items()}
        named = {name: path for name, path in named.items() if path is not None and path != EMBEDDED}
        for path in named.values():
            check(Path(path).is_file(), f"{path}: no such file")
        if "structure" in named:
            read_crystal(named["structure"])
        if not resume:
            voxel, origin = volume_grid(self.scan, self.config.slice_thickness_A)
            self.folder = RunFolder.create(
                out,
                {
                    "method": method,
                    "config": to_dict(self.config),
                    "seed": self.config.seed,
                    "input": Path(scan_path).name,
                    "input_path": str(Path(scan_path).resolve()),
                    "input_sha256": digest,
                    "calibration": dict(calibration or {}),
                    **({"prepared": self.scan.info["prepared"]} if "prepared" in self.scan.info else {}),
                    "start": _file_record(start),
                    **{name: _file_record(path) for name, path in named.items()},
                    "probe": _file_record(probe),
                    **({"positions": _file_record(positions)} if positions is not None else {}),
                    **({"solved": _file_record(solved)} if solved is not None else {}),
                    "device": str(self.device),
                    "voxel_size_A": list(voxel),
                    "origin_A": list(origin),
                },
            )

    def states(self) -> Generator[State]:
        """The states of the loop; after the last one, metrics and report are written.

        Raises:
            Diverged: the last good volume is in the folder then. InputError: a disk that is full.
        """
        from mepdiff_core.reconstruction import METHODS
        from mepdiff_core.report import judge, write_report

        finished = self.folder.record["status"] == "finished"
        options = {"steering": self.steering} if steerable(self.config) else {}
        loop = METHODS[self.method].run(self.scan, self.config, self.device, self._start, self._checkpoint, **options)
        volume: npt.NDArray[np.floating] | None = None
        last: State | None = None
        # closed here and now: what its last save may have to say is not to be lost to the garbage collector
        with contextlib.closing(self.folder.follow(iter(()) if finished else loop)) as states:
            for state in states:
                volume, last = state.volume, state
                self.folder.keep_changes(self.steering.changes)
                yield state
        if volume is None:
            volume = read_volume(self.folder.path / "volume.ome.tif")
        model = getattr(self.config, "model", None)
        refined = self.folder.read_refined()
        row = self.folder.history[-1]
        thickness = self.config.slice_thickness_A
        self.metrics = {
            "method": self.method,
            "steps": int(row["step"]),
            "volume_step": int(row["volume_step"]),
            "seconds": float(row["seconds"]),
            **judge(
                self.scan, volume, thickness, self.config.heldout_fraction, self.config.seed, self.device, model, refined
            ),
        }
        calls = [int(r["network_calls"]) for r in self.folder.history if r.get("network_calls")]
        if calls:
            self.metrics["network_calls"] = max(calls)
        answer = self.folder.read_answer()
        if isinstance(last, CrystalState) and answer is not None:  # files round
            answer = replace(answer, cell=last.cell, alternative=last.alternative, defects=last.defects)
        if answer is not None:
            self.metrics["verdict"] = answer.verdict
        if row.get("stage"):  # the crystal solver's misfit is in nats, by a model of its own
            held = float(row["heldout"]) if row["heldout"] != "" else None
            own = None if held is None else 2 * held / self.scan.pattern_pixels
            self.metrics |= {"loss": float(row["loss"]), "loss_heldout": held, "deviance_own_heldout": own}
        self.folder.write_metrics(self.metrics)
        write_report(
            self.folder.path,
            self.scan,
            volume,
            thickness,
            self.metrics,
            self.folder.history,
            self.folder.record,
            self._title,
            self.device,
            answer,
            model,
            refined,
        )


def _files_of(config: MethodConfig) -> dict[str, str]:
    """Name on record -> setting, of the files that a method's settings name."""
    if isinstance(config, CrystalConfig):
        return {"structure": "start"}
    if isinstance(config, MepdiffConfig):
        return {"prior": "prior", "structure": "crystal.start"}
    return {"prior": "prior"} if isinstance(config, SamplerConfig) else {}


def _file_record(path: str | Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    return {"path": str(Path(path).resolve()), "sha256": sha256(path)}


def _recorded_file(record: Mapping[str, Any], name: str, given: str | Path | None) -> Path | None:
    entry = record.get(name)
    path = None if entry is None else Path(entry["path"])
    check(
        given is None or Path(given).resolve() == path,
        f"the {name} given is not that of the run ({path}); leave it out to go on, or start another run",
    )
    if entry is None or path is None:
        return None
    check(path.exists(), f"{path}, the {name} of this run, is not there any more; put it back to go on")
    check(sha256(path) == entry["sha256"], f"{path}, the {name} of this run, has changed; put the old one back to go on")
    return path


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """What computed this: our version and those of the libraries the result depends on."""
    libraries = ("abtem", "ase", "gemmi", "h5py", "numpy", "ptyrad", "pyfftw", "scikit-image", "scipy", "tifffile", "torch")
    return {
        "mepdiff": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }


def finite(value: Any) -> Any:
    """The same with numbers that JSON has no word for (infinite, not a number) as None."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _more(state: State) -> tuple[str, ...]:
    """What the history of a state's method has besides."""
    if isinstance(state, CrystalState):
        return CRYSTAL_HISTORY
    return SAMPLE_HISTORY if isinstance(state, SampleState) else ()


def _plain(value: Any) -> Any:
    return "" if value is None else value
