"""mepdiff demo"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import ProgressBar, StateBar, add_device, add_json, emit, say, stopped_run

DEFAULT_OUT = "demo-run"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="simulate a crystal, reconstruct it, look at the result",
        description="Simulate a 26 x 26 scan of strontium titanate with abTEM, reconstruct it with PtyRAD (adam-best), and\n"
        "write a report with pictures. Takes a few minutes on two cores. Called again, it goes on where it was stopped.",
    )
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help=f"folder to write (default {DEFAULT_OUT})")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import check
    from mepdiff_core.files import make_folder
    from mepdiff_core.page import text_table
    from mepdiff_core.reconstruction import choose_device
    from mepdiff_core.runs import Run
    from mepdiff_core.scan import save_scan
    from mepdiff_core.simulate import SimulationConfig, simulate_steps

    choose_device(arguments.device)
    out = Path(arguments.out)
    scan_path, run_path = out / "scan.h5", out / "adam-best"
    going_on = scan_path.exists()
    if out.is_dir() and any(out.iterdir()):
        check(going_on, f"{out} holds other things than a demo; give another folder with --out")
    else:
        make_folder(out)
    say(f"1 of 2: a 26 x 26 scan of SrTiO3, {'there already' if going_on else 'simulated'} ({scan_path})")
    if not going_on:
        packaged = resources.files("mepdiff_core") / "data" / "SrTiO3.cif"
        with resources.as_file(packaged) as crystal, ProgressBar("simulating", "pattern") as bar:
            for step in simulate_steps(crystal, SimulationConfig()):
                bar.show(step.step, step.total)
                if step.scan is not None:
                    save_scan(step.scan, scan_path)
    say("2 of 2: its phase volume, reconstructed with PtyRAD (adam-best)")
    with StateBar("adam-best") as state_bar:
        try:
            made = Run(scan_path, run_path, "adam-best", device=arguments.device, resume=(run_path / "run.yaml").exists())
            for state in made.states():
                state_bar(state)
        except KeyboardInterrupt:
            state_bar.close()
            raise stopped_run(scan_path, "adam-best", run_path) from None
    text = text_table([made.metrics], ["method"]) + f"\nopen {made.folder.path}/report.html in a browser"
    emit(arguments, {"folder": str(made.folder.path), **made.metrics}, text)
