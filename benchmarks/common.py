"""What the benchmarks share: arguments, the table of figures, and small parts of the demo's corpus."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from asrlora.console import console
from asrlora.storage import write_json

Figures = dict[str, dict[str, Any]]  # what was measured: figure: value


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds --output."""
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds --data-dir, for benchmarks on the demo's corpus."""
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="the demo's corpus")


def report(figures: Figures, output: Path | None) -> int:
    """Prints the figures as a table, writes them to `output` where there is one, and returns exit code 0."""
    table = Table("what", "figure", "value")
    for what, values in figures.items():
        for name, value in values.items():
            table.add_row(what, name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    if output:
        write_json(output, figures)
    return 0


def first_utterances(manifest: Path, copy: Path, count: int) -> Path:
    """Writes the first utterances of a manifest to `copy`; their audio stays where it is."""
    first = [json.loads(line) for line in manifest.read_text().splitlines()[:count]]
    lines = [json.dumps({**one, "audio": str((manifest.parent / one["audio"]).resolve())}) for one in first]
    copy.write_text("".join(f"{line}\n" for line in lines))
    return copy
