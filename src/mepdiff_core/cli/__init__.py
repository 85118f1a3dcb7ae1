"""The ``mepdiff`` command. Exit code 0, 2 for what the user gave (one line says what), 1 for our own fault.

Ctrl-C exits with 0 where a run is left that --resume continues, with 130 where nothing is left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mepdiff_core import __version__
from mepdiff_core.cli import (
    convert,
    dataset,
    demo,
    evaluate,
    export_ptyrad,
    fit_probe,
    fit_thickness,
    import_ptyrad,
    info,
    inspect,
    prepare,
    prior,
    reconstruct,
    sample,
    simulate,
    train,
)
from mepdiff_core.cli.common import Parser, Stopped, say
from mepdiff_core.errors import explain

COMMANDS = (
    *(info, demo, simulate, inspect, convert, prepare, fit_probe, fit_thickness, reconstruct, evaluate),
    *(dataset, train, sample, prior, export_ptyrad, import_ptyrad),
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="mepdiff",
        description="From a 4D-STEM scan to a 3D crystal: multislice electron ptychography.",
        epilog="mepdiff COMMAND --help explains a command. A first look: mepdiff demo",
    )
    parser.add_argument("--version", action="version", version=f"mepdiff {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except Stopped as stopped:
        say(f"mepdiff: {stopped}")
    except KeyboardInterrupt:
        say("mepdiff: stopped; nothing was written")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        say(f"mepdiff: {line}")
        return 2
    return 0
