"""The run folder: what was asked, how it went, what came out; it can be interrupted at any moment and resumed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core import __version__
from mepdiff_core.config import check, dump_yaml, read_yaml
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.files import atomic_path, make_folder, write_text
from mepdiff_core.states import State

HISTORY = ("step", "loss", "heldout", "sigma", "seconds", "volume_step", "note")
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
        self._undo: list[Path] = []
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
        folder._undo = [path / "run.yaml"] if existed else [path / "run.yaml", path]
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
            with history.open(newline="", encoding="utf-8") as file:
                folder.history = list(csv.DictReader(file))
            if checkpoint is not None and not finished:
                folder.history = [row for row in folder.history if int(row["step"]) <= int(checkpoint["step"])]
        check(not finished or len(folder.history) > 0, f"{history} is missing or empty; remove {path} and start again")
        return folder

    def load_checkpoint(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """The arrays to go on from, None where the run had not come so far.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "checkpoint.safetensors"
        return load_arrays(path) if path.exists() else None

    def follow(self, states: Iterator[State]) -> Iterator[State]:
        """Pass the states on, keeping history, volume and checkpoint on disk; whatever happens, the last state is saved.

        A new run whose input is refused before its first state leaves nothing behind.
        """
        last: State | None = None
        status = "stopped"
        try:
            for state in states:
                last = state
                self.history.append({name: _plain(getattr(state, name)) for name in HISTORY})
                if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._save(state)
                yield state
            status = "finished"
        except Diverged as error:
            status = f"diverged: {error}"
            raise
        except InputError as error:
            status = f"failed: {error}"
            raise
        finally:
            self.record["status"] = status
            if last is not None:
                self._save(last, checkpoint=status != "finished")
            if self._undo and last is None and status.startswith("failed"):
                for path in self._undo:
                    path.rmdir() if path.is_dir() else path.unlink()
            else:
                self._write_record()
            if status == "finished":
                (self.path / "checkpoint.safetensors").unlink(missing_ok=True)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """``metrics.json``."""
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def _save(self, state: State, checkpoint: bool = True) -> None:
        write_volume(self.path / "volume.ome.tif", state.volume, self._voxel, self._origin)
        table = io.StringIO()
        writer = csv.DictWriter(table, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.path / "history.csv", table.getvalue())
        if checkpoint and state.checkpoint:
            save_arrays(state.checkpoint, self.path / "checkpoint.safetensors")
        self._saved_at = time.monotonic()

    def _write_record(self) -> None:
        write_text(self.path / "run.yaml", dump_yaml(self.record))


def save_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], path: str | Path) -> None:
    """Arrays by name into one safetensors file, atomically."""
    from safetensors.numpy import save

    # a 0-dimensional array must not become one of shape (1,), as ascontiguousarray makes it
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(contiguous))


def load_arrays(path: str | Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a safetensors file.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it to start again") from None


def write_volume(
    path: str | Path,
    volume: npt.NDArray[np.floating],
    voxel_size_A: tuple[float, float, float],
    origin_A: tuple[float, float, float],
) -> None:
    """Write a phase volume as OME-TIFF: float32 rad, axes ZYX, voxel size and position of each plane in Å."""
    import tifffile

    (dz, dy, dx), (z, y, x) = voxel_size_A, origin_A
    planes = len(volume)
    units = {f"{name}Unit": "Å" for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")}
    plane_units = {f"{name}Unit": ["Å"] * planes for name in ("PositionX", "PositionY", "PositionZ")}
    meta = {
        "axes": "ZYX",
        "Name": "phase (rad)",
        "PhysicalSizeX": dx,
        "PhysicalSizeY": dy,
        "PhysicalSizeZ": dz,
        **units,
        "Plane": {
            "PositionX": [x] * planes,
            "PositionY": [y] * planes,
            "PositionZ": [z + i * dz for i in range(planes)],
            **plane_units,
        },
    }
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(volume, np.float32), ome=True, metadata=meta, photometric="minisblack")
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_volume(path: str | Path) -> npt.NDArray[np.float32]:
    """Read a (z, y, x) volume from a TIFF file.

    Raises:
        InputError: missing, unreadable, or not three-dimensional.
    """
    import tifffile

    check(Path(path).exists(), f"{path}: no such file")
    try:
        volume = tifffile.imread(path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as a TIFF volume ({' '.join(str(error).split())})") from None
    check(volume.ndim == 3, f"{path} has shape {volume.shape}; expected (z, y, x)")
    return np.asarray(volume, np.float32)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """What computed this: our version and those of the libraries the result depends on."""
    libraries = ("abtem", "ase", "gemmi", "h5py", "numpy", "ptyrad", "scikit-image", "scipy", "tifffile", "torch")
    return {
        "mepdiff": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }


def _plain(value: Any) -> Any:
    return "" if value is None else value
