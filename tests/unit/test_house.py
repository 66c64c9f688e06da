"""docs/architecture.md leads through files and functions that exist, and few enough for one evening."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
assert spec is not None
assert spec.loader is not None
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


@pytest.mark.parametrize(("name", "functions"), house.way(), ids=lambda value: str(value))
def test_the_path_of_an_utterance_names_what_is_there(name: str, functions: list[str]) -> None:
    assert (ROOT / name).is_file()
    defined = {dotted for dotted, _ in house.definitions((ROOT / name).read_text())}
    assert functions, f"{name}: no function to read"
    assert set(functions) <= defined, f"{name} has no {set(functions) - defined}"


def test_the_path_of_an_utterance_is_short() -> None:
    lines = [(ROOT / name).read_text().count("\n") for name, _ in house.way()]
    assert 8 <= len(lines) <= house.LIMITS["files on the way of an utterance"]
    assert sum(lines) <= house.LIMITS["lines on the way of an utterance"]


def test_pages_name_source_files_that_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        if page.name != "experiment_plan.md":  # quotes commands of the past
            for name in re.findall(r"`((?:asrlora|tests|tools)/[\w/.]+\.\w+)`", page.read_text()):
                assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)} names {name}"
