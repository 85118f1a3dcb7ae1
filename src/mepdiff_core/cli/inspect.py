"""mepdiff inspect"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.cli.common import ProgressBar, add_json, emit
from mepdiff_core.cli.convert import (
    add_calibration,
    add_reading,
    calibration_lines,
    read_calibration,
    read_options,
)

if TYPE_CHECKING:
    from mepdiff_core.inspection import Inspection
    from mepdiff_core.raw_scan import RawScan

EPILOG = """\
It reads scan files, every format of mepdiff convert (docs/formats.md), and results of PtyRAD. The picture shows the mean
pattern and virtual bright- and dark-field images; --out '' draws none.

examples:
  mepdiff inspect scan.mib
  mepdiff inspect scan.h5 --out look.png --json
  mepdiff inspect stack.tif --scan-shape 64 64 --calibrate detector_pixel_mrad=0.9
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a scan file or a microscope's file holds, with a picture",
        description="Show what a file of patterns holds: format, shape, calibration and what of it is missing; draw it.",
        epilog=EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="a scan file, or what the microscope wrote")
    parser.add_argument("--out", metavar="PNG", help="the picture (default: FILE's name with -inspect.png, in this folder)")
    add_calibration(parser)
    add_reading(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.files import check_writable
    from mepdiff_core.inspect_figure import inspect_figure
    from mepdiff_core.inspection import inspect_patterns
    from mepdiff_core.page import save_figure
    from mepdiff_core.ptyrad_result import is_ptyrad_result
    from mepdiff_core.readers import open_raw

    path = Path(arguments.file)
    out = Path(f"{path.stem}-inspect.png" if arguments.out is None else arguments.out) if arguments.out != "" else None
    if out is not None:
        check_writable(out)
    if is_ptyrad_result(path):
        _show_ptyrad(arguments, path, out)
        return
    with open_raw(path, read_options(arguments)) as raw, ProgressBar("inspect", "pattern") as bar:
        look = inspect_patterns(raw, read_calibration(arguments))
        while True:
            try:
                done, total = next(look)
            except StopIteration as stop:
                seen: Inspection = stop.value
                break
            if raw.patterns.n_patterns > 256:
                bar.show(done, total)
    if out is not None:
        save_figure(inspect_figure(seen, f"{path.name}: {raw.format}"), out)
    result, lines = _describe(raw, seen)
    if out is not None:
        result["picture"] = str(out)
        lines.append(f"{'picture':12} {out}")
    emit(arguments, result, "\n".join(lines))


def _describe(raw: RawScan, seen: Inspection) -> tuple[dict[str, Any], list[str]]:
    rows, columns, height, width = raw.patterns.shape
    scan = f"{rows} x {columns} positions ({raw.scan_shape_source})"
    if raw.scan_shape_source is None:
        scan = f"{rows * columns} patterns in a row; the scan's shape is missing: --scan-shape Y X"
    lines = [
        f"{'file':12} {raw.path}",
        f"{'format':12} {raw.format}{f', {raw.key}' if raw.key else ''}",
        f"{'scan':12} {scan}",
        f"{'patterns':12} {height} x {width} px, {raw.patterns.dtype}, {'read lazily' if raw.lazy else 'read at once'}",
        f"{'counts':12} {seen.smallest:g} to {seen.largest:g}, {seen.counts_per_pattern:.6g} a pattern",
    ]
    if seen.bad:
        lines.append(f"{'':12} {seen.bad} pixels are negative or not a number; mepdiff convert --clip makes them 0")
    found = seen.detectors
    if found is not None:
        (y, x), middle = found.centre_px, (height // 2, width // 2)
        lines.append(
            f"{'bright disk':12} centre at {y:.1f}, {x:.1f} px (the middle is {middle[0]}, {middle[1]}), radius"
            f" {found.radius_px:.1f} px by {found.source}"
        )
    else:
        lines.append(f"{'bright disk':12} none: the counts are all zero")
    lines += [*(f"{'note':12} {note}" for note in raw.notes), "calibration", *calibration_lines(seen.settled)]
    calibration = {
        name: {"value": f.value, "source": f.source, "certain": f.certain} for name, f in seen.settled.values.items()
    }
    missing = [*(["scan_shape"] if raw.scan_shape_source is None else []), *seen.settled.missing]
    result: dict[str, Any] = {
        "file": str(raw.path),
        "format": raw.format,
        "key": raw.key,
        "shape": list(raw.patterns.shape),
        "scan_shape_source": raw.scan_shape_source,
        "dtype": str(raw.patterns.dtype),
        "lazy": raw.lazy,
        "smallest": seen.smallest,
        "largest": seen.largest,
        "counts_per_pattern": seen.counts_per_pattern,
        "bad_pixels": seen.bad,
        "disk": None if found is None else {"centre_px": list(found.centre_px), "radius_px": found.radius_px},
        "calibration": calibration,
        "missing": missing,
        "notes": list(raw.notes),
    }
    return result, lines


def _show_ptyrad(arguments: argparse.Namespace, path: Path, out: Path | None) -> None:
    from mepdiff_core.figures import slices_figure
    from mepdiff_core.page import save_figure
    from mepdiff_core.ptyrad_result import read_ptyrad_result

    result = read_ptyrad_result(path)
    depth, height, width = result.phase.shape
    modes, n = result.probe.shape[:2]
    about: dict[str, Any] = {
        "file": str(path),
        "format": "PtyRAD result",
        "object_shape": [depth, height, width],
        "voxel_size_A": list(result.voxel_size_A),
        "probe_shape": list(result.probe.shape),
        "iterations": result.iterations,
    }
    lines = [
        f"{'file':12} {path}",
        f"{'format':12} PtyRAD result, {result.iterations} iterations",
        f"{'object':12} {depth} slices of {height} x {width} px; {result.slice_thickness_A:g} x {result.pixel_size_A:.5g} Å",
        f"{'phase':12} {float(result.phase.min()):.4g} to {float(result.phase.max()):.4g} rad",
        f"{'probe':12} {modes} mode{'s' if modes > 1 else ''} of {n} px",
    ]
    if out is not None:
        save_figure(slices_figure({path.stem: result.phase}, None, result.voxel_size_A), out)
        about["picture"] = str(out)
        lines.append(f"{'picture':12} {out}")
    emit(arguments, about, "\n".join(lines))
