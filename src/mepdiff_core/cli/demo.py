"""mepdiff demo"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import ProgressBar, StateBar, add_device, add_json, emit, say, stopped_run

DEFAULT_OUT = "demo-run"
SCAN_SHAPE = (24, 24)
METHODS: dict[str, dict[str, Any]] = {"adam": {"engine": "fast", "heldout_fraction": 0.05}, "mepdiff": {}}
"""Methods and settings: the paper's baseline (on our engine, equal to PtyRAD's and three times as fast), and the default."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="simulate a crystal, reconstruct it, look at the result",
        description="Simulate a scan of strontium titanate with abTEM, a crystal that the embedded prior was never shown;\n"
        "reconstruct it with PtyRAD[Adam] as the paper ran it and with mepdiff; write a page that shows both beside the\n"
        "truth. Takes a few minutes on two cores. Called again, it goes on where it was stopped.",
    )
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help=f"folder to write (default {DEFAULT_OUT})")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from mepdiff_core.config import check
    from mepdiff_core.files import make_folder
    from mepdiff_core.page import text_table
    from mepdiff_core.reconstruction import choose_device
    from mepdiff_core.report import write_comparison
    from mepdiff_core.runs import Run
    from mepdiff_core.scan import load_scan, save_scan
    from mepdiff_core.simulate import SimulationConfig, simulate_steps
    from mepdiff_core.volume_files import read_volume

    choose_device(arguments.device)
    out = Path(arguments.out)
    scan_path = out / "scan.h5"
    going_on = scan_path.exists()
    if out.is_dir() and any(out.iterdir()):
        check(going_on, f"{out} holds other things than a demo; give another folder with --out")
    else:
        make_folder(out)
    total = 1 + len(METHODS)
    say(f"1 of {total}: a scan of SrTiO3, {'there already' if going_on else 'simulated'} ({scan_path})")
    if not going_on:
        packaged = resources.files("mepdiff_core") / "data" / "SrTiO3.cif"
        config = replace(SimulationConfig(), scan_shape=SCAN_SHAPE)
        with resources.as_file(packaged) as crystal, ProgressBar("simulating", "pattern") as bar:
            for step in simulate_steps(crystal, config):
                bar.show(step.step, step.total)
                if step.scan is not None:
                    save_scan(step.scan, scan_path)
    results = {}
    for number, (method, settings) in enumerate(METHODS.items(), 2):
        folder = out / method
        known = (folder / "run.yaml").exists()
        say(f"{number} of {total}: its phase volume by {method}")
        with StateBar(method) as state_bar:
            try:
                made = Run(scan_path, folder, method, None if known else settings, device=arguments.device, resume=known)
                for state in made.states():
                    state_bar(state)
            except KeyboardInterrupt:
                state_bar.close()
                raise stopped_run(scan_path, method, folder) from None
        results[method] = made.metrics
    volumes = {method: read_volume(out / method / "volume.ome.tif") for method in METHODS}
    page = write_comparison(out, load_scan(scan_path), volumes, results)
    lines = [text_table(list(results.values()), ["method"])]
    lines += [str(metrics["verdict"]) for metrics in results.values() if metrics.get("verdict")]
    emit(arguments, {"folder": str(out), "runs": results}, "\n".join([*lines, f"open {page} in a browser"]))
