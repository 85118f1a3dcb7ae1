"""Scans in vendors' binary formats, through RosettaSciIO: EMPAD, Merlin, NanoMegas, TVIPS, Gatan."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.config import check
from mepdiff_core.file_calibration import COUNTED, METADATA, Found, angle_mrad, calibrations_of_axes, per_length_invA
from mepdiff_core.raw_scan import Mapped, Patterns, RawScan, ScanOptions, axis_order, choose

EMPAD_PIXELS, EMPAD_ROWS = 128, 130
"""An EMPAD frame is 128 rows of 128 pixels; two rows of the detector's own come with each."""


def open_empad(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """EMPAD: an XML file with its raw file beside it, or the raw file alone."""
    xml = path if path.suffix.lower() == ".xml" else path.with_suffix(".xml")
    if not xml.exists():
        return _empad_raw(path, options)
    from rsciio.empad import file_reader

    raw_name = re.search(r"<raw_file\s[^>]*filename=\"([^\"]*)\"", xml.read_text(encoding="utf-8", errors="replace"))
    check(raw_name is not None, f"{xml} names no raw file; it is no EMPAD acquisition")
    assert raw_name is not None
    check(
        Path(raw_name[1]).name == raw_name[1] and (xml.parent / raw_name[1]).is_file(),
        f"{xml} names the raw file {raw_name[1]}, which is not beside it; copy it there",
    )
    with _quiet() as notes:
        (signal,) = file_reader(str(xml), lazy=True)
    axes = _axes(signal)
    patterns = Patterns(signal["data"], axis_order(len(axes), options))
    source = "the XML file: scan size" if len(axes) == 4 else None
    return RawScan(path, "EMPAD", patterns, True, calibrations_of_axes(axes, "the XML file's"), source, "", tuple(notes))


def _empad_raw(path: Path, options: ScanOptions) -> RawScan:
    size = path.stat().st_size
    rows = [r for r in (EMPAD_ROWS, EMPAD_PIXELS) if size % (r * EMPAD_PIXELS * 4) == 0]
    check(bool(rows), f"{path} has {size} bytes, which is no whole number of EMPAD frames; is it complete?")
    named = re.search(r"x(\d+)_y(\d+)", path.stem)
    shape = (int(named[2]), int(named[1])) if named else None
    if len(rows) == 2:  # 64 frames with the two extra rows are as long as 65 without
        wanted = options.scan_shape or shape
        rows = [r for r in rows if wanted and wanted[0] * wanted[1] * r * EMPAD_PIXELS * 4 == size]
        check(bool(rows), f"{path}: its size allows frames of 130 and of 128 rows; give --scan-shape Y X")
    extra = rows[0] - EMPAD_PIXELS
    frame = np.dtype([("data", "<f4", (EMPAD_PIXELS, EMPAD_PIXELS)), ("rest", "<f4", (extra, EMPAD_PIXELS))])
    frames = Mapped(lambda: np.memmap(path, frame, mode="r")["data"])
    known = shape is not None and shape[0] * shape[1] == frames.shape[0]
    patterns = Patterns(frames, axis_order(3, options), shape if known else None)
    source = "the file's name" if known else None
    return RawScan(path, "EMPAD raw", patterns, True, {}, source)


def open_merlin(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """Quantum Detectors' Merlin: .mib, with its .hdr beside it where there is one."""
    from rsciio.quantumdetector import file_reader, load_mib_data

    with _quiet() as notes:
        frames = len(load_mib_data(str(path), lazy=True))
        (signal,) = file_reader(str(path), lazy=True)
        header = signal["original_metadata"].get("hdr_file")
        shape = signal["data"].shape
        known = len(shape) == 4 and shape[0] * shape[1] == frames and options.scan_shape is None
        if not known:  # all frames in a row, also those of a line that was not finished
            (signal,) = file_reader(str(path), lazy=True, navigation_shape=(1, frames))
    data = signal["data"]
    per_trigger = 1 if header is None else int(header.get("Frames per Trigger (Number)", 1))
    source = "the .hdr file: frames per trigger" if per_trigger > 1 else "pauses in the frames' time stamps"
    if header is None:
        notes.append(f"there is no {path.with_suffix('.hdr').name} beside it")
    announced = frames if header is None else int(header.get("Frames in Acquisition (Number)", frames))
    if announced not in (0, frames):
        notes.append(f"the .hdr file announces {announced} frames, the file holds {frames}")
    patterns = Patterns(data, axis_order(data.ndim, options))
    found = {"electrons_per_count": Found(1.0, COUNTED)}
    return RawScan(path, "Merlin .mib", patterns, True, found, source if known else None, "", tuple(notes))


def open_blockfile(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """NanoMegas' block file; its header keeps no units, so a person must confirm what it says."""
    from rsciio.blockfile import file_reader

    with _quiet() as notes:
        (signal,) = file_reader(str(path), lazy=True)
    header: Mapping[str, Any] = signal["original_metadata"]["blockfile_header"]
    step, step_y = float(header["SX"]), float(header["SY"])
    found: dict[str, Found] = {}
    if step > 0:
        words = f"the header's SX {step:g}, taken to be in nm" + ("" if step == step_y else f", but its SY is {step_y:g}")
        found["scan_step_A"] = Found(step * 10, words, certain=False)
    camera, pixel = float(header["Camera_length"]), float(header["SDP"])  # 0.1 mm; hundredths of pixels per cm
    if camera > 0 and pixel > 0:
        words = f"the header's Camera_length {camera / 10:g} mm and SDP {pixel / 100:g} pixels per cm"
        found["detector_pixel_mrad"] = Found(1e3 * (1000 / pixel) / (camera / 10), words, certain=False)
    energy, rotation = float(header["Beam_energy"]), float(header["Scan_rotation"]) / 100
    if energy > 0:
        found["optics.energy_eV"] = Found(energy, f"{METADATA}: Beam_energy")
    if rotation:
        found["scan_rotation_deg"] = Found(rotation, f"{METADATA}: Scan_rotation", certain=False)
    notes += [f"the file's note: {' '.join(str(header['Note']).split())}"] if header.get("Note") else []
    if "gamma : on" in str(header.get("Note", "")):
        notes.append("the camera's gamma was on: its counts are not proportional to electrons")
    patterns = Patterns(signal["data"], axis_order(4, options))
    return RawScan(path, "NanoMegas block file", patterns, True, found, "the file's header", "", tuple(notes))


def open_tvips(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """TVIPS camera stream: frames in a row, over files _000, _001, ..."""
    from rsciio.tvips import file_reader

    check(
        re.search(r"_000\.tvips$", path.name, re.IGNORECASE) is not None,
        f"{path}: give the first file of the stream, whose name ends in _000.tvips",
    )
    with _quiet() as notes:
        (signal,) = file_reader(str(path), lazy=True)
    header = signal["original_metadata"]["tvips_header"]
    found: dict[str, Found] = {}
    energy = float(header["ht"])
    if energy > 0:
        volts = energy if energy > 1500 else energy * 1e3  # written in V or in kV
        found["optics.energy_eV"] = Found(volts, f"{METADATA}: ht {energy:g}", certain=energy > 1500)
    notes.append(f"the header's pixelsize {float(header['pixelsize']):g} has no certain unit and is not used")
    return RawScan(path, "TVIPS", Patterns(signal["data"], axis_order(3, options)), True, found, None, "", tuple(notes))


def open_gatan(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """Gatan DigitalMicrograph .dm3 and .dm4."""
    from rsciio.digitalmicrograph import file_reader

    with _quiet() as notes:
        signals = file_reader(str(path), lazy=True)
    images = {f"image-{i}": signal for i, signal in enumerate(signals) if signal["data"].ndim in (3, 4)}
    key = choose(path, {name: signal["data"].shape for name, signal in images.items()}, options.key)
    signal = images[key]
    data, axes = signal["data"], _axes(signal)
    order = axis_order(data.ndim, options)
    reciprocal = [per_length_invA(step, unit) is not None or angle_mrad(step, unit) is not None for step, unit, _ in axes]
    if options.axes is None and reciprocal == [True, True, False, False]:
        order = (2, 3, 0, 1)
        notes.append("the file keeps the detector's axes first, as their units show")
    found = calibrations_of_axes([axes[axis] for axis in order], "the file's axis")
    image = signal["original_metadata"]["ImageList"]["TagGroup0"]
    voltage = _number(image, "ImageTags", "Microscope Info", "Voltage")
    if voltage > 0:
        found["optics.energy_eV"] = Found(voltage, f"{METADATA}: Microscope Info, Voltage")
    brightness = _number(image, "ImageData", "Calibrations", "Brightness", "Scale")
    unit = image.get("ImageData", {}).get("Calibrations", {}).get("Brightness", {}).get("Units") or ""
    if brightness > 0 and str(unit).strip().lower() in ("e-", "e", "electrons"):
        origin = _number(image, "ImageData", "Calibrations", "Brightness", "Origin")
        words = f"{METADATA}: Brightness {brightness:g} {unit}" + (f" from {origin:g} counts on" if origin else "")
        found["electrons_per_count"] = Found(brightness, words, certain=origin == 0)
    source = "the file's array" if data.ndim == 4 else None
    return RawScan(path, "Gatan DM", Patterns(data, order), True, found, source, key, tuple(notes))


def _number(tags: Any, *names: str) -> float:
    """A number among tags within tags; 0 where there is none."""
    for name in names:
        tags = tags.get(name) if isinstance(tags, Mapping) else None
    return float(tags) if isinstance(tags, int | float | np.number) and math.isfinite(float(tags)) else 0.0


def _axes(signal: Mapping[str, Any]) -> list[tuple[float, str, str]]:
    """(step, unit, name) of a signal's axes."""
    return [(float(axis["scale"]), str(axis["units"] or ""), str(axis["name"] or "")) for axis in signal["axes"]]


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """What a reader warns of, as notes; its log stays out of the terminal."""
    log = logging.getLogger("rsciio")
    level = log.level
    notes: list[str] = []
    try:
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
        notes += [" ".join(str(w.message).split()) for w in caught if issubclass(w.category, UserWarning)]
    finally:
        log.setLevel(level)
