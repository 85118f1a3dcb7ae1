"""Scans in the HDF5 files that are all called EMD: Velox, Prismatic, py4DSTEM, NCEM."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.file_calibration import METADATA, Found, axis_values, calibrations_of_axes, length_A, per_length_invA
from mepdiff_core.hdf5_attributes import number_of, text_of
from mepdiff_core.raw_scan import Patterns, RawScan, ScanOptions, axis_order, choose


def open_velox(path: Path, file: Any, options: ScanOptions) -> RawScan:
    """Velox keeps stacks of camera images, frames along the last axis, and JSON about each of them."""
    images = {f"Data/Image/{name}/Data": file[f"Data/Image/{name}/Data"] for name in file["Data/Image"]}
    key = choose(path, {n: i.shape for n, i in images.items() if i.ndim == 3 and i.shape[2] > 1}, options.key)
    about: dict[str, Any] = {}
    metadata = file.get(f"{key.rpartition('/')[0]}/Metadata")
    if metadata is not None:
        text = bytes(np.asarray(metadata[:, 0], np.uint8)).split(b"\0")[0].decode("utf-8", "replace")
        about = json.loads(text)
    found: dict[str, Found] = {}

    def value(name: str) -> float:
        node: Any = about
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return number_of(node)

    for name, where, factor in (
        ("optics.energy_eV", "Optics.AccelerationVoltage", 1.0),
        ("optics.semiangle_mrad", "Optics.BeamConvergence", 1e3),
        ("scan_rotation_deg", "Scan.ScanRotation", 180 / math.pi),
    ):
        number = value(where)
        if math.isfinite(number) and (number > 0 or name == "scan_rotation_deg"):
            found[name] = Found(number * factor, f"{METADATA}: {where}")
    unit = text_of((about.get("BinaryResult") or {}).get("PixelUnitX"))
    pixel = value("BinaryResult.PixelSize.width")
    found |= axis_values(pixel, unit, f"{METADATA}: PixelSize {pixel:.6g} {unit}", scan_axis=False)
    order = axis_order(3, options) if options.axes else (2, 0, 1)
    return RawScan(path, "Velox EMD", Patterns(images[key], order), True, found, None, key)


def open_emd(path: Path, file: Any, found: Mapping[str, tuple[int, ...]], options: ScanOptions) -> RawScan:
    """An EMD group of Berkeley's layout: data with an array for each axis."""
    key = choose(path, found, options.key)
    source, group = file[key], file[key].parent
    first = 0 if "dim0" in group else 1  # the older layout counts from 1
    axes = [_dimension(group, number) for number in range(first, first + source.ndim)]
    if "4DSTEM_simulation" in file:
        return _prismatic(path, file, key, axes, options)
    order = axis_order(source.ndim, options)
    notes: tuple[str, ...] = ()
    reciprocal = [axis_values(step, unit, "", scan_axis=False) != {} for step, unit, _ in axes]
    if options.axes is None and reciprocal == [True, True, False, False]:  # as HyperSpy writes it: fastest axis first
        order, notes = (3, 2, 1, 0), ("the file keeps its axes from the fastest to the slowest, as their units show",)
    calibrations = calibrations_of_axes([axes[axis] for axis in order], "the file's axis")
    words = "NCEM EMD"
    for bundle in _calibration_bundles(file):
        words = "py4DSTEM"
        for kind, name in (("R", "scan_step_A"), ("Q", "k_step_invA")):
            size, unit = number_of(bundle.get(f"{kind}_pixel_size")), text_of(bundle.get(f"{kind}_pixel_units"))
            value = axis_values(size, unit, f"{METADATA}: {kind}_pixel_size {size:.6g} {unit}", scan_axis=kind == "R")
            if value:
                calibrations.pop(name, None)
                calibrations |= value
        angle = number_of(bundle.get("QR_rotation"))
        if math.isfinite(angle) and angle != 0:
            calibrations["scan_rotation_deg"] = Found(math.degrees(angle), f"{METADATA}: QR_rotation", certain=False)
    if "microscope" in file:
        microscope = file["microscope"].attrs
        energy = number_of(microscope.get("accelerating_voltage", microscope.get("beam_energy")))
        if energy > 0:
            volts = energy * 1e3 if energy < 5000 else energy  # written in kV by some, in V by others
            calibrations["optics.energy_eV"] = Found(volts, f"{METADATA}: accelerating_voltage {energy:g}", energy >= 5000)
    return RawScan(
        path,
        words,
        Patterns(source, order),
        True,
        calibrations,
        "the file's array" if source.ndim == 4 else None,
        key,
        notes,
    )


def _dimension(group: Any, number: int) -> tuple[float, str, str]:
    node = group.get(f"dim{number}")
    if node is None or node.ndim != 1 or len(node) < 2 or node.dtype.kind not in "uif":
        return math.nan, "", ""
    return float(node[1]) - float(node[0]), text_of(node.attrs.get("units")), text_of(node.attrs.get("name"))


def _calibration_bundles(file: Any) -> Iterator[dict[str, Any]]:
    """py4DSTEM's calibration, as its versions keep it."""
    for root in file.values():
        node = root.get("metadatabundle/calibration") if hasattr(root, "get") else None
        if node is not None:
            yield {name: value[()] for name, value in node.items() if getattr(value, "shape", None) == ()}
    node = file.get("4DSTEM_experiment/metadata/metadata_0/calibration")
    if node is not None:
        yield dict(node.attrs)


def _prismatic(path: Path, file: Any, key: str, axes: list[tuple[float, str, str]], options: ScanOptions) -> RawScan:
    """Prismatic labels its axes in nm and 1/nm and means Å and 1/Å, as its own parameters show."""
    node = file.get("4DSTEM_simulation/metadata/metadata_0/original/simulation_parameters")
    about = {} if node is None else {name: number_of(value) for name, value in node.attrs.items()}
    found: dict[str, Found] = {}
    source = "the simulation's parameters"
    for name, short, factor in (
        ("optics.energy_eV", "E", 1e3),
        ("optics.semiangle_mrad", "sa", 1.0),
        ("optics.overfocus_A", "df", -1.0),
        ("optics.Cs_A", "C3", 1.0),
    ):
        if math.isfinite(about.get(short, math.nan)):
            # which sign of its defocus is over focus, Prismatic leaves open
            certain = name != "optics.overfocus_A" or about[short] == 0
            found[name] = Found(factor * about[short] + 0.0, f"{source}: {short}", certain)
    step = length_A(axes[1][0], "Å")
    if step and math.isclose(step, about.get("ry", math.nan), rel_tol=1e-3):
        found["scan_step_A"] = Found(step, f"the file's axis {axes[1][2]}; in Å, as the parameter ry is")
    elif step:
        found["scan_step_A"] = Found(step, f"the file's axis {axes[1][2]}, taken to be in Å", certain=False)
    k_step = per_length_invA(axes[3][0], "1/Å")
    if k_step:
        found["k_step_invA"] = Found(k_step, f"the file's axis {axes[3][2]}; in 1/Å, as Prismatic computes")
    # its arrays are (x, y, kx, ky)
    order = axis_order(4, options) if options.axes else (1, 0, 3, 2)
    notes = ("patterns are fractions of the beam: electrons_per_count is the number of electrons in a pattern",)
    return RawScan(path, "Prismatic EMD", Patterns(file[key], order), True, found, "the file's array", key, notes)
