"""mepdiff convert"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.cli.common import ProgressBar, add_json, emit

if TYPE_CHECKING:
    from mepdiff_core.file_calibration import Settled
    from mepdiff_core.raw_scan import ScanOptions

EPILOG = """\
formats: EMPAD .raw and .xml, Merlin .mib, Dectris Arina, Gatan .dm3 and .dm4, EMD (Velox, Prismatic, py4DSTEM, NCEM),
NanoMegas .blo, TVIPS, HyperSpy .hspy and .zspy, NeXus, HDF5, .npy, .mat, .tif, Zarr; see docs/formats.md

What the file says of its calibration is taken and shown with its source; what it does not say must be given:
  --calibrate optics.energy_eV=300e3 --calibrate optics.semiangle_mrad=21.4 --calibrate optics.overfocus_A=0
  --calibrate scan_step_A=0.5 --calibrate detector_pixel_mrad=0.9 (or k_step_invA) --calibrate electrons_per_count=1
Every value and what it means: mepdiff info --settings convert
mepdiff inspect FILE shows what is there and what is missing.

examples:
  mepdiff convert scan.mib scan.h5 --calibration microscope.yaml --calibrate scan_step_A=0.4
  mepdiff convert stack.npy scan.h5 --scan-shape 128 128 --calibration microscope.yaml
  mepdiff convert data.mat scan.h5 --key cbed --axes kx ky scan_x scan_y --calibration microscope.yaml
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="a microscope's file to a scan file",
        description="Write the patterns of a microscope's file as a scan file, with the calibration that belongs to them.",
        epilog=EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="what the microscope wrote")
    parser.add_argument("out", metavar="OUT.h5", help="the scan file to write")
    add_calibration(parser)
    parser.add_argument("--ptyrad-params", metavar="FILE.yaml", help="calibration and scan shape of PtyRAD's parameter file")
    add_reading(parser)
    add_clip(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calibration", metavar="FILE.yaml", help="optics, step, thickness, ... over what the file says")
    parser.add_argument(
        "--calibrate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one value of the calibration; repeat for more (--calibrate scan_step_A=0.5)",
    )


def add_reading(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--scan-shape",
        type=int,
        nargs=2,
        metavar=("Y", "X"),
        help="positions along y and x, for patterns in one row",
    )
    parser.add_argument("--key", metavar="NAME", help="which array of a file that holds several")
    parser.add_argument(
        "--axes", nargs="+", metavar="AXIS", help="order of the array's axes: scan_y scan_x ky kx, or scan ky kx (default)"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="cut patterns, or pad them with zeros, to N x N about their middle"
    )


def add_clip(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--clip", action="store_true", help="make pixels that are negative or not a number 0, and say how many there were"
    )


def is_microscopes(arguments: argparse.Namespace) -> bool:
    """Whether a command was given a microscope's file and not a scan file, which leaves nothing open.

    Raises:
        InputError: options of reading one, for a scan file.
    """
    from mepdiff_core.config import check
    from mepdiff_core.readers import is_foreign

    if is_foreign(arguments.scan):
        return True
    for name in ("scan_shape", "key", "axes", "size", "clip"):
        words = f"--{name.replace('_', '-')} is for a microscope's file; {arguments.scan} is none: leave it out"
        check(not getattr(arguments, name), words)
    return False


def read_options(arguments: argparse.Namespace) -> ScanOptions:
    from mepdiff_core.raw_scan import ScanOptions

    return ScanOptions(
        arguments.key,
        tuple(arguments.scan_shape) if arguments.scan_shape else None,
        tuple(arguments.axes) if arguments.axes else None,
        arguments.size,
        getattr(arguments, "clip", False),
    )


def read_calibration(arguments: argparse.Namespace) -> dict[str, Any]:
    from mepdiff_core.config import merge, parse_assignments, read_yaml

    base = read_yaml(arguments.calibration) if arguments.calibration else {}
    return merge(base, parse_assignments(arguments.calibrate, "--calibrate"))


def calibration_lines(settled: Settled) -> list[str]:
    """A line a value, with its source; then a line for each that is missing."""
    width = max(map(len, [*settled.values, *settled.missing]))
    lines = [
        f"  {name:{width}} {found.value:<12.6g} {found.source}"
        for name, found in settled.values.items()
        if name not in settled.missing
    ]
    return lines + [f"  {name:{width}} {'?':12} --calibrate {settled.ask(name)}" for name in settled.missing]


def write_scan(
    file: str, out: str | Path, arguments: argparse.Namespace, name: str | None = None
) -> tuple[dict[str, Any], str]:
    """Convert a file as the options say, with a bar; the result as values, and in words, which call it ``name``."""
    from mepdiff_core.config import merge
    from mepdiff_core.convert import convert

    options, calibration = read_options(arguments), read_calibration(arguments)
    if arguments.ptyrad_params is not None:
        options, known = _by_ptyrad(file, arguments.ptyrad_params, options)
        calibration = merge(known, calibration)
    state = None
    loop = convert(file, out, calibration, options)
    with ProgressBar("convert", "pattern") as bar, contextlib.closing(loop):
        for state in loop:
            if state.seconds > 1:
                bar.show(state.done, state.total)
    assert state is not None
    assert state.scan is not None
    rows, columns = state.scan.shape
    n = state.scan.n_pixels
    lines = [f"{name or out}: {rows} x {columns} patterns of {n} x {n} px", *calibration_lines(state.settled)]
    lines.append(f"  {state.scan.electrons_per_pattern:.6g} electrons a pattern")
    if "electrons_per_pattern" not in state.settled.values:
        lines[-1] += " on the detector; those that missed it are not counted, give electrons_per_pattern if you know better"
    if state.zeroed:
        lines.append(f"  {state.zeroed} pixels were negative or not a number and are 0 now")
    notes = state.scan.info["converted"].get("notes", [])
    lines += [f"  note: {note}" for note in notes]
    result = {
        "file": str(out),
        "shape": [rows, columns, n, n],
        "calibration": {name: {"value": f.value, "source": f.source} for name, f in state.settled.values.items()},
        "electrons_per_pattern": state.scan.electrons_per_pattern,
        "pixels_set_to_zero": state.zeroed,
        "notes": notes,
        "seconds": state.seconds,
    }
    return result, "\n".join(lines)


def _by_ptyrad(file: str, params_path: str, options: ScanOptions) -> tuple[ScanOptions, dict[str, Any]]:
    """Options and calibration with what PtyRAD's parameter file says of a file put in."""
    from dataclasses import replace

    from mepdiff_core.ptyrad_params import read_ptyrad_params
    from mepdiff_core.readers import open_raw

    params = read_ptyrad_params(params_path)
    rows, columns, _ = params.shape
    if options.scan_shape is None and rows is not None and columns is not None:
        options = replace(options, scan_shape=(int(rows), int(columns)))
    with open_raw(file, options) as raw:
        return options, params.calibration_of_file(options.size or raw.patterns.shape[3])


def run(arguments: argparse.Namespace) -> None:
    result, text = write_scan(arguments.file, arguments.out, arguments)
    emit(arguments, result, text)
