"""What the process above the ranks knows of their end. Real launches: tests/distributed."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from asrlora import launcher_hook
from asrlora.engine import launcher
from asrlora.record import run_dir, status
from asrlora.storage import lock

FLAGS = ["--dataset-path", "t.jsonl", "--manifest-path", "d.jsonl", "--output-dir"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run_dir.RunDirectory:
    """A run whose processes are gone, below a launcher that is left."""
    made = run_dir.RunDirectory.create(tmp_path / "run", command="x", config={"max_steps": 4})
    made.lock.close()
    words = ["accelerate", "launch", "--config_file", "x.yaml", "asrlora/train.py", *FLAGS, str(made.folder)]
    monkeypatch.setattr(launcher_hook.sys, "argv", words)
    return made


class Failed(Exception):
    """As torch.distributed.elastic's ChildFailedError."""

    def __init__(self, **failures: tuple[int, int]) -> None:
        self.failures = {
            int(rank[1:]): SimpleNamespace(pid=pid, exitcode=code) for rank, (pid, code) in failures.items()
        }


def reason(run: run_dir.RunDirectory) -> Any:
    identity = run_dir.read_json(run.folder / "run.json")
    return (identity["state"], identity["reason"])


KILLED = f"rank 1 (process 42 on {socket.gethostname()}) was killed by SIGKILL: by the kernel for want of"


def test_the_signal_that_killed_a_rank_is_recorded(
    run: run_dir.RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that the launcher ended afterwards is not the cause."""
    launcher_hook._note_killed(Failed(r0=(41, -signal.SIGTERM), r1=(42, -signal.SIGKILL)))
    state, told = reason(run)
    assert state == "failed"
    assert told.startswith(KILLED)
    assert "rank 0" not in told
    assert f"asrlora: error: {told}" in capsys.readouterr().err


def test_a_rank_that_only_saw_that_another_one_is_gone_did_not_know_why(run: run_dir.RunDirectory) -> None:
    run.update(state="failed", reason="rank 1 (process 42 on n) is gone: it was killed, by")
    launcher_hook._note_killed(Failed(r0=(41, 1), r1=(42, -signal.SIGSEGV)))
    assert "killed by SIGSEGV" in reason(run)[1]


def test_what_the_ranks_have_said_stays(
    run: run_dir.RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end a rank that is stopped by SIGKILL themselves."""
    run.update(state="failed", reason="rank 1 (process 42 on n) is stopped")
    launcher_hook._note_killed(Failed(r0=(41, 1), r1=(42, -signal.SIGKILL)))
    assert reason(run) == ("failed", "rank 1 (process 42 on n) is stopped")
    assert capsys.readouterr().err == ""


def test_the_only_process_of_a_launch_is_rank_0(run: run_dir.RunDirectory) -> None:
    launcher_hook._note_killed(subprocess.CalledProcessError(-signal.SIGKILL, ["x"]))
    assert reason(run)[1].startswith("rank 0 was killed by SIGKILL")


def test_a_run_without_a_launcher_is_known_to_be_dead_by_its_lock(run: run_dir.RunDirectory) -> None:
    assert "running, but it ended without a message: it was killed" in status.describe(run.folder)
    held = lock(run.folder / ".lock", 0)
    assert held is not None
    with held:
        assert "running, nothing written yet" in status.describe(run.folder)
        assert not run_dir.note_failure(run.folder, "x", 0), "the run's own process lives and has the word"
    again = run_dir.RunDirectory.reopen(run.folder)
    again.begin_attempt(0)
    again.begin_attempt(2)
    assert run_dir.LOST in run_dir.read_json(run.folder / "run.json")["attempts"][0]["reason"]
    again.lock.close()


def test_the_age_of_a_process_needs_no_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    age = time.time() - psutil.Process().create_time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert launcher.process_age() == pytest.approx(age, abs=2)
