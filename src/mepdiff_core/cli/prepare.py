"""mepdiff prepare"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mepdiff_core.cli.common import ProgressBar, add_json, add_settings, emit, read_settings, say
from mepdiff_core.cli.convert import add_calibration, add_clip, add_reading, is_microscopes, read_calibration, write_scan

if TYPE_CHECKING:
    from mepdiff_core.prepare_config import PrepareConfig
    from mepdiff_core.ptyrad_params import PtyradParams
    from mepdiff_core.scan import Scan

EPILOG = """\
Nothing is done that is not asked for. The steps come in this order, whatever the order of the options: positions cut out,
bad pixels, background, gain, mirroring, detector cut out, calibration, centring, binning, window, beam, scan rotation.
Each setting and what it means: mepdiff info --settings prepare

OUT.h5 has on record what was done and found, and so have all runs made from it. OUT.png shows before and after.

examples:
  mepdiff prepare scan.h5 ready.h5 --set fill_bad_pixels=true --set centre=mean --set rotation=find
  mepdiff prepare scan.h5 ready.h5 --set calibrate=k_step --set pixel_size_A=0.2 --set beam=sum
  mepdiff prepare scan.h5 ready.h5 --set electrons_per_count=null --set background=null --set beam=sum
  mepdiff prepare scan.h5 ready.h5 --set flip_ky=true --set bin=2 --set scan_crop=[0,64,0,64]
  mepdiff prepare scan.mib ready.h5 --calibration microscope.yaml --calibrate scan_step_A=0.4 --set centre=mean

A microscope's file is converted on the way; what it does not say has to be given by --calibrate.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "prepare",
        help="make a scan ready: bad pixels, gain, centre, rotation, calibration, window",
        description="Prepare a scan for reconstruction: from what a detector wrote to what a model expects.",
        epilog=EPILOG,
    )
    parser.add_argument("scan", metavar="SCAN", help="the scan file, or a microscope's")
    parser.add_argument("out", metavar="OUT.h5", help="the scan file to write; OUT.png shows before and after")
    add_settings(parser, "preparation's settings")
    add_calibration(parser)
    parser.add_argument(
        "--ptyrad-params", metavar="FILE.yaml", help="calibration and preparation of PtyRAD's parameter file"
    )
    reading = parser.add_argument_group("a microscope's file (see mepdiff convert)")
    add_reading(reading)
    add_clip(reading)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.calibration import calibrate
    from mepdiff_core.config import check, from_dict, merge
    from mepdiff_core.files import check_writable
    from mepdiff_core.prepare_config import PrepareConfig
    from mepdiff_core.ptyrad_params import read_ptyrad_params
    from mepdiff_core.scan import load_scan

    settings, params = read_settings(arguments), None
    if arguments.ptyrad_params is not None:
        params = read_ptyrad_params(arguments.ptyrad_params)
        settings = merge(params.prepare, settings)
    config = from_dict(PrepareConfig, settings, "prepare")
    out = Path(arguments.out)
    check(config != PrepareConfig(), "nothing to do; say what with --set, see mepdiff info --settings prepare")
    check(not out.exists(), f"{out} exists already; give another name")
    check_writable(out)
    if not is_microscopes(arguments):
        scan = load_scan(arguments.scan)
        known = merge({} if params is None else params.calibration_for(scan), read_calibration(arguments))
        _prepare(arguments, calibrate(scan, known) if known else scan, config, params)
        return
    # the converted patterns may be more than memory holds: they stay in a file until they are prepared
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as folder:
        converted = Path(folder) / "converted.h5"
        say(write_scan(arguments.scan, converted, arguments, arguments.scan)[1])
        _prepare(arguments, load_scan(converted), config, params)


def _prepare(arguments: argparse.Namespace, scan: Scan, config: PrepareConfig, params: PtyradParams | None) -> None:
    from mepdiff_core.page import save_figure
    from mepdiff_core.preparation import prepare_steps, words_of
    from mepdiff_core.prepare_figure import prepare_figure
    from mepdiff_core.scan import save_scan

    out, prepared = Path(arguments.out), None
    if params is not None and params.left_out:
        say(params.words())
    with ProgressBar("preparing", "row") as bar:
        for step in prepare_steps(scan, config):
            bar.show(step.done, step.total, step.what)
            prepared = step.scan
    assert prepared is not None
    with ProgressBar("writing", "row") as bar:
        save_scan(prepared, out, bar.show)
    picture = out.with_suffix(".png")
    save_figure(prepare_figure(scan, prepared), picture)
    lines = [f"{out}: {prepared.shape[0]} x {prepared.shape[1]} patterns of {prepared.n_pixels} px; picture {picture}"]
    lines += [f"  {line}" for line in words_of(prepared)]
    record = prepared.info["prepared"][-1]
    emit(arguments, {"file": str(out), "picture": str(picture), **record}, "\n".join(lines))
