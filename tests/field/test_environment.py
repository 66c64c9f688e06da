"""W&B's variables in the environment of a job: which a run follows, which not, and what it says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server

from asrlora import train
from asrlora.config import RunConfig
from asrlora.errors import exit_code
from asrlora.record import run_dir
from asrlora.record.schema import RunRecord
from asrlora.storage import write_json
from asrlora.tracking import wandb
from conftest import ROOT

IDENTITY: dict[str, Any] = {
    "run_id": "run", "state": "running", "started": "2026-11-25T12:00:00+00:00", "command": "",
    "config": {"max_steps": 4}, "fingerprint": {}, "git_commit": None, "world_size": 1, "launch": "DDP",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in os.environ if name.startswith(("WANDB_", "ASRLORA_SWEEP", "ASRLORA_PHASE"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


def config(folder: Path, mode: str | None = None) -> RunConfig:
    settings = {"dataset_path": "t.jsonl", "manifest_path": "d.jsonl", "wandb_mode": mode}
    return RunConfig.model_validate({**settings, "output_dir": str(folder)})


def attempt(folder: Path, recorded: dict[str, Any] | None = None, mode: str | None = None) -> Any:
    """One attempt at the run in `folder` as far as W&B is concerned; its W&B run, or None.

    `recorded` is what run.json holds of W&B, and is kept there.
    """
    kept = {**IDENTITY, **(recorded or {})}
    folder.mkdir(exist_ok=True)
    identity = RunRecord.model_validate(kept)
    run = wandb.start(config(folder, mode), identity, ["moonshine"])
    if run is not None:
        now = identity.changed(wandb_id=run.id, wandb=wandb.place(config(folder), run))
        write_json(folder / "run.json", now.as_json())
        wandb.WandbSink(run).finish()
    return run


@pytest.mark.parametrize(
    "environment",
    [
        {"WANDB_RUN_ID": "night"},
        {"WANDB_RUN_ID": "night", "WANDB_RESUME": "must"},
        {"WANDB_RESUME": "auto"},
        {"WANDB_RESUME_FROM": "night?_step=3"},
        {"WANDB_FORK_FROM": "night?_step=3"},
        {"WANDB_DIR": "/nowhere"},
    ],
    ids=lambda environment: "+".join(environment),
)
def test_what_a_job_script_exports_makes_no_two_directories_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runs = [attempt(tmp_path / name) for name in ("first", "second")]
    assert "night" not in {run.id for run in runs}
    assert runs[0].id != runs[1].id
    assert all(list((tmp_path / name / "wandb").glob("offline-run-*")) for name in ("first", "second"))
    printed = capsys.readouterr().err
    for name, value in environment.items():
        assert printed.count(f"{name}={value}") == 2, "each says what it does not follow"
        assert os.environ[name] == value
    assert (f"this one is {runs[0].id}" in printed) == (list(environment) != ["WANDB_DIR"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("asrlora", None, "run", "train", ("moonshine",))),
        ({"WANDB_PROJECT": "field", "WANDB_ENTITY": "team"}, ("field", None, "run", "train", ("moonshine",))),
        ({"WANDB_NAME": "tonight", "WANDB_RUN_GROUP": "mine", "WANDB_JOB_TYPE": "night", "WANDB_TAGS": "a,b",
          "ASRLORA_SWEEP": "rates"}, ("asrlora", "mine", "tonight", "night", ("moonshine", "a", "b"))),
        ({"ASRLORA_SWEEP": "rates", "ASRLORA_PHASE": "steps"},
         ("asrlora", "rates", "run", "steps", ("moonshine",))),
    ],
)  # fmt: skip
def test_names_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[Any, ...]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = attempt(tmp_path / "run")
    assert (run.project, run.group or None, run.name, run.job_type, run.tags) == expected
    kept = run_dir.read_json(tmp_path / "run" / "run.json")["wandb"]
    assert kept["entity"] == environment.get("WANDB_ENTITY")


def test_a_resumed_directory_keeps_its_run_and_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "first")
    begun = attempt(tmp_path / "run")
    kept = run_dir.read_json(tmp_path / "run" / "run.json")
    monkeypatch.setenv("WANDB_PROJECT", "second")
    monkeypatch.setenv("WANDB_RUN_ID", "night")
    again = attempt(tmp_path / "run", kept)
    assert (again.id, again.project) == (begun.id, "first")
    old = {"wandb_id": "abcd1234"}  # before projects were kept in run.json
    assert attempt(tmp_path / "old", old).project == wandb.PROJECT


@pytest.mark.parametrize("original", ["stays", "is moved"])
def test_a_copy_of_a_directory_is_another_run_and_a_moved_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], original: str
) -> None:
    begun = attempt(tmp_path / "first")
    (shutil.copytree if original == "stays" else shutil.move)(tmp_path / "first", tmp_path / "second")
    kept = run_dir.read_json(tmp_path / "second" / "run.json")
    again = attempt(tmp_path / "second", kept)
    assert (again.id == begun.id) == (original == "is moved")
    assert (f"is a copy of {tmp_path / 'first'}" in capsys.readouterr().err) == (original == "stays")


@pytest.mark.parametrize(
    ("flag", "environment", "mode"),
    [
        (None, {}, None),
        (None, {"WANDB_MODE": ""}, None),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "run"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "disabled"),
        (None, {"WANDB_DISABLED": "false"}, None),
        ("offline", {"WANDB_MODE": "disabled"}, "offline"),
        ("offline", {"WANDB_MODE": "nonsense", "WANDB_DISABLED": "true"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_the_flag_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, environment: dict[str, str], mode: str | None
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb.chosen_mode(flag) == mode


@pytest.mark.parametrize("environment", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "1"}])
def test_disabled_writes_nothing_that_could_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert attempt(tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WANDB_SWEEP_ID", "x1y2", "unset it, or give --wandb-mode disabled"),
        ("WANDB_MODE", "shared", "a run is online, offline or disabled"),
        ("WANDB_MODE", "Online", "a run is online, offline or disabled"),
    ],
)
def test_what_no_run_does_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, value: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    flags = ["--dataset-path", "t.jsonl", "--manifest-path", "d.jsonl", "--output-dir", str(tmp_path / "run")]
    assert exit_code(lambda: train.main(flags)) == 2
    shown = capsys.readouterr().err
    assert name in shown
    assert expected in shown
    assert exit_code(lambda: train.main([*flags, "--wandb-mode", "disabled"])) == 2
    assert "t.jsonl" in capsys.readouterr().err, "disabled, it is no matter, and the next error is reported"


@pytest.fixture
def server() -> Iterator[wandb_server.Server]:
    running = wandb_server.Server()
    yield running
    running.go_away()


@pytest.mark.slow
def test_sync_sends_a_run_as_it_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: wandb_server.Server
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "first")
    run = wandb.start(config(tmp_path), RunRecord.model_validate(IDENTITY), [])
    write_json(tmp_path / "run.json", IDENTITY)
    tracker = wandb.WandbSink(run)
    tracker.log(1, {"train/loss": 2.0})
    tracker.finish()
    job = {
        "WANDB_MODE": "disabled", "WANDB_RUN_ID": "night", "WANDB_RESUME": "must", "WANDB_PROJECT": "second",
        "WANDB_DIR": "/nowhere", "WANDB_API_KEY": "f00dcafe" * 5, "WANDB_BASE_URL": server.address,
    }  # fmt: skip
    program = [sys.executable, "-m", "asrlora.cli", "track", "sync", str(tmp_path)]
    subprocess.run(program, cwd=ROOT, env={**os.environ, **job}, check=True, timeout=300)
    assert server.runs == {("first", run.id)}
    assert server.lines[1]["train/loss"] == 2.0
    assert wandb.unsent(tmp_path) == []
