"""Speed of training: images a second by preset, precision, compile and memory order, and the part of the matmul peak.

python benchmarks/training.py [--device cpu|cuda] [--presets small,paper] [--batch N] [--steps N] [--threads N]

One line a setting as it comes, then a table. Forward and backward of a step with AdamW, random volumes: data are measured in
dataset.py. Model-FLOP utilisation counts 3 forward passes a step (backward costs two) over a large matmul's speed in the
same precision.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from itertools import product

import torch

from mepdiff_core.config import from_dict
from mepdiff_core.diffusion import losses
from mepdiff_core.train_config import TrainConfig, preset
from mepdiff_core.unet import UNet, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--presets", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    gpu = arguments.device.startswith("cuda")
    peaks = {name: matmul_peak(arguments.device, dtype) for name, dtype in PRECISIONS.items()}
    print(", ".join(f"matmul {name}: {peak / 1e12:.2f} TFLOP/s" for name, peak in peaks.items()), flush=True)
    rows = []
    for name, precision, compiled, last in product(
        arguments.presets.split(","), PRECISIONS, (False, True) if gpu else (False,), (False, True)
    ):
        seconds, gigabytes = measure(name, precision, compiled, last, arguments)
        network = from_dict(TrainConfig, preset(name)).network
        operations = 6 * costs(network)[-1].multiply_adds * arguments.batch
        rows.append(
            f"| {name} | {precision} | {'yes' if compiled else 'no'} | {'yes' if last else 'no'} | {seconds:.3f} | "
            f"{arguments.batch / seconds:.1f} | {operations / seconds / peaks[precision]:.0%} | {gigabytes:.1f} |"
        )
        print(rows[-1], flush=True)
    print("| preset | precision | compiled | channels last | s a step | images/s | of the matmul peak | GB |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    print("\n".join(rows))


PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large product."""
    n = 8192 if device.startswith("cuda") else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    best = 0.0
    for _ in range(6):
        start = synchronized(device)
        a @ b
        best = max(best, 2 * n**3 / (synchronized(device) - start))
    return best


def measure(name: str, precision: str, compiled: bool, last: bool, arguments: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a step, and peak memory in GB (of a GPU)."""
    device, config = arguments.device, from_dict(TrainConfig, preset(name))
    network = UNet(config.network).to(device)
    if last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    model = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    shape = (arguments.batch, 1, config.crops.slices, config.crops.pixels, config.crops.pixels)
    x, noise, log_snr = (
        torch.randn(shape, device=device),
        torch.randn(shape, device=device),
        torch.zeros(shape[0], device=device),
    )
    kind = device.split(":")[0]
    times = []
    for step in range(arguments.steps + 2):
        start = synchronized(device)
        with torch.autocast(kind, torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = losses(model, x, noise, log_snr).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            times.append(synchronized(device) - start)
    memory = torch.cuda.max_memory_allocated() / 1e9 if kind == "cuda" else 0.0
    return sorted(times)[len(times) // 2], memory


def synchronized(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
