"""A file of any format to a scan, whose counts are in memory or stay in that file, or block by block to our scan file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
import weakref
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.calibration import Calibration
from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.file_calibration import FileCalibration, Settled
from mepdiff_core.files import atomic_path, check_writable
from mepdiff_core.hdf5_scans import OWN
from mepdiff_core.lazy_counts import LAZY_FROM_BYTES, RowCounts
from mepdiff_core.raw_scan import Array, RawScan, ScanOptions
from mepdiff_core.readers import open_raw
from mepdiff_core.scan import Scan, make_counts, raster_positions, write_about

SPARE_BYTES = 16 << 20
"""Left free on the disk: where it is full, HDF5 brings the whole process down."""


@dataclass(frozen=True)
class Converted:
    """How far a conversion is.

    Attributes:
        done, total: patterns.
        seconds: since it began.
        scan: the scan without its counts (all of them 1), after the last pattern.
        settled: its calibration with the sources.
        zeroed: pixels that were negative or not a number and are 0 now.
    """

    done: int
    total: int
    seconds: float
    scan: Scan | None
    settled: Settled
    zeroed: int


def convert(
    path: str | Path,
    out: str | Path,
    calibration: Mapping[str, Any] | Calibration | FileCalibration | None = None,
    options: ScanOptions | None = None,
) -> Generator[Converted, None, None]:
    """Write a file's patterns as a scan file; the file appears when the last pattern is written.

    Args:
        path: a file of a format of docs/formats.md.
        out: the scan file.
        calibration: what the file does not say, or says wrongly.
        options: how to read it.

    Raises:
        InputError: it cannot be read, a calibration is missing (all are named), or the counts are none.
    """
    import h5py

    out, options = Path(out), options or ScanOptions()
    with open_raw(path, options) as raw:
        check(raw.format != OWN, f"{path} is a scan file already")
        raw.check_scan_shape()
        side = pattern_side(raw, options)
        settled = raw.settled(calibration)
        settled.check_complete(raw.path)
        check(not out.exists(), f"{out} exists already; give another name")
        check_writable(out)
        per_count = settled.values["electrons_per_count"].value
        dtype = electrons(np.zeros(1, raw.patterns.dtype), per_count).dtype.newbyteorder("=")
        shape = (*raw.patterns.shape[:2], side, side)
        ones: Array = np.broadcast_to(np.uint8(1), (*shape[:2], side, side))
        make_scan(raw, ones, settled, 1.0, {})  # what cannot become a scan is refused before the long work
        began, total, zeroed, n = time.monotonic(), 0.0, 0, raw.patterns.n_patterns
        with atomic_path(out) as temporary, h5py.File(temporary, "w") as file:
            counts = make_counts(file, shape, np.dtype(np.uint8) if dtype.kind == "b" else dtype)
            for first, block, mended in raw.blocks(options):
                _check_block(raw, block)
                _check_space(out, block)
                _write(counts, first, electrons(block, per_count))
                total += float(block.sum(dtype=np.float64)) * per_count
                zeroed += mended
                done = first + len(block)
                if done < n:
                    yield Converted(done, n, time.monotonic() - began, None, settled, zeroed)
            check_counts(raw, total)
            scan = make_scan(raw, ones, settled, total / n, record(raw, settled, options, zeroed))
            write_about(file, scan)
        yield Converted(n, n, time.monotonic() - began, scan, settled, zeroed)


def _check_block(raw: RawScan, block: Array) -> None:
    if block.dtype.kind in "if":
        bad = int(np.count_nonzero(~(block >= 0) | ~np.isfinite(block)))
        check(
            bad == 0,
            f"{raw.path}: some pixels are negative or not a number ({bad} among {len(block)} patterns); give --clip to make"
            " them 0",
        )


def _check_space(out: Path, block: Array) -> None:
    if shutil.disk_usage(out.absolute().parent).free < 2 * block.nbytes + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(counts: Any, first: int, block: Array) -> None:
    """Put patterns where they belong, by their number along the rows."""
    columns, done = counts.shape[1], 0
    while done < len(block):
        row, column = divmod(first + done, columns)
        whole = (len(block) - done) // columns
        if column == 0 and whole:
            counts[row : row + whole] = block[done : done + whole * columns].reshape(whole, columns, *block.shape[1:])
            done += whole * columns
        else:
            part = min(columns - column, len(block) - done)
            counts[row, column : column + part] = block[done : done + part]
            done += part


def load_foreign(
    path: str | Path,
    calibration: Mapping[str, Any] | Calibration | FileCalibration | None = None,
    options: ScanOptions | None = None,
) -> Scan:
    """A scan from a file of any format; large counts stay in the file (``read_scan``).

    Raises:
        InputError: it cannot be read, or its calibration is incomplete: the message names all that is missing.
    """
    options = options or ScanOptions()
    with open_raw(path, options) as raw:
        return read_scan(raw, calibration, options)


def read_scan(raw: RawScan, given: Mapping[str, Any] | Calibration | FileCalibration | None, options: ScanOptions) -> Scan:
    """The whole scan; counts of a GiB and more stay in a file that can be read in parts, all others are in memory.

    Raises:
        InputError: a calibration, a scan shape or a pattern size is missing, or the counts are none.
    """
    settled = raw.settled(given)
    raw.check_scan_shape()
    side = pattern_side(raw, options)
    settled.check_complete(raw.path)
    per_count = settled.values["electrons_per_count"].value
    total, mended = 0.0, 0
    dtype = electrons(np.zeros(1, raw.patterns.dtype), per_count).dtype
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    lazily = ForeignCounts(raw, options, per_count, (*raw.patterns.shape[:2], side, side), dtype)
    stays = raw.lazy and lazily.nbytes >= LAZY_FROM_BYTES
    counts = np.empty(0 if stays else (raw.patterns.n_patterns, side, side), dtype)
    for first, block, zeroed in raw.blocks(options):
        if stays:
            _check_block(raw, block)
        else:
            counts[first : first + len(block)] = electrons(block, per_count)
        total += float(block.sum(dtype=np.float64)) * per_count
        mended += zeroed
    n, scan = raw.patterns.n_patterns, lazily if stays else counts.reshape(lazily.shape)
    check_counts(raw, total)
    return make_scan(raw, scan, settled, total / n, record(raw, settled, options, mended))


class ForeignCounts(RowCounts):
    """Electrons in a file of another format, which is opened with the first part and stays open.

    Args:
        raw: the file, open for now. options: how it is read.
        per_count: electrons in a count.
        shape, dtype: (scan_y, scan_x, ky, kx) electrons.
    """

    def __init__(
        self, raw: RawScan, options: ScanOptions, per_count: float, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._stored = raw.path.absolute(), (raw.patterns.shape, raw.patterns.dtype)
        self._options, self._per_count = options, per_count
        self._lock = threading.Lock()
        self._raw: RawScan | None = None

    def _read(self, index: Any) -> Array:
        if isinstance(index, tuple) and len(index) > 1 and all(isinstance(i, (int, np.integer)) for i in index[:2]):
            row, column = (range(n)[int(i)] for n, i in zip(self.shape, index[:2], strict=False))
            first = row * self.shape[1] + column
            return np.asarray(self._electrons(first, first + 1)[0][index[2:]])
        return super()._read(index)

    def _make_row(self, row: int) -> Array:
        return self._electrons(row * self.shape[1], (row + 1) * self.shape[1])

    def _electrons(self, first: int, last: int) -> Array:
        with self._lock:
            raw = self._raw or self._open()
            block, _ = raw.block(first, last, self._options)
        return electrons(block, self._per_count)

    def _open(self) -> RawScan:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open_raw(self._path, self._options))
            found = (raw.patterns.shape, raw.patterns.dtype)
            check(found == self._stored, f"{self._path} has changed since it was opened; load it again")
            weakref.finalize(self, stack.pop_all().close)
        self._raw = raw
        return raw

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_raw": None, "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def pattern_side(raw: RawScan, options: ScanOptions) -> int:
    """Pixels along one side of a pattern of the scan.

    Raises:
        InputError: patterns that are not square or of an odd size, and no size to bring them to.
    """
    height, width = raw.patterns.shape[2:]
    if options.size is not None:
        return options.size
    even = [s + s % 2 for s in (min(height, width) - min(height, width) % 2, max(height, width))]
    check(
        height == width and height % 2 == 0,
        f"{raw.path}: patterns are {height} x {width} px, a scan needs a square of an even size; give --size {even[0]} to"
        f" cut them about their middle, or --size {even[1]} to pad them with zeros",
    )
    return height


def electrons(block: Array, per_count: float) -> Array:
    """Counts of the file as electrons; whole counts of one electron each stay whole."""
    return block if per_count == 1 else (block * np.float32(per_count)).astype(np.float32)


def make_scan(raw: RawScan, counts: Any, settled: Settled, beam: float, info: Mapping[str, Any]) -> Scan:
    """A scan of these counts.

    Args:
        counts: (scan_y, scan_x, ky, kx) electrons.
        beam: electrons of the beam in one pattern where nobody gave another number.
        info: what else goes on record.
    """
    calibration = settled.calibration(beam)
    assert calibration.scan_step_A is not None
    assert calibration.scan_rotation_deg is not None
    positions = raster_positions(raw.patterns.shape[:2], calibration.scan_step_A, calibration.scan_rotation_deg)
    try:
        return Scan(
            counts,
            positions,
            calibration.optics,
            calibration.k_step_invA,
            calibration.electrons_per_pattern,
            calibration.thickness_A,
            info=info,
        )
    except InputError as error:
        raise InputError(f"{raw.path}: {error}") from None


def record(raw: RawScan, settled: Settled, options: ScanOptions, mended: int) -> dict[str, Any]:
    """What a scan remembers of the file it was made from."""
    sources = {name: f"{found.value:.9g}: {found.source}" for name, found in settled.values.items()}
    result: dict[str, Any] = {"file": raw.path.name, "format": raw.format, "calibration_sources": sources}
    result["scan_shape_source"] = raw.scan_shape_source
    if raw.key:
        result["key"] = raw.key
    if options.size is not None:
        result["patterns_brought_from_px"] = list(raw.patterns.shape[2:])
    if mended:
        result["pixels_set_to_zero"] = mended
    if raw.notes:
        result["notes"] = list(raw.notes)
    return {"converted": result}


def check_counts(raw: RawScan, total: float) -> None:
    """Something was measured.

    Raises:
        InputError: nothing, or pixels that are no counts.
    """
    check(total != 0, f"{raw.path}: counts are all zero; nothing was measured")
