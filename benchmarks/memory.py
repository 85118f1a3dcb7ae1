"""Peak memory of a scan larger than it: opened, averaged, prepared and fitted, mini-batch by mini-batch.

    python benchmarks/memory.py                      128 x 128 patterns of 256 x 256 px
    python benchmarks/memory.py --scan 256 --keep large.h5
    python benchmarks/memory.py --keep large.h5 --methods crystal proximal dps adam-best --seconds 300

The scan is made up: shifted disks with counting noise, written a row at a time. Writing and reading are processes of their
own, so that the peak is that of reading alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

OPTICS = {"energy_eV": 300e3, "semiangle_mrad": 21.4, "overfocus_A": 200.0, "Cs_A": 0.0}
K_MAX = 2.5


def write(path: Path, scan: int, pixels: int) -> None:
    """A scan file of uint16 counts."""
    import h5py

    from mepdiff_core.optics import Optics
    from mepdiff_core.scan import Scan, make_counts, raster_positions, write_about

    rng = np.random.default_rng(0)
    optics = Optics(**OPTICS)
    k = (np.arange(pixels) - pixels // 2) * 2 * K_MAX / pixels
    radius = np.hypot(k[:, None], k[None, :])
    expected = 3.0 * (radius <= optics.k_aperture_invA) + 0.02 * np.exp(-radius)
    few = rng.poisson(expected, (64, pixels, pixels)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        counts = make_counts(file, (scan, scan, pixels, pixels), np.dtype(np.uint16))
        for row in range(scan):
            counts[row] = few[rng.integers(0, 64, scan)]
        about = Scan(
            np.broadcast_to(np.uint8(1), counts.shape),
            raster_positions((scan, scan), 0.4),
            optics,
            2 * K_MAX / pixels,
            float(expected.sum()),
            thickness_A=3.2,
        )
        write_about(file, about)


def read(path: Path, batches: int) -> None:
    """Print a line for each thing done, with the time and the peak so far."""
    from mepdiff_core.scan import load_scan
    from mepdiff_core.virtual import mean_pattern

    began = time.perf_counter()

    def tell(what: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{what:34} {time.perf_counter() - began:6.1f} s   peak {peak:5.2f} GB", flush=True)

    tell("Python and numpy loaded")
    scan = load_scan(path)
    counts = scan.counts
    print(f"{'counts':34} {counts.nbytes / 1e9:6.2f} GB as {counts.dtype}, {4 * counts.size / 1e9:.2f} GB as floats")
    tell("scan opened")
    mean_pattern(scan.counts)
    tell("mean pattern")
    import torch

    from mepdiff_core.forward import ForwardModel
    from mepdiff_core.likelihood import Poisson

    tell("torch loaded")
    model = ForwardModel(scan, 2, 1.6)
    volume = torch.zeros(model.volume_shape)
    rng = np.random.default_rng(0)
    for _ in range(batches):
        model.loss_and_gradient(volume, rng.choice(scan.n_patterns, 32, replace=False), Poisson())
    tell(f"{batches} mini-batches of 32, 2 slices")


def follow(path: Path, method: str, seconds: float) -> None:
    """Print the peak of a method's first so many seconds, and how far it came."""
    from mepdiff_core.reconstruction import reconstruct
    from mepdiff_core.scan import load_scan

    began, came = time.perf_counter(), "no state yet"

    def end() -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{method:12} {came:40} {time.perf_counter() - began:6.0f} s   peak {peak:5.2f} GB", flush=True)
        os._exit(0)

    threading.Timer(seconds, end).start()
    settings = {} if method in ("crystal", "mepdiff", "dps", "proximal") else {"engine": "fast"}
    for state in reconstruct(load_scan(path), method, **settings):
        came = f"state {state.step} of {state.total} {state.note}"
    end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=int, default=128, help="positions along each side (default 128)")
    parser.add_argument("--pixels", type=int, default=256, help="pixels along each side of a pattern (default 256)")
    parser.add_argument("--batches", type=int, default=30, help="mini-batches (default 30)")
    parser.add_argument("--keep", type=Path, metavar="FILE.h5", help="keep the scan here, or use the one that is here")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="follow these instead")
    parser.add_argument("--seconds", type=float, default=300, help="each, at most (default 300)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None and arguments.methods:
        follow(arguments.read, arguments.methods[0], arguments.seconds)
        return
    if arguments.read is not None:
        read(arguments.read, arguments.batches)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "large.h5"
        if not path.exists():
            began = time.perf_counter()
            write(path, arguments.scan, arguments.pixels)
            print(f"written in {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1e9:.2f} GB on disk", flush=True)
        for method in arguments.methods:
            options = ["--methods", method, "--seconds", str(arguments.seconds)]
            subprocess.run([sys.executable, __file__, "--read", str(path), *options], check=True)
        if not arguments.methods:
            subprocess.run([sys.executable, __file__, "--read", str(path), "--batches", str(arguments.batches)], check=True)


if __name__ == "__main__":
    main()
