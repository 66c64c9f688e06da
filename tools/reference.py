"""Writes the pages of docs/reference that follow from the code: `uv run python tools/reference.py`.

tests/unit/test_docs.py compares them with the code, so a new setting or command needs this script.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asrlora import cli
from asrlora.config import RESUMABLE_SETTINGS, RunConfig

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
# the first setting of each section, in the order of RunConfig
SECTIONS = {
    "model_id": "Model, data and output",
    "max_steps": "Steps and learning rate",
    "batch_size": "Batches",
    "max_seconds": "Training data",
    "lora_r": "Adapter",
    "min_domain_reduction": "Criteria",
    "mixed_precision": "Precision and memory",
    "text_normaliser": "Scoring and evaluation",
    "save_interval": "Checkpoints and failures",
    "report_audio": "Report and tracking",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

SETTINGS_HEAD = """\
# Settings of a run

Written by `tools/reference.py` from `RunConfig` in `asrlora/config.py`; do not edit.

Each setting is a flag of `asrlora/train.py` (`--max-steps 200`) and a key of the YAML file that `--config`
names (`max_steps: 200`). Flags win. A switch is `--use-dora` or `--no-use-dora`. A list is joined by commas;
in YAML it may be a list. The last column says which settings may differ when a run is resumed. A change of
any other setting is refused.
"""
COMMANDS_HEAD = """\
# Commands

Written by `tools/reference.py` from the commands' parsers; do not edit. `uv run asrlora COMMAND --help`
lists all flags of a command. Training has its own script, `asrlora/train.py`, whose flags are the
[settings](settings.md). What commands exit with: [exit codes](exit_codes.md).

| command | does |
|---|---|
"""


def settings() -> str:
    """docs/reference/settings.md: each field of RunConfig with type, default and whether it may change."""
    lines = [SETTINGS_HEAD.rstrip()]
    schema = RunConfig.model_json_schema()
    for name, field in schema["properties"].items():
        if name in SECTIONS:
            lines += ["", f"## {SECTIONS[name]}", ""]
            lines += ["| setting | type | default | what it does | resume |", "|---|---|---|---|---|"]
        default = "required" if name in schema["required"] else value(field["default"])
        resume = "may change" if name in RESUMABLE_SETTINGS else ""
        row = (f"`--{name.replace('_', '-')}`", kind(field), default, field.get("description", ""), resume)
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")
    return "\n".join(lines) + "\n"


def kind(field: dict[str, Any]) -> str:
    """The type of a field of a JSON schema, in words, with its bounds."""
    if "anyOf" in field:
        kinds = [kind(option) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        return f"list of {kind(field['items'])}s"
    word = {"integer": "integer", "number": "number", "boolean": "switch", "string": "text"}[field["type"]]
    if field.get("format") == "path":
        word = "path"
    bounds = [f"{sign} {field[name]:g}" for name, sign in BOUNDS.items() if name in field]
    return " ".join([word, ", ".join(bounds)]).strip()


def value(default: Any) -> str:
    """A default as one would type it; empty where there is none."""
    if default is None or default == []:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:g}`" if isinstance(default, int | float) else f"`{default}`"


def commands() -> str:
    """docs/reference/commands.md: each command with its arguments and its line of help."""
    lines = [COMMANDS_HEAD.rstrip()]
    parser = cli.parser()
    lines += [f"| `{usage}` | {text} |" for usage, text in leaves(parser, parser.prog)]
    return "\n".join(lines) + "\n"


def leaves(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, str]]:
    """Each command that can be run, as its words with positional arguments, and its line of help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                below = action.choices[choice.dest]
                below.complete()
                if below._defaults:  # `demo` and `ledger` run by themselves and have steps
                    yield f"{words} {choice.dest}{required(below)}", choice.help or ""
                yield from leaves(below, f"{words} {choice.dest}")


def required(parser: argparse.ArgumentParser) -> str:
    """The arguments that a command must have, values in capitals, with `…` where there may be several."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    words = [one.dest.upper() + "…" * bool(one.nargs) for one in actions if not one.option_strings]
    words += [option(one) for one in actions if one.option_strings and one.required]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words.append("(" + " or ".join(option(one) for one in group._group_actions) + ")")
    return "".join(f" {word}" for word in words)


def option(action: argparse.Action) -> str:
    """An option with its value, as a usage line has it."""
    return f"{action.option_strings[0]} {action.metavar or action.dest.upper()}"


PAGES = {"settings.md": settings, "commands.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
