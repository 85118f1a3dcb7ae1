"""Crystals -> a store of phase volumes, on one core, on several, or on a Dask cluster; stopped at any moment, it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mepdiff_core.cluster import ATTEMPTS, dask_client
from mepdiff_core.config import check, to_dict
from mepdiff_core.crystal_set import CrystalSet
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.sites import ReadOptions
from mepdiff_core.store import VolumeConfig, VolumeStore, create_store
from mepdiff_core.structure_files import Rejection, find_files, read_crystals

MAX_LENGTH_A = 20.0
"""Cells with a, b or c of 20 Å or more are left out. Source: MEP-Diffusion, appendix A."""


@dataclass(frozen=True)
class BuildStep:
    """Progress: ``done`` of ``total`` of what ``stage`` names."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class BuildConfig:
    """What to build a store of.

    Attributes:
        structures: a folder of structure files, or "prototypes", or "pyxtal": crystals generated from a seed.
        n: how many crystals to generate; not used for a folder.
        read: how structure files are read.
        volumes: how crystals become volumes.
    """

    structures: str
    n: int = 1000
    read: ReadOptions = field(default_factory=partial(ReadOptions, max_length_A=MAX_LENGTH_A))
    volumes: VolumeConfig = field(default_factory=VolumeConfig)

    def __post_init__(self) -> None:
        check(self.n >= 1, f"n is {self.n}; expected at least 1")


def build(
    config: BuildConfig, out: str | Path, workers: int = 1, scheduler: str | None = None, resume: bool = False
) -> Iterator[BuildStep]:
    """Build a store, or finish one.

    Args:
        config: of what.
        out: the folder to make.
        workers: processes on this computer; 1 renders in this one.
        scheduler: address of a Dask scheduler, whose workers see the same files, instead.
        resume: finish the store in ``out``, which must have been begun with the same config.

    Yields:
        ``BuildStep``: structures read, then volumes rendered.

    Raises:
        InputError: nothing to build from, another store in the way, a disk that is full, a scheduler that does not answer.
    """
    check(workers >= 1, f"workers is {workers}; expected at least 1")
    if resume:
        store = VolumeStore(out)
        check(
            store.config == config.volumes and store.source == source_of(config),
            f"the store in {out} was begun with other settings or structures; give those again, or another folder",
        )
        for leftover in store.path.rglob("*.partial"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
    else:
        crystals: list[Crystal] = []
        rejected: list[Rejection] = []
        yield from _gather(config, crystals, rejected)
        reasons = "; ".join(str(r) for r in rejected[:3])
        check(len(crystals) > 0, f"{config.structures} holds no crystal that can be used ({reasons or 'it is empty'})")
        root = Path(config.structures)
        rows = [
            {"file": f"{r.file.relative_to(root)}{f' ({r.block})' if r.block else ''}", "reason": r.reason} for r in rejected
        ]
        store = create_store(out, CrystalSet.pack(crystals), config.volumes, source_of(config), rows)
    missing = store.missing_shards()
    total = len(store)
    done = total - sum(_size(store, shard) for shard in missing)
    yield BuildStep("volumes", done, total)
    for count in _render(store.path, missing, workers, scheduler):
        done += count
        yield BuildStep("volumes", done, total)


def source_of(config: BuildConfig) -> str:
    """Where crystals come from, in words that tell two builds apart."""
    if config.structures in GENERATORS:
        return f"{config.structures}, n={config.n}, seed={config.volumes.seed}"
    read = ", ".join(f"{name}={value}" for name, value in to_dict(config.read).items())
    return f"{Path(config.structures).resolve().name}, {read}"


def _size(store: VolumeStore, shard: int) -> int:
    return min(store.shard_volumes, len(store) - shard * store.shard_volumes)


def _gather(config: BuildConfig, crystals: list[Crystal], rejected: list[Rejection]) -> Iterator[BuildStep]:
    if config.structures in GENERATORS:
        generate = GENERATORS[config.structures]()
        for index in range(config.n):
            crystals.append(generate(index, config.volumes.seed))
            if index % 100 == 99 or index == config.n - 1:
                yield BuildStep("crystals", index + 1, config.n)
        return
    found = find_files(config.structures)
    rejected += [
        Rejection(path, "", "is no structure file (CIF, POSCAR, extended XYZ, ASE database)") for path in found.others
    ]
    check(len(found.structures) > 0, f"{config.structures} holds no structure files ({len(found.others)} others)")
    for number, path in enumerate(found.structures):
        for result in read_crystals(path, config.read):
            (crystals if isinstance(result, Crystal) else rejected).append(result)  # type: ignore[arg-type]
        yield BuildStep("files", number + 1, len(found.structures))


def _prototypes() -> Callable[[int, int], Crystal]:
    from mepdiff_core.prototype_crystals import generate

    return generate


def _pyxtal() -> Callable[[int, int], Crystal]:
    from mepdiff_core.random_crystals import generate

    return generate


GENERATORS: dict[str, Callable[[], Callable[[int, int], Crystal]]] = {"prototypes": _prototypes, "pyxtal": _pyxtal}
"""Crystal number ``index`` of the set ``seed``, the same in every process."""


def render_shard(path: str, shard: int) -> int:
    """Render one shard of the store at ``path``; returns how many volumes it has. Runs in workers."""
    return VolumeStore(path, write=True).render_shard(shard)


def _render(path: Path, shards: list[int], workers: int, scheduler: str | None) -> Iterator[int]:
    if not shards:
        return
    if workers == 1 and scheduler is None:
        store = VolumeStore(path, write=True)
        for shard in shards:
            yield store.render_shard(shard)
        return
    yield from _render_with_dask(path, shards, workers, scheduler)


def _render_with_dask(path: Path, shards: list[int], workers: int, scheduler: str | None) -> Iterator[int]:
    from dask.distributed import KilledWorker, as_completed

    with dask_client(workers, scheduler) as client:
        futures = [client.submit(render_shard, str(path.resolve()), shard, pure=False) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KilledWorker as error:
            raise InputError(
                f"{ATTEMPTS} workers died over one shard ({str(error).splitlines()[0]}); give them more memory, or take "
                "fewer workers, and go on with --resume"
            ) from None
        finally:
            with contextlib.suppress(Exception):
                client.cancel(futures)
