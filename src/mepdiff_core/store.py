"""The store of phase volumes: Zarr 3, sharded, each volume with all that it takes to make it again bit for bit.

A folder: the Zarr group with ``volumes`` (n, z, y, x) int16 (``scale_factor`` of its attributes gives rad), ``crystal``,
``axis`` and ``origin_A``; beside them ``crystals.safetensors`` and ``rejected.csv``. A shard is written whole or not at all.
"""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, from_dict, to_dict
from mepdiff_core.crystal_set import CrystalSet, Split
from mepdiff_core.crystals import Atoms, Axis, cut_box
from mepdiff_core.errors import InputError
from mepdiff_core.files import make_folder, write_error, write_text

FORMAT = "mepdiff-volumes"
FORMAT_VERSION = 1
STEP_RAD = 1e-4
"""What one count of the stored whole numbers means: half of it, 5e-5 rad, is the largest error of storing."""
MARGIN_A = 4.0
"""Atoms this far beside a volume are rendered with it, so that its edges see their neighbours."""
AXES: tuple[Axis, ...] = ("a", "b", "c")
MAX_SHARD = 256

RendererName = Literal["abtem", "torch"]


@dataclass(frozen=True)
class VolumeConfig:
    """How crystals become volumes; the defaults are the paper's (MEP-Diffusion, appendix A).

    Attributes:
        axes: the lattice vectors to look along, a volume each.
        vacancies: part of the atoms that is removed at random.
        slices, slice_thickness_A: depth.
        pixels, pixel_size_A: height and width.
        energy_eV: of the beam: what volts become radians by.
        renderer: abtem, the reference, or torch, ours, equal to 1e-5 rad and faster.
        seed: of origins and vacancies.
    """

    axes: tuple[Axis, ...] = AXES
    vacancies: float = 0.01
    slices: int = 16
    slice_thickness_A: float = 1.6
    pixels: int = 100
    pixel_size_A: float = 0.2
    energy_eV: float = 300e3
    renderer: RendererName = "abtem"
    seed: int = 0

    def __post_init__(self) -> None:
        check(len(self.axes) > 0 and len({*self.axes}) == len(self.axes), f"axes is {list(self.axes)}; expected a, b, c")
        check(0 <= self.vacancies < 1, f"vacancies is {self.vacancies:g}; expected 0 to 1")
        check(self.slices >= 1, f"slices is {self.slices}; expected at least 1")
        check(8 <= self.pixels <= 1000, f"pixels is {self.pixels}; expected 8 to 1000")
        check(self.slice_thickness_A > 0, f"slice_thickness_A is {self.slice_thickness_A:g}; expected more than 0")
        check(0 < self.pixel_size_A <= 1, f"pixel_size_A is {self.pixel_size_A:g}; expected more than 0 and at most 1")
        check(self.seed >= 0, f"seed is {self.seed}; expected 0 or more")

    @property
    def margin(self) -> int:
        """Pixels rendered on each side of a volume and cut off again."""
        return math.ceil(MARGIN_A / self.pixel_size_A - 1e-9)


@dataclass(frozen=True)
class VolumeRecord:
    """All that it takes to make a volume again.

    Attributes:
        crystal: index of its crystal; axis: the lattice vector along the beam.
        origin_A: (z, y, x) of the turned crystal that is the corner of voxel [0, 0, 0]'s slice and its centre in the plane.
        seed: of its vacancies.
    """

    crystal: int
    axis: Axis
    origin_A: tuple[float, float, float]
    seed: tuple[int, int]


