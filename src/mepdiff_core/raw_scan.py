"""Patterns as a file holds them, read block by block, with what the file says of them and how they become a scan."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.calibration import Calibration
from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.file_calibration import FileCalibration, Found, Settled, given_values, settle
from mepdiff_core.hdf5_damage import stored_chunks

BLOCK_BYTES = 64 << 20
"""Patterns are read so many bytes at a time."""
LARGEST_SIDE, LARGEST_COUNT = 16384, 1 << 28
"""Pixels along a side of a pattern, and patterns: beyond that a file is damaged."""
AXES_4D, AXES_3D = ("scan_y", "scan_x", "ky", "kx"), ("scan", "ky", "kx")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ScanOptions:
    """How to read a file where it leaves that open.

    Attributes:
        key: which of the file's arrays (HDF5, MATLAB, Zarr, a file of several images).
        scan_shape: (scan_y, scan_x), where the file holds one long row of patterns.
        axes: order of the array's axes, of scan_y, scan_x, ky, kx or of scan, ky, kx; null: as the format has it.
        size: cut patterns, or pad them with zeros, to so many pixels about their middle.
        clip: make pixels that are negative or not a number 0.

    Raises:
        InputError: impossible options.
    """

    key: str | None = None
    scan_shape: tuple[int, int] | None = None
    axes: tuple[str, ...] | None = None
    size: int | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        if self.scan_shape is not None:
            check(min(self.scan_shape) > 0, f"scan_shape is {self.scan_shape}; expected two numbers above 0")
        if self.axes is not None:
            expected = AXES_4D if len(self.axes) == 4 else AXES_3D
            check(
                sorted(self.axes) == sorted(expected),
                f"axes are {' '.join(self.axes)}; expected {' '.join(AXES_4D)}, or {' '.join(AXES_3D)}, in any order",
            )
        if self.size is not None:
            check(
                0 < self.size <= LARGEST_SIDE and self.size % 2 == 0, f"size is {self.size}; expected an even number above 0"
            )


class Patterns:
    """The patterns of an array that stays where it is: in a file, mapped or chunked.

    Args:
        source: an array-like of 3 or 4 axes that gives its parts when indexed.
        axes: which of its axes are scan_y, scan_x, ky, kx, or scan, ky, kx.
        scan_shape: of a source of 3 axes.
        dead: (ky, kx) bool, pixels that the detector itself calls dead; they become 0.
    """

    def __init__(
        self,
        source: Any,
        axes: Sequence[int],
        scan_shape: tuple[int, int] | None = None,
        dead: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        shape = tuple(int(source.shape[axis]) for axis in axes)
        self._source, self._axes, self._stack = source, tuple(axes), len(shape) == 3
        self._dead = dead
        scan = (scan_shape or (shape[0], 1)) if self._stack else shape[:2]
        self._columns = shape[1]  # of the source, however the scan is folded
        self.shape: tuple[int, int, int, int] = (*scan, *shape[-2:])  # type: ignore[assignment]
        self.dtype = np.dtype(source.dtype)
        check(min(self.shape) > 0, f"an array of shape {shape} is empty")
        check(
            max(shape[-2:]) <= LARGEST_SIDE and scan[0] * scan[1] <= LARGEST_COUNT,
            f"an array of shape {shape} is no scan; is the file damaged?",
        )
        check(
            self.dtype.kind in "buif",
            f"the array holds {'complex numbers' if self.dtype.kind == 'c' else self.dtype}; expected counts (integers or"
            " real numbers)",
        )

    @property
    def n_patterns(self) -> int:
        return self.shape[0] * self.shape[1]

    def stored_chunks(self) -> tuple[int, int]:
        """Chunks of the array that are in the HDF5 file, and those that there should be."""
        counts = [stored_chunks(part) for part in getattr(self._source, "parts", [self._source])]
        return sum(stored for stored, _ in counts), sum(chunks for _, chunks in counts)

    def folded(self, scan_shape: tuple[int, int]) -> Patterns:
        """The same patterns, as many, as a scan of another shape."""
        other = copy.copy(self)
        other.shape = (*scan_shape, *self.shape[2:])
        return other

    def read(self, first: int, last: int) -> Array:
        """(last - first, ky, kx): patterns by their number along the rows of the scan."""
        if self._stack:
            parts = [self._part((slice(first, last),))]
        else:
            columns = self._columns
            parts, row = [], first // columns
            while row * columns < last:
                begin, end = max(first - row * columns, 0), min(last - row * columns, columns)
                rows = (last // columns - row) if begin == 0 else 0
                if rows > 0:  # whole rows at once
                    parts.append(self._part((slice(row, row + rows), slice(None))))
                    row += rows
                else:
                    parts.append(self._part((slice(row, row + 1), slice(begin, end))))
                    row += 1
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self._dead is not None:
            block = np.where(self._dead, np.zeros((), block.dtype), block)
        return block

    def _part(self, where: tuple[slice, ...]) -> Array:
        index = [slice(None)] * len(self._axes)
        for axis, part in zip(self._axes, where, strict=False):
            index[axis] = part
        array = np.asarray(self._source[tuple(index)])
        array = array.transpose(self._axes).reshape(-1, *self.shape[2:])
        return array.astype(array.dtype.newbyteorder("="), copy=False) if array.dtype.kind != "b" else array.view(np.uint8)


class Mapped:
    """An array mapped from a file, anew for every part that is read: parts read before take no memory.

    Args:
        open_array: maps it.
    """

    def __init__(self, open_array: Callable[[], Array]) -> None:
        self._open = open_array
        array = open_array()
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index: Any) -> Array:
        return np.array(self._open()[index])


@dataclass(frozen=True)
class RawScan:
    """A file of patterns, open for reading.

    Attributes:
        path: the file.
        format: in words.
        patterns: the counts as they stand in the file.
        lazy: whether patterns are read when they are asked for, or the file is in memory.
        found: calibrations by dotted name.
        scan_shape_source: where the scan's shape comes from; None where nobody knows it.
        key: name of the array inside the file, "" where it has but one.
        notes: what else a person should know.
    """

    path: Path
    format: str
    patterns: Patterns
    lazy: bool
    found: Mapping[str, Found] = field(default_factory=dict)
    scan_shape_source: str | None = "the file's array"
    key: str = ""
    notes: tuple[str, ...] = ()

    def settled(self, given: Mapping[str, Any] | Calibration | FileCalibration | None = None) -> Settled:
        """The calibration with what a person gives put over it."""
        return settle(self.found, given_values(given))

    def check_scan_shape(self) -> None:
        """The scan's shape is known.

        Raises:
            InputError: it is not.
        """
        n = self.patterns.n_patterns
        check(
            self.scan_shape_source is not None,
            f"{self.path} holds {n} patterns in one row and does not say how many positions the scan has along y and x;"
            f" give --scan-shape Y X{_square(n)}",
        )

    def blocks(self, options: ScanOptions) -> Iterator[tuple[int, Array, int]]:
        """(number of the first pattern, (n, ky, kx) counts of the file, pixels that were set to 0), block by block."""
        n = self.patterns.n_patterns
        at_once = block_patterns(self.patterns)
        for first in range(0, n, at_once):
            block, mended = self.block(first, min(first + at_once, n), options)
            yield first, block, mended

    def block(self, first: int, last: int, options: ScanOptions) -> tuple[Array, int]:
        """(last - first, ky, kx) counts of the file, clipped and brought to size as asked, and pixels that were set to 0."""
        with reading(self.path, self.format):
            block = self.patterns.read(first, last)
        mended = 0
        if options.clip and block.dtype.kind in "if":
            bad = ~(block >= 0) | ~np.isfinite(block)
            mended = int(np.count_nonzero(bad))
            block = np.where(bad, np.zeros((), block.dtype), block) if mended else block
        return resized(block, options.size), mended


def block_patterns(patterns: Patterns) -> int:
    """How many patterns are read at once: whole rows of the scan where they fit."""
    at_once = max(1, BLOCK_BYTES // (patterns.shape[2] * patterns.shape[3] * patterns.dtype.itemsize))
    columns = patterns.shape[1]
    return int(at_once // columns * columns if at_once >= columns > 1 else at_once)


def resized(block: Array, size: int | None) -> Array:
    """Patterns cut or padded with zeros to a square; the pixel at index n // 2 stays at n // 2."""
    if size is None or block.shape[1:] == (size, size):
        return block
    result = np.zeros((len(block), size, size), block.dtype)
    here, there = [], []
    for n in block.shape[1:]:
        shift = size // 2 - n // 2
        here.append(slice(max(0, shift), min(size, n + shift)))
        there.append(slice(max(0, -shift), min(n, size - shift)))
    result[:, here[0], here[1]] = block[:, there[0], there[1]]
    return result


