"""`asrlora demo`: corpus, audit, training and verdict on synthetic speech."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser

DATA = Path("data/demo")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `demo` and of its step `corpus`."""
    parser.set_defaults(run=_demo)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=1, help="of the training (the corpus has its own)")
    steps = parser.add_subparsers(metavar="STEP")
    corpus = steps.add_parser("corpus", help="only synthesise the corpus and write its manifests")
    corpus.set_defaults(run=_corpus)
    corpus.add_argument("--data-dir", type=Path, default=DATA)


def _demo(args: argparse.Namespace) -> int:
    from asrlora.demo.demo import run_demo

    return run_demo(args.data_dir, args.output_dir, args.seed)


def _corpus(args: argparse.Namespace) -> int:
    from asrlora.demo.demo import make_corpus

    make_corpus(args.data_dir)
    return 0
