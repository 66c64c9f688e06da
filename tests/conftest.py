"""Speech for the tests, spoken once a session by the demo's own corpus code."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before torch; threads of several workers get in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import parts

with contextlib.suppress(ImportError):  # tests/gpu does without
    import hypothesis

    # a slow or busy machine is no failure, and what is tried is the same everywhere
    hypothesis.settings.register_profile(
        "asrlora",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("asrlora")

ROOT = Path(__file__).parents[1]
BASE = ROOT / "asrlora" / "demo" / "base"


@dataclass(frozen=True)
class Speech:
    """A small corpus: 160 training (domain and general), 64 domain, 48 heldout utterances."""

    train: Path
    domain: Path
    heldout: Path

    @classmethod
    def of(cls, folder: Path) -> "Speech":
        names = ("train_manifest_expanded", "domain_manifest", "heldout_manifest")
        return cls(*(folder / f"{name}.jsonl" for name in names))

    def flags(self, output: Path, **settings: object) -> list[str]:
        """The flags of a run on this corpus; `settings` are further ones, max_steps=4, or None for none."""
        everything = {
            "model_id": BASE,
            "dataset_path": self.train,
            "manifest_path": self.domain,
            "safety_manifest_path": self.heldout,
            "output_dir": output,
            "wandb_mode": "disabled",
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
            **settings,
        }
        words: list[str] = []
        for name, value in everything.items():
            flag = "--" + name.replace("_", "-")
            if value is not None:
                words += [flag] if value is True else [flag, str(value)]
        return words


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            parts.require(name)
    if item.get_closest_marker("gpu"):
        parts.require("a GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    parts.fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    parts.fail_in_ci(report)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = parts.summary(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("skipped tests, and how to run them")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of the tests' own, so that nothing depends on what ran on this machine before."""
    os.environ["ASRLORA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A --model-id for each of tiny.KINDS: a random model, which nobody may change."""
    import tiny

    return tiny.Folders(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    """Spoken once a session: xdist's workers copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "speech.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "spoken" / "heldout_manifest.jsonl").exists():  # what `speak` writes last
            speak(shared / "spoken")
    return Speech.of(
        shutil.copytree(shared / "spoken", tmp_path_factory.mktemp("speech"), dirs_exist_ok=True)
    )


def speak(folder: Path) -> Speech:
    from asrlora.demo import corpus  # espeak-ng, which tests/gpu does without

    draw = {
        "train-domain": (80, corpus.DOMAIN, False),
        "train-general": (80, corpus.GENERAL, False),
        "domain": (64, corpus.DOMAIN, True),
        "heldout": (48, corpus.GENERAL, True),
    }
    records = {
        name: list(corpus.write_set(corpus.draw_lines(name, count, style, heldback, 7), folder / name))
        for name, (count, style, heldback) in draw.items()
    }
    train = records["train-domain"] + records["train-general"]
    corpus.write_manifest(folder / "train_manifest_expanded.jsonl", train)
    corpus.write_manifest(folder / "domain_manifest.jsonl", records["domain"])
    corpus.write_manifest(folder / "heldout_manifest.jsonl", records["heldout"])
    return Speech.of(folder)
