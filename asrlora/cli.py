"""The command `asrlora`: finds the module of the command that was typed, in asrlora/commands, and runs it."""

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from asrlora import allocation
from asrlora.arguments import Parser
from asrlora.errors import exit_code

COMMANDS = {
    "demo": "corpus, audit, training and verdict on synthetic speech, in minutes on a CPU",
    "manifest": "import, audit, merge, split and filter manifests",
    "shards": "build and verify WebDataset tars",
    "bench": "measure speed on this machine",
    "eval": "hypotheses and WER of a model on a manifest",
    "verdict": "judge a run again from its files",
    "strength": "weaken an adapter until it keeps what the base could",
    "compare": "runs side by side: one HTML page and a table",
    "status": "the progress of runs, read from their files",
    "track": "Weights & Biases: send what waits, make a workspace",
    "transcribe": "print the texts of audio files",
    "terms": "names and words that decoding is drawn to: propose them, tune the boost",
    "export": "an adapter to use elsewhere, or merged into its base",
    "mix": "one adapter from several, or from the checkpoints of a run",
    "ledger": "draw the run matrix from run records",
    "sweep": "many trials from one file; see docs/guide/sweeps.md",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    allocation.wait_passively()
    args = parser().parse_args(arguments)
    return int(args.run(args))


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="asrlora",
        description="Adapt a speech recogniser to your domain without breaking it, and prove it.",
        epilog="Training: accelerate launch --config_file accelerate_configs/X.yaml asrlora/train.py FLAGS",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show version and commit, and exit")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add=functools.partial(_add_arguments, name))
    return top


def _add_arguments(command: str, parser: Parser) -> None:
    importlib.import_module(f"asrlora.commands.{command}").add_arguments(parser)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import importlib.metadata

        from asrlora.record.run_dir import git_commit

        commit = git_commit()
        print(f"asrlora {importlib.metadata.version('asrlora')}" + (f" (commit {commit})" if commit else ""))
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
