"""mepdiff reconstruct"""

from __future__ import annotations

import argparse
from typing import Any

from mepdiff_core.cli.common import (
    StateBar,
    add_device,
    add_json,
    add_settings,
    emit,
    read_settings,
    stopped_run,
)

EPILOG = """\
methods:
  adam-best   PtyRAD as an expert runs it: Poisson loss, positive phase, smoothed along the beam, stopped when patterns
              that it does not fit are no longer explained better
  adam        PtyRAD with Adam as the MEP-Diffusion paper ran it, 200 passes
  lbfgs       PtyRAD with L-BFGS as the paper ran it, learning rates 1, 0.1 and 0.01

Every setting of a method and what it means: mepdiff info --settings adam-best
Every value of the calibration: mepdiff info --settings calibration
engine=fast computes with mepdiff's own forward model instead of PtyRAD's: the same losses, about three times as fast.

The run folder holds volume.ome.tif (phase in rad), history.csv, metrics.json, run.yaml and report.html.
Ctrl-C stops and keeps everything; the same command with --resume goes on.

examples:
  mepdiff reconstruct scan.h5 --out run
  mepdiff reconstruct scan.h5 --method adam --steps 50 --out run-adam
  mepdiff reconstruct scan.h5 --method adam --set engine=fast --probe probe.h5 --out run-fast
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="reconstruct the phase volume of a scan",
        description="Reconstruct the phase volume of a 4D-STEM scan into a run folder, with metrics and a report.",
        epilog=EPILOG,
    )
    parser.add_argument("scan", metavar="SCAN.h5", help="the scan file")
    parser.add_argument("--method", default="adam-best", metavar="NAME", help="adam-best (default), adam or lbfgs")
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to make (or to go on with, by --resume)")
    parser.add_argument("--steps", type=int, help="passes over the patterns, at most (the setting 'iterations')")
    parser.add_argument("--seed", type=int, help="random seed: of mini-batches and held-out patterns (default 0)")
    parser.add_argument(
        "--slices",
        type=int,
        help="number of slices of 1.6 Å (or of the setting slice_thickness_A; default: to the scan's thickness)",
    )
    parser.add_argument("--start", metavar="VOLUME.tif", help="start from this volume instead of from zeros")
    parser.add_argument("--probe", metavar="PROBE.h5", help="probe of 'mepdiff fit-probe' instead of the scan's own")
    parser.add_argument(
        "--calibration", metavar="FILE.yaml", help="optics, step, thickness, ... to use instead of what the scan says"
    )
    parser.add_argument(
        "--calibrate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one value of the calibration; repeat for more (--calibrate optics.overfocus_A=150)",
    )
    add_device(parser)
    add_settings(parser, "method's settings")
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run, with the settings on its record"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import merge, parse_assignments, read_yaml
    from mepdiff_core.page import text_table
    from mepdiff_core.runs import Run

    settings = read_settings(arguments)
    for option, name in (("steps", "iterations"), ("seed", "seed"), ("slices", "slices")):
        if getattr(arguments, option) is not None:
            settings[name] = getattr(arguments, option)
    calibration = read_yaml(arguments.calibration) if arguments.calibration else {}
    calibration = merge(calibration, parse_assignments(arguments.calibrate, "--calibrate"))
    with StateBar(arguments.method) as bar:
        try:
            made = Run(
                arguments.scan,
                arguments.out,
                arguments.method,
                settings,
                arguments.device,
                arguments.start,
                arguments.probe,
                calibration,
                arguments.resume,
            )
            for state in made.states():
                bar(state)
        except KeyboardInterrupt:
            bar.close()
            raise stopped_run(arguments.scan, arguments.method, arguments.out) from None
    text = text_table([made.metrics], ["method"]) + f"\n{made.folder.path}/report.html"
    emit(arguments, {"folder": str(made.folder.path), **made.metrics}, text)
