"""Scans in HDF5, told apart by what is in them: Dectris, Velox, Prismatic, py4DSTEM, NCEM, HyperSpy, NeXus, any."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.calibration import Calibration, find_raster
from mepdiff_core.config import check, from_dict
from mepdiff_core.file_calibration import Found, axis_values, flat_values, length_A, per_length_invA
from mepdiff_core.hdf5_heaps import check_heaps
from mepdiff_core.optics import Optics
from mepdiff_core.raw_scan import Patterns, RawScan, ScanOptions, axis_order, choose
from mepdiff_core.scan import FORMAT

OWN = "mepdiff scan"
COUNTED = "a counting detector: one count an electron"
METADATA = "the file's metadata"


def open_hdf5(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """Whatever kind of HDF5 this is."""
    import h5py
    import hdf5plugin  # noqa: F401  registers the compressions that detectors write

    check_heaps(path)
    file = stack.enter_context(h5py.File(path, "r"))
    if _text(file.attrs.get("format")) == FORMAT:
        return _own(path, file)
    check("optimizable_tensors" not in file, f"{path} is a result of PtyRAD: an object and a probe, without patterns")
    if "entry/data" in file and "entry/instrument/detector/detectorSpecific" in file:
        return _dectris(path, file, options)
    if "Version" in file and "Data/Image" in file:
        return _velox(path, file, options)
    if "Experiments" in file:
        return open_hyperspy(path, file, "HyperSpy .hspy", options, shapes(file["Experiments"], "Experiments/"))
    found = shapes(file)
    emd = {n: s for n, s in found.items() if "emd_group_type" in file[n].parent.attrs}
    if emd:
        return _emd(path, file, emd, options)
    nexus = {name: shape for name, shape in found.items() if _text(file[name].parent.attrs.get("NX_class")) == "NXdata"}
    if nexus:
        return _nexus(path, file, nexus, options)
    with path.open("rb") as start:
        matlab = start.read(10) == b"MATLAB 7.3"
    key = choose(path, found, options.key)
    source = file[key]
    words = "MATLAB 7.3" if matlab else "HDF5"
    patterns = Patterns(source, axis_order(source.ndim, options, reverse=matlab))
    return RawScan(path, words, patterns, True, {}, _shape_source(source), key)


def _own(path: Path, file: Any) -> RawScan:
    counts, positions = file["counts"], np.asarray(file["positions_A"][()], np.float64)
    optics = from_dict(Optics, json.loads(file.attrs["optics"]), f"{path}: optics")
    raster = find_raster(positions, counts.shape[:2]) if positions.shape == (counts.shape[0] * counts.shape[1], 2) else None
    step, rotation = raster or (None, None)
    thickness = float(file.attrs["thickness_A"]) if "thickness_A" in file.attrs else None
    k_step, electrons = float(file.attrs["k_step_invA"]), float(file.attrs["electrons_per_pattern"])
    values = flat_values(Calibration(optics, step, rotation, k_step, electrons, thickness))
    found = {name: Found(value, "the scan file") for name, value in values.items()}
    found["electrons_per_count"] = Found(1.0, "the scan file: its counts are electrons")
    notes = ("the positions are no raster: they have no step",) if raster is None else ()
    return RawScan(path, OWN, Patterns(counts, axis_order(4, ScanOptions())), True, found, notes=notes)


def shapes(group: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Arrays of 3 or 4 axes in a group of HDF5, by their paths."""
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, node: Any) -> None:
        shape = getattr(node, "shape", None)
        if shape is not None and len(shape) in (3, 4) and node.dtype.kind in "buifc":
            found[prefix + name] = tuple(int(n) for n in shape)

    group.visititems(visit)
    return found


def open_hyperspy(path: Path, root: Any, words: str, options: ScanOptions, found: Mapping[str, tuple[int, ...]]) -> RawScan:
    """A signal of HyperSpy, in HDF5 or Zarr: its axes say their steps and units."""
    data = {name: shape for name, shape in found.items() if name.endswith("/data")}
    key = choose(path, data, options.key)
    source, group = root[key], root[key.rpartition("/")[0]]
    axes = []
    for number in range(source.ndim):
        attributes = dict(group[f"axis-{number}"].attrs) if f"axis-{number}" in group else {}
        axes.append((_number(attributes.get("scale")), _text(attributes.get("units")), _text(attributes.get("name"))))
    order = axis_order(source.ndim, options)
    calibrations = calibrations_of_axes([axes[axis] for axis in order], "the file's axis")
    tem = "metadata/Acquisition_instrument/TEM"
    if tem in group:
        calibrations |= tem_values(dict(group[tem].attrs))
    return RawScan(path, words, Patterns(source, order), True, calibrations, _shape_source(source), key)


def tem_values(tem: Mapping[str, Any]) -> dict[str, Found]:
    """Beam energy and convergence angle as HyperSpy's metadata name them (keV, mrad)."""
    found: dict[str, Found] = {}
    energy, angle = _number(tem.get("beam_energy")), _number(tem.get("convergence_angle"))
    if energy > 0:
        found["optics.energy_eV"] = Found(energy * 1e3, f"{METADATA}: beam_energy")
    if angle > 0:
        found["optics.semiangle_mrad"] = Found(angle, f"{METADATA}: convergence_angle")
    return found


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


def _shape_source(source: Any) -> str | None:
    return "the file's array" if source.ndim == 4 else None


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return "" if text in ("_None_", "<undefined>") else text


def _number(value: Any) -> float:
    """A number, or not a number where there is none."""
    try:
        number = float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return math.nan
    return number if math.isfinite(number) else math.nan


