"""Cuts through volumes that lie somewhere in a scan's frame: along depth at a place, along a line, one less the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlacedVolume:
    """A phase volume and where it lies.

    Attributes:
        phase: (z, y, x), rad.
        voxel_size_A: (z, y, x), Å.
        origin_A: (z, y, x) of the centre of voxel [0, 0, 0], in the frame of the scan's positions.
    """

    phase: npt.NDArray[np.floating]
    voxel_size_A: tuple[float, float, float]
    origin_A: tuple[float, float, float]

    @property
    def depths_A(self) -> Floats:
        """(z,) of the slices' middles."""
        return np.asarray(self.origin_A[0] + self.voxel_size_A[0] * np.arange(len(self.phase)), np.float64)

    def holds(self, y_A: float, x_A: float) -> bool:
        """Whether a place lies over the volume."""
        y, x = self._pixels(np.array([y_A]), np.array([x_A]))
        rows, columns = self.phase.shape[1:]
        return bool(-0.5 <= y[0] <= rows - 0.5 and -0.5 <= x[0] <= columns - 0.5)

    def profiles(self, y_A: Floats, x_A: Floats) -> Floats:
        """(z, places) phase along depth at places (y, x), between pixels by their distance; nan beyond the volume."""
        from scipy.ndimage import map_coordinates

        y, x = self._pixels(y_A, x_A)
        rows, columns = self.phase.shape[1:]
        inside = (y >= -0.5) & (y <= rows - 0.5) & (x >= -0.5) & (x <= columns - 0.5)
        cuts = [map_coordinates(slice_.astype(np.float64), [y, x], order=1, mode="nearest") for slice_ in self.phase]
        return np.where(inside, np.stack(cuts), np.nan)

    def profile(self, y_A: float, x_A: float) -> Floats:
        """(z,) phase along depth at one place."""
        return self.profiles(np.array([y_A]), np.array([x_A]))[:, 0]

    def section(self, start_A: tuple[float, float], end_A: tuple[float, float]) -> tuple[Floats, Floats]:
        """Distances (n,) along a line between two places (y, x), a voxel apart, and the phase (z, n) under it.

        Raises:
            InputError: a line shorter than a voxel.
        """
        length = float(np.hypot(end_A[0] - start_A[0], end_A[1] - start_A[1]))
        step = min(self.voxel_size_A[1:])
        check(length >= step, f"the line is {length:.2g} Å long, shorter than a voxel of {step:.2g} Å; draw a longer one")
        along = np.linspace(0, 1, round(length / step) + 1)
        y, x = (start_A[i] + along * (end_A[i] - start_A[i]) for i in (0, 1))
        return along * length, self.profiles(y, x)

    def less(self, other: PlacedVolume) -> PlacedVolume:
        """This one less another on the same grid, without the constant phase that no pattern can see.

        Raises:
            InputError: another grid.
        """
        from mepdiff_core.metrics import align_offset

        same = self.phase.shape == other.phase.shape and np.allclose(
            (*self.voxel_size_A, *self.origin_A), (*other.voxel_size_A, *other.origin_A), atol=1e-3
        )
        check(
            same,
            f"one volume has {_words(self)}, the other {_words(other)}; only volumes on one grid can be subtracted: "
            "reconstruct both with the same slices",
        )
        difference = align_offset(self.phase, other.phase) - other.phase
        return PlacedVolume(difference.astype(np.float32), self.voxel_size_A, self.origin_A)

    def _pixels(self, y_A: Floats, x_A: Floats) -> tuple[Floats, Floats]:
        (_, dy, dx), (_, y, x) = self.voxel_size_A, self.origin_A
        return (np.asarray(y_A, float) - y) / dy, (np.asarray(x_A, float) - x) / dx


def _words(placed: PlacedVolume) -> str:
    voxels, sizes = " x ".join(map(str, placed.phase.shape)), " x ".join(f"{v:.3g}" for v in placed.voxel_size_A)
    return f"{voxels} voxels of {sizes} Å"
