"""Scans in HDF5, told apart by what is in them: Dectris, Velox, Prismatic, py4DSTEM, NCEM, HyperSpy, NeXus, any."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.calibration import Calibration, find_raster
from mepdiff_core.config import check, from_dict
from mepdiff_core.emd_scans import open_emd, open_velox
from mepdiff_core.file_calibration import COUNTED, METADATA, Found, calibrations_of_axes, flat_values
from mepdiff_core.hdf5_attributes import number_of, text_of
from mepdiff_core.hdf5_damage import check_heaps
from mepdiff_core.optics import Optics
from mepdiff_core.raw_scan import Patterns, RawScan, ScanOptions, axis_order, choose
from mepdiff_core.scan import FORMAT

OWN = "mepdiff scan"


LEAST_STORED = 0.1
"""Part of the chunks of an array that must be in the file: a scan that was stopped has some, a damaged shape almost none."""


def open_hdf5(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """Whatever kind of HDF5 this is.

    Raises:
        InputError: no patterns, or hardly any of them are in the file.
    """
    raw = _open(path, options, stack)
    stored, chunks = raw.patterns.stored_chunks()
    check(
        stored >= LEAST_STORED * chunks,
        f"{path} holds {stored} of the {chunks} chunks of its patterns; it is damaged, or was hardly begun",
    )
    if stored == chunks:
        return raw
    note = f"{chunks - stored} of the {chunks} chunks of its patterns are not in the file and read as 0"
    return replace(raw, notes=(*raw.notes, note))


def _open(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    import h5py
    import hdf5plugin  # noqa: F401  registers the compressions that detectors write

    check_heaps(path)
    file = stack.enter_context(h5py.File(path, "r"))
    if text_of(file.attrs.get("format")) == FORMAT:
        return _own(path, file)
    check("optimizable_tensors" not in file, f"{path} is a result of PtyRAD: an object and a probe, without patterns")
    if "entry/data" in file and "entry/instrument/detector/detectorSpecific" in file:
        return _dectris(path, file, options)
    if "Version" in file and "Data/Image" in file:
        return open_velox(path, file, options)
    if "Experiments" in file:
        return open_hyperspy(path, file, "HyperSpy .hspy", options, shapes(file["Experiments"], "Experiments/"))
    found = shapes(file)
    emd = {n: s for n, s in found.items() if "emd_group_type" in file[n].parent.attrs}
    if emd:
        return open_emd(path, file, emd, options)
    nexus = {name: shape for name, shape in found.items() if text_of(file[name].parent.attrs.get("NX_class")) == "NXdata"}
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
        axes.append((number_of(attributes.get("scale")), text_of(attributes.get("units")), text_of(attributes.get("name"))))
    order = axis_order(source.ndim, options)
    calibrations = calibrations_of_axes([axes[axis] for axis in order], "the file's axis")
    tem = "metadata/Acquisition_instrument/TEM"
    if tem in group:
        calibrations |= tem_values(dict(group[tem].attrs))
    return RawScan(path, words, Patterns(source, order), True, calibrations, _shape_source(source), key)


def tem_values(tem: Mapping[str, Any]) -> dict[str, Found]:
    """Beam energy and convergence angle as HyperSpy's metadata name them (keV, mrad)."""
    found: dict[str, Found] = {}
    energy, angle = number_of(tem.get("beam_energy")), number_of(tem.get("convergence_angle"))
    if energy > 0:
        found["optics.energy_eV"] = Found(energy * 1e3, f"{METADATA}: beam_energy")
    if angle > 0:
        found["optics.semiangle_mrad"] = Found(angle, f"{METADATA}: convergence_angle")
    return found


def _shape_source(source: Any) -> str | None:
    return "the file's array" if source.ndim == 4 else None


class _Joined:
    """Several stacks of patterns, one after another."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        check(
            all(p.shape[1:] == self.shape[1:] and p.ndim == 3 for p in parts), "its data sets hold patterns of several sizes"
        )

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        first, last, _ = index[0].indices(self.shape[0])
        begins = self._ends - [part.shape[0] for part in self.parts]
        pieces = [
            part[max(first - begin, 0) : last - begin]
            for part, begin, end in zip(self.parts, begins, self._ends, strict=True)
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
    energy = number_of(detector.get("detectorSpecific/photon_energy", np.asarray(math.nan))[()])
    found = {"electrons_per_count": Found(1.0, COUNTED)}
    if energy > 0:
        found["optics.energy_eV"] = Found(energy, f"{METADATA}: photon_energy")
    notes = [f"{int(dead.sum())} pixels that the detector's pixel_mask calls dead are read as 0"] if dead is not None else []
    words = (
        f"Dectris {text_of(detector['description'][()]).removeprefix('Dectris ') if 'description' in detector else 'HDF5'}"
    )
    patterns = Patterns(source, axis_order(3, options), dead=dead if dead is not None and dead.any() else None)
    return RawScan(path, words, patterns, True, found, None, "", tuple(n for n in notes if dead is not None and dead.any()))


def _nexus(path: Path, file: Any, found: Mapping[str, tuple[int, ...]], options: ScanOptions) -> RawScan:
    key = choose(path, found, options.key)
    source, group = file[key], file[key].parent
    names = [text_of(name) for name in np.atleast_1d(group.attrs.get("axes", []))]
    axes = []
    for name in names if len(names) == source.ndim else []:
        node = group.get(name)
        known = node is not None and getattr(node, "ndim", 0) == 1 and len(node) > 1
        step = float(node[1]) - float(node[0]) if known else math.nan
        axes.append((step, text_of(node.attrs.get("units")) if known else "", name))
    order = axis_order(source.ndim, options)
    calibrations = calibrations_of_axes([axes[axis] for axis in order], "the file's axis") if axes else {}
    return RawScan(path, "NeXus", Patterns(source, order), True, calibrations, _shape_source(source), key)
