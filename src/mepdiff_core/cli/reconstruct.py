"""mepdiff reconstruct"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import (
    StateBar,
    add_device,
    add_json,
    add_settings,
    emit,
    read_settings,
    say,
    stopped_run,
)
from mepdiff_core.cli.convert import add_calibration, add_clip, add_reading, is_microscopes, read_calibration, write_scan
from mepdiff_core.reconstruction import DEFAULT_METHOD

EPILOG = """\
methods:
  mepdiff     the default: the crystal solver; where its answer is doubted also proximal, and the patterns held out decide
  crystal     atoms in a repeated cell, found by the patterns' Poisson likelihood; what is known of the crystal helps:
              --composition, --lattice, --start FILE.cif
  proximal    a trained prior (--prior) and Poisson data steps by turns, from a few passes of Adam
  dps         the MEP-Diffusion paper's sampler: a trained prior (--prior) pulled by the patterns' misfit
  adam-best   PtyRAD as an expert runs it: Poisson loss, positive phase, smoothed along the beam, stopped when patterns
              that it does not fit are no longer explained better
  adam        PtyRAD with Adam as the MEP-Diffusion paper ran it, 200 passes
  lbfgs       PtyRAD with L-BFGS as the paper ran it, learning rates 1, 0.1 and 0.01

Every setting of a method and what it means: mepdiff info --settings mepdiff
Every value of the calibration: mepdiff info --settings calibration
--engine fast computes with mepdiff's own forward model instead of PtyRAD's: the same losses, about three times as fast.

The run folder holds volume.ome.tif (phase in rad), history.csv, metrics.json, run.yaml and report.html; of the method
crystal also crystal.cif, crystal-2.cif where two cells are equally likely, samples, mean and std.ome.tif, and
steps.safetensors: what it found before the atoms.
Ctrl-C stops and keeps everything; the same command with --resume goes on (the method crystal begins again).

examples:
  mepdiff reconstruct scan.h5 --out run
  mepdiff reconstruct scan.h5 --method adam --steps 50 --out run-adam
  mepdiff reconstruct scan.h5 --method adam --engine fast --probe probe.h5 --out run-fast
  mepdiff reconstruct scan.h5 --method crystal --composition LiMnPO4 --out run-crystal
  mepdiff reconstruct scan.h5 --method proximal --prior prior/last.safetensors --samples 4 --out run-samples
  mepdiff reconstruct scan.mib --out run --calibration microscope.yaml --calibrate scan_step_A=0.4

