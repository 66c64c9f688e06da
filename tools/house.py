"""The house in figures, and the limits that its tests hold it to: `uv run python tools/house.py`."""

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from asrlora.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "asrlora"
# figure: the most that it may be (or, for docstrings, the least)
LIMITS = {
    "files on the way of an utterance": 12,
    "lines on the way of an utterance": 3500,
    "lines of asrlora": 11_500,
    "lines of the longest file": 450,
    "lines of the longest function": 60,
    "methods of the largest class": 20,
    "fmt: skip in asrlora": 0,
    "public names without a docstring": 0,
}
TABLES = (
    "data/importers/fields.py",
    "score/characters.py",
    "demo/grammar.py",
)  # of data, not counted as code

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def modules() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def definitions(source: str) -> Iterator[tuple[str, Definition]]:
    """Functions, methods and classes with their dotted names; not those inside functions."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{prefix}{child.name}.")
            else:
                yield from inside(child, prefix)

    return inside(ast.parse(source), "")


def way() -> list[tuple[str, list[str]]]:
    """The files of docs/architecture.md's list, in order, each with the functions to read there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## One utterance")[2].partition("\n## ")[0]
    rows = re.findall(r"^\d+\. \[?`(asrlora/[\w/]+\.py)`(.*?)(?=^\d+\. |\Z)", section, re.S | re.M)
    return [(name, re.findall(r"`(\w+(?:\.\w+)?)\(\)`", text)) for name, text in rows]


def figures() -> dict[str, tuple[int, str]]:
    """Each figure with where it was found."""
    sources = modules()
    counts = {str(path.relative_to(PACKAGE)): source.count("\n") for path, source in sources.items()}
    functions, classes, silent, public = [], [], [], 0
    for path, source in sources.items():
        for name, node in definitions(source):
            where = f"{path.relative_to(PACKAGE)}: {name}"
            if isinstance(node, ast.ClassDef):
                methods = [
                    one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                classes.append((len(methods), where))
            else:
                functions.append((node.end_lineno - node.lineno + 1, where))
            if not any(part.startswith("_") for part in name.split(".")):
                public += 1
                if ast.get_docstring(node) is None:
                    silent.append(where)
    on_the_way = [name for name, _ in way()]
    tests = sum(path.read_text().count("\n") for path in (ROOT / "tests").rglob("*.py"))
    skips = {str(p.relative_to(PACKAGE)): s.count("# fmt: skip") for p, s in sources.items()}
    return {
        "files on the way of an utterance": (len(on_the_way), ""),
        "lines on the way of an utterance": (
            sum(counts.get(n.removeprefix("asrlora/"), 0) for n in on_the_way),
            "",
        ),
        "lines of asrlora": (
            sum(n for name, n in counts.items() if name not in TABLES),
            f"{len(counts)} files",
        ),
        "lines of the longest file": max((n, name) for name, n in counts.items() if name not in TABLES),
        "lines of the longest function": max(functions),
        "methods of the largest class": max(classes),
        "fmt: skip in asrlora": (sum(skips.values()), max(skips, key=lambda name: skips[name])),
        "public names without a docstring": (
            len(silent),
            f"of {public}, such as {silent[0] if silent else '-'}",
        ),
        "lines of tests": (tests, ""),
    }


def help_seconds(*command: str) -> float:
    """The best of three: how long `asrlora COMMAND --help` takes."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "asrlora.cli", *command, "--help"], check=True, capture_output=True
        )
        times.append(time.perf_counter() - start)
    return min(times)


def over(sources: dict[Path, str]) -> Iterator[str]:
    """Whatever is over a limit, one line each."""
    for path, source in sources.items():
        name = str(path.relative_to(PACKAGE))
        if name not in TABLES and source.count("\n") > LIMITS["lines of the longest file"]:
            yield f"{name}: {source.count(chr(10))} lines"
        for function, node in definitions(source):
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
                if count > LIMITS["methods of the largest class"]:
                    yield f"{name}: {function}: {count} methods"
            elif (count := node.end_lineno - node.lineno + 1) > LIMITS["lines of the longest function"]:
                yield f"{name}: {function}: {count} lines"


def main() -> int:
    wrong = 0
    for name, (value, where) in figures().items():
        limit = LIMITS.get(name)
        wrong += limit is not None and value > limit
        allowed = f" (limit {limit:,})" if limit is not None else ""
        print(f"{name}: {value:,}{allowed}{f', {where}' if where else ''}")
    for command in ("", *COMMANDS, "manifest check"):
        print(f"asrlora {command} --help: {help_seconds(*command.split()):.2f} s (limit 0.3 s)")
    if "--all" in sys.argv:
        print("\n".join(over(modules())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
