"""W&B gets what the run directory holds; whatever becomes of its server, the run goes on."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server

from asrlora import cli, train
from asrlora.engine.recorder import Recorder
from asrlora.record import run_dir, status
from asrlora.storage import lock
from asrlora.tracking import wandb
from conftest import ROOT, Speech

pytestmark = pytest.mark.slow
KEY = "f00dcafe" * 5  # of no account
SETTINGS = {
    "max_steps": 6, "eval_interval": 3, "learning_rate": 1e-3, "wandb_mode": "offline", "batch_size": 2,
}  # fmt: skip


def few(speech: Speech, run: Path, **settings: object) -> list[str]:
    """The flags of a run that evaluates on eight utterances of each set."""
    cut = {}
    for key, manifest in (("manifest_path", speech.domain), ("safety_manifest_path", speech.heldout)):
        cut[key] = manifest.with_name(f"eight_{manifest.name}")
        cut[key].write_text("".join(manifest.read_text().splitlines(keepends=True)[:8]))
    return speech.flags(run, **{**SETTINGS, **cut, **settings})


def inspect(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline run, read by W&B's own reader."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(folder: Path) -> dict[int, dict[str, Any]]:
    rows = [r["history"] for r in inspect(folder) if r["type"] == "history"]
    steps = [row["step"]["num"] for row in rows]
    assert steps == sorted(set(steps)), "steps only go up"
    return {row["step"]["num"]: row["item"] for row in rows}


def parts(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def run(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two attempts: the first ends after step 5, the second does 4 and 5 again."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    board = importlib.util.find_spec("tensorboard") is not None or None
    honest = Recorder.log_step

    def broken(self: Recorder, step: int, *args: Any, **values: Any) -> None:
        if step == 6:
            raise RuntimeError("power cut")
        honest(self, step, *args, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASRLORA_SWEEP", "rates")
        patch.setenv("SLURM_ARRAY_TASK_ID", "7")
        patch.setattr(Recorder, "log_step", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            train.main(few(speech, folder, tensorboard=board))
        assert "step 5 of 6" in status.describe(folder)
        patch.setattr(Recorder, "log_step", honest)
        assert train.main(few(speech, folder, resume="auto", wandb_artifact=True, tensorboard=board)) == 0
    return folder


def test_two_attempts_are_one_run_whose_steps_only_go_up(run: Path) -> None:
    first, second = parts(run)
    ids = {r["run"]["run_id"] for part in (first, second) for r in inspect(part) if r["type"] == "run"}
    assert ids == {run_dir.read_json(run / "run.json")["wandb_id"]}
    assert max(history(first)) == 5
    assert min(history(second)) == 6


def test_what_wandb_reads_is_metrics_jsonl_number_for_number(run: Path) -> None:
    first, second = map(history, parts(run))
    read = first | second
    lines = run_dir.read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        again = line["step"] in (4, 5)  # of the second attempt: the machine's figures are not the first's
        for name in line:
            if not (again and name in ("seconds", "memory_gib", "data_wait")):
                assert read[line["step"]][f"train/{name}"] == line[name]
    for step in (0, 3, 6):
        scores = run_dir.read_json(run_dir.step_folder(run, step) / "scores.json")
        for name in ("domain", "heldout"):
            assert read[step][f"wer/{name}"] == scores[name]["wer"]
            ends = [read[step][f"wer/{name}_interval_{end}"] for end in ("low", "high")]
            assert ends == scores[name]["interval"]
            assert ends[0] <= scores[name]["wer"] <= ends[1]


def test_the_wandb_run_says_what_was_run(run: Path) -> None:
    records = inspect(parts(run)[1])
    (begun,) = [r["run"] for r in records if r["type"] == "run"]
    identity = run_dir.read_json(run / "run.json")
    assert (begun["run_group"], begun["job_type"]) == ("rates", "train")
    assert begun["tags"] == ["moonshine", "lora"]
    config = begun["config"]["update"]
    assert config["fingerprint"] == identity["fingerprint"]
    assert config["git_commit"] == identity["git_commit"]
    assert config["slurm"] == {"SLURM_ARRAY_TASK_ID": "7"}
    assert config["learning_rate"] == 1e-3
    summary: dict[str, Any] = {}
    for r in records:
        if r["type"] == "summary":
            summary |= r["summary"].get("update", {})
    judged = run_dir.read_json(run / "verdict.json")
    assert summary["verdict"] == judged["verdict"]
    assert summary["domain/tuned_wer"] == judged["domain"]["tuned_wer"]
    assert any("adapter_model.safetensors" in json.dumps(r) for r in records if r["type"] == "artifact")
    media = parts(run)[1] / "files" / "media"
    table = json.loads(next(media.glob("table/domain/*.json")).read_text())
    assert table["columns"][:4] == ["id", "reference", "before", "after"]
    assert len(table["data"]) == 8
    assert list(media.glob("audio/domain/*.wav")), "a few can be heard"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def take() -> None:
            try:
                while True:
                    held.append(server.accept())
            except OSError:
                return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.close()
        for connection, _ in held:
            connection.close()


def test_a_server_that_never_answers_stops_nothing_and_no_key_is_written(
    speech: Speech, tmp_path: Path, black_hole: str
) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "WANDB_BASE_URL": black_hole, "WANDB_API_KEY": KEY}
    environment.pop("WANDB_MODE", None)
    flags = few(speech, run, wandb_mode=None, max_steps=3)
    words = [sys.executable, "asrlora/train.py", *flags]
    done = subprocess.run(
        words,
        cwd=Path(train.__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "logging offline" in done.stderr
    (folder,) = parts(run)
    assert len([step for step in history(folder) if step]) == 3, "nothing is lost"
    assert wandb.unsent(run) == [folder.resolve()]
    assert KEY not in done.stdout + done.stderr
    for path in run.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_server_that_is_lost_midway_stops_nothing_and_gets_the_rest_later(
    speech: Speech, tmp_path: Path
) -> None:
    run, server = tmp_path / "run", wandb_server.Server()
    environment = {**os.environ, "WANDB_API_KEY": KEY}
    environment.pop("WANDB_MODE", None)
    flags = few(speech, run, wandb_mode=None, max_steps=60, eval_interval=60)
    words = [sys.executable, "asrlora/train.py", *flags]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env={**environment, "WANDB_BASE_URL": server.address},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 600

        def wait_for(happened: Callable[[], bool]) -> None:
            while not happened():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)

        log = run / "metrics.jsonl"
        wait_for(lambda: len(run_dir.read_log(log)) >= 5)
        # W&B's own process sends every few seconds, in which a fast machine takes all 60 steps: so these wait
        process.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: any("train/loss" in line for line in list(server.lines.values())))
            server.go_away()
            before = len(run_dir.read_log(log))
        finally:
            process.send_signal(signal.SIGCONT)
        told, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert before < 60, "it was lost midway"
    assert f"asrlora track sync {run}" in " ".join(told.split())
    assert len(run_dir.read_log(run / "metrics.jsonl")) == 60
    (folder,) = wandb.unsent(run)
    assert {step for step, row in history(folder).items() if "train/loss" in row} == set(range(1, 61))

    back = wandb_server.Server()
    program = [sys.executable, "-m", "asrlora.cli", "track", "sync", str(run)]
    subprocess.run(
        program, cwd=ROOT, env={**environment, "WANDB_BASE_URL": back.address}, check=True, timeout=600
    )
    back.go_away()
    losses = {step: row["train/loss"] for step, row in back.lines.items() if "train/loss" in row}
    assert losses == {line["step"]: line["loss"] for line in run_dir.read_log(run / "metrics.jsonl")}
    assert wandb.unsent(run) == []


def test_the_death_of_wandbs_own_process_is_told_and_outlived(capsys: pytest.CaptureFixture[str]) -> None:
    class Dead:
        def log(self, *args: Any, **values: Any) -> None:
            raise ConnectionResetError("Connection lost")

        finish = log

    tracker = wandb.WandbSink(Dead())
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0})
    assert capsys.readouterr().err.count("W&B: Connection lost; the run goes on without it") == 1
    assert not tracker.finish(), "`track sync` has something to send"


def test_a_key_that_is_typed_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    typed = f"uv run x --name {KEY} --dataset-path https://me:secret@host/shards"
    assert run_dir.redacted(typed) == "uv run x --name *** --dataset-path https://me:***@host/shards"


def test_sync_hands_wandb_what_waits(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "sync", str(run), "--dry-run"]) == 0
    told = "".join(capfd.readouterr())
    for part in parts(run):
        assert part.name in told
        (part / "run.wandb.synced").touch()
    assert cli.main(["track", "sync", str(run)]) == 0
    assert "nothing waits" in capfd.readouterr().out


@pytest.mark.needs("wandb-workspaces")
def test_a_workspace_shows_settings_against_both_wers() -> None:
    made = wandb.workspace("team", "asrlora", "rates")
    columns = made.sections[0].panels[0].columns
    names = [column.metric.name for column in columns]
    assert names[:2] == ["learning_rate", "max_steps"]
    assert names[-2:] == ["domain/tuned_wer", "heldout/tuned_wer"]


def test_status_tells_the_state_from_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(run)]) == 0
    told = capsys.readouterr().out
    assert "complete" in told
    assert "step 6 of 6: loss" in told
    assert "verdict: " in told
    identity = run_dir.read_json(run / "run.json")
    values = run_dir.read_json(run / "progress.json")
    (run / "run.json").write_text(json.dumps({**identity, "state": "running"}))
    hour = "but it ended without a message: it was killed (SIGKILL, or memory was full), or"
    for age, expected in ((1, "last written"), (3600, hour)):
        (run / "progress.json").write_text(json.dumps({**values, "written": time.time() - age}))
        assert expected in status.describe(run)
    held = lock(run / ".lock", 0)  # as a run holds it that lives
    assert held is not None
    with held:
        assert "but silent for 1:0" in status.describe(run)


@pytest.mark.needs("tensorboard")
def test_tensorboard_gets_the_same_numbers(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    losses = {event.step: event.value for event in board.Scalars("train/loss")}
    lines = run_dir.read_lines(run / "metrics.jsonl")
    assert losses == {line["step"]: pytest.approx(line["loss"], rel=1e-6) for line in lines}


def test_without_tensorboard_the_flag_is_a_clear_error(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from asrlora.errors import exit_code

    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else honest(name)
    )
    assert exit_code(lambda: train.main(few(speech, tmp_path / "run", tensorboard=True))) == 2
    assert "uv sync --extra tensorboard" in capsys.readouterr().err
