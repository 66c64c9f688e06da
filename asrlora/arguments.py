"""Parsers of command lines, and the arguments that several commands have."""

import argparse
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asrlora.errors import UserError

# helps of what is a setting of a run, too (config.py)
ALLOW_OUTSIDE = "read audio outside a manifest's folder: only where you trust who wrote the manifest"
TEXT_NORMALISER = (
    "how texts are normalised before scoring: whisper-english, whisper-english-keep-brackets,"
    " open-asr-leaderboard, basic, basic-keep-marks, none or a YAML file of rules; default: whisper-english"
    " for --language en, else basic, with marks kept for scripts such as Devanagari and Thai"
)
DOMAIN_WORDS = "words whose recall is reported, one a line; default: found, see --general-text"
GENERAL_TEXT = (
    "plain text: words of the domain that it lacks, and that are rare in the language, are domain words"
    " (default: the texts of the heldout manifest)"
)


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors, and whose sub-commands get their arguments when they are used.

    `add` adds the arguments of a sub-command. It is called when that one is what was typed, so that nothing
    is imported for the others.
    """

    def __init__(self, *args: Any, add: "Callable[[Parser], None] | None" = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._add = add

    def complete(self) -> None:
        """Adds the arguments, if that was not done yet."""
        add, self._add = self._add, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, for a parser that is complete."""
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return int(text)


def add_metric(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds --metric, with `text` as its help."""
    parser.add_argument("--metric", choices=("wer", "cer", "mer"), help=text)


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Adds --text-normaliser, --domain-words and --general-text."""
    parser.add_argument("--text-normaliser", metavar="TEXT", help=TEXT_NORMALISER)
    parser.add_argument("--domain-words", type=Path, metavar="PATH", help=DOMAIN_WORDS)
    parser.add_argument("--general-text", type=Path, metavar="PATH", help=GENERAL_TEXT)


def add_allow_outside(parser: argparse.ArgumentParser) -> None:
    """Adds --allow-outside."""
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)


def add_key_terms(parser: argparse.ArgumentParser) -> None:
    """Adds --key-terms and --key-terms-boost."""
    parser.add_argument(
        "--key-terms",
        type=Path,
        metavar="FILE",
        help="names and words that decoding is drawn to, one a line, with a weight after a tab if need be;"
        " see docs/guide/key_terms.md",
    )
    parser.add_argument(
        "--key-terms-boost",
        type=float,
        metavar="X",
        help="how strongly, in nats (default: the list's own, else 2)",
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Adds --language, --num-beams and --repetition-guard."""
    parser.add_argument("--language", default="en", help="of multilingual Whisper models (default: en)")
    parser.add_argument(
        "--num-beams", type=count, default=1, help="of models with a decoder (default: 1, greedy)"
    )
    parser.add_argument(
        "--repetition-guard",
        action="store_true",
        help="decode again what loops or does not end, without writing any five tokens twice",
    )
