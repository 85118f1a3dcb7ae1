"""What a scan was taken with, as one strict config that a person can check, correct and keep as a preset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, from_dict, merge, to_dict
from mepdiff_core.optics import Optics
from mepdiff_core.scan import Scan, raster_positions


@dataclass(frozen=True)
class Calibration:
    """Optics, geometry and dose of a scan.

    Attributes:
        optics: the microscope.
        scan_step_A: distance between neighbouring positions, Å; null where the positions are no raster and stay as they are.
        scan_rotation_deg: turns the fast scan axis from +x towards +y, degrees; null as for the step.
        k_step_invA: width of a detector pixel, 1/Å.
        electrons_per_pattern: electrons of the beam in one pattern (dose times step squared), also those that missed the
            detector.
        thickness_A: specimen thickness, Å; null where nobody knows it yet.

    Raises:
        InputError: a value that no measurement has.
    """

    optics: Optics = field(default_factory=Optics)
    scan_step_A: float | None = None
    scan_rotation_deg: float | None = None
    k_step_invA: float = 0.0390625
    electrons_per_pattern: float = 1.0
    thickness_A: float | None = None

    def __post_init__(self) -> None:
        for name in ("scan_step_A", "k_step_invA", "electrons_per_pattern", "thickness_A"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"{name} is {value}; expected more than 0")
        check(
            self.scan_rotation_deg is None or math.isfinite(self.scan_rotation_deg),
            f"scan_rotation_deg is {self.scan_rotation_deg}; expected a number",
        )
        check(
            (self.scan_step_A is None) == (self.scan_rotation_deg is None),
            f"scan_step_A is {self.scan_step_A} and scan_rotation_deg is {self.scan_rotation_deg}; give both or neither",
        )

    @property
    def dose_e_per_A2(self) -> float | None:
        """Electrons per Å² of specimen; None where the positions are no raster."""
        return None if self.scan_step_A is None else self.electrons_per_pattern / self.scan_step_A**2


def calibration_of(scan: Scan) -> Calibration:
    """The calibration that a scan has."""
    step, rotation = find_raster(scan.positions_A, scan.shape) or (None, None)
    thickness = None if scan.thickness_A is None else float(scan.thickness_A)
    k_step, electrons = float(scan.k_step_invA), float(scan.electrons_per_pattern)
    # through from_dict: numbers of numpy become Python's, which YAML can write
    optics = from_dict(Optics, {name: _plain(value) for name, value in to_dict(scan.optics).items()}, "optics")
    return Calibration(optics, step, rotation, k_step, electrons, thickness)


def calibrate(scan: Scan, changes: Calibration | Mapping[str, Any]) -> Scan:
    """The scan with another calibration.

    Args:
        scan: a measurement.
        changes: a whole calibration, or the values to change: ``{"optics": {"overfocus_A": 150}, "scan_step_A": 0.5}``.
            An aberration that is None is taken away.

    Returns:
        The scan with these put in. A probe of its own is kept only where optics and detector pixel stay what they were.

    Raises:
        InputError: an unknown name, or values that do not fit the scan.
    """
    now = calibration_of(scan)
    if not isinstance(changes, Calibration):
        merged = merge(to_dict(now), changes)
        if isinstance(merged["optics"], Mapping) and isinstance(merged["optics"]["aberrations"], Mapping):
            kept = {name: value for name, value in merged["optics"]["aberrations"].items() if value is not None}
            merged["optics"] = {**merged["optics"], "aberrations": kept}
        changes = from_dict(Calibration, merged, "calibration")
    if changes == now:
        return scan
    positions = scan.positions_A
    raster = (changes.scan_step_A, changes.scan_rotation_deg)
    if changes.scan_step_A is not None and raster != (now.scan_step_A, now.scan_rotation_deg):
        check(
            now.scan_step_A is not None,
            "the scan's positions are no raster of one step; leave scan_step_A and scan_rotation_deg out",
        )
        assert changes.scan_rotation_deg is not None
        positions = scan.positions_A[0] + raster_positions(scan.shape, changes.scan_step_A, changes.scan_rotation_deg)
    same_probe = changes.optics == now.optics and changes.k_step_invA == now.k_step_invA
    return replace(
        scan,
        positions_A=positions,
        optics=changes.optics,
        k_step_invA=changes.k_step_invA,
        electrons_per_pattern=changes.electrons_per_pattern,
        thickness_A=changes.thickness_A,
        probe=scan.probe if same_probe else None,
    )


def _plain(value: Any) -> Any:
    return {name: float(v) for name, v in value.items()} if isinstance(value, Mapping) else float(value)


def find_raster(positions_A: npt.NDArray[np.float64], shape: tuple[int, int]) -> tuple[float, float] | None:
    """Step in Å and rotation in degrees of raster positions; None where they are no raster (to a thousandth of a step)."""
    rows, columns = shape
    if max(shape) < 2:
        return None
    grid = positions_A.reshape(rows, columns, 2)
    # the slow axis is the fast one turned by 90 degrees
    fast = (grid[0, -1] - grid[0, 0]) / (columns - 1) if columns > 1 else (grid[-1, 0] - grid[0, 0])[::-1] / (rows - 1)
    if columns == 1:
        fast = fast * (-1, 1)
    step = float(np.hypot(*fast))
    rotation = math.degrees(math.atan2(fast[0], fast[1]))
    if step == 0:
        return None
    # the round numbers a person gave, where the positions are just that
    for candidate in ((round(step, 6), round(rotation, 6) + 0.0), (step, rotation)):
        expected = positions_A[0] + raster_positions(shape, *candidate)
        if np.abs(positions_A - expected).max() <= 1e-3 * step:
            return candidate
    return None
