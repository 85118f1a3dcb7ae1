"""What a preparation has done and found, for the record and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.bright_disk import Disk
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan
from mepdiff_core.scan_rotation import Rotation


@dataclass
class Found:
    """What was found on the way.

    Attributes:
        dead, hot: (ky, kx) masks of bad pixels; None where none were looked for.
        background: counts a pixel; gain: electrons per count; used on every pattern.
        disk: the bright disk; None where it was not looked for.
        shifts: (scan_y, scan_x, 2) as (y, x): what centres each pattern, pixels.
        rest: (y, x) pixels by which the bright disk lies off the middle after whole pixels; None where no probe takes it up.
        rotation: of the scan; None where it was not looked for.
        mean_electrons: mean sum of the finished patterns.
    """

    dead: npt.NDArray[np.bool_] | None = None
    hot: npt.NDArray[np.bool_] | None = None
    background: float = 0.0
    gain: float = 1.0
    disk: Disk | None = None
    shifts: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1, 2)))
    rest: tuple[float, float] | None = None
    rotation: Rotation | None = None
    mean_electrons: float = 0.0

    def values(self, before: Scan, after: Scan) -> dict[str, Any]:
        """The numbers that were found, by name, ready for JSON."""
        values: dict[str, Any] = {}
        if self.dead is not None and self.hot is not None:
            values |= {"dead_pixels": np.argwhere(self.dead).tolist(), "hot_pixels": np.argwhere(self.hot).tolist()}
        values |= {"background": self.background, "electrons_per_count": self.gain}
        if self.disk is not None:
            values |= {"disk_centre_px": list(self.disk.centre), "disk_radius_px": self.disk.radius}
        mean, wander = self.shifts.mean((0, 1)), np.ptp(self.shifts, axis=(0, 1))
        values |= {"mean_shift_px": mean.tolist(), "wander_px": wander.tolist()}
        if self.rest is not None:
            values |= {"rest_px": list(self.rest)}
        if self.rotation is not None:
            values |= {"scan_rotation_deg": self.rotation.rotation_deg, "mirrored": self.rotation.mirrored}
        values |= {"k_step_invA": after.k_step_invA, "semiangle_mrad": after.optics.semiangle_mrad}
        return {**values, "mean_electrons": self.mean_electrons, "electrons_per_pattern": after.electrons_per_pattern}


def in_words(config: PrepareConfig, found: Found, before: Scan, after: Scan) -> list[str]:
    """A line for each step that was taken, in the order of the steps."""
    lines: list[str] = []
    if config.scan_crop is not None:
        lines.append(f"positions cut out: {after.shape[0]} x {after.shape[1]} of {before.shape[0]} x {before.shape[1]}")
    if found.dead is not None and found.hot is not None:
        lines.append(f"{found.dead.sum()} dead and {found.hot.sum()} hot pixels filled from their neighbours")
    if config.blind is not None and after.blind is not None:
        lines.append(f"{after.blind.sum()} pixels of a finished pattern are blind, by {config.blind}")
    if found.background:
        how = "found and taken away" if config.background is None else "taken away"
        lines.append(f"background {found.background:.5g} counts a pixel {how}")
    if found.gain != 1:
        lines.append(f"gain {found.gain:.5g} electrons per count{' found' if config.electrons_per_count is None else ''}")
    if config.noise_floor:
        lines.append(f"pixels below {config.noise_floor:g} electrons set to 0")
    turned = [name for name in ("flip_ky", "flip_kx", "transpose") if getattr(config, name)]
    if turned:
        lines.append(f"patterns mirrored: {', then '.join(turned)}")
    if config.detector_crop is not None:
        top, bottom, left, right = config.detector_crop
        lines.append(f"detector cut out: {bottom - top} x {right - left} px from row {top}, column {left}")
    lines += _calibration_words(config, found, before, after)
    if config.centre != "keep":
        mean, wander = found.shifts.mean((0, 1)), np.ptp(found.shifts, axis=(0, 1))
        by = "" if config.subpixel == "interpolate" else "whole pixels nearest to "
        lines.append(
            f"centred by {by}{mean[0]:+.2f}, {mean[1]:+.2f} px"
            f" (y, x); over the scan the beam wandered by {wander[0]:.2f}, {wander[1]:.2f} px"
        )
        if found.rest is not None:
            lines.append(
                f"the aperture of the scan's probe lies {found.rest[0]:+.2f}, {found.rest[1]:+.2f} px off the middle"
            )
    if config.bin > 1:
        lines.append(f"{config.bin} x {config.bin} pixels binned to one")
    if after.n_pixels != before.n_pixels or after.k_step_invA != before.k_step_invA:
        lines.append(f"window {after.n_pixels} px to {after.k_max_invA:.4g} 1/Å, a pixel of {after.pixel_size_A:.4g} Å")
    if config.beam == "sum":
        lines.append(f"beam of {found.mean_electrons:.6g} electrons a pattern, the mean sum")
    elif found.mean_electrons > 1.02 * after.electrons_per_pattern:
        lines.append(
            f"careful: the patterns hold {found.mean_electrons:.5g} electrons on average, more than the beam's "
            f"{after.electrons_per_pattern:.5g}; beam=sum takes theirs"
        )
    if found.rotation is not None:
        lines.append(found.rotation.words)
    if before.probe is not None and after.probe is None:
        lines.append("the scan's own probe no longer fits and is left out")
    if before.truth is not None and after.truth is None:
        lines.append("the true volume lies on another grid and is left out")
    return lines


def _calibration_words(config: PrepareConfig, found: Found, before: Scan, after: Scan) -> list[str]:
    if config.calibrate == "keep" or found.disk is None:
        return []
    disk = f"from a bright disk of {found.disk.radius:.2f} px"
    if config.calibrate == "k_step":
        return [f"detector pixel {after.k_step_invA / config.bin:.6g} 1/Å {disk} (was {before.k_step_invA:.6g})"]
    return [f"semi-angle {after.optics.semiangle_mrad:.4g} mrad {disk} (was {before.optics.semiangle_mrad:.4g})"]
