"""`asrlora status`: the progress of runs."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `status`."""
    parser.set_defaults(run=_status)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")


def _status(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.record import status

    for run in args.runs:
        console.print(status.describe(run))
    return 0
