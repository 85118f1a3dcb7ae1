"""mepdiff evaluate"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from mepdiff_core.cli.common import ProgressBar, Stopped, add_device, add_json, add_settings, emit, read_settings

EPILOG = """\
For each crystal a scan is simulated (abTEM's potentials at 0.1 Å, the paper's optics and dose, a random origin), then every
method reconstructs it, all of them without the same 5 % of patterns. The folder holds results.csv (a row for each crystal,
axis, thickness, dose and method), report.html and the runs. A crystal that fails is a row with its reason. --resume goes on,
also with methods, crystals or axes added to those before.

Where crystal and mepdiff are both asked for with the same settings, the crystal is solved once; its seconds count in both.

examples:
  mepdiff evaluate --structures cifs --out evaluation
  mepdiff evaluate --structures cifs --methods adam-best,mepdiff --dose 1e4,1e5,1e6 --thickness 6.4,12.8,25.6 --out sweep
  mepdiff evaluate --structures cifs --scheduler tcp://10.0.0.1:8786 --out evaluation
  mepdiff evaluate --structures cifs --methods adam,adam-best --n 6 --axes c,a --set engine=fast --out evaluation
  mepdiff evaluate --structures cifs --methods adam --set adam.iterations=50 --out evaluation
"""


DEFAULT = "adam,lbfgs,adam-best,mepdiff"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare methods over many crystals",
        description="Simulate crystals, reconstruct them with several methods, and compare: methods x crystals.",
        epilog=EPILOG,
    )
    parser.add_argument("--structures", required=True, metavar="DIR", help="folder of CIF files")
    parser.add_argument("--methods", default=DEFAULT, metavar="A,B,C", help=f"methods (default: {DEFAULT})")
    parser.add_argument("--n", type=int, help="number of crystals, at most (default: all)")
    parser.add_argument("--axes", default="c", metavar="A,B,C", help="lattice vectors along the beam (default c)")
    parser.add_argument("--dose", metavar="E,E,...", help="electrons per Å², or none; several for a sweep (default 1e6)")
    parser.add_argument("--thickness", metavar="Å,Å,...", help="thicknesses, several for a sweep (default 12.8)")
    parser.add_argument("--steps", type=int, help="iterations of every method, instead of its own number")
    parser.add_argument("--out", required=True, metavar="DIR", help="evaluation folder")
    parser.add_argument("--simulation", metavar="FILE.yaml", help="how to simulate (as --optics of 'mepdiff simulate')")
    parser.add_argument("--workers", type=int, default=1, help="processes on this computer (default 1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="use the workers of this Dask scheduler instead")
    add_device(parser)
    add_settings(parser, "methods' settings")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted evaluation, or add to one")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import check
    from mepdiff_core.evaluation import evaluate
    from mepdiff_core.evaluation_summary import headline, summarize
    from mepdiff_core.page import text_table
    from mepdiff_core.simulate import load_simulation

    check(arguments.n is None or arguments.n >= 1, f"--n is {arguments.n}; expected at least 1")
    settings = read_settings(arguments)
    if arguments.steps is not None:
        settings |= {"iterations": arguments.steps, "steps": arguments.steps}
    methods = list(dict.fromkeys(m for m in arguments.methods.split(",") if m))
    simulation = load_simulation(arguments.simulation, under={"origin_A": None}) if arguments.simulation else None
    rows: list[Mapping[str, Any]] = []
    done, total = 0, len(methods)
    with ProgressBar("evaluate", "run") as bar:
        steps = evaluate(
            arguments.structures,
            methods,
            arguments.out,
            n=arguments.n,
            axes=[a for a in arguments.axes.split(",") if a],
            thicknesses_A=_numbers("--thickness", arguments.thickness),
            doses_e_per_A2=_numbers("--dose", arguments.dose, none=True),
            settings=settings,
            simulation=simulation,
            device=arguments.device,
            workers=arguments.workers,
            scheduler=arguments.scheduler,
            resume=arguments.resume,
            progress=lambda message: bar.show(done, total, message),
        )
        try:
            for step in steps:
                done, total, rows = step.done, step.total, list(step.rows)
                bar.show(done, total, step.message)
        except KeyboardInterrupt:
            bar.close()
            raise Stopped("stopped; the same command with --resume goes on") from None
    summary = summarize(rows, methods)
    words = headline(rows, methods)
    text = f"{text_table(summary, ['specimens', 'method', 'over'])}\n{words}"
    for row in rows:
        if row["error"]:
            text += f"\n{row['crystal']} along {row['axis']}, {row['method']}: {row['error']}"
    result = {"folder": arguments.out, "rows": rows, "summary": summary, "headline": words}
    emit(arguments, result, f"{text}\n{arguments.out}/report.html")


def _numbers(option: str, text: str | None, none: bool = False) -> list[Any]:
    """Numbers between commas; with ``none`` also that word."""
    from mepdiff_core.errors import InputError

    found: list[float | None] = []
    for part in filter(None, (text or "").split(",")):
        try:
            found.append(None if none and part.strip() == "none" else float(part))
        except ValueError:
            raise InputError(f"{option} is '{text}'; expected numbers with commas between them") from None
    return found
