"""Many crystals as a few arrays: one safetensors file that training reads where no crystal library is installed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from mepdiff_core.arrays import load_arrays, save_arrays
from mepdiff_core.config import check
from mepdiff_core.crystals import Crystal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PARTS = (0.9, 0.05, 0.05)
"""Of the crystals, for training, validation and test."""
_ARRAYS = ("cells_A", "atoms", "numbers", "fractional", "name_ends", "names", "type_ends", "types")


@dataclass(frozen=True)
class CrystalSet(Sequence[Crystal]):
    """A sequence of crystals, packed.

    Attributes:
        cells_A: (n, 3, 3) float64, rows are lattice vectors.
        atoms: (n + 1,) int64: crystal i has the atoms from atoms[i] to atoms[i + 1].
        numbers: (all atoms,) uint8 atomic numbers.
        fractional: (all atoms, 3) float64.
        names, types: uint8, the UTF-8 texts of all names and structure types, one after the other.
        name_ends, type_ends: (n + 1,) int64, as ``atoms`` for those.
    """

    cells_A: npt.NDArray[np.float64]
    atoms: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.uint8]
    fractional: npt.NDArray[np.float64]
    name_ends: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]
    type_ends: npt.NDArray[np.int64]
    types: npt.NDArray[np.uint8]

    @classmethod
    def pack(cls, crystals: Iterable[Crystal]) -> CrystalSet:
        """Pack crystals, in their order."""
        cells, numbers, fractional, names, types = [], [], [], [], []
        for crystal in crystals:
            cells.append(crystal.cell_A)
            numbers.append(np.asarray(crystal.numbers, np.uint8))
            fractional.append(crystal.fractional)
            names.append(crystal.name.encode())
            types.append(crystal.structure_type.encode())

        def ends(items: Sequence[Any]) -> npt.NDArray[np.int64]:
            return np.cumsum([0, *map(len, items)], dtype=np.int64)

        return cls(
            np.array(cells, np.float64).reshape(-1, 3, 3),
            ends(numbers),
            np.concatenate([np.zeros(0, np.uint8), *numbers]),
            np.concatenate([np.zeros((0, 3)), *fractional]),
            ends(names),
            np.frombuffer(b"".join(names), np.uint8),
            ends(types),
            np.frombuffer(b"".join(types), np.uint8),
        )

    @classmethod
    def load(cls, path: str | Path) -> CrystalSet:
        """Read what ``save`` wrote.

        Raises:
            InputError: missing, damaged, or another kind of file.
        """
        check(Path(path).exists(), f"{path}: no such file")
        arrays: dict[str, Any] = load_arrays(path)
        check(set(arrays) == set(_ARRAYS), f"{path} is no set of crystals; make one with mepdiff dataset build")
        return cls(**arrays)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        save_arrays({name: getattr(self, name) for name in _ARRAYS}, path)

    def __len__(self) -> int:
        return len(self.cells_A)

    @overload
    def __getitem__(self, index: int) -> Crystal: ...

    @overload
    def __getitem__(self, index: slice) -> list[Crystal]: ...

    def __getitem__(self, index: int | slice) -> Crystal | list[Crystal]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"crystal {index} of {len(self)}")
        index %= len(self)
        first, last = self.atoms[index : index + 2]
        return Crystal(
            self._text(self.names, self.name_ends, index),
            self.cells_A[index],
            self.numbers[first:last].astype(np.int64),
            self.fractional[first:last],
            self._text(self.types, self.type_ends, index),
        )

    def _text(self, texts: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], index: int) -> str:
        return bytes(texts[ends[index] : ends[index + 1]]).decode()

    def split_of(self, index: int) -> Split:
        """Train, validation or test; the same for all crystals of one composition and structure type.

        It depends on these alone, so that no later crystal moves an earlier one to another part.
        """
        crystal = self[index]
        digest = hashlib.sha256(f"{reduced_formula(crystal.numbers)}|{crystal.structure_type}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        return SPLITS[int(np.searchsorted(np.cumsum(PARTS)[:-1], place, side="right"))]

    def indices(self, split: Split) -> npt.NDArray[np.int64]:
        """The crystals of a part."""
        return np.array([i for i in range(len(self)) if self.split_of(i) == split], np.int64)


def reduced_formula(numbers: npt.NDArray[np.integer]) -> str:
    """A composition by atomic numbers, the smallest whole amounts: "8:3 22:1 38:1"."""
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = reduce(math.gcd, counts.tolist())
    return " ".join(f"{element}:{count // divisor}" for element, count in zip(elements, counts, strict=True))
