"""Tiles that share one denoised volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mepdiff_core.errors import InputError
from mepdiff_core.tiling import Tiled, Tiles

SIGMA = torch.ones(1)


def blur(x: Tensor, added: Tensor) -> Tensor:
    """A denoiser that sees one voxel to each side, and nothing beyond a tile."""
    kernel = torch.full((1, 1, 3, 3, 3), 1 / 27, dtype=x.dtype)
    result: Tensor = torch.nn.functional.conv3d(x, kernel, padding=1)
    return result


@pytest.mark.parametrize("shape", [(2, 64, 64), (8, 64, 64), (9, 65, 70), (20, 100, 192), (64, 64, 64)])
def test_every_voxel_is_covered_and_tiles_overlap(shape: tuple[int, int, int]) -> None:
    tiles = Tiles.lay(shape, (8, 64, 64))
    count = np.zeros(tiles.shape, int)
    for z, y, x in tiles.corners:
        count[z : z + 8, y : y + 64, x : x + 64] += 1
    assert count.min() >= 1
    assert tiles.shape == (max(shape[0], 8), shape[1], shape[2])
    for axis, (side, overlap) in enumerate(zip((8, 64, 64), (4, 16, 16), strict=True)):
        steps = np.diff(np.unique(tiles.corners[:, axis]))
        assert (steps <= side - overlap).all()


def test_what_each_tile_leaves_alone_is_left_alone() -> None:
    tiles = Tiles.lay((12, 40, 50), (8, 16, 16))
    x = torch.randn(2, 1, 12, 40, 50, dtype=torch.float64)
    whole = Tiled(lambda x, added: 3 * x, tiles, 5)(x, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(whole, 3 * x, rtol=1e-6, atol=1e-12)


def test_a_repeated_crystal_has_no_seams() -> None:
    """Three tiles wide: what a tile's edge spoils weighs least, the rest is what the whole volume would give."""
    z, y, x = np.mgrid[:16, :48, :48]
    crystal = torch.as_tensor(np.cos(z * np.pi / 4) * np.cos(y * np.pi / 4) * np.cos(x * np.pi / 4))[None, None]
    tiles = Tiles.lay((16, 48, 48), (8, 16, 16))
    seen, whole = Tiled(blur, tiles, 4)(crystal, SIGMA), blur(crystal, SIGMA)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
    error = (seen - whole)[inside].abs()
    assert float(error.max()) < 0.03 * float(whole.abs().max())
    assert float(error.square().mean().sqrt()) < 0.01 * float(whole.abs().max())


def test_the_cost_is_linear_and_memory_bounded() -> None:
    sizes = []

    def watched(x: Tensor, added: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    for width in (64, 160, 256):
        tiles = Tiles.lay((8, 64, width), (8, 64, 64))
        tiled = Tiled(watched, tiles, 3)
        tiled(torch.zeros(2, 1, *tiles.shape), torch.ones(2))
        assert tiled.calls == 2 * len(tiles.corners)
        assert len(tiles.corners) == 1 + np.ceil((width - 64) / 48)
    assert max(sizes) == 3


def test_gradients_through_tiles_in_parts_are_those_of_all_at_once() -> None:
    tiles = Tiles.lay((4, 12, 20), (4, 8, 8))
    x = torch.randn(1, 1, 4, 12, 20, dtype=torch.float64, requires_grad=True)

    def squared(x: Tensor, added: Tensor) -> Tensor:
        return blur(x, added) ** 2

    gradients = [torch.autograd.grad(Tiled(squared, tiles, size)(x, SIGMA).sum(), x)[0] for size in (1, 100)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_where_no_electron_went_there_is_no_tile() -> None:
    lit = np.zeros((100, 100), bool)
    lit[30:60, 40:75] = True
    tiles = Tiles.lay((8, 100, 100), (8, 32, 32), lit)
    seen = Tiled(lambda x, added: x, tiles, 8)(torch.ones(1, 1, 8, 100, 100), SIGMA)[0, 0, 0]
    np.testing.assert_allclose(seen[torch.as_tensor(lit)], 1, rtol=1e-6)
    assert float(seen[:20].abs().max()) == 0
    with pytest.raises(InputError, match="no pixel of the field is illuminated"):
        Tiles.lay((8, 100, 100), (8, 32, 32), np.zeros((100, 100), bool))


def test_short_of_memory_it_takes_fewer_tiles() -> None:
    def hungry(x: Tensor, added: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        return x

    tiles = Tiles.lay((8, 16, 64), (8, 16, 16))
    tiled = Tiled(hungry, tiles, 8)
    x = torch.randn(1, 1, 8, 16, 64)
    torch.testing.assert_close(tiled(x, SIGMA), x, rtol=1e-6, atol=1e-6)
    assert tiled.batch_size == 2
    starved = Tiled(lambda x, added: hungry(x.repeat(3, 1, 1, 1, 1), added), tiles, 8)
    with pytest.raises(InputError, match="one tile does not fit into the device's memory"):
        starved(x, SIGMA)
