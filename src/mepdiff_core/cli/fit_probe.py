"""mepdiff fit-probe"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import StateBar, Stopped, add_device, add_json, add_settings, emit, read_settings

EPILOG = """\
All scans must be taken with the same optics and camera length. Probe
and specimens are fitted together by Adam; the paper used 32 scans.
The probe starts from the scans' optics (or their own probe). Besides PROBE.h5 a picture, PROBE.png, is written.
Ctrl-C keeps what is there; the same command with --resume goes on.

example:
  mepdiff fit-probe scan1.h5 scan2.h5 --out probe.h5
  mepdiff reconstruct scan3.h5 --probe probe.h5 --out run
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "fit-probe",
        help="fit one probe to one or several scans",
        description="Fit the probe that one or several scans were taken with, together with their specimens.",
        epilog=EPILOG,
    )
    parser.add_argument("scans", nargs="+", metavar="SCAN.h5", help="scan files taken with the same optics")
    parser.add_argument("--out", required=True, metavar="PROBE.h5", help="the probe file to write")
    parser.add_argument("--steps", type=int, help="passes over all patterns (the setting 'iterations', default 20)")
    add_device(parser)
    add_settings(parser, "fit's settings")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted fit")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.arrays import arrays_about, load_arrays, save_arrays
    from mepdiff_core.config import check, from_dict, to_dict
    from mepdiff_core.figures import probe_figure
    from mepdiff_core.files import check_writable
    from mepdiff_core.fit_settings import ProbeFitConfig
    from mepdiff_core.page import save_figure
    from mepdiff_core.probe import fit_probe, probe_overlap, save_probe
    from mepdiff_core.reconstruction import choose_device
    from mepdiff_core.runs import sha256
    from mepdiff_core.scan import load_scan

    settings = read_settings(arguments)
    if arguments.steps is not None:
        settings["iterations"] = arguments.steps
    config = from_dict(ProbeFitConfig, settings, "probe fit")
    out = Path(arguments.out)
    interim = out.with_suffix(".resume.safetensors")
    check(arguments.resume or not out.exists(), f"{out} exists already; give another name with --out")
    check_writable(out)
    scans = [load_scan(path) for path in arguments.scans]
    # what an interim file belongs to: going on with other scans or settings would mix two fits
    about = json.dumps({"scans": [sha256(path) for path in arguments.scans], "config": to_dict(config)})
    checkpoint = None
    if arguments.resume:
        check(interim.exists(), f"{interim} is not there; leave out --resume to start the fit")
        checkpoint, belongs = load_arrays(interim), arrays_about(interim)
        check(belongs == about, f"{interim} is of other scans or settings; give those again, or leave out --resume")
    state = None
    with StateBar("fit-probe") as bar:
        try:
            for state in fit_probe(scans, config, choose_device(arguments.device), checkpoint):
                save_arrays(state.checkpoint, interim, about)
                bar(state)
        except KeyboardInterrupt:
            bar.close()
            if state is None and checkpoint is None:
                raise
            raise Stopped(f"stopped; the same command with --resume goes on from {interim}") from None
    check(state is not None, f"the fit in {interim} has done all of its iterations; leave out --resume to start again")
    assert state is not None
    save_probe(state.probe, scans[0], out)
    before = scans[0].get_probe()
    save_figure(probe_figure({"start": before, "fitted": state.probe}, scans[0].pixel_size_A), out.with_suffix(".png"))
    interim.unlink(missing_ok=True)
    overlap = probe_overlap(state.probe, before)
    result = {
        "file": str(out),
        "iterations": state.step,
        "loss": state.loss,
        "overlap_with_start": overlap,
        "seconds": state.seconds,
    }
    emit(
        arguments,
        result,
        f"{out}: overlap with the start {overlap:.4f}, loss {state.loss:.5g}; picture {out.with_suffix('.png')}",
    )
