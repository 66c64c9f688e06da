"""Runs that are killed, stopped, frozen and gone on with, on real gloo ranks."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kill_resume
import pytest
from kill_resume import SETTINGS, result, start, wait
from safetensors.torch import load_file

from asrlora import train
from asrlora.data import batches
from asrlora.engine import watchdog
from asrlora.errors import UserError
from asrlora.runs import record
from conftest import Speech


@dataclass(frozen=True)
class Undisturbed:
    speech: Speech
    folder: Path
    results: dict[int, dict[str, str]]  # by world size
    seconds: dict[int, float]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("resume")
    speech = kill_resume.small(folder / "speech")
    found = {world: kill_resume.undisturbed(speech, folder / str(world), world) for world in (1, 2)}
    results, seconds = ({world: one[i] for world, one in found.items()} for i in (0, 1))
    return Undisturbed(speech, folder, results, seconds)


def test_two_runs_with_one_seed_are_identical_to_the_byte(undisturbed: Undisturbed, tmp_path: Path) -> None:
    again, _ = kill_resume.undisturbed(undisturbed.speech, tmp_path / "again", 2)
    assert kill_resume.differences(again, undisturbed.results[2]) == []


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", range(5))
def test_a_killed_run_ends_as_if_nobody_had_disturbed_it(
    undisturbed: Undisturbed, tmp_path: Path, world: int, number: int
) -> None:
    expected, took = undisturbed.results[world], undisturbed.seconds[world]
    kill_resume.trial(number, undisturbed.speech, tmp_path, world, expected, took, kills=1)


def lines_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def until_step(run: Path, step: int) -> None:
    """Waits until the run has logged optimizer step `step`."""
    end = time.monotonic() + 120
    while lines_of(run) < step:
        assert time.monotonic() < end, "the run makes no steps"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_75_and_the_run_goes_on(
    undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    flags = undisturbed.speech.flags(run, **SETTINGS)
    ranks = start(2, flags, tmp_path / "log")
    until_step(run, 5)
    for _ in range(2):  # the second one changes nothing
        os.kill(ranks[1].pid or 0, number)  # one rank alone hears it; all must end
    assert wait(ranks, 60) == [75, 75], (tmp_path / "log").read_text()
    identity = record.read_json(run / "run.json")
    assert identity["state"] == "preempted"
    assert "go on with --resume auto" in identity["reason"]
    saved = max((run / "checkpoints").iterdir()).name
    assert saved == f"step-{lines_of(run):06d}", "the step that was done is saved"
    assert wait(start(2, flags, tmp_path / "log"), 120) == [0, 0], (tmp_path / "log").read_text()
    assert result(run) == undisturbed.results[2]
    attempts = record.read_json(run / "run.json")["attempts"]
    assert [attempt["from_step"] for attempt in attempts] == [0, int(saved.removeprefix("step-"))]


@pytest.mark.slow
def test_going_on_with_other_numbers_of_processes_reads_the_same(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """1 process, 2, 2 by ZeRO-2, 1: the same batches, and the same adapter but for rounding."""
    run = tmp_path / "run"
    flags = undisturbed.speech.flags(run, **SETTINGS)
    for world, until, zero2 in ((1, 3, False), (2, 6, False), (2, 9, True)):
        ranks = start(world, flags, tmp_path / "log", zero2)
        until_step(run, until)
        for rank in ranks:
            os.kill(rank.pid or 0, signal.SIGTERM)
        assert wait(ranks, 60) == [75] * world, (tmp_path / "log").read_text()
    assert wait(start(1, flags, tmp_path / "log"), 120) == [0]
    whole = undisturbed.folder / "1"
    ours, theirs = (record.read_lines(folder / "metrics.jsonl") for folder in (run, whole))
    assert [line["read"] for line in ours] == [line["read"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=1e-4)
    path = "checkpoints/step-000012/adapter.safetensors"
    ours, theirs = load_file(run / path), load_file(whole / path)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-4
    attempts = record.read_json(run / "run.json")["attempts"]
    assert [attempt["world_size"] for attempt in attempts] == [1, 2, 2, 1]
    assert attempts[2]["launch"] == "ZeRO-2"


PISSA = {"init_lora_weights": "pissa", "mixed_precision": "bf16"}


@pytest.fixture(scope="module")
def pissa(undisturbed: Undisturbed) -> dict[str, str]:
    return kill_resume.undisturbed(undisturbed.speech, undisturbed.folder / "pissa", 1, **PISSA)[0]


@pytest.mark.slow
def test_a_rewritten_base_is_rewritten_again(
    pissa: dict[str, str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """PiSSA moves weights of the base into the adapter, so going on must begin from the same ones."""
    flags = undisturbed.speech.flags(tmp_path / "run", **{**SETTINGS, **PISSA})
    (rank,) = start(1, flags, tmp_path / "log")
    until_step(tmp_path / "run", 5)
    os.kill(rank.pid or 0, signal.SIGTERM)
    assert wait([rank], 60) == [75], (tmp_path / "log").read_text()
    assert wait(start(1, flags, tmp_path / "log"), 120) == [0], (tmp_path / "log").read_text()
    assert kill_resume.differences(result(tmp_path / "run"), pissa) == []


@pytest.mark.slow
def test_bf16_on_two_processes_stays_within_its_bound(
    pissa: dict[str, str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """docs/resume.md states the bound: rounding to 8 bits is another one in another order of sums."""
    two, _ = kill_resume.undisturbed(undisturbed.speech, tmp_path / "run", 2, **PISSA)
    ours, theirs = (json.loads(found["metrics.jsonl"]) for found in (two, pissa))
    assert [line["read"] for line in ours] == [line["read"] for line in theirs]
    off = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, theirs, strict=True)]
    assert max(off) < 0.05, off


@pytest.fixture
def frozen(undisturbed: Undisturbed, tmp_path: Path) -> Iterator[tuple[Path, list[object]]]:
    ranks = start(2, undisturbed.speech.flags(tmp_path / "run", **SETTINGS), tmp_path / "log")
    until_step(tmp_path / "run", 2)
    yield tmp_path, ranks
    for rank in ranks:
        rank.kill()


def test_a_frozen_rank_takes_the_run_down_and_is_named(frozen: tuple[Path, list[object]]) -> None:
    folder, ranks = frozen
    os.kill(ranks[1].pid, signal.SIGSTOP)
    codes = wait(ranks, 30)
    assert codes == [1, -signal.SIGKILL]
    assert f"rank 1 (process {ranks[1].pid} on" in (folder / "log").read_text()
    identity = record.read_json(folder / "run" / "run.json")
    assert identity["state"] == "failed"
    assert "has not answered" in identity["reason"]


def hang_in_the_last_rank(rank: int) -> None:
    """It gets three batches to train on, and waits for ever for the fourth, as on a source that is locked."""
    watchdog.HANG = 2.0
    whole = batches.read_batches

    def locked(*args: Any) -> Iterator[batches.Batch]:
        yield from itertools.islice(whole(*args), 3)
        threading.Event().wait()

    if rank == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        batches.read_batches = locked


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_takes_the_run_down_and_is_named(
    undisturbed: Undisturbed, tmp_path: Path, world: int
) -> None:
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS)
    ranks = start(world, flags, tmp_path / "log", change=hang_in_the_last_rank)
    codes = wait(ranks, 60)
    assert codes[0] == 1
    assert codes[-1] in (1, -signal.SIGKILL)
    told = f"rank {world - 1} (process {ranks[-1].pid} on"
    said = (tmp_path / "log").read_text() + "".join(p.read_text() for p in tmp_path.glob("run/logs/*.log"))
    assert told in said
    assert "in locked" in said, "the stack of what hangs"
    identity = record.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert told in identity["reason"]
    assert "while reading a batch" in identity["reason"]


def test_a_vanished_run_directory_is_a_clear_end(undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(2, undisturbed.speech.flags(run, **SETTINGS), tmp_path / "log")
    until_step(run, 3)  # the checkpoint of step 2 is there
    run.rename(tmp_path / "gone")
    codes = wait(ranks, 60)
    told = (tmp_path / "log").read_text()
    assert codes[0] == 2, told
    assert codes[1] not in (0, None)
    # here rank 0 keeps the store that a launcher keeps otherwise, so that the other rank misses it
    errors = [line for line in told.splitlines() if "asrlora: error" in line and "ranks' store" not in line]
    assert len(errors) == 1
    assert f"--output-dir {run} cannot be written" in errors[0] or "checkpoint of step" in errors[0]
    assert list((tmp_path / "gone" / "checkpoints").glob("step-*/state.json"))


def test_the_time_is_kept(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Ends by itself, saved, before --max-minutes are over."""
    flags = undisturbed.speech.flags(
        tmp_path / "run", **{**SETTINGS, "max_steps": 100_000, "eval_interval": 100_000, "max_minutes": 0.3}
    )
    begin = time.monotonic()
    assert wait(start(1, flags, tmp_path / "log"), 60) == [75], (tmp_path / "log").read_text()
    assert time.monotonic() - begin < 18
    assert (max((tmp_path / "run" / "checkpoints").iterdir()) / "state.json").exists()


def test_a_complete_run_has_nothing_left_to_do(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = undisturbed.speech.flags(undisturbed.folder / "1", **SETTINGS)
    assert train.main(flags) == 0
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 1e-4}, "--learning-rate is 0.0001 and was 0.003"),
        ({"batch_size": 1, "max_steps": 99}, "--batch-size is 1 and was 2; --max-steps is 99 and was 12"),
    ],
)
def test_a_run_is_not_gone_on_with_under_other_settings(
    undisturbed: Undisturbed, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    whole, run = undisturbed.folder / "1", tmp_path / "run"
    run.mkdir()
    identity = record.read_json(whole / "run.json")
    identity["config"]["output_dir"] = str(run)
    (run / "run.json").write_text(json.dumps({**identity, "state": "preempted"}))
    with pytest.raises(UserError, match=told):
        train.main(undisturbed.speech.flags(run, **{**SETTINGS, **change}))
    assert record.read_json(run / "run.json")["state"] == "preempted"
