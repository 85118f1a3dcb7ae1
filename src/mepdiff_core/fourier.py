"""Unnormalised 2D FFTs of batches of square complex arrays, each size by the faster library.

On a CPU, FFTW (this is the only file that imports pyfftw) transforms windows of 64 and 128 pixels in single precision
1.4 to 2 times as fast as torch's MKL; at every other size MKL is as fast or faster (benchmarks/README.md). FFTW plans with
ESTIMATE: measured plans are no faster here and give other bits in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FFTW_SIZES = (64, 128)
THREADED_FROM = 2**18
"""Batches of fewer values than this are transformed by one thread: waiting for the others takes longer."""


class Fourier:
    """FFTs over the last two axes of contiguous (..., n, n) arrays; one object a thread, it keeps FFTW's plans."""

    def __init__(self, n: int, device: torch.device, dtype: torch.dtype) -> None:
        self._fftw = device.type == "cpu" and dtype == torch.complex64 and n in FFTW_SIZES
        self._plans: dict[tuple[Any, ...], Any] = {}

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Sum of x exp(-2 pi i k r); ``overwrite`` allows x to be lost."""
        return self._run(x, "FFTW_FORWARD", overwrite) if self._fftw else torch.fft.fft2(x)

    def backward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Sum of x exp(+2 pi i k r), not divided by the number of pixels; ``overwrite`` allows x to be lost."""
        return self._run(x, "FFTW_BACKWARD", overwrite) if self._fftw else torch.fft.ifft2(x, norm="forward")

    def _run(self, x: Tensor, direction: str, overwrite: bool) -> Tensor:
        import pyfftw

        source = x.view(-1, *x.shape[-2:])
        target = source if overwrite else torch.empty_like(source)
        arrays = source.numpy(), target.numpy()
        aligned = tuple(pyfftw.is_byte_aligned(a, 64) for a in arrays)
        threads = torch.get_num_threads() if x.numel() >= THREADED_FROM else 1
        key = (source.shape, direction, overwrite, aligned, threads)
        plan = self._plans.get(key)
        if plan is None:
            flags = ("FFTW_ESTIMATE",) if all(aligned) else ("FFTW_ESTIMATE", "FFTW_UNALIGNED")
            plan = pyfftw.FFTW(*arrays, axes=(1, 2), direction=direction, flags=flags, threads=threads)
            self._plans[key] = plan
        else:
            plan.update_arrays(*arrays)
        plan.execute()
        return target.view(x.shape)
