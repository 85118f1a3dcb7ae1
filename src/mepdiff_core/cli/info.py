"""mepdiff info"""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from mepdiff_core.cli.common import add_json, emit
from mepdiff_core.config import check, describe


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, threads and methods on this computer",
        description="Show what this installation is and can use: versions, devices, threads, methods.",
    )
    parser.add_argument(
        "--settings",
        metavar="NAME",
        help="explain every setting of a method (adam, lbfgs, adam-best, crystal), of simulate, convert, prepare, fit-probe,"
        " fit-thickness, calibration, dataset, train or sample",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def show_settings(arguments: argparse.Namespace) -> None:
    from mepdiff_core.calibration import Calibration
    from mepdiff_core.dataset import BuildConfig
    from mepdiff_core.file_calibration import FileCalibration
    from mepdiff_core.fit_settings import ProbeFitConfig, ThicknessConfig
    from mepdiff_core.prepare_config import PrepareConfig
    from mepdiff_core.reconstruction import METHODS
    from mepdiff_core.sample import SampleConfig
    from mepdiff_core.simulate import SimulationConfig
    from mepdiff_core.train_config import TrainConfig

    configs = {name: method.default for name, method in METHODS.items()}
    known: dict[str, Any] = {
        **configs,
        "simulate": SimulationConfig(),
        "prepare": PrepareConfig(),
        "fit-probe": ProbeFitConfig(),
        "fit-thickness": ThicknessConfig(),
        "calibration": Calibration(),
        "convert": FileCalibration(),
        "dataset": BuildConfig("prototypes"),
        "train": TrainConfig(),
        "sample": SampleConfig(),
    }
    check(arguments.settings in known, f"--settings {arguments.settings} is not known; choose from {', '.join(known)}")
    rows = describe(known[arguments.settings])
    lines = []
    for name, value, meaning in rows:
        lines.append(f"{name}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}")
        lines += textwrap.wrap(meaning, 100, initial_indent="    ", subsequent_indent="    ")
    result = {name: {"default": value, "meaning": meaning} for name, value, meaning in rows}
    emit(arguments, result, "\n".join(lines))


def run(arguments: argparse.Namespace) -> None:
    if arguments.settings is not None:
        show_settings(arguments)
        return
    import psutil
    import torch

    from mepdiff_core.reconstruction import METHODS, choose_device
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
