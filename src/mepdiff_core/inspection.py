"""A look at a file of patterns, block by block: mean pattern, bright disk, virtual images, counts."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.calibration import Calibration
from mepdiff_core.file_calibration import FileCalibration, Settled
from mepdiff_core.optics import wavelength_A
from mepdiff_core.raw_scan import RawScan, ScanOptions

Image = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Detectors:
    """Disk and ring of the virtual images.

    Attributes:
        centre_px: (ky, kx) of the middle of the bright disk.
        radius_px: of the bright disk.
        inner_px, outer_px: of the dark-field ring.
        source: how the radius was found.
    """

    centre_px: tuple[float, float]
    radius_px: float
    inner_px: float
    outer_px: float
    source: str


@dataclass(frozen=True)
class Inspection:
    """What a look at a file shows.

    Attributes:
        mean: (ky, kx) counts a pixel.
        bright, dark: (scan_y, scan_x) counts on the disk and on the ring.
        detectors: these; None where nothing was measured.
        smallest, largest: count of any pixel; ``bad``: pixels that are negative or not a number.
        counts_per_pattern: mean of a pattern's sum.
        settled: the calibration with its sources.
    """

    mean: Image
    bright: Image
    dark: Image
    detectors: Detectors | None
    smallest: float
    largest: float
    bad: int
    counts_per_pattern: float
    settled: Settled


def inspect_patterns(
    raw: RawScan, given: Mapping[str, Any] | Calibration | FileCalibration | None = None
) -> Generator[tuple[int, int], None, Inspection]:
    """Look at all patterns, twice; yields how many of how many readings are done and returns what was seen."""
    settled = raw.settled(given)
    shape, n = raw.patterns.shape, raw.patterns.n_patterns
    total = np.zeros(shape[2:])
    smallest, largest, bad = math.inf, -math.inf, 0
    for first, block, _ in raw.blocks(ScanOptions()):
        finite = np.isfinite(block) if block.dtype.kind == "f" else None
        if finite is not None and not finite.all():
            bad += int(np.count_nonzero(~finite))
            block = np.where(finite, block, np.zeros((), block.dtype))
        bad += int(np.count_nonzero(block < 0)) if block.dtype.kind in "if" else 0
        total += block.sum(axis=0, dtype=np.float64)
        smallest, largest = min(smallest, float(block.min())), max(largest, float(block.max()))
        yield first + len(block), 2 * n
    mean: Image = total / n
    detectors = find_detectors(mean, settled)
    images = np.zeros((2, n))
    if detectors is not None:
        distance = np.hypot(
            *(axis - c for axis, c in zip(np.ogrid[: shape[2], : shape[3]], detectors.centre_px, strict=True))
        )
        masks = (distance <= detectors.radius_px, (distance >= detectors.inner_px) & (distance <= detectors.outer_px))
        for first, block, _ in raw.blocks(ScanOptions()):
            for image, mask in zip(images, masks, strict=True):
                sums = block[:, mask].sum(axis=1, dtype=np.float64)
                image[first : first + len(block)] = np.nan_to_num(sums)
            yield n + first + len(block), 2 * n
    bright, dark = images.reshape(2, *shape[:2])
    return Inspection(mean, bright, dark, detectors, smallest, largest, bad, float(total.sum()) / n, settled)


def find_detectors(mean: Image, settled: Settled) -> Detectors | None:
    """The bright disk in a mean pattern, and a ring around it; None for an empty pattern.

    The disk is what is brighter than half of the pattern's bright level; where semi-angle and detector pixel are known, they
    give its radius.
    """
    level = float(np.percentile(mean, 99.5)) or float(mean.max())
    if not level > 0:
        return None
    disk = mean > level / 2
    centre = tuple(float(np.mean(index)) for index in np.nonzero(disk))
    radius, source = math.sqrt(float(disk.sum()) / math.pi), "half of the bright level"
    values = settled.values
    if all(name in values for name in ("optics.energy_eV", "optics.semiangle_mrad", "k_step_invA")):
        k = values["optics.semiangle_mrad"].value * 1e-3 / wavelength_A(values["optics.energy_eV"].value)
        radius, source = k / values["k_step_invA"].value, "semi-angle and detector pixel"
    radius = max(radius, 1.0)
    farthest = math.hypot(*mean.shape) / 2
    outer = min(3 * radius, farthest)
    return Detectors((centre[0], centre[1]), radius, min(1.1 * radius, 0.9 * outer), outer, source)
