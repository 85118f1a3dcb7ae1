"""mepdiff sample"""

from __future__ import annotations

import argparse
from pathlib import Path
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

    from mepdiff_core.config import from_dict, to_dict
    from mepdiff_core.figures import contact_sheet
    from mepdiff_core.page import save_figure
    from mepdiff_core.reconstruction import choose_device
    from mepdiff_core.runs import RunFolder
    from mepdiff_core.sample import SampleConfig, sample_prior
    from mepdiff_core.weights import load_prior

    given = {name: value for name in ("n", "steps", "seed") if (value := getattr(arguments, name)) is not None}
    config = from_dict(SampleConfig, read_settings(arguments) | given, "sample")
    prior = load_prior(arguments.prior, choose_device(arguments.device))
    record = {
        "method": "sample",
        "config": to_dict(config),
        "seed": config.seed,
        "input": Path(arguments.prior).name,
        "input_sha256": prior.sha256,
        "device": str(prior.device),
        "voxel_size_A": list(prior.config.voxel_size_A),
        "origin_A": [0.0, 0.0, 0.0],
    }
    folder = RunFolder.create(arguments.out, record)
    state = None
    with StateBar("sample") as bar, closing(folder.follow(sample_prior(prior, config))) as states:
        try:
            for state in states:
                bar(state)
        except KeyboardInterrupt:
            if state is None:
                raise
            raise Stopped(f"stopped; {folder.path} keeps what the samples had come to") from None
    assert state is not None
    assert state.samples is not None
    sheet = contact_sheet([*state.samples], [f"seed {config.seed + i}" for i in range(config.n)])
    save_figure(sheet, folder.path / "sheet.png")
    result = {"folder": str(folder.path), "samples": config.n, "seconds": state.seconds}
    emit(arguments, result, f"{folder.path}/sheet.png: {config.n} samples in {state.seconds:.0f} s")
