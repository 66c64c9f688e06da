"""`asrlora ledger`: the run matrix, drawn from run records."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `ledger` and its steps."""
    parser.set_defaults(run=_ledger)
    parser.add_argument(
        "--runs", type=Path, nargs="+", metavar="DIR", help="where run directories are (docs/runs, outputs)"
    )
    _add_pages(parser)
    steps = parser.add_subparsers(metavar="STEP")
    archive = steps.add_parser("archive", help="move a run to the archive, with the reason")
    archive.set_defaults(run=_archive)
    archive.add_argument("run_dir", type=Path)
    archive.add_argument("--reason", required=True)
    _add_pages(archive)
    verify = steps.add_parser("verify", help="run a run's command again, and compare")
    verify.set_defaults(run=_verify)
    verify.add_argument("run_dir", type=Path)


def _add_pages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, default=Path("docs/experiment_plan.md"))
    parser.add_argument("--archive-page", type=Path, default=Path("docs/archive_legacy_results.md"))


def _ledger(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.record import ledger

    folders = args.runs or [path for path in (Path("docs/runs"), Path("outputs")) if path.is_dir()]
    active, archived = ledger.write_matrix(args.page, args.archive_page, ledger.find_runs(folders))
    console.print(f"{args.page}: {active} runs; {args.archive_page}: {archived}")
    return 0


def _archive(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.record import ledger

    ledger.archive(args.run_dir, args.reason)
    ledger.write_matrix(args.page, args.archive_page, [args.run_dir])
    console.print(f"{args.run_dir} is in {args.archive_page} now")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.record import ledger

    differences = ledger.verify(args.run_dir)
    for line in differences:
        console.print(f"differs: {line}")
    console.print(f"{args.run_dir}: {'is not reproduced' if differences else 'is reproduced'}")
    return 3 if differences else 0