def with_shape(raw: RawScan, options: ScanOptions) -> RawScan:
    """The scan folded to the shape that a person gives.

    Raises:
        InputError: another number of patterns.
    """
    if options.scan_shape is None:
        return raw
    rows, columns = options.scan_shape
    n = raw.patterns.n_patterns
    check(rows * columns == n, f"{raw.path} holds {n} patterns; --scan-shape {rows} {columns} needs {rows * columns}")
    return replace(raw, patterns=raw.patterns.folded(options.scan_shape), scan_shape_source="given")


def axis_order(ndim: int, options: ScanOptions, reverse: bool = False) -> tuple[int, ...]:
    """Which axes of an array are scan_y, scan_x, ky, kx, or scan, ky, kx; ``reverse`` for one stored in Fortran's order."""
    wanted = AXES_4D if ndim == 4 else AXES_3D
    names = options.axes or wanted
    check(len(names) == ndim, f"--axes names {len(names)} axes; the array has {ndim}")
    order = [names.index(name) for name in wanted]
    return tuple(ndim - 1 - axis if reverse else axis for axis in order)


def choose(path: Path, shapes: Mapping[str, tuple[int, ...]], key: str | None) -> str:
    """Which of a file's arrays holds the patterns.

    Raises:
        InputError: none does, several could, or no array has that key.
    """
    listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in list(shapes.items())[:12])
    if key is not None:
        matches = [name for name in shapes if name.strip("/") == key.strip("/")]
        check(bool(matches), f"{path} has no array of patterns '{key}'; it has {listed or 'none of 3 or 4 axes'}")
        return matches[0]
    check(bool(shapes), f"{path} holds no patterns: no array of 3 or 4 axes")
    four = [name for name, shape in shapes.items() if len(shape) == 4]
    candidates = four or list(shapes)
    check(len(candidates) == 1, f"{path} holds several arrays that could be the scan: {listed}; give one by --key NAME")
    return candidates[0]


def _square(n: int) -> str:
    side = round(n**0.5)
    return f" (a square one would be {side} {side})" if side * side == n else ""


Opener = Callable[[Path, ScanOptions, contextlib.ExitStack], RawScan]
"""A format's reader; what must be closed afterwards goes onto the stack."""