class VolumeStore:
    """A store; opening it reads its description alone.

    Args:
        path: the folder.
        write: whether volumes are to be rendered into it.

    Attributes:
        config: how its volumes were made.
        renderer: what rendered them, with its version.
        crystals: the crystals they were made from.

    Raises:
        InputError: no store there, one of another layout, or one without its crystals.
    """

    def __init__(self, path: str | Path, write: bool = False) -> None:
        import zarr

        self.path = Path(path)
        check(self.path.exists(), f"{path}: no such store; make one with mepdiff dataset build")
        check((self.path / "zarr.json").exists(), f"{path} is no store of volumes (no zarr.json in it)")
        try:
            group: Any = zarr.open_group(str(self.path), mode="r+" if write else "r", zarr_format=3)
            attributes = dict(group.attrs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a Zarr 3 store ({' '.join(str(error).split())})") from None
        check(attributes.get("format") == FORMAT, f"{path} is a Zarr store, but not one of mepdiff's volumes")
        version = attributes.get("format_version")
        check(
            version == FORMAT_VERSION,
            f"{path} has layout {version}; this mepdiff reads layout {FORMAT_VERSION}: build the store again",
        )
        self.config = from_dict(VolumeConfig, attributes["config"], str(path))
        self.renderer, self.source = str(attributes["renderer"]), str(attributes["source"])
        try:
            self._volumes: Any = group["volumes"]
            self._crystal: Any = group["crystal"][:]
            self._axis: Any = group["axis"][:]
            self._origin: Any = group["origin_A"]
        except KeyError as error:
            raise InputError(f"{path} is not complete ({error}); build the store again") from None
        self.shard_volumes: int = self._volumes.shards[0]
        self._crystals: CrystalSet | None = None

    def __len__(self) -> int:
        return int(self._volumes.shape[0])

    @property
    def crystals(self) -> CrystalSet:
        if self._crystals is None:
            self._crystals = CrystalSet.load(self.path / "crystals.safetensors")
        return self._crystals

    @property
    def shards(self) -> int:
        return -(-len(self) // self.shard_volumes)

    def missing_shards(self) -> list[int]:
        """The shards that are not there yet."""
        return [i for i in range(self.shards) if not (self.path / "volumes" / "c" / str(i) / "0" / "0" / "0").exists()]

    def volume(self, index: int) -> npt.NDArray[np.float32]:
        """(z, y, x) float32, rad.

        Raises:
            InputError: it was not rendered yet.
        """
        check(0 <= index < len(self), f"volume {index} of {len(self)}; expected 0 to {len(self) - 1}")
        shard = index // self.shard_volumes
        there = (self.path / "volumes" / "c" / str(shard) / "0" / "0" / "0").exists()
        check(there, f"volume {index} of {self.path} was not rendered yet; finish the store with --resume")
        return np.asarray(self._volumes[index], np.float32) * np.float32(STEP_RAD)

    def record(self, index: int) -> VolumeRecord:
        """Where a volume comes from."""
        z, y, x = (float(v) for v in self._origin[index])
        return VolumeRecord(int(self._crystal[index]), AXES[int(self._axis[index])], (z, y, x), (self.config.seed, index))

    def indices(self, split: Split) -> npt.NDArray[np.int64]:
        """The volumes of a part; all volumes of a crystal, and of all like it, are in the same."""
        wanted = np.zeros(len(self.crystals), bool)
        wanted[self.crystals.indices(split)] = True
        return np.flatnonzero(wanted[self._crystal])

    def make_volume(self, index: int) -> npt.NDArray[np.int16]:
        """Volume ``index`` as it is stored, rendered anew: (z, y, x) int16 in steps of 1e-4 rad."""
        volume: npt.NDArray[np.int16] = self._render([index])[0]
        return volume

    def render_shard(self, shard: int) -> int:
        """Render a shard and write it, whole; returns how many volumes it has."""
        first = shard * self.shard_volumes
        last = min(first + self.shard_volumes, len(self))
        try:
            self._volumes[first:last] = self._render(range(first, last))
        except OSError as error:
            raise write_error(self.path / "volumes", error) from None
        return last - first

    def _render(self, indices: Iterable[int]) -> npt.NDArray[np.int16]:
        boxes = [box_of(self.crystals, self.record(i), self.config) for i in indices]
        return quantize(render_boxes(boxes, self.config))


def create_store(
    path: str | Path, crystals: CrystalSet, config: VolumeConfig, source: str, rejected: Iterable[Mapping[str, str]] = ()
) -> VolumeStore:
    """Make a store with everything but the volumes.

    Args:
        crystals: what to render, along every axis of the config.
        source: where the crystals come from, for the record.
        rejected: rows of ``rejected.csv``: file, reason.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written.
    """
    path = Path(path)
    make_folder(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_description(partial, crystals, config, source, rejected)
        path.rmdir()
        partial.rename(path)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return VolumeStore(path)


def _write_description(
    path: Path, crystals: CrystalSet, config: VolumeConfig, source: str, rejected: Iterable[Mapping[str, str]]
) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    count = len(crystals) * len(config.axes)
    crystal = np.repeat(np.arange(len(crystals), dtype=np.int32), len(config.axes))
    axis = np.tile(np.array([AXES.index(a) for a in config.axes], np.int8), len(crystals))
    lengths = np.linalg.norm(crystals.cells_A, axis=2).max(1)
    draws = np.array([np.random.default_rng([config.seed, i, 0]).random(3) for i in range(count)]).reshape(-1, 3)
    group = zarr.create_group(str(path), zarr_format=3)
    group.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": to_dict(config),
            "renderer": f"{config.renderer} {metadata.version(config.renderer)}",
            "source": source,
        }
    )
    shape = (config.slices, config.pixels, config.pixels)
    volumes = group.create_array(
        "volumes",
        shape=(count, *shape),
        dtype="int16",
        chunks=(1, *shape),
        shards=(min(MAX_SHARD, max(8, -(-count // 64))), *shape),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        dimension_names=("volume", "z", "y", "x"),
        config={"write_empty_chunks": True},
    )
    volumes.attrs.update({"scale_factor": STEP_RAD, "unit": "rad"})
    arrays = {"crystal": crystal, "axis": axis, "origin_A": draws * lengths[crystal][:, None]}
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=(min(len(values), 65536) or 1, *values.shape[1:]))
    crystals.save(path / "crystals.safetensors")
    table = io.StringIO()
    writer = csv.DictWriter(table, ("file", "reason"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rejected)
    write_text(path / "rejected.csv", table.getvalue())


def box_of(crystals: CrystalSet, record: VolumeRecord, config: VolumeConfig) -> Atoms:
    """The atoms of a volume with those beside it, its vacancies removed; the box's corner lies ``margin`` pixels outside."""
    margin = config.margin * config.pixel_size_A
    side = config.pixels * config.pixel_size_A + 2 * margin
    z, y, x = record.origin_A
    size = (config.slices * config.slice_thickness_A, side, side)
    box = cut_box(crystals[record.crystal], record.axis, size, (z, y - margin, x - margin))
    kept = np.random.default_rng([*record.seed, 1]).random(len(box.numbers)) >= config.vacancies
    return Atoms(box.positions_A[kept], box.numbers[kept], box.size_A)


def render_boxes(boxes: list[Atoms], config: VolumeConfig) -> npt.NDArray[np.floating]:
    """(boxes, z, y, x) rad, without the margins."""
    n, m = config.pixels + 2 * config.margin, config.margin
    if config.renderer == "torch":
        import torch

        from mepdiff_core.renderer import Renderer

        # processes share out the cores; threads that wait for each other over small transforms only lose time
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        renderer = Renderer((n, n), config.pixel_size_A, config.slices, config.slice_thickness_A, config.energy_eV)
        # one by one: no bit of a volume depends on the company it is rendered in
        volumes: npt.NDArray[np.floating] = np.concatenate([renderer.render([box]).numpy() for box in boxes])
        torch.set_num_threads(threads)
    else:
        from mepdiff_core.volumes import render_phase

        volumes = np.stack([render_phase(b, config.energy_eV, (n, n), config.slice_thickness_A) for b in boxes])
    return volumes[:, :, m:-m, m:-m]


def quantize(volumes: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Whole steps of 1e-4 rad.

    Raises:
        InputError: a phase that does not fit, beyond 3.2767 rad.
    """
    steps = np.round(volumes / STEP_RAD)
    largest = float(np.abs(steps).max(initial=0))
    check(largest <= 32767, f"a volume has a phase of {largest * STEP_RAD:.2f} rad; the store holds up to 3.27 rad")
    result: npt.NDArray[np.int16] = steps.astype(np.int16)
    return result


def folder_bytes(path: Path) -> int:
    """Bytes of all files of a folder."""
    return sum((Path(root) / name).stat().st_size for root, _, names in os.walk(path) for name in names)
