"""Diffraction patterns as plain arrays (..., ky, kx): mirrored, shifted, binned, cut out and padded.

Sizes are even and zero frequency lies at index n // 2 where a function says "centred".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

Patterns = npt.NDArray[np.generic]


def mirror(patterns: Patterns, flip_ky: bool = False, flip_kx: bool = False, transpose: bool = False) -> Patterns:
    """Flip ky, then kx, then swap both; on even sizes about index n // 2, so that centred patterns stay centred."""
    for wanted, axis in ((flip_ky, -2), (flip_kx, -1)):
        if wanted:
            patterns = np.flip(patterns, axis)
            if patterns.shape[axis] % 2 == 0:
                patterns = np.roll(patterns, 1, axis)
    return patterns.swapaxes(-2, -1) if transpose else patterns


def shift(patterns: Patterns, shift_px: tuple[float, float]) -> Patterns:
    """Patterns moved by (y, x) pixels, zeros coming in from outside.

    Whole pixels move counts as they are. Fractions are interpolated by cubic splines, which of linear, cubic and Fourier
    interpolation changes the misfit of a true model least (docs/real-data.md); negative values they make are set to 0.
    """
    from scipy.ndimage import shift as spline_shift

    whole = tuple(round(v) for v in shift_px)
    if all(abs(v - w) < 1e-6 for v, w in zip(shift_px, whole, strict=True)):
        return _roll_in_zeros(patterns, whole)
    flat = patterns.reshape(-1, *patterns.shape[-2:]).astype(np.float32)
    moved = np.empty_like(flat)
    for source, target in zip(flat, moved, strict=True):
        spline_shift(source, shift_px, target, order=3, mode="constant")
    return np.maximum(moved, 0, out=moved).reshape(patterns.shape)


def _roll_in_zeros(patterns: Patterns, whole: tuple[int, ...]) -> Patterns:
    moved = np.zeros_like(patterns)
    (dy, dx), (height, width) = whole, patterns.shape[-2:]
    if abs(dy) < height and abs(dx) < width:
        kept = patterns[..., max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        moved[..., max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)] = kept
    return moved


def bin_pixels(patterns: Patterns, factor: int) -> Patterns:
    """Sums over factor x factor pixels from the first one on; rows and columns left over at the end are dropped.

    Zero frequency at (n + factor - 1) / 2 comes to lie at index m // 2 of the m = n / factor pixels, if m is even.
    """
    if factor == 1:
        return patterns
    height, width = (n // factor for n in patterns.shape[-2:])
    check(min(height, width) >= 1, f"patterns of {patterns.shape[-2:]} px cannot be binned by {factor}")
    cut = patterns[..., : height * factor, : width * factor]
    blocks = cut.reshape(*patterns.shape[:-2], height, factor, width, factor)
    if patterns.dtype.kind in "ui":
        return narrow(blocks.sum((-3, -1), dtype=np.uint64), largest=int(np.iinfo(patterns.dtype.str).max) * factor**2)
    return np.asarray(blocks.sum((-3, -1), dtype=np.float32))


def narrow(counts: npt.NDArray[np.unsignedinteger], largest: int) -> npt.NDArray[np.unsignedinteger]:
    """Whole counts in the narrowest type that holds ``largest``."""
    return counts.astype(np.min_scalar_type(min(largest, np.iinfo(np.uint64).max)))


def cut_or_pad(patterns: Patterns, n_pixels: int) -> Patterns:
    """Centred patterns in a square window of another even size: cut out, or with zeros around."""
    for axis in (-2, -1):
        size = patterns.shape[axis]
        first = size // 2 - n_pixels // 2
        if first > 0 or first + n_pixels < size:
            patterns = patterns.take(np.arange(max(first, 0), min(first + n_pixels, size)), axis)
        before = max(-first, 0)
        after = n_pixels - before - patterns.shape[axis]
        if before or after:
            widths = [(0, 0)] * patterns.ndim
            widths[axis] = (before, after)
            patterns = np.pad(patterns, widths)
    return patterns
