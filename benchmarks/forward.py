"""Speed and memory of the forward model with its gradient, beside PtyRAD's, in one run.

    python benchmarks/forward.py [--threads 1] [--repeats 5] [--device cpu]

A default scan's geometry: 26 x 26 positions, 128 px, 8 slices; forward and backward over all 676 patterns in mini-batches
of 32, amplitude loss. The engines take turns, the median is given. Memory is what a fresh process grows by, at its peak,
while it makes the model (patterns included) and does one pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import torch

from mepdiff_core.baselines import FastEngine
from mepdiff_core.forward import ForwardModel
from mepdiff_core.fourier import Fourier
from mepdiff_core.optics import Optics
from mepdiff_core.ptyrad_adapter import PtyRADEngine
from mepdiff_core.scan import Scan, raster_positions

SLICES, N = 8, 128


def make_scan() -> Scan:
    """A scan of the default geometry with made-up counts: speed does not depend on them."""
    counts = np.random.default_rng(0).poisson(16.0, (26, 26, N, N)).astype(np.uint8)
    return Scan(counts, raster_positions((26, 26), 0.512), Optics(), 5 / N, 16.0 * N * N, thickness_A=12.8)


def one_pass(engine: FastEngine | PtyRADEngine, volume: torch.Tensor, count: int) -> None:
    for first in range(0, count, 32):
        engine.loss_and_gradient(volume, np.arange(first, min(first + 32, count)))
    if volume.device.type == "cuda":
        torch.cuda.synchronize()


def memory(name: str) -> float:
    """Megabytes that a fresh process grows by at most."""
    scan = make_scan()
    tiny = Scan(scan.counts[:1, :1], scan.positions_A[:1], scan.optics, scan.k_step_invA, 1.0, thickness_A=3.2)
    warm = ForwardModel(tiny, 2, 1.6)  # libraries loaded, plans made
    for engine in (FastEngine(warm, "amplitude"), PtyRADEngine(warm, "amplitude")):
        engine.loss_and_gradient(torch.zeros(warm.volume_shape), np.arange(1))
    process, stop, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = ForwardModel(scan, SLICES, 1.6)
    engine = FastEngine(model, "amplitude") if name == "fast" else PtyRADEngine(model, "amplitude")
    one_pass(engine, torch.zeros(model.volume_shape), scan.n_patterns)
    stop.set()
    watcher.join()
    return (peak[0] - before) / 2**20


def fft_floor(threads: int) -> dict[str, float]:
    """Seconds for the 30 transforms a pattern that no implementation can do without."""
    x = torch.randn(16, N, N, dtype=torch.complex64)
    fourier = Fourier(N, x.device, x.dtype)
    rates = {}
    for name, call in (("torch", lambda: torch.fft.fft2(x)), ("ours", lambda: fourier.forward(x, overwrite=True))):
        call()
        x.normal_()
        began = time.perf_counter()
        for _ in range(40):
            call()
            x.mul_(0.01)  # unnormalised transforms in place would overflow
        rates[name] = (time.perf_counter() - began) / (40 * 16) * 30 * 676
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=("fast", "ptyrad"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of)))
        return

    scan = make_scan()
    model = ForwardModel(scan, SLICES, 1.6, device=arguments.device)
    engines = {"PtyRAD": PtyRADEngine(model, "amplitude"), "ours": FastEngine(model, "amplitude")}
    torch.manual_seed(0)
    volume = 0.05 * torch.rand(model.volume_shape, device=arguments.device)
    loss, gradient = zip(*(e.loss_and_gradient(volume, np.arange(32)) for e in engines.values()), strict=True)
    difference = float((gradient[1] - gradient[0]).norm() / gradient[0].norm())
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(arguments.repeats):
        for name, engine in engines.items():
            began = time.perf_counter()
            one_pass(engine, volume, scan.n_patterns)
            seconds[name].append(time.perf_counter() - began)
    grown = {}
    if arguments.device == "cpu":
        for name, label in (("ptyrad", "PtyRAD"), ("fast", "ours")):
            command = [sys.executable, __file__, "--memory-of", name, "--threads", str(arguments.threads)]
            grown[label] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["PtyRAD"], seconds["ours"], strict=True)]
    print(f"{arguments.device}, {arguments.threads} threads, 676 patterns of 128 px, 8 slices, forward and backward")
    print(f"{'':10}{'seconds':>10}{'min':>8}{'max':>8}{'MB':>8}")
    for name, times in seconds.items():
        print(f"{name:10}{median[name]:10.2f}{min(times):8.2f}{max(times):8.2f}{grown.get(name, float('nan')):8.0f}")
    print(f"ours is {statistics.median(ratios):.2f} times as fast (pairs: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"loss {float(loss[0]):.7f} and {float(loss[1]):.7f}, gradients differ by {difference:.1e}")
    if arguments.device == "cpu":
        floor = fft_floor(arguments.threads)
        print(f"30 transforms a pattern alone: {floor['torch']:.2f} s by torch (MKL), {floor['ours']:.2f} s by FFTW")


if __name__ == "__main__":
    main()
