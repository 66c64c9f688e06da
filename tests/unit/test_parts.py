"""Nothing is skipped unseen, and in CI nothing but what no CI machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

TESTS = """
import parts, pytest
parts.PARTS["a thing"] = parts.Part(lambda: False, "buy one")
parts.PARTS["a GPU"] = parts.Part(lambda: False, "borrow one", optional=True)
@pytest.mark.needs("a thing")
def test_by_marker(): ...
@pytest.mark.needs("a thing")
def test_by_marker_too(): ...
def test_by_itself():
    pytest.importorskip("no_such_module")
@pytest.mark.gpu
def test_on_a_gpu(): ...
@pytest.mark.xfail
def test_that_is_known_to_fail():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("ci", "counts"),
    [("true", "1 failed, 1 skipped, 1 xfailed, 2 errors"), ("false", "4 skipped, 1 xfailed")],
)
def test_what_is_skipped_is_counted_and_in_ci_a_failure(ci: str, counts: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
    told = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--durations=0", "--rootdir", tmp_path, tmp_path / "test_it.py"],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert counts in told, told
    assert "1 skipped: needs a GPU: borrow one" in told
    assert ("2 skipped: needs a thing: buy one" in told) == (ci == "false")
    assert ("skipped, which in CI (CI=true) is a failure: could not import 'no_such" in told) == (
        ci == "true"
    )
