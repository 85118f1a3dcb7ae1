"""Which library transforms which window size faster: torch's MKL or FFTW with plans by ESTIMATE.

python benchmarks/fourier.py [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pyfftw
import torch

SIZES = (48, 64, 96, 100, 128, 160, 192, 256, 384, 512)
BATCH = 16


def best_ms(call: Callable[[], object]) -> float:
    """Milliseconds for one transform of the batch, the best of five rounds."""
    call()
    rounds = []
    for _ in range(5):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.05:
            call()
            count += 1
        rounds.append((time.perf_counter() - began) / count / BATCH * 1e3)
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'pixels':>6}{'MKL, ms':>10}{'FFTW, ms':>10}{'MKL / FFTW':>12}")
    for n in SIZES:
        x = torch.zeros(BATCH, n, n, dtype=torch.complex64)
        array = x.numpy()
        plan = pyfftw.FFTW(array, array, axes=(1, 2), threads=arguments.threads, flags=("FFTW_ESTIMATE",))
        mkl, fftw = best_ms(lambda x=x: torch.fft.fft2(x)), best_ms(plan.execute)
        print(f"{n:6}{mkl:10.4f}{fftw:10.4f}{mkl / fftw:12.2f}")


if __name__ == "__main__":
    main()
