"""Random numbers decided by what they are for, so that any step can be made again."""

from __future__ import annotations

import numpy as np
import torch


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device, decided by these numbers alone (a seed and a step, for instance)."""
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0] >> np.uint64(1)))
