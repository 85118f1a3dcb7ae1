"""What a vendor's file says of how its patterns were taken, with the source of each value, and what a person must add."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mepdiff_core.calibration import Calibration
from mepdiff_core.config import check, from_dict, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics


@dataclass(frozen=True)
class KnownOptics:
    """The optics as far as they are known; null: not known.

    Attributes:
        energy_eV: beam energy, eV.
        semiangle_mrad: semi-convergence angle, mrad.
        overfocus_A: defocus as C10, Å; positive is over focus.
        Cs_A: third-order spherical aberration C30, Å.
        aberrations: further coefficients, as Optics takes them.
    """

    energy_eV: float | None = None
    semiangle_mrad: float | None = None
    overfocus_A: float | None = None
    Cs_A: float | None = None
    aberrations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileCalibration:
    """How the patterns of a file were taken, as far as it is known; null: not known.

    Attributes:
        optics: the microscope.
        scan_step_A: distance between neighbouring positions, Å.
        scan_rotation_deg: turns the fast scan axis from +x towards +y, degrees.
        k_step_invA: width of a detector pixel, 1/Å.
        detector_pixel_mrad: width of a detector pixel as an angle, mrad; says what k_step_invA does, so give one.
        electrons_per_count: electrons that one count of the file stands for; 1 for a detector that counts them.
        electrons_per_pattern: electrons of the beam in one pattern, also those that missed the detector.
        thickness_A: specimen thickness, Å.

    Raises:
        InputError: a value that no measurement has.
    """

    optics: KnownOptics = field(default_factory=KnownOptics)
    scan_step_A: float | None = None
    scan_rotation_deg: float | None = None
    k_step_invA: float | None = None
    detector_pixel_mrad: float | None = None
    electrons_per_count: float | None = None
    electrons_per_pattern: float | None = None
    thickness_A: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in flat_values(self).items() if name in POSITIVE}
        for name, value in given.items():
            check(0 < value < math.inf, f"{name} is {value}; expected more than 0")


POSITIVE = (
    "scan_step_A",
    "k_step_invA",
    "detector_pixel_mrad",
    "electrons_per_count",
    "electrons_per_pattern",
    "thickness_A",
)
NEEDED = {
    "optics.energy_eV": ("beam energy", "300e3"),
    "optics.semiangle_mrad": ("semi-convergence angle", "21.4"),
    "optics.overfocus_A": ("defocus, positive over focus", "0"),
    "scan_step_A": ("distance between positions", "0.5"),
    "k_step_invA": ("width of a detector pixel, or detector_pixel_mrad", "0.04"),
    "electrons_per_count": ("1 for a detector that counts electrons", "1"),
}
"""What no scan can be used without: its meaning and an example."""
ASSUMED = {"optics.Cs_A": 0.0, "scan_rotation_deg": 0.0}
"""What is taken to be so where nobody says otherwise, and shown as taken so."""


@dataclass(frozen=True)
class Found:
    """A value and where it comes from.

    Attributes:
        value: in the unit that its name says.
        source: in words.
        certain: False where the file leaves the value's unit or meaning open, so that a person must confirm it.
    """

    value: float
    source: str
    certain: bool = True


def flat_values(calibration: FileCalibration | Calibration) -> dict[str, float]:
    """The values that are known by their dotted names."""
    values = to_dict(calibration)
    optics = values.pop("optics")
    aberrations = optics.pop("aberrations")
    values |= {f"optics.{name}": value for name, value in optics.items()}
    values |= {f"optics.aberrations.{name}": value for name, value in aberrations.items()}
    return {name: value for name, value in values.items() if value is not None}


def given_values(given: Mapping[str, Any] | Calibration | FileCalibration | None) -> dict[str, float]:
    """What a person gives, by dotted names.

    Raises:
        InputError: an unknown name, or a value that no measurement has.
    """
    if given is None:
        return {}
    if not isinstance(given, Calibration | FileCalibration):
        given = from_dict(FileCalibration, given, "calibration")
    return flat_values(given)


@dataclass(frozen=True)
class Settled:
    """A file's calibration with what a person gave put over it.

    Attributes:
        values: by dotted names; ``k_step_invA`` is there too where the detector's pixel is known as an angle.
        missing: names that are needed and not there, and names that are there and not certain.
    """

    values: dict[str, Found]
    missing: list[str]

    def check_complete(self, path: object) -> None:
        """All that a scan needs is there.

        Raises:
            InputError: it is not; the message names every missing value and how to give it.
        """
        if not self.missing:
            return
        asked = "; ".join(self.ask(name) for name in self.missing)
        raise InputError(
            f"{path} does not say all of how it was taken; give each of these by --calibrate NAME=VALUE, for instance"
            f" {asked}"
        )

    def ask(self, name: str) -> str:
        """How to give a missing value, with an example or with what the file seems to say."""
        found = self.values.get(name)
        if found is not None:
            return f"{name}={found.value:.6g} (confirm or correct it: {found.source})"
        meaning, example = NEEDED[name]
        return f"{name}={example} ({meaning})"

    def calibration(self, electrons_per_pattern: float) -> Calibration:
        """The complete calibration; ``electrons_per_pattern`` is used where nobody gave another."""
        values = {name: found.value for name, found in self.values.items()}
        aberrations = {n.rpartition(".")[2]: v for n, v in values.items() if n.startswith("optics.aberrations.")}
        optics = Optics(
            **{name: values[f"optics.{name}"] for name in ("energy_eV", "semiangle_mrad", "overfocus_A", "Cs_A")},
            aberrations=aberrations,
        )
        return Calibration(
            optics,
            values["scan_step_A"],
            values["scan_rotation_deg"],
            values["k_step_invA"],
            values.get("electrons_per_pattern", electrons_per_pattern),
            values.get("thickness_A"),
        )


def settle(found: Mapping[str, Found], given: Mapping[str, float]) -> Settled:
    """Put what a person gave over what the file says."""
    values = {**found, **{name: Found(value, "given") for name, value in given.items()}}
    if "detector_pixel_mrad" in given and "k_step_invA" not in given:
        values.pop("k_step_invA", None)
    elif "k_step_invA" in given:
        values.pop("detector_pixel_mrad", None)
    energy, pixel = values.get("optics.energy_eV"), values.get("detector_pixel_mrad")
    if "k_step_invA" not in values and energy is not None and pixel is not None:
        k_step = pixel.value * 1e-3 / Optics(energy.value).wavelength_A
        source = f"{pixel.source}, {pixel.value:.6g} mrad at {energy.value / 1e3:g} kV"
        values["k_step_invA"] = Found(k_step, source, pixel.certain and energy.certain)
    for name, value in ASSUMED.items():
        values.setdefault(name, Found(value, "assumed, for the file does not say"))
    if "k_step_invA" in values:
        values.pop("detector_pixel_mrad", None)
    missing = [name for name in NEEDED if name not in values]
    return Settled(values, missing + [name for name, value in values.items() if not value.certain])


COUNTED = "a counting detector: one count an electron"
METADATA = "the file's metadata"
_LENGTH_A = {"å": 1.0, "a": 1.0, "ang": 1.0, "angstrom": 1.0, "nm": 10.0, "pm": 0.01, "µm": 1e4, "um": 1e4, "m": 1e10}


def length_A(value: float, unit: str) -> float | None:
    """A length in Å; None where the unit measures no length."""
    factor = _LENGTH_A.get(_spelled(unit))
    return None if factor is None else abs(value) * factor


def per_length_invA(value: float, unit: str) -> float | None:
    """A spatial frequency in 1/Å; None where the unit is no inverse of a length."""
    match = re.fullmatch(r"1/(.+)|(.+?)(?:\^|\*\*)?[-−]1", _spelled(unit))
    factor = None if match is None else _LENGTH_A.get(match[1] or match[2])
    return None if factor is None else abs(value) / factor


def angle_mrad(value: float, unit: str) -> float | None:
    """An angle in mrad; None where the unit measures none."""
    factor = {"mrad": 1.0, "rad": 1e3, "deg": 1e3 * math.pi / 180}.get(_spelled(unit))
    return None if factor is None else abs(value) * factor


def axis_values(step: float, unit: str, source: str, scan_axis: bool) -> dict[str, Found]:
    """What the step and unit of an axis say: a scan step, or a detector pixel."""
    if not (math.isfinite(step) and step != 0):
        return {}
    if scan_axis:
        length = length_A(step, unit)
        return {} if length is None else {"scan_step_A": Found(length, source)}
    k_step, angle = per_length_invA(step, unit), angle_mrad(step, unit)
    if k_step is not None:
        return {"k_step_invA": Found(k_step, source)}
    return {} if angle is None else {"detector_pixel_mrad": Found(angle, source)}


def calibrations_of_axes(axes: list[tuple[float, str, str]], source: str) -> dict[str, Found]:
    """What (step, unit, name) of the axes of a scan say; axes of the detector come last."""
    found: dict[str, Found] = {}
    for number, (step, unit, name) in enumerate(axes):
        words = f"{source} {name or number}: {step:.6g} {unit}"
        for key, value in axis_values(step, unit, words, scan_axis=number < len(axes) - 2).items():
            known = found.setdefault(key, value)
            if not math.isclose(known.value, value.value, rel_tol=1e-3):  # pixels that are no squares
                found[key] = Found(known.value, f"{known.source}; but {value.source}", certain=False)
    return found


def _spelled(unit: str) -> str:
    text = re.sub(r"[\s\[\]_{}()]", "", str(unit)).lower()
    return text.replace("\N{ANGSTROM SIGN}".lower(), "å").replace("\N{GREEK SMALL LETTER MU}", "µ").replace("⁻¹", "-1")
