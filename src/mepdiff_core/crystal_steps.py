"""What the crystal solver finds before the atoms: projection, lattice, averaged cell with its columns, periods compared."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core import lattice
from mepdiff_core.arrays import Arrays, load_arrays, save_arrays
from mepdiff_core.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CrystalSteps:
    """What is known so far; None for what is not.

    Attributes:
        projection: (y, x) phase of the whole specimen, rad.
        weight: (y, x) from 0 to 1, how far each pixel is to be trusted.
        origin_A: (2,) (y, x) of the first pixel in the frame of the scan's positions; pixel_A: () the pixel.
        lattice_A: (2, 2) rows are lattice vectors (y, x), Å; corner_A: (2,) (y, x) of the cell's corner.
        average: (along t1, along t2) phase of the averaged cell, rad.
        places: (n, 2) fractional, of the columns; weights: (n,) matter of each through the specimen, in oxygen atoms.
        periods_A: (m,) periods along the beam that were compared, nan for none; nats: (m,) misfit of each above the best's.
    """

    projection: npt.NDArray[np.floating]
    weight: npt.NDArray[np.floating]
    origin_A: Array
    pixel_A: Array
    lattice_A: Array | None = None
    corner_A: Array | None = None
    average: Array | None = None
    places: Array | None = None
    weights: Array | None = None
    periods_A: Array | None = None
    nats: Array | None = None

    def with_lattice(self, lattice_A: Array, corner_A: Array) -> CrystalSteps:
        """With a lattice, and the cell that the projection has in it on average."""
        average = lattice.fold(self.projection, self.weight, lattice_A, float(self.pixel_A), corner_A - self.origin_A)
        return replace(self, lattice_A=lattice_A, corner_A=corner_A, average=average)

    def with_columns(self, places: Array, weights: Array) -> CrystalSteps:
        return replace(self, places=places, weights=weights)

    def with_periods(self, periods_A: npt.ArrayLike, energies: npt.ArrayLike) -> CrystalSteps:
        """With periods that were compared, and the least misfit found for each, nats."""
        nats = np.asarray(energies, np.float64)
        return replace(self, periods_A=np.asarray(periods_A, np.float64), nats=nats - nats.min())

    def arrays(self) -> Arrays:
        """What is known, by name."""
        return {f.name: np.asarray(value) for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def save(self, path: str | Path) -> None:
        """A safetensors file, written atomically."""
        save_arrays(self.arrays(), path)

    @classmethod
    def load(cls, path: str | Path) -> CrystalSteps:
        """What ``save`` wrote.

        Raises:
            InputError: damaged, or a file of other arrays.
        """
        remedy = "remove it to go on without"
        arrays = load_arrays(path, remedy)
        try:
            return cls(**arrays)  # type: ignore[arg-type]
        except TypeError:
            held = ", ".join(sorted(arrays))
            raise InputError(f"{path} holds {held}, not the crystal solver's steps; {remedy}") from None
