"""Counts of a scan that stay where they are, in a file or uncomputed, until a part of them is asked for.

They are indexed as an array of (scan_y, scan_x, ky, kx) is, and give arrays; loops over rows never hold more than a row.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError

LAZY_FROM_BYTES = 1 << 30
"""Counts of at least this size are read when they are needed."""


class LazyCounts(ABC):
    """Counts of so many rows, columns and pixels, read in parts; each part is checked to be counts.

    Attributes:
        shape: (scan_y, scan_x, ky, kx); dtype: of the numbers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        self.ndim = len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        part = np.asarray(self._read(index))
        if self.dtype.kind in "if":
            bad = int(np.count_nonzero(~(part >= 0) | ~np.isfinite(part)))
            check(not bad, f"counts has {bad} pixels that are negative or not a number; mask or clip them first")
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("lazy counts have no array to share")
        return np.asarray(self[:], dtype)

    def max(self) -> Any:
        """The largest count."""
        return max(row.max() for row in self)

    @abstractmethod
    def _read(self, index: Any) -> npt.NDArray[Any]: ...


def is_lazy(counts: Any) -> bool:
    """Whether counts are read or made in parts."""
    return isinstance(counts, LazyCounts)


class FileCounts(LazyCounts):
    """Counts in an HDF5 file that is opened with the first part and stays open.

    Args:
        path: the file; name: of its data set.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self._path, self._name = path, name
        self._lock = threading.Lock()
        self._data: Any = None

    def _read(self, index: Any) -> npt.NDArray[Any]:
        import h5py

        try:
            with self._lock:
                if self._data is None:
                    self._data = h5py.File(self._path, "r")[self._name]
                    found = (tuple(self._data.shape), self._data.dtype)
                    check(found == (self.shape, self.dtype), f"{self._path} has changed since it was opened; load it again")
                part: npt.NDArray[Any] = self._data[index]
                return part
        except (OSError, KeyError, RuntimeError) as error:
            raise InputError(f"{self._path} cannot be read any more ({' '.join(str(error).split())})") from None

    def __reduce__(self) -> Any:
        return FileCounts, (self._path, self._name, self.shape, self.dtype)


class RowCounts(LazyCounts):
    """Counts that come a scan row at a time; the last row is kept, since patterns of a row are often asked for singly."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self._kept: tuple[int, npt.NDArray[Any]] | None = None

    @abstractmethod
    def _make_row(self, row: int) -> npt.NDArray[Any]:
        """(scan_x, ky, kx)."""

    def _read(self, index: Any) -> npt.NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, (int, np.integer)):
            return np.asarray(self._row(range(len(self))[int(first)])[tuple(rest)])
        rows = range(len(self))[first] if isinstance(first, slice) else range(len(self))
        rest = rest if isinstance(first, slice) else [first, *rest]
        if rows and rest and rest[0] is Ellipsis:
            rest = [slice(None)] * (self.ndim - len(rest)) + rest[1:]
        return np.stack([self._row(row)[tuple(rest)] for row in rows])

    def _row(self, row: int) -> npt.NDArray[Any]:
        kept = self._kept
        if kept is None or kept[0] != row:
            self._kept = kept = (row, self._make_row(row).astype(self.dtype, copy=False))
        return kept[1]


class MadeCounts(RowCounts):
    """Counts that are computed whenever they are asked for.

    Args:
        shape, dtype: of all rows together.
        make_row: gives (scan_x, ky, kx) of a row.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], make_row: Callable[[int], npt.NDArray[Any]]) -> None:
        super().__init__(shape, dtype)
        self._make = make_row

    def _make_row(self, row: int) -> npt.NDArray[Any]:
        return self._make(row)
