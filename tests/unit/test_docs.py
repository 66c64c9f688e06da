"""Links resolve, and commands in README and docs are ones that exist."""

import contextlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from asrlora import cli
from asrlora.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^\s*(?:[A-Z_]+=\S+ )*(uv run [^\n#|]+)", text, re.MULTILINE):
        words = shlex.split(line)[2:]
        if words[0] == "asrlora":
            with contextlib.suppress(SystemExit):
                cli._parser().parse_args(words[1:])
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file(), line
        if "asrlora/cli.py" in words:
            cli._parser().parse_args(words[words.index("asrlora/cli.py") + 1 :])
        elif "asrlora/train.py" in words:
            flags = words[words.index("asrlora/train.py") + 1 :]
            for flag in flags:
                if flag.startswith("--") and flag != "--config":
                    name = flag[2:].removeprefix("no-").replace("-", "_")
                    assert name in RunConfig.model_fields, f"{page.name}: {flag}"


def test_the_makefile_holds_what_the_readme_promises() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_pins_stand_in_both_places_and_name_no_address() -> None:
    """constraints.txt is what people read and pip takes; [tool.uv] is what plain `uv run` obeys."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert project["tool"]["uv"]["constraint-dependencies"] == pins
    assert len(pins) > 60
    assert all("==" in pin and "://" not in pin and "@" not in pin for pin in pins)
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
