"""A prior trained on crops, over a volume of any size and thickness: overlapping tiles that share one denoised volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mepdiff_core.config import check
from mepdiff_core.diffusion import Denoise

Size = tuple[int, int, int]
OVERLAP = (0.5, 0.25, 0.25)
"""Part of a tile that it shares with the next one, along z, y and x, at least."""


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of a volume lie.

    Attributes:
        shape: (z, y, x) voxels of the volume, at least those of a tile.
        tile: (z, y, x) voxels of a tile.
        corners: (tiles, 3) the first voxel of each.
    """

    shape: Size
    tile: Size
    corners: npt.NDArray[np.int64]

    @classmethod
    def lay(cls, field: Size, tile: Size, wanted: npt.NDArray[np.bool_] | None = None) -> Tiles:
        """Tiles over a field, evenly spaced.

        Args:
            field: (z, y, x) voxels; where it is smaller than a tile, the volume is as large as one, and the field is its
                first voxels.
            tile: (z, y, x) voxels.
            wanted: (y, x) of the field: no tile lies beyond these pixels, or holds none of them.
        """
        shape = (max(field[0], tile[0]), max(field[1], tile[1]), max(field[2], tile[2]))
        wanted = np.ones(field[1:], bool) if wanted is None else wanted
        check(bool(wanted.any()), "no pixel of the field is illuminated; check the positions and the probe")
        spans = [(0, field[0])]
        for axis in (1, 0):
            seen = np.flatnonzero(wanted.any(axis))
            spans.append((int(seen[0]), int(seen[-1]) + 1))
        axes = []
        for (low, high), size, side, overlap in zip(spans, shape, tile, OVERLAP, strict=True):
            first = max(0, min(low, size - side))
            last = max(first, high - side)
            count = 1 + math.ceil((last - first) / (side * (1 - overlap)))
            axes.append(np.round(np.linspace(first, last, count)).astype(np.int64))
        corners = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        held = [bool(wanted[y : y + tile[1], x : x + tile[2]].any()) for _, y, x in corners.tolist()]
        return cls(shape, tile, corners[held])

    def window(self, device: torch.device) -> Tensor:
        """(z, y, x) what each voxel of a tile counts where tiles overlap: falling to its faces, never 0.

        Squared, since a network knows least at the faces of what it sees.
        """
        sides = []
        for side, overlap in zip(self.tile, OVERLAP, strict=True):
            away = torch.minimum(torch.arange(side) + 0.5, side - torch.arange(side) - 0.5)
            sides.append((away / (side * overlap)).clamp(max=1.0) ** 2)
        z, y, x = sides
        return (z[:, None, None] * y[:, None] * x).to(device)


class Tiled:
    """A denoiser of whole volumes from one of tiles; where no tile lies, the answer is 0.

    With gradients wanted, tiles are computed again on the way back, so that memory holds one batch of them.

    Args:
        denoise: of (batch, 1, \\*tile).
        tiles: where they lie.
        batch_size: tiles at once; halved for good where they do not fit into the device's memory.

    Attributes:
        calls: of the network so far, a tile each.

    Raises:
        InputError: a volume of another shape, or a single tile that does not fit into memory.
    """

    def __init__(self, denoise: Denoise, tiles: Tiles, batch_size: int) -> None:
        self.denoise, self.tiles, self.batch_size = denoise, tiles, batch_size
        self.calls = 0

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        tiles = self.tiles
        check(x.shape[2:] == tiles.shape, f"the volume has shape {tuple(x.shape[2:])}; the tiles cover {tiles.shape}")
        while True:
            try:
                return self._whole(x, added)
            except torch.OutOfMemoryError:
                check(
                    self.batch_size > 1,
                    "one tile does not fit into the device's memory; take a smaller prior or --device cpu",
                )
                self.batch_size //= 2

    def _whole(self, x: Tensor, added: Tensor) -> Tensor:
        depth, height, width = self.tiles.tile
        window, size = self.tiles.window(x.device), self.batch_size
        corners = self.tiles.corners.tolist()
        places = [(item, *corner) for item in range(len(x)) for corner in corners]
        total, weight = torch.zeros_like(x), x.new_zeros(self.tiles.shape)
        for z, a, b in corners:
            weight[z : z + depth, a : a + height, b : b + width] += window
        for first in range(0, len(places), size):
            some = places[first : first + size]
            cut = torch.stack([x[i, :, z : z + depth, a : a + height, b : b + width] for i, z, a, b in some])
            noise = added[[i for i, *_ in some]]
            again = torch.is_grad_enabled() and x.requires_grad and len(places) > size
            seen = checkpoint(self.denoise, cut, noise, use_reentrant=False) if again else self.denoise(cut, noise)
            self.calls += len(some)
            for (i, z, a, b), part in zip(some, seen, strict=True):
                total[i, :, z : z + depth, a : a + height, b : b + width] += part * window
        return total / weight.clamp(min=1e-12)
