"""Crystals to volumes: parity with abTEM, speed of both renderers, of the build, of the store, and of crops for training.

    python benchmarks/dataset.py [--structures DIR] [--n 240]

Without --structures the crystals are generated prototypes. Everything that says "one thread" runs on one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from mepdiff_core.config import to_dict
from mepdiff_core.crystal_set import CrystalSet
from mepdiff_core.dataset import BuildConfig, build
from mepdiff_core.renderer import Renderer
from mepdiff_core.store import VolumeConfig, VolumeRecord, VolumeStore, box_of, folder_bytes, render_boxes
from mepdiff_core.training_data import CropConfig, CrystalCrops, StoreCrops


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The median of some runs after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def crops_in_a_process(path: str, count: int) -> float:
    """Seconds that one process takes for so many rendered crops."""
    torch.set_num_threads(1)
    crops = CrystalCrops(CrystalSet.load(path), None)
    crops.batch(range(8))
    began = time.perf_counter()
    for first in range(0, count, 8):
        crops.batch([(first + i) % len(crops) for i in range(8)])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", default="prototypes")
    parser.add_argument("--n", type=int, default=80, help="crystals to generate")
    parser.add_argument("--device", help="also measure the renderer there, cuda for instance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.structures, arguments.n, arguments.device)


def measure(folder: Path, structures: str, n: int, device: str | None) -> None:
    print("build: volumes a second, start of the workers included")
    for renderer in ("abtem", "torch"):
        for workers in (1, 2):
            out = folder / f"{renderer}-{workers}.zarr"
            config = BuildConfig(structures, n, volumes=VolumeConfig(renderer=renderer))
            first = time.perf_counter()
            for step in build(config, out, workers):
                if step.stage == "volumes" and step.done == 0:
                    first = time.perf_counter()
            print(f"  {renderer:6} {workers} worker{'s' * (workers > 1)}: {step.total / (time.perf_counter() - first):7.1f}")
    store = VolumeStore(folder / "abtem-1.zarr")
    size = folder_bytes(store.path)
    print(
        f"store: {len(store)} volumes, {size / len(store) / 1e3:.1f} kB each; 10,000 take {1e-2 * size / len(store):.0f} MB"
    )
    order = np.random.default_rng(0).integers(0, len(store), 200)
    print(f"random reads: {200 / seconds(lambda: [store.volume(int(i)) for i in order]):.0f} volumes a second")
    print(f"opening: {1e3 * seconds(lambda: VolumeStore(store.path)):.1f} ms")

    print("parity of the renderers, rad")
    config = store.config
    count = min(30, len(store.crystals))
    records = [VolumeRecord(i, config.axes[i % len(config.axes)], (0.0, 0.0, 0.0), (0, i)) for i in range(count)]
    boxes = [box_of(store.crystals, record, config) for record in records]
    values = to_dict(config)
    theirs = render_boxes(boxes, VolumeConfig(**{**values, "axes": config.axes, "renderer": "abtem"}))
    ours = render_boxes(boxes, VolumeConfig(**{**values, "axes": config.axes, "renderer": "torch"}))
    print(f"  largest difference of {count} volumes {np.abs(theirs - ours).max():.2e}, largest phase {theirs.max():.2f}")
    slow = seconds(lambda: render_boxes(boxes, VolumeConfig(**{**values, "axes": config.axes, "renderer": "abtem"}))) / count
    fast = seconds(lambda: render_boxes(boxes, VolumeConfig(**{**values, "axes": config.axes, "renderer": "torch"}))) / count
    print(f"  one thread: abTEM {1e3 * slow:.1f} ms a volume, ours {1e3 * fast:.1f} ms, {slow / fast:.1f} times as fast")

    print("crops of 8 x 64 x 64 a second, one thread a process")
    table = folder / "crystals.safetensors"
    store.crystals.save(table)
    for processes in (1, 2):
        with ProcessPoolExecutor(processes) as pool:
            times = list(pool.map(crops_in_a_process, [str(table)] * processes, [800] * processes))
        print(f"  rendered, {processes} process{'es' * (processes > 1)}: {sum(800 / t for t in times):7.0f}")
    stored = StoreCrops(store, None)
    print(
        f"  from the store, turned, 1 process: {100 / seconds(lambda: [stored[i % len(stored)] for i in range(100)]):7.0f}"
    )
    if device is not None:
        crops = CrystalCrops(store.crystals, None, CropConfig(), device)
        items = [crops.draw(i % len(crops)) for i in range(256)]
        renderer = Renderer((104, 104), 0.2, 8, 1.6, device=device)

        def work() -> None:
            renderer.render(items)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        print(f"  rendered on {device} from boxes of atoms: {256 / seconds(work):7.0f}")


if __name__ == "__main__":
    main()
