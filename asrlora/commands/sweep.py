"""`asrlora sweep`: many trials from one file."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from asrlora.arguments import Parser, count
from asrlora.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from asrlora.sweep.phases import PhaseStatus


def add_arguments(parser: Parser) -> None:
    """Adds the steps of `sweep`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    plan = steps.add_parser("plan", help="print the trials and the sbatch line")
    plan.set_defaults(run=_plan)
    plan.add_argument("file", type=Path)
    plan.add_argument(
        "--arrays",
        action="store_true",
        help="phases, array ranges and offsets above 0 only, for scripts",
    )
    run = steps.add_parser("run", help="run the trials, or resume them")
    run.set_defaults(run=_run)
    run.add_argument("file", type=Path)
    run.add_argument("--jobs", type=count, default=1, metavar="N", help="so many at once")
    run.add_argument("--phase", help="only this one")
    run.add_argument("--trial", type=int, metavar="K", help="only this one, counted from 0")
    run.add_argument(
        "--offset",
        type=_offset,
        default=0,
        metavar="N",
        help="--trial counts from this one on: for arrays longer than Slurm's MaxArraySize, in parts",
    )
    status = steps.add_parser("status", help="the state of all trials, while they run too")
    status.set_defaults(run=_status)
    status.add_argument("file", type=Path)


def _offset(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text}")
    return int(text)


def _plan(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.sweep import phases, slurm, sweep_file

    loaded = sweep_file.load(args.file)
    allowed = slurm.limits()
    if args.arrays:
        for name, size in sweep_file.sizes(loaded).items():
            for part in slurm.parts(size, allowed):
                print(name, part.array(loaded.at_once), *([part.offset] if part.offset else []))
        return 0
    for status in phases.read_phases(loaded):
        console.print(f"phase {status.phase.name}:")
        for number, trial in enumerate(one.trial for one in status.trials):
            console.print(f"  {number} {trial.id} {trial.label}")
            console.print(f"    {sweep_file.typed(sweep_file.command(loaded, trial))}")
    for line in slurm.describe(loaded, args.file, allowed):
        console.print(line)
    return 0


def _run(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.sweep import phases, slurm, sweep_file

    loaded = sweep_file.load(args.file)
    sweep_file.check_jobs(loaded, args.jobs if args.trial is None else 1)
    named = {phase.name: phase for phase in sweep_file.phases_of(loaded)}
    if args.phase is None and args.trial is None:
        return phases.run(loaded, args.jobs)
    name = args.phase or next(iter(named))
    if name not in named:
        raise UserError(f"--phase {name}: {args.file} has the phases {', '.join(named)}")
    number = args.trial
    if number is not None:
        size = sweep_file.sizes(loaded)[name]
        number = slurm.number_of(number, args.offset, size, args.file, loaded)
        if note := slurm.partial_array_note(size, os.environ):
            console.print(note)
    phases.check_parity(loaded)
    return phases.run_phase(loaded, named[name], args.jobs, number)


def _status(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.sweep import phases, sweep_file

    loaded = sweep_file.load(args.file)
    for status in phases.read_phases(loaded):
        console.print(_table(status))
        for one in status.trials:  # whole lines: in a column, sentences would stand a word a line
            if one.why:
                console.print(f"{one.trial.id}: {one.why}", markup=False)
    phases.write_outcome(loaded)
    return 0


def _table(status: "PhaseStatus") -> "Table":
    """The trials of a phase, a row each."""
    from rich.table import Table

    table = Table("trial")
    table.add_column(status.phase.name, overflow="fold")
    label = "/".join(sorted({one.metric.upper() for one in status.trials}))
    for header in ("state", "step", f"domain\n{label}, %", f"heldout\n{label}, %", "verdict"):
        table.add_column(header)
    for one in status.trials:
        rates = [
            f"{100 * one.baseline[name]:.2f}\n→ {100 * one.tuned[name]:.2f}"
            if one.baseline and one.tuned and name in one.baseline and name in one.tuned
            else "–"
            for name in ("domain", "heldout")
        ]
        verdict = one.judged.verdict if one.judged else "–"
        steps = f"{one.step}/{one.max_steps}" if one.max_steps else "–"
        table.add_row(one.trial.id, one.trial.label, one.state, steps, *rates, verdict)
    return table