class _Joined:
    """Several stacks of patterns, one after another."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        check(
            all(p.shape[1:] == self.shape[1:] and p.ndim == 3 for p in parts), "its data sets hold patterns of several sizes"
        )

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        first, last, _ = index[0].indices(self.shape[0])
        begins = self._ends - [part.shape[0] for part in self._parts]
        pieces = [
            part[max(first - begin, 0) : last - begin]
            for part, begin, end in zip(self._parts, begins, self._ends, strict=True)
            if first < end and begin < last
        ]
        return np.concatenate(pieces)


def _dectris(path: Path, file: Any, options: ScanOptions) -> RawScan:
    detector = file["entry/instrument/detector"]
    names = sorted(name for name in file["entry/data"] if name.startswith("data"))
    check(bool(names), f"{path} names no data files")
    parts = []
    for name in names:
        link = file["entry/data"].get(name, getlink=True)
        target = getattr(link, "filename", None)
        check(
            target is None or Path(target).name == target,
            f"{path}: its data set {name} points to {target}, outside its folder",
        )
        part = file["entry/data"].get(name)
        check(part is not None, f"{path} needs its data file {target}, which is not beside it; copy it there")
        parts.append(part)
    mask = detector.get("detectorSpecific/pixel_mask")
    dead = None if mask is None else np.asarray(mask[()]) != 0
    source = _Joined(parts)
    check(dead is None or dead.shape == source.shape[1:], "its pixel_mask has another shape than its patterns")
    energy = _number(detector.get("detectorSpecific/photon_energy", np.asarray(math.nan))[()])
    found = {"electrons_per_count": Found(1.0, COUNTED)}
    if energy > 0:
        found["optics.energy_eV"] = Found(energy, f"{METADATA}: photon_energy")
    notes = [f"{int(dead.sum())} pixels that the detector's pixel_mask calls dead are read as 0"] if dead is not None else []
    words = f"Dectris {_text(detector['description'][()]).removeprefix('Dectris ') if 'description' in detector else 'HDF5'}"
    patterns = Patterns(source, axis_order(3, options), dead=dead if dead is not None and dead.any() else None)
    return RawScan(path, words, patterns, True, found, None, "", tuple(n for n in notes if dead is not None and dead.any()))


def _velox(path: Path, file: Any, options: ScanOptions) -> RawScan:
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
        return _number(node)

    for name, where, factor in (
        ("optics.energy_eV", "Optics.AccelerationVoltage", 1.0),
        ("optics.semiangle_mrad", "Optics.BeamConvergence", 1e3),
        ("scan_rotation_deg", "Scan.ScanRotation", 180 / math.pi),
    ):
        number = value(where)
        if math.isfinite(number) and (number > 0 or name == "scan_rotation_deg"):
            found[name] = Found(number * factor, f"{METADATA}: {where}")
    unit = _text((about.get("BinaryResult") or {}).get("PixelUnitX"))
    pixel = value("BinaryResult.PixelSize.width")
    found |= axis_values(pixel, unit, f"{METADATA}: PixelSize {pixel:.6g} {unit}", scan_axis=False)
    # Velox keeps frames along the last axis
    order = axis_order(3, options) if options.axes else (2, 0, 1)
    return RawScan(path, "Velox EMD", Patterns(images[key], order), True, found, None, key)


def _dimension(group: Any, number: int) -> tuple[float, str, str]:
    node = group.get(f"dim{number}")
    if node is None or node.ndim != 1 or len(node) < 2 or node.dtype.kind not in "uif":
        return math.nan, "", ""
    return float(node[1]) - float(node[0]), _text(node.attrs.get("units")), _text(node.attrs.get("name"))


def _emd(path: Path, file: Any, found: Mapping[str, tuple[int, ...]], options: ScanOptions) -> RawScan:
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
            size, unit = _number(bundle.get(f"{kind}_pixel_size")), _text(bundle.get(f"{kind}_pixel_units"))
            value = axis_values(size, unit, f"{METADATA}: {kind}_pixel_size {size:.6g} {unit}", scan_axis=kind == "R")
            if value:
                calibrations.pop(name, None)
                calibrations |= value
        angle = _number(bundle.get("QR_rotation"))
        if math.isfinite(angle) and angle != 0:
            calibrations["scan_rotation_deg"] = Found(math.degrees(angle), f"{METADATA}: QR_rotation", certain=False)
    if "microscope" in file:
        microscope = file["microscope"].attrs
        energy = _number(microscope.get("accelerating_voltage", microscope.get("beam_energy")))
        if energy > 0:
            volts = energy * 1e3 if energy < 5000 else energy  # written in kV by some, in V by others
            calibrations["optics.energy_eV"] = Found(volts, f"{METADATA}: accelerating_voltage {energy:g}", energy >= 5000)
    return RawScan(path, words, Patterns(source, order), True, calibrations, _shape_source(source), key, notes)


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
    about = {} if node is None else {name: _number(value) for name, value in node.attrs.items()}
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


def _nexus(path: Path, file: Any, found: Mapping[str, tuple[int, ...]], options: ScanOptions) -> RawScan:
    key = choose(path, found, options.key)
    source, group = file[key], file[key].parent
    names = [_text(name) for name in np.atleast_1d(group.attrs.get("axes", []))]
    axes = []
    for name in names if len(names) == source.ndim else []:
        node = group.get(name)
        known = node is not None and getattr(node, "ndim", 0) == 1 and len(node) > 1
        step = float(node[1]) - float(node[0]) if known else math.nan
        axes.append((step, _text(node.attrs.get("units")) if known else "", name))
    order = axis_order(source.ndim, options)
    calibrations = calibrations_of_axes([axes[axis] for axis in order], "the file's axis") if axes else {}
    return RawScan(path, "NeXus", Patterns(source, order), True, calibrations, _shape_source(source), key)
