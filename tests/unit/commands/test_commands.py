"""The door of the commands: what it imports, what it prints, and what runs through it."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrlora import arguments, cli
from asrlora.commands import bench

ROOT = Path(__file__).parents[3]
SLOW = {"torch", "pydantic", "rich", "yaml", "numpy"}  # to import
# runs a command, and prints which slow libraries were imported
CODE = "import sys; from asrlora import cli\ntry: cli.main()\nfinally: print('imported', *sys.modules)"


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return SLOW & set(done.stdout.rpartition("imported ")[2].split())


@pytest.mark.parametrize("words", ["", "demo", "shards build", "eval", "verdict", "sweep run", "bench"])
def test_help_imports_nothing_slow(words: str) -> None:
    assert imported(*words.split(), "--help") == set()


@pytest.mark.parametrize("words", ["manifest check", "manifest restyle"])
def test_help_with_settings_of_a_run_imports_what_defines_them(words: str) -> None:
    assert imported(*words.split(), "--help") == {"pydantic"}


def leaves(parser: arguments.Parser) -> Iterator[arguments.Parser]:
    for action in parser._actions:
        for choice in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            choice.complete()
            yield choice
            yield from leaves(choice)


def test_every_command_names_its_function() -> None:
    found = {parser.prog: parser for parser in leaves(cli.parser())}
    assert {prog.split()[1] for prog in found} == set(cli.COMMANDS)
    for prog, parser in found.items():
        steps = any(other.startswith(f"{prog} ") for other in found)
        assert steps or callable(parser.get_default("run")), prog


def test_the_version_names_the_commit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    version = capsys.readouterr().out
    assert version.startswith("asrlora 0.")
    assert head.returncode != 0 or head.stdout.strip() in version


def test_cli_runs_by_path_too(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "asrlora" / "cli.py"), "status", "gone"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "asrlora: error: gone holds no run.json; give a run directory\n"


def test_without_a_clone_there_are_no_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert cli.main(["bench", "data"]) == 2
    assert "asrlora bench runs from a clone of the project" in capsys.readouterr().err


def test_what_a_benchmark_imports_in_another_process_exists() -> None:
    """Its code is a text, which renames pass by."""
    from benchmarks import engine

    for node in ast.walk(ast.parse(engine.LOAD.format("base"))):
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(importlib.util.find_spec(f"{node.module}.{name.name}") for name in node.names)
