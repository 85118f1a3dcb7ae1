"""Crops in the order of training: decided by the number of the image alone, so that any step can be made again.

Image i of a training is item ``order[i % n]`` of pass ``i // n``, with an order of its own for each pass. Processes that
share a batch take equal parts of it, in their order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mepdiff_core.config import check
from mepdiff_core.crystal_set import CrystalSet, reduced_formula
from mepdiff_core.settings import parse_composition
from mepdiff_core.store import VolumeStore
from mepdiff_core.training_data import CropConfig, CrystalCrops, Members, StoreCrops

Place = tuple[int, int]
"""Pass and item."""


class Crops(Protocol):
    """What ``CrystalCrops`` and ``StoreCrops`` have in common."""

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int | None = None) -> Any:
        """An item of a pass, in a worker."""
        ...

    def assemble(self, items: Sequence[Any], /) -> Tensor:
        """(items, 1, z, y, x) float32, rad, of what ``draw`` gave."""
        ...


def open_crops(
    data: str | Path, config: CropConfig, device: torch.device, exclude: Sequence[str] = ()
) -> tuple[Crops, Crops | None]:
    """Crops to train on, and crops of other crystals to validate with; None of these where all crystals are alike.

    Args:
        data: STORE.zarr, or a set of crystals as one safetensors file.
        config: of the crops.
        device: where crystals are rendered.
        exclude: formulas to take no crystal of.

    Raises:
        InputError: nothing there, something else, nothing to train on.
    """
    path = Path(data)
    check(path.exists(), f"data: {path}: no such file; give STORE.zarr, crystals.safetensors, or prototypes")
    source = CrystalSet.load(path) if path.is_file() else VolumeStore(path)
    check(len(source) > 0, f"data: {path} is empty; build a larger one with mepdiff dataset build")
    training, validation = hold_out(source, exclude)

    def crops(members: Members) -> Crops:
        if isinstance(source, VolumeStore):
            return StoreCrops(source, members, config)
        return CrystalCrops(source, members, config, device)

    return crops(training), crops(validation) if len(validation) else None


def hold_out(source: CrystalSet | VolumeStore, exclude: Sequence[str] = ()) -> tuple[Members, Members]:
    """Members to train on and to validate with; where no crystal fell to validation, a composition of those to train on.

    Raises:
        InputError: nothing to train on.
    """
    training, validation = source.indices("train"), source.indices("validation")
    if exclude:
        barred = {_of_formula(formula) for formula in exclude}
        training = np.array([i for i in training if _kind(source, int(i))[0] not in barred], np.int64)
    check(len(training) > 0, f"none of the {len(source)} crystals is in the part 'train'; give more crystals")
    if not len(validation):
        kinds = np.array(["|".join(_kind(source, int(i))) for i in training])
        last = kinds == kinds[-1]
        if not last.all():
            training, validation = training[~last], training[last]
    return training, validation


def _of_formula(formula: str) -> str:
    counts = parse_composition(formula)
    return reduced_formula(np.repeat(list(counts), list(counts.values())))


def _kind(source: CrystalSet | VolumeStore, member: int) -> tuple[str, str]:
    """Composition and structure type."""
    crystal = source[member] if isinstance(source, CrystalSet) else source.crystals[source.record(member).crystal]
    return reduced_formula(crystal.numbers), crystal.structure_type


def place_of(image: int, items: int, seed: int) -> Place:
    """Pass and item of image number ``image`` of a training."""
    epoch, number = divmod(image, items)
    return epoch, int(_order(items, seed, epoch)[number])


@lru_cache(maxsize=4)
def _order(items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(items)


class _Draws(Dataset[Any]):
    """What a worker makes of a place."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops

    def __getitem__(self, place: Place) -> Any:
        epoch, index = place
        return self._crops.draw(index, epoch)


def _as_they_are(items: list[Any]) -> list[Any]:
    return items


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def load(crops: Crops, batches: Iterable[Sequence[int]], seed: int, workers: int = 0) -> Generator[Tensor]:
    """Batches of crops, (items, 1, z, y, x) float32, rad; those of CrystalCrops on its device.

    Args:
        crops: to draw from.
        batches: numbers of images.
        seed: of the order.
        workers: processes that draw ahead; rendering is done here, where the device is.
    """
    places = ([place_of(image, len(crops), seed) for image in batch] for batch in batches)
    if workers == 0:
        for batch in places:
            yield crops.assemble([crops.draw(index, epoch) for epoch, index in batch])
        return
    loader = DataLoader(
        _Draws(crops),
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_as_they_are,
        prefetch_factor=4,
        worker_init_fn=_one_thread,
    )
    for items in loader:
        yield crops.assemble(items)