A microscope's file is converted first, to RUN.h5 beside the run folder; what it does not say has to be given by --calibrate.
"""
SAMPLERS = ("dps", "proximal", "mepdiff")
SOLVERS = ("crystal", "mepdiff")
BASELINES = ("adam", "lbfgs", "adam-best")
METHODS_OF = {
    "composition": SOLVERS,
    "lattice": SOLVERS,
    "axis": SOLVERS,
    "samples": ("crystal", *SAMPLERS),
    "prior": SAMPLERS,
    "engine": (*SAMPLERS, *BASELINES),
}
"""Options of some methods alone."""
PASSES = {"crystal": "rounds"} | dict.fromkeys(SAMPLERS, "steps")
"""What --steps sets, where it is not 'iterations'."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="reconstruct the phase volume of a scan",
        description="Reconstruct the phase volume of a 4D-STEM scan into a run folder, with metrics and a report.",
        epilog=EPILOG,
    )
    parser.add_argument("scan", metavar="SCAN", help="the scan file, or a microscope's")
    parser.add_argument(
        "--method", metavar="NAME", help="one of those below (default: mepdiff, or that of the run to go on with)"
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to make (or to go on with, by --resume)")
    parser.add_argument(
        "--steps",
        type=int,
        help="passes over the patterns, at most ('iterations'; of crystal 'rounds'); dps, proximal, mepdiff: of the sampler",
    )
    parser.add_argument("--seed", type=int, help="random seed: of mini-batches and held-out patterns (default 0)")
    parser.add_argument(
        "--slices",
        type=int,
        help="number of slices of 1.6 Å (or of the setting slice_thickness_A; default: to the scan's thickness)",
    )
    parser.add_argument(
        "--start",
        metavar="FILE",
        help="start from this TIFF volume, or this result of PtyRAD (HDF5), instead of from zeros; for the method crystal,"
        " a CIF file whose lattice and composition are taken as known",
    )
    parser.add_argument("--composition", metavar="FORMULA", help="crystal: its composition, like LiMnPO4")
    parser.add_argument(
        "--lattice",
        type=_lattice,
        metavar="A,B,ANGLE",
        help="crystal: lengths of the in-plane lattice vectors in Å and the angle between them in degrees",
    )
    parser.add_argument(
        "--axis", choices=("a", "b", "c"), help="crystal: the lattice vector of --start along the beam (default c)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="K", help="posterior samples to draw (crystal: 8 by default; the others 1)"
    )
    parser.add_argument(
        "--prior", metavar="NAME|FILE", help="the prior: embedded (default), or a file as mepdiff train writes it"
    )
    parser.add_argument(
        "--engine",
        choices=("fast", "ptyrad"),
        help="model of the patterns: ours, or PtyRAD's own (default: fast for samplers, ptyrad for its baselines)",
    )
    parser.add_argument("--probe", metavar="PROBE.h5", help="probe of 'mepdiff fit-probe' instead of the scan's own")
    parser.add_argument(
        "--positions",
        metavar="REFINED.h5",
        help="positions that a run with refine.position_rate_A has found",
    )
    add_calibration(parser)
    parser.add_argument(
        "--ptyrad-params",
        metavar="FILE.yaml",
        help="settings and calibration of PtyRAD's parameter file; what it wants done to the scan: mepdiff prepare",
    )
    reading = parser.add_argument_group("a microscope's file (see mepdiff convert)")
    add_reading(reading)
    add_clip(reading)
    add_device(parser)
    add_settings(parser, "method's settings")
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run, with the settings on its record"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import merge, read_yaml
    from mepdiff_core.page import text_table
    from mepdiff_core.runs import CELLS, Run

    settings, calibration = read_settings(arguments), {}
    if arguments.method is None and arguments.resume and (Path(arguments.out) / "run.yaml").exists():
        arguments.method = read_yaml(Path(arguments.out) / "run.yaml").get("method")
    foreign = _converted(arguments)
    if arguments.ptyrad_params is not None:
        from mepdiff_core.ptyrad_params import read_ptyrad_params
        from mepdiff_core.scan import load_scan

        params = read_ptyrad_params(arguments.ptyrad_params)
        arguments.method = arguments.method or params.method
        settings = merge(params.settings_of(arguments.method), settings)
        calibration = params.calibration_beside(load_scan(arguments.scan), arguments.scan, arguments.ptyrad_params)
        if params.left_out:
            say(params.words())
    arguments.method = str(arguments.method or DEFAULT_METHOD)
    structure = str(arguments.start or "").lower().endswith(".cif") or arguments.method == "crystal"
    for option, name in (("steps", PASSES.get(arguments.method, "iterations")), ("seed", "seed"), ("slices", "slices")):
        if getattr(arguments, option) is not None:
            settings[name] = getattr(arguments, option)
    settings = merge(settings, _settings_of_method(arguments))
    if not foreign:  # else it is in the scan file
        calibration = merge(calibration, read_calibration(arguments))
    with StateBar(arguments.method) as bar:
        try:
            made = Run(
                arguments.scan,
                arguments.out,
                arguments.method,
                settings,
                arguments.device,
                None if structure else arguments.start,
                arguments.probe,
                calibration,
                arguments.resume,
                arguments.positions,
            )
            for state in made.states():
                bar(state)
        except KeyboardInterrupt:
            bar.close()
            raise stopped_run(arguments.scan, arguments.method, arguments.out) from None
    lines = [text_table([made.metrics], ["method"])]
    lines += [made.metrics["verdict"]] if made.metrics.get("verdict") else []
    lines += [f"{made.folder.path}/{name}" for name in CELLS if (made.folder.path / name).exists()]
    text = "\n".join([*lines, f"{made.folder.path}/report.html"])
    emit(arguments, {"folder": str(made.folder.path), **made.metrics}, text)


def _converted(arguments: argparse.Namespace) -> bool:
    """Whether the scan is a microscope's file: then a scan file is made of it, beside the run folder, and taken instead."""
    from mepdiff_core.config import check
    from mepdiff_core.reconstruction import method_config

    if not is_microscopes(arguments):
        return False
    file, folder = arguments.scan, Path(arguments.out)
    arguments.scan = str(folder.parent / f"{folder.name}.h5")
    if arguments.resume:
        check(Path(arguments.scan).exists(), f"{arguments.scan}, made of {file}, is not there any more; leave out --resume")
        return True
    check(
        not Path(arguments.scan).exists(),
        f"{arguments.scan} is there already, as what {file} was converted to; reconstruct that, or take it away",
    )
    check(not folder.exists() or not any(folder.iterdir()), f"{folder} exists already; give another folder with --out")
    if arguments.ptyrad_params is None:  # a slip is told before the long work
        method_config(str(arguments.method or DEFAULT_METHOD), read_settings(arguments))
    say(write_scan(file, arguments.scan, arguments)[1])
    return True


def _settings_of_method(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that options of some methods alone fill.

    Raises:
        InputError: such an option for another method.
    """
    from mepdiff_core.config import check

    method = arguments.method

    def refusal(methods: tuple[str, ...]) -> str:
        words = f"{', '.join(methods[:-1])} and {methods[-1]}"
        return f"for the methods {words}, not for {method}; leave it out, or take --method {methods[-1]}"

    given = [name for name in METHODS_OF if getattr(arguments, name) is not None]
    for name in given:
        check(method in METHODS_OF[name], f"--{name} is {refusal(METHODS_OF[name])}")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in ("samples", "prior", "engine") if name in given}
    known: dict[str, Any] = {name: getattr(arguments, name) for name in ("composition", "axis") if name in given}
    if arguments.lattice is not None:
        known |= {"lattice_A": arguments.lattice[:2], "angle_deg": arguments.lattice[2]}
    cif = str(arguments.start or "").lower().endswith(".cif")
    check(not cif or method in SOLVERS, f"--start {arguments.start}: a CIF file is {refusal(SOLVERS)}")
    if arguments.start is not None and (cif or method == "crystal"):
        known["start"] = arguments.start
    if method == "mepdiff":
        return settings | ({"crystal": known} if known else {})
    return settings | known


def _lattice(text: str) -> tuple[float, float, float]:
    """Three numbers with commas or blanks between them."""
    try:
        a, b, angle = (float(part) for part in re.split(r"[,;\s]+", text.strip()))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected A,B,ANGLE like 4.65,4.65,90, got '{text}'") from None
    return a, b, angle
