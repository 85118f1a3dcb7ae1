"""What a network is trained on: random crops of 8 x 64 x 64 voxels, from a store or rendered while training.

Source of sizes and augmentation: MEP-Diffusion, appendix A. Rotating a rendered cube by interpolation, as the paper does,
costs 10 to 16 % of it; rotating the atoms and rendering then is exact, and gives new origins and vacancies each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mepdiff_core.config import check
from mepdiff_core.crystal_set import CrystalSet, Split
from mepdiff_core.crystals import Atoms, Axis, cut_box
from mepdiff_core.renderer import Renderer

if TYPE_CHECKING:
    from mepdiff_core.store import VolumeStore

AXES: tuple[Axis, ...] = ("a", "b", "c")
Members = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CropConfig:
    """What a crop is.

    Attributes:
        slices, slice_thickness_A: depth.
        pixels, pixel_size_A: height and width.
        vacancies: part of the atoms removed at random (rendered crops; a store has its own).
        rotate: turn by a random angle about the beam.
        margin_A: atoms this far beside a crop are rendered with it.
        energy_eV: of the beam.
        seed: of everything random.
    """

    slices: int = 8
    slice_thickness_A: float = 1.6
    pixels: int = 64
    pixel_size_A: float = 0.2
    vacancies: float = 0.01
    rotate: bool = True
    margin_A: float = 4.0
    energy_eV: float = 300e3
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.slices >= 1, f"slices is {self.slices}; expected at least 1")
        check(self.pixels >= 8, f"pixels is {self.pixels}; expected at least 8")
        check(0 <= self.vacancies < 1, f"vacancies is {self.vacancies:g}; expected 0 to 1")
        check(self.margin_A >= 0, f"margin_A is {self.margin_A:g}; expected 0 or more")


class CrystalCrops(Dataset[Tensor]):
    """Crops rendered from crystals: any axis, any origin, atoms turned by any angle, new vacancies each time.

    Item i of pass ``epoch`` is the same in every process: crystal i, everything else drawn from (seed, epoch, i).

    Args:
        crystals: to draw from.
        split: train, validation or test, or the crystals' indices; None takes all.
        config: of the crops.
        device: where ``batch`` renders.
    """

    def __init__(
        self,
        crystals: CrystalSet,
        split: Split | Members | None = "train",
        config: CropConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.crystals, self.config = crystals, config or CropConfig()
        self.members = _members(crystals, split)
        check(len(self.members) > 0, f"none of the {len(crystals)} crystals is in the part '{split}'; give more crystals")
        self.epoch = 0
        self._margin = math.ceil(self.config.margin_A / self.config.pixel_size_A - 1e-9)
        n = self.config.pixels + 2 * self._margin
        c = self.config
        self._renderer = Renderer((n, n), c.pixel_size_A, c.slices, c.slice_thickness_A, c.energy_eV, device)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Tensor:
        """(1, z, y, x) float32, rad."""
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(items, 1, z, y, x) float32 on the device, rad: these items, rendered together."""
        return self.assemble([self.draw(i) for i in indices])

    def assemble(self, boxes: Sequence[Atoms]) -> Tensor:
        """(items, 1, z, y, x) float32 on the device, rad: what ``draw`` gave, rendered together."""
        m = self._margin
        return self._renderer.render(boxes)[:, None, :, m : -m or None, m : -m or None]

    def draw(self, index: int, epoch: int | None = None) -> Atoms:
        """The atoms of an item of a pass (``self.epoch`` by default), with those beside it."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        c = self.config
        rng = np.random.default_rng([c.seed, self.epoch if epoch is None else epoch, index])
        crystal = self.crystals[int(self.members[index])]
        side = (c.pixels + 2 * self._margin) * c.pixel_size_A
        origin = rng.random(3) * np.linalg.norm(crystal.cell_A, axis=1).max()
        angle = float(rng.random() * 360) if c.rotate else 0.0
        size = (c.slices * c.slice_thickness_A, side, side)
        z, y, x = (float(v) for v in origin)
        box = cut_box(crystal, AXES[rng.integers(3)], size, (z, y, x), angle)
        kept = rng.random(len(box.numbers)) >= c.vacancies
        return Atoms(box.positions_A[kept], box.numbers[kept], box.size_A)


class StoreCrops(Dataset[Tensor]):
    """Crops of stored volumes with the paper's augmentation: turned in the plane by interpolation, then cropped at random.

    Args:
        store: of volumes.
        split: train, validation or test, or the volumes' indices; None takes all.
        config: pixels, slices, rotate and seed of it count here; voxels are the store's.
    """

    def __init__(
        self, store: VolumeStore, split: Split | Members | None = "train", config: CropConfig | None = None
    ) -> None:
        self.store, self.config = store, config or CropConfig()
        self.members = _members(store, split)
        check(len(self.members) > 0, f"none of the {len(store)} volumes is in the part '{split}'; build a larger store")
        c = self.config
        check(
            c.slices <= store.config.slices and c.pixels <= store.config.pixels,
            f"crops of {c.slices} x {c.pixels} x {c.pixels} do not fit volumes of {store.config.slices} x "
            f"{store.config.pixels} x {store.config.pixels}",
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Tensor:
        """(1, z, y, x) float32, rad."""
        return self.draw(index)

    def assemble(self, crops: Sequence[Tensor]) -> Tensor:
        """(items, 1, z, y, x) float32, rad: what ``draw`` gave, together."""
        return torch.stack(list(crops))

    def draw(self, index: int, epoch: int | None = None) -> Tensor:
        """(1, z, y, x) float32, rad, of a pass (``self.epoch`` by default)."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        c = self.config
        rng = np.random.default_rng([c.seed, self.epoch if epoch is None else epoch, index])
        volume = self.store.volume(int(self.members[index]))
        first = int(rng.integers(len(volume) - c.slices + 1))
        cut = torch.as_tensor(volume[first : first + c.slices])
        angle = float(rng.random() * 2 * math.pi) if c.rotate else 0.0
        centre = self._centre(rng, angle, volume.shape[1])
        return turned_crop(cut, angle, centre, c.pixels)[None]

    def _centre(self, rng: np.random.Generator, angle: float, size: int) -> npt.NDArray[np.float64]:
        """A centre in pixels from the middle at which the turned crop lies inside the volume, as far as there is room."""
        half = (self.config.pixels - 1) / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
        room = max((size - 1) / 2 - half, 0.0)
        centre = rng.uniform(-room, room, 2)
        # an unturned crop needs no interpolation: whole pixels
        return centre if angle else np.round(centre + (size - self.config.pixels) / 2) - (size - self.config.pixels) / 2


def _members(whole: CrystalSet | VolumeStore, split: Split | Members | None) -> Members:
    if split is None:
        return np.arange(len(whole))
    return whole.indices(split) if isinstance(split, str) else split


def turned_crop(volume: Tensor, angle: float, centre_px: npt.NDArray[np.float64], pixels: int) -> Tensor:
    """(z, pixels, pixels) crop turned by ``angle`` (rad) about its centre, (y, x) pixels from the middle; bicubic."""
    offsets = torch.arange(pixels, dtype=torch.float64) - (pixels - 1) / 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    half = (volume.shape[1] - 1) / 2
    rows, columns = (c * y + s * x + float(centre_px[0])) / half, (-s * y + c * x + float(centre_px[1])) / half
    grid = torch.stack([columns, rows], -1)[None].float()
    turned: Tensor = torch.nn.functional.grid_sample(
        volume[None], grid, mode="bicubic", padding_mode="reflection", align_corners=True
    )
    return turned[0]
