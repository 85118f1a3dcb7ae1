"""mepdiff sample"""

from __future__ import annotations

import argparse
from typing import Any

from mepdiff_core.cli.common import StateBar, Stopped, add_device, add_json, add_settings, emit, read_settings
from mepdiff_core.settings import EMBEDDED

EPILOG = """\
The folder holds samples.ome.tif (phase in rad), mean and std.ome.tif, sheet.png, history.csv and run.yaml.
Every setting and what it means: mepdiff info --settings sample

example:
  mepdiff sample --prior prior/last.safetensors --n 16 --out crystals
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "sample",
        help="crystals from noise, by a prior alone",
        description="Draw volumes from a prior, without any measurement: what it takes a crystal to be.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--prior", default=EMBEDDED, metavar="NAME|FILE", help="embedded (default), or a prior as mepdiff train writes it"
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="folder to make")
    parser.add_argument("--n", type=int, help="how many (default 16)")
    parser.add_argument("--steps", type=int, help="of the sampler (default 50)")
    parser.add_argument("--seed", type=int, help="of the first; each has its own (default 0)")
    add_settings(parser, "sampler's settings")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from contextlib import closing

    from mepdiff_core.config import from_dict
    from mepdiff_core.sample import SampleConfig
    from mepdiff_core.sample_run import SampleRun

    given = {name: value for name in ("n", "steps", "seed") if (value := getattr(arguments, name)) is not None}
    config = from_dict(SampleConfig, read_settings(arguments) | given, "sample")
    made = SampleRun(arguments.prior, arguments.out, config, arguments.device)
    state = None
    with StateBar("sample") as bar, closing(made.states()) as states:
        try:
            for state in states:
                bar(state)
        except KeyboardInterrupt:
            if state is None:
                raise
            raise Stopped(f"stopped; {made.folder.path} keeps what the samples had come to") from None
    assert state is not None
    result = {"folder": str(made.folder.path), "samples": config.n, "seconds": state.seconds}
    emit(arguments, result, f"{made.folder.path}/sheet.png: {config.n} samples in {state.seconds:.0f} s")
