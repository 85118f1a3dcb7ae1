"""What the commands share: one-line errors, progress on stderr, results on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm

    from mepdiff_core.states import State


class Stopped(Exception):
    """The user pressed Ctrl-C and something is left to go on from; the message says how."""


class Parser(argparse.ArgumentParser):
    """Errors in one line, exit code 2; help keeps its line breaks and shows defaults."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(2)


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def emit(arguments: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    """The result: JSON on stdout with --json, else the text."""
    print(json.dumps(result, indent=2) if arguments.json else text, flush=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, mps")


def add_settings(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--config", metavar="FILE.yaml", help=f"{what}, as a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"one of the {what}, over the file's; repeat for more (--set iterations=20 --set constraints.positivity=true)",
    )


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of --config with those of --set put over them."""
    from mepdiff_core.config import merge, parse_assignments, read_yaml

    base = read_yaml(arguments.config) if arguments.config else {}
    return merge(base, parse_assignments(arguments.set))


def progress_bar(total: int, what: str, unit: str = "step") -> tqdm[Any]:
    """A progress bar on stderr, with time left."""
    from tqdm import tqdm

    # a terminal sees it move; a log file gets a line now and then
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, mininterval=seconds)


class StateBar:
    """A progress bar that follows the states of a loop."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm[Any] | None = None

    def __call__(self, state: State) -> None:
        if self._bar is None:
            self._bar = progress_bar(state.total, self._what)
        shown = f"loss {state.loss:.5g}"
        if state.heldout is not None:
            shown += f", held out {state.heldout:.5g}"
        if state.note:
            shown += f", {state.note}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(state.step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
