"""The states of a run, to look back at: in memory up to a limit, then on disk, and thinned out where that is too much."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.states import FloatArray, SampleState, State


@dataclass(frozen=True)
class Kept:
    """A state that was kept.

    Attributes:
        step: of the run; sigma: of a sampler, else None.
        volume: (z, y, x), rad; noisy: what it was denoised from, None where there is none.
    """

    step: int
    sigma: float | None
    volume: FloatArray
    noisy: FloatArray | None


@dataclass
class _Entry:
    number: int
    step: int
    sigma: float | None
    arrays: list[FloatArray] | None
    bytes: int
    path: Path | None = None


class StateArchive:
    """Keeps states; one thread adds them, another one looks.

    The first and the last state are always there; what is between them is spaced evenly.

    Args:
        memory_bytes: of arrays kept in memory; older ones go to files of a temporary folder, which goes with the archive.
        total_bytes: of all arrays, in memory and on disk.
        most: states at most.
    """

    def __init__(self, memory_bytes: float = 64e6, total_bytes: float = 2e9, most: int = 400) -> None:
        self._memory_bytes, self._total_bytes, self._most = memory_bytes, total_bytes, most
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        self._count = 0
        self._every = 1
        self._folder: Path | None = None

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    @property
    def steps(self) -> list[int]:
        """Of the states kept, in their order."""
        with self._lock:
            return [entry.step for entry in self._entries]

    @property
    def bytes_in_memory(self) -> int:
        with self._lock:
            return self._in_memory()

    def add(self, state: State) -> None:
        """Keep a state."""
        arrays: list[FloatArray] = [state.volume]
        if isinstance(state, SampleState) and state.noisy.size:
            arrays.append(state.noisy)
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if self._entries and self._entries[-1].number % self._every:
                self._drop(self._entries.pop())  # it was there as the last one
            self._entries.append(_Entry(self._count, state.step, state.sigma, arrays, size))
            self._count += 1
            while len(self._entries) > 2 and (
                len(self._entries) > self._most or sum(entry.bytes for entry in self._entries) > self._total_bytes
            ):
                self._thin()
            too_much = self._in_memory() - self._memory_bytes
            for entry in self._entries[:-1]:
                if too_much <= 0:
                    break
                if entry.arrays is None:
                    continue
                too_much -= entry.bytes
                if not self._to_disk(entry):
                    self._total_bytes = self._memory_bytes  # a disk that is full is no reason to lose the run
                    while len(self._entries) > 2 and sum(e.bytes for e in self._entries) > self._total_bytes:
                        self._thin()
                    break

    def rest(self) -> None:
        """The run is over: all but the last state go to disk."""
        with self._lock:
            for entry in self._entries[:-1]:
                if entry.arrays is not None and not self._to_disk(entry):
                    break

    def nearest(self, step: int) -> Kept:
        """The state of this step or, where that has been thinned out, of the nearest one."""
        with self._lock:
            return self._read(min(self._entries, key=lambda entry: abs(entry.step - step)))

    def get(self, index: int) -> Kept:
        """A state by its place in ``steps``."""
        with self._lock:
            return self._read(self._entries[index])

    def limits(self) -> tuple[float, float]:
        """Contrast for all states, from the last volume: from its lowest, at most 0, to nearly its highest phase, rad."""
        volume: npt.NDArray[np.floating] = self.get(-1).volume
        low, high = min(0.0, float(np.percentile(volume, 0.1))), float(np.percentile(volume, 99.9))
        return low, high if high > low else low + 1e-3

    @staticmethod
    def _read(entry: _Entry) -> Kept:
        arrays = entry.arrays
        if arrays is None:
            assert entry.path is not None
            arrays = list(np.load(entry.path, allow_pickle=False))
        return Kept(entry.step, entry.sigma, arrays[0], arrays[1] if len(arrays) > 1 else None)

    def _in_memory(self) -> int:
        return sum(entry.bytes for entry in self._entries if entry.arrays is not None)

    def _thin(self) -> None:
        self._every *= 2
        kept = [e for e in self._entries[:-1] if e.number % self._every == 0] + self._entries[-1:]
        for entry in self._entries:
            if entry not in kept:
                self._drop(entry)
        self._entries = kept

    def _to_disk(self, entry: _Entry) -> bool:
        assert entry.arrays is not None
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="mepdiff-states-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            entry.path = self._folder / f"{entry.number}.npy"
            np.save(entry.path, np.stack(entry.arrays), allow_pickle=False)
        except OSError:
            self._drop(entry)
            return False
        entry.arrays = None
        return True

    @staticmethod
    def _drop(entry: _Entry) -> None:
        if entry.path is not None:
            with contextlib.suppress(OSError):
                entry.path.unlink(missing_ok=True)
            entry.path = None
