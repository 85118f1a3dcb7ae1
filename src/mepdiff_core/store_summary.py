"""What is in a store: counts, sizes, histograms, and volumes to look at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, to_dict
from mepdiff_core.crystal_set import SPLITS
from mepdiff_core.store import VolumeStore, folder_bytes

LOOKED_AT = 200
"""Volumes that the histogram of phase is made of."""
PHASE_EDGES = (-0.05, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.3)
ROWS = 15


def summarize(path: str | Path) -> dict[str, Any]:
    """Counts, sizes and histograms of a store; the phase is that of up to 200 volumes, spread over what is there.

    Raises:
        InputError: no store there.
    """
    from ase.data import chemical_symbols

    store = VolumeStore(path)
    crystals, missing = store.crystals, set(store.missing_shards())
    there = [i for i in range(len(store)) if i // store.shard_volumes not in missing]
    looked = there[:: max(1, len(there) // LOOKED_AT)]
    counts = np.zeros(len(PHASE_EDGES) - 1, np.int64)
    largest = []
    for index in looked:
        volume = store.volume(index)
        counts += np.histogram(volume, PHASE_EDGES)[0]
        largest.append(float(volume.max()))
    elements: Counter[str] = Counter()
    types: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for index in range(len(crystals)):
        crystal = crystals[index]
        elements.update(chemical_symbols[z] for z in np.unique(crystal.numbers))
        types[crystal.structure_type or "unknown"] += 1
        splits[crystals.split_of(index)] += 1
    lengths = np.linalg.norm(crystals.cells_A, axis=2)
    raw = 4 * store.config.slices * store.config.pixels**2
    size = folder_bytes(store.path)
    return {
        "store": str(store.path),
        "source": store.source,
        "volumes": len(store),
        "rendered": len(there),
        "crystals": len(crystals),
        "renderer": store.renderer,
        "config": to_dict(store.config),
        "bytes": size,
        "bytes_per_volume": size / max(1, len(there)),
        "of_float32": size / max(1, len(there)) / raw,
        "thickness_A": store.config.slices * store.config.slice_thickness_A,
        "splits": {name: splits[name] for name in SPLITS},
        "phase_rad": {"edges": list(PHASE_EDGES), "voxels": counts.tolist(), "volumes": len(looked)},
        "largest_phase_rad": _spread(largest),
        "atoms_in_cell": _spread(np.diff(crystals.atoms)),
        "cell_length_A": _spread(lengths),
        "repeats_along_beam": _spread(store.config.slices * store.config.slice_thickness_A / lengths),
        "elements": dict(elements.most_common()),
        "structure_types": dict(types.most_common()),
    }


def _spread(values: Any) -> dict[str, float] | None:
    array = np.asarray(values, float)
    if not array.size:
        return None
    return {"min": float(array.min()), "median": float(np.median(array)), "max": float(array.max())}


def summary_text(summary: dict[str, Any]) -> str:
    """The same for people, with bars."""
    lines = [
        f"{summary['store']}: {summary['rendered']:,} of {summary['volumes']:,} volumes of {summary['crystals']:,} crystals",
        f"from {summary['source']}; rendered by {summary['renderer']}",
        f"{summary['bytes'] / 1e6:,.1f} MB, {summary['bytes_per_volume'] / 1e3:,.1f} kB a volume "
        f"({100 * summary['of_float32']:.0f} % of float32)",
        "crystals for " + ", ".join(f"{name} {count:,}" for name, count in summary["splits"].items()),
    ]
    units = {"largest_phase_rad": "rad", "atoms_in_cell": "", "cell_length_A": "Å", "repeats_along_beam": "cells"}
    for name, unit in units.items():
        spread = summary[name]
        if spread is not None:
            words = name.removesuffix("_rad").removesuffix("_A").replace("_", " ")
            lines.append(f"{words}: {spread['min']:.3g} to {spread['max']:.3g} {unit}, median {spread['median']:.3g}")
    phase = summary["phase_rad"]
    bins = [f"{a:g} to {b:g} rad" for a, b in zip(phase["edges"], phase["edges"][1:], strict=False)]
    lines += ["", f"voxels by phase (of {phase['volumes']} volumes)", *_bars(dict(zip(bins, phase["voxels"], strict=True)))]
    for name in ("elements", "structure_types"):
        lines += ["", f"crystals by {name.replace('_', ' ').removesuffix('s')}", *_bars(summary[name])]
    return "\n".join(lines)


def _bars(counts: dict[str, int]) -> list[str]:
    shown = dict(list(counts.items())[:ROWS])
    width = max(map(len, shown), default=0)
    largest = max(shown.values(), default=0) or 1
    lines = [f"  {name:{width}} {count:>12,} {'#' * round(30 * count / largest)}" for name, count in shown.items()]
    if len(counts) > ROWS:
        lines.append(f"  and {len(counts) - ROWS} more")
    return lines


def draw_volumes(store: VolumeStore, n: int, seed: int) -> tuple[list[npt.NDArray[np.float32]], list[str]]:
    """Some volumes at random, of crystals as different as there are, with what they are.

    Raises:
        InputError: none was rendered yet.
    """
    missing = set(store.missing_shards())
    there = [i for i in range(len(store)) if i // store.shard_volumes not in missing]
    check(len(there) > 0, f"{store.path} has no volumes yet; finish it with --resume")
    order = np.random.default_rng(seed).permutation(there)
    first = {store.record(int(i)).crystal: int(i) for i in order[::-1]}  # one of each crystal before a second of any
    chosen = [i for i in map(int, order) if first[store.record(i).crystal] == i]
    chosen = sorted((chosen + [i for i in map(int, order) if i not in {*chosen}])[:n])
    titles = []
    for index in chosen:
        record = store.record(index)
        crystal = store.crystals[record.crystal]
        name = crystal.name.replace(f"-{crystal.structure_type}-", " ")  # a generated one; the type stands below
        titles.append(f"{name} {record.axis}\n{crystal.structure_type}".strip())
    return [store.volume(i) for i in chosen], titles
