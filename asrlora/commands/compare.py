"""`asrlora compare`: runs side by side."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser
from asrlora.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `compare`."""
    parser.set_defaults(run=_compare)
    parser.add_argument("runs", type=Path, nargs="*", help="run directories, or folders that hold some")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="the trials of this sweep file")
    parser.add_argument(
        "--output", type=Path, help="the page (default: compare.html in the folder that holds the runs)"
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="write figures for papers there too, as PDF and SVG"
    )


def _compare(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.report import compare, groups

    places = [*args.runs, *(groups.trials(args.sweep) if args.sweep else ())]
    if not places:
        raise UserError("nothing to compare; give run directories, or --sweep FILE")
    runs = groups.read_runs(groups.find(places))
    compared = groups.grouped(runs)
    for table in compare.tables(compared):
        console.print(table)
    page = args.output or compare.default_page(runs)
    compare.write_page(compared, page)
    console.print(f"page: {page}")
    if args.figures:
        from asrlora.report.publication_figures import write_figures

        console.print(f"{len(write_figures(compared, args.figures))} figures: {args.figures}")
    return 0
