"""`asrlora verdict`: judges a run again from its files."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `verdict`."""
    parser.set_defaults(run=_verdict)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--resample-by", choices=("auto", "utterance", "speaker"), help="default: as the run was started"
    )


def _verdict(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.record.diagnosis import next_command
    from asrlora.record.judge import judge_run
    from asrlora.report.page import write_report
    from asrlora.score.verdict import EXIT_CODES

    judged = judge_run(args.run_dir, args.resample_by)
    console.print(f"{judged.verdict}: {judged.reason}")
    for name, section in (judged.learned or judged).sets().items():
        line = f"{name}: better with probability {section.improvement_probability:.1%}"
        if section.mapsswe is not None:  # it needs two segments that differ
            line += f"; MAPSSWE p = {section.mapsswe.p_value:.2g}"
        console.print(line)
    console.print(f"report: {write_report(args.run_dir)}")
    if command := next_command(args.run_dir, judged):
        console.print(f"next: {command}")
    return EXIT_CODES[judged.verdict]
