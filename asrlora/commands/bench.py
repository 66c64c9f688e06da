"""`asrlora bench`: runs a benchmark of the clone's folder benchmarks/, which is no part of the package."""

import functools
import importlib
import sys
from pathlib import Path

from asrlora.arguments import Parser
from asrlora.errors import UserError

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    "data": "shards, plan and loader, in ratios (7 minutes)",
    "engine": "checkpoints and resuming, on the demo (3 minutes)",
    "verdict": "how often the verdict is right where the truth is known (5 minutes)",
    "rescue": "how often a rescue ends in a false accept, where the truth is known (5 minutes)",
    "eval": "evaluation against Transformers' pipeline (6 minutes)",
    "profile": "where the time of a training step goes (1 minute)",
    "peers": "training against Seq2SeqTrainer with PEFT and a plain loop (10 minutes; whole: 40)",
    "together": "two trials at once against each alone (6 minutes)",
}


def add_arguments(parser: Parser) -> None:
    """Adds the benchmarks as steps of `bench`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for name, text in BENCHMARKS.items():
        steps.add_parser(name, help=text, add=functools.partial(_add_arguments, name))


def _add_arguments(name: str, parser: Parser) -> None:
    if not (ROOT / "benchmarks").is_dir():
        raise UserError("asrlora bench runs from a clone of the project, where benchmarks/ is")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    importlib.import_module(f"benchmarks.{name}").add_arguments(parser)
