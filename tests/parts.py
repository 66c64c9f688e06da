"""What some tests need and a machine may lack. Without a part its tests are skipped, and the summary says how
many and how to get it; in CI (CI=true) they fail, but for the parts that no CI machine has.

A test asks by marker, `@pytest.mark.needs("Slurm", "root")`; a fixture by `require("PyAV")`.
"""

import importlib.metadata
import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEVICE = os.environ.get("ASRLORA_TEST_DEVICE", "cuda")  # cpu: tests/gpu as far as it goes without a GPU


@dataclass(frozen=True)
class Part:
    present: Callable[[], bool]
    get: str
    optional: bool = False  # may be missing in CI too


def _programs(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _package(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _parakeet() -> bool:
    """Whether Transformers can make Parakeet's features; before 5.23 it took librosa's filters."""
    version = importlib.metadata.version("transformers").split(".")[:2]
    return [int(part) for part in version] >= [5, 23] or importlib.util.find_spec("librosa") is not None


def _gpus() -> int:
    import torch

    return 2 if DEVICE == "cpu" else torch.cuda.device_count()


PARTS = {
    "Slurm": Part(
        _programs("slurmctld", "slurmd", "sbatch", "munged"),
        "apt-get update && apt-get install slurmctld slurmd slurm-client munge",
    ),
    "root": Part(lambda: os.geteuid() == 0, "run the tests as root"),
    "Chromium": Part(lambda: CHROMIUM is not None, "apt-get update && apt-get install chromium"),
    "kaldialign": Part(_package("kaldialign"), "uv sync"),
    "PyAV": Part(_package("av"), "uv sync"),
    "tensorboard": Part(_package("tensorboard"), "uv sync"),
    "wandb-workspaces": Part(_package("wandb_workspaces"), "uv sync"),
    "librosa": Part(_parakeet, "uv pip install librosa, or Transformers 5.23 or newer", optional=True),
    "bitsandbytes": Part(_package("bitsandbytes"), "uv sync --extra qlora", optional=True),
    "lhotse": Part(_package("lhotse"), "uv pip install lhotse", optional=True),
    "datasets": Part(_package("datasets"), "uv sync --extra hf", optional=True),
    "a GPU": Part(lambda: _gpus() > 0, "make test-gpu on a machine with one", optional=True),
    "CUDA": Part(lambda: DEVICE == "cuda" and _gpus() > 0, "make test-gpu with a GPU", optional=True),
    "two GPUs": Part(lambda: _gpus() > 1, "make test-gpu on a machine with two", optional=True),
    "ASRLORA_REAL": Part(
        lambda: "ASRLORA_REAL" in os.environ, "ASRLORA_REAL=FOLDER, of published models", optional=True
    ),
}  # fmt: skip


def require(name: str) -> None:
    """Skips the test that is running where the part is missing."""
    if not PARTS[name].present():
        pytest.skip(f"needs {name}: {PARTS[name].get}")


def fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure where CI=true, whoever asked for it and how."""
    reason = _reason(report)
    optional = [name for name, part in PARTS.items() if part.optional]
    if reason and os.environ.get("CI") == "true" and not any(name in reason for name in optional):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI (CI=true) is a failure: {reason}"


def summary(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """Why tests were skipped, and how many for each reason."""
    counts = Counter(filter(None, map(_reason, reports)))
    return [f"{count} skipped: {reason}" for reason, count in sorted(counts.items())]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Empty where it was not skipped; an expected failure is no skip."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return ""
    return str(report.longrepr[2]).removeprefix("Skipped: ")
