"""`asrlora export`: an adapter for use elsewhere."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `export`."""
    parser.set_defaults(run=_export)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--merge", action="store_true", help="write a model that needs no adapter")
    parser.add_argument("--model-id", help="default: the base that the adapter names")


def _export(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.models.hub import check_found

    check_found(args.model_id, args.adapter)
    from asrlora.engine.inference import export

    console.print(f"{args.output}: {export(args.adapter, args.output, args.model_id, args.merge)}")
    return 0
