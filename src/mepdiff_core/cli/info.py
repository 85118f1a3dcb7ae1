"""mepdiff info"""

from __future__ import annotations

import argparse
from typing import Any

from mepdiff_core.cli.common import add_json, emit


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, threads and methods on this computer",
        description="Show what this installation is and can use: versions, devices, threads, methods.",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import psutil
    import torch

    from mepdiff_core.reconstruct import METHODS, choose_device
    from mepdiff_core.runs import versions

    devices = ["cpu"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    result = {
        "versions": versions(),
        "devices": devices,
        "default_device": str(choose_device()),
        "threads": torch.get_num_threads(),
        "memory_GB": round(psutil.virtual_memory().total / 1e9, 1),
        "methods": {name: method.summary for name, method in METHODS.items()},
        "priors": [],
    }
    lines = [f"{name:14} {version}" for name, version in versions().items()]
    lines += ["", f"{'devices':14} {', '.join(devices)} (default: {result['default_device']})"]
    lines += [
        f"{'threads':14} {result['threads']}",
        f"{'memory':14} {result['memory_GB']} GB",
        f"{'priors':14} none yet",
        "",
    ]
    lines += [f"{name:14} {method.summary}" for name, method in METHODS.items()]
    emit(arguments, result, "\n".join(lines))
