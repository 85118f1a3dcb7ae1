"""What the commands share: one-line errors, progress on stderr, results on stdout."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm

    from mepdiff_core.states import State


class Stopped(Exception):
    """The user pressed Ctrl-C and something is left to go on from; the message says how."""


def stopped_run(scan: str | Path, method: str, out: str | Path) -> BaseException:
    """What Ctrl-C in a reconstruction comes to: a run to resume, or nothing where its folder was not yet made."""
    if not (Path(out) / "run.yaml").exists():
        return KeyboardInterrupt()
    command = ["mepdiff", "reconstruct", str(scan), "--method", method, "--out", str(out), "--resume"]
    if method == "crystal" and (Path(out) / "history.csv").exists():  # it has no checkpoints
        return Stopped(f"stopped; {out} keeps what was found; begin again with: {shlex.join(command)}")
    return Stopped(f"stopped; go on with: {shlex.join(command)}")


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
    from mepdiff_core.runs import finite

    print(json.dumps(finite(result), indent=2) if arguments.json else text, flush=True)


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


class ProgressBar:
    """A progress bar on stderr, with time left. It appears with the first step: an error before that stands alone."""

    def __init__(self, what: str, unit: str = "step") -> None:
        self._what, self._unit = what, unit
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, done: int, total: int, note: str = "") -> None:
        """Move to ``done`` of ``total``."""
        from tqdm import tqdm

        if self._bar is None:
            # a terminal sees it move; a log file gets a line now and then
            seconds = 0.2 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                desc=self._what,
                unit=self._unit,
                total=total,
                initial=done,
                postfix=note,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=seconds,
                miniters=0,
            )
        self._bar.total = total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is, on a line of its own."""
        if self._bar is not None:
            self._bar.close()


class StateBar(ProgressBar):
    """A progress bar that follows the states of a loop."""

    def __call__(self, state: State) -> None:
        shown = [f"loss {state.loss:.5g}"] if math.isfinite(state.loss) else []  # some loops begin before there is one
        if state.heldout is not None:
            shown.append(f"held out {state.heldout:.5g}")
        if state.note:
            shown.append(state.note)
        self.show(state.step, state.total, ", ".join(shown))
