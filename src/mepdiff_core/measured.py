"""Measured patterns where they are wanted: few are held on the device, many are read when their turn comes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.scan import Scan

HELD_BYTES = 1 << 31
"""Patterns of fewer bytes, as float32, are held on the device."""


class MeasuredPatterns:
    """A scan's patterns with zero frequency at the corner, in electrons over ``unit``.

    Args:
        scan: the measurement; device, dtype: where they are wanted; unit: electrons that become 1.

    Attributes:
        seen: (ky, kx) 1 where the detector is to be believed and 0 elsewhere; None where it is everywhere.
        held: (n, ky, kx) all of them; None where they are read when they are asked for.
    """

    def __init__(self, scan: Scan, device: torch.device, dtype: torch.dtype = torch.float32, unit: float = 1.0) -> None:
        self._scan, self._device, self._dtype, self._unit = scan, device, dtype, unit
        self.seen: Tensor | None = None
        if scan.blind is not None:
            self.seen = torch.as_tensor(np.fft.ifftshift(scan.seen).astype(np.float32)).to(device, dtype)
        held = 4 * scan.n_patterns * scan.n_pixels**2 < HELD_BYTES
        self.held: Tensor | None = self._read(np.arange(scan.n_patterns)) if held else None

    def at(self, indices: npt.NDArray[np.integer]) -> Tensor:
        """(positions, ky, kx) of these positions."""
        if self.held is None:
            return self._read(indices)
        return self.held[torch.as_tensor(indices, device=self._device)]

    def _read(self, indices: npt.NDArray[np.integer]) -> Tensor:
        patterns = np.fft.ifftshift(self._scan.patterns_at(indices), axes=(-2, -1)).astype(np.float32)
        if self._unit != 1:
            patterns /= np.float32(self._unit)
        return self.believed(torch.as_tensor(patterns).to(self._device, self._dtype))

    def believed(self, patterns: Tensor) -> Tensor:
        """Patterns (..., ky, kx) with zeros where the detector is blind."""
        return patterns if self.seen is None else patterns * self.seen
