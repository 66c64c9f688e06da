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
    from asrlora.report import compare

    places = [*args.runs, *(compare.trials(args.sweep) if args.sweep else ())]
    if not places:
        raise UserError("nothing to compare; give run directories, or --sweep FILE")
    runs = compare.read_runs(compare.find(places))
    groups = compare.grouped(runs)
    for table in compare.tables(groups):
        console.print(table)
    page = args.output or compare.default_page(runs)
    compare.write_page(groups, page)
    console.print(f"page: {page}")
    if args.figures:
        from asrlora.report.publication_figures import write_figures

        console.print(f"{len(write_figures(groups, args.figures))} figures: {args.figures}")
    return 0
