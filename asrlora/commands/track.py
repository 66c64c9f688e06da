"""`asrlora track`: Weights & Biases after the run."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser, add_metric


def add_arguments(parser: Parser) -> None:
    """Adds the steps of `track`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    sync = steps.add_parser("sync", help="send runs that were logged offline or cut off")
    sync.set_defaults(run=_sync)
    sync.add_argument("runs", type=Path, nargs="+", help="run directories")
    sync.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    workspace = steps.add_parser("workspace", help="a W&B workspace that compares a sweep")
    workspace.set_defaults(run=_workspace)
    workspace.add_argument("--entity", required=True, help="your W&B team or user")
    workspace.add_argument("--project", default="asrlora")
    add_metric(workspace, "of its runs (default: wer)")
    workspace.add_argument("--group", help="only the runs of this sweep ($ASRLORA_SWEEP of its runs)")


def _sync(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.tracking import wandb

    if not any(wandb.unsent(run) for run in args.runs):
        console.print("nothing waits to be sent to W&B")
        return 0
    return 1 if wandb.sync(args.runs, args.dry_run) else 0


def _workspace(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.tracking import wandb

    made = wandb.workspace(args.entity, args.project, args.group, args.metric or "wer")
    made.save()
    console.print(f"workspace: {made.url}")
    return 0
