"""Which patterns are fitted, which are held out, and in what mini-batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

Indices = npt.NDArray[np.integer]


def split_patterns(n_patterns: int, heldout_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Sorted indices of the patterns to fit and of those held out; the same seed holds out the same ones everywhere.

    Raises:
        InputError: too few patterns to hold any out.
    """
    if heldout_fraction == 0:
        return np.arange(n_patterns), np.arange(0)
    count = max(1, round(heldout_fraction * n_patterns))
    check(count < n_patterns, f"heldout_fraction leaves none of {n_patterns} patterns to fit; set it to 0, patience to null")
    order = np.random.default_rng([seed, 0]).permutation(n_patterns)
    return np.sort(order[count:]), np.sort(order[:count])


def make_batches(indices: Indices, batch_size: int, rng: np.random.Generator) -> list[Indices]:
    """Random mini-batches of about ``batch_size`` patterns that share out all of them, as PtyRAD's "random" mode."""
    return np.array_split(rng.permutation(indices), max(1, len(indices) // batch_size))
