"""mepdiff info"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from typing import Any

from mepdiff_core.cli.common import add_json, emit
from mepdiff_core.config import check, to_dict


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, threads and methods on this computer",
        description="Show what this installation is and can use: versions, devices, threads, methods.",
    )
    parser.add_argument(
        "--settings",
        metavar="NAME",
        help="explain every setting of a method (adam, lbfgs, adam-best), of 'simulate' or of 'fit-probe'",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def describe(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of every field of a config, nested ones by their dotted names, from its docstring."""
    text = (type(config).__doc__ or "").partition("Attributes:")[2]
    names = [field.name for field in dataclasses.fields(config)]
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        before, colon, after = line.strip().partition(":")
        named = [name.strip() for name in before.split(",")]
        if colon and all(name in names for name in named):
            current = named
            meanings |= dict.fromkeys(current, after.strip())
        elif line.strip():
            for name in current:
                meanings[name] += f" {line.strip()}"
    rows: list[tuple[str, Any, str]] = []
    for name in names:
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            rows += describe(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, to_dict(value), meanings.get(name, "")))
    return rows


def show_settings(arguments: argparse.Namespace) -> None:
    from mepdiff_core.probe import ProbeFitConfig
    from mepdiff_core.reconstruction import METHODS
    from mepdiff_core.simulate import SimulationConfig

    configs = {name: method.default for name, method in METHODS.items()}
    known: dict[str, Any] = {**configs, "simulate": SimulationConfig(), "fit-probe": ProbeFitConfig()}
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
