"""Runs that are killed, stopped, frozen and resumed, on real gloo ranks."""

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kill_resume
from asrlora import cli, train
from asrlora.data import loader
from asrlora.engine import collectives, signals, step
from asrlora.errors import UserError
from asrlora.record import run_dir
from conftest import BASE, Speech
from kill_resume import SETTINGS, before_step, result, start, to_itself, wait


@dataclass(frozen=True)
class Undisturbed:
    speech: Speech
    folder: Path
    results: dict[int, dict[str, str]]  # by world size
    seconds: dict[int, float]


@pytest.fixture(scope="module")
def undisturbed(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("resume")
    few = kill_resume.small(folder / "speech", speech)
    found = {world: kill_resume.undisturbed(few, folder / str(world), world) for world in (1, 2)}
    results, seconds = ({world: one[i] for world, one in found.items()} for i in (0, 1))
    return Undisturbed(few, folder, results, seconds)


# a few that differ in moment and rank; kill_resume.py makes hundreds
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 6))])
def test_a_killed_run_ends_as_if_nobody_had_disturbed_it(
    undisturbed: Undisturbed, tmp_path: Path, world: int, number: int
) -> None:
    """So two runs with one seed are identical to the byte, too."""
    expected, took = undisturbed.results[world], undisturbed.seconds[world]
    kill_resume.trial(number, undisturbed.speech, tmp_path, world, expected, took, kills=1)


def lines_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize(("world", "number"), [(1, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_signal_saves_and_ends_with_75_and_the_run_goes_on(
    undisturbed: Undisturbed, tmp_path: Path, world: int, number: signal.Signals
) -> None:
    """One rank alone gets it, and all end; a second signal changes nothing."""
    run = tmp_path / "run"
    flags = undisturbed.speech.flags(run, **SETTINGS)
    change = partial(before_step, 6, partial(to_itself, number, number))
    assert wait(start(world, flags, tmp_path / "log", change=change), 120) == [75] * world, (
        tmp_path / "log"
    ).read_text()
    identity = run_dir.read_json(run / "run.json")
    assert identity["state"] == "preempted"
    assert "continue with --resume auto" in identity["reason"]
    saved = max((run / "checkpoints").iterdir()).name
    assert saved == f"step-{lines_of(run):06d}", "the step that was done is saved"
    assert wait(start(world, flags, tmp_path / "log"), 120) == [0] * world, (tmp_path / "log").read_text()
    assert result(run) == undisturbed.results[world]
    attempts = run_dir.read_json(run / "run.json")["attempts"]
    assert [attempt["from_step"] for attempt in attempts] == [0, int(saved.removeprefix("step-"))]


@pytest.mark.slow
def test_going_on_with_other_numbers_of_processes_reads_the_same(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """1 process, 2, 2 by ZeRO-2, 1: the same batches, and the same adapter but for rounding."""
    run = tmp_path / "run"
    flags = undisturbed.speech.flags(run, **SETTINGS)
    change = partial(before_step, 3, partial(to_itself, signal.SIGTERM))
    for world, zero2 in ((1, False), (2, False), (2, True)):
        codes = wait(start(world, flags, tmp_path / "log", zero2, change), 120)
        assert codes == [75] * world, (tmp_path / "log").read_text()
    assert wait(start(1, flags, tmp_path / "log"), 120) == [0]
    whole = undisturbed.folder / "1"
    ours, theirs = (run_dir.read_lines(folder / "metrics.jsonl") for folder in (run, whole))
    assert [line["read"] for line in ours] == [line["read"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=1e-4)
    path = "checkpoints/step-000012/adapter.safetensors"
    ours, theirs = load_file(run / path), load_file(whole / path)
    for name in theirs:
        assert (ours[name] - theirs[name]).norm() < 1e-2 * theirs[name].norm(), name
    attempts = run_dir.read_json(run / "run.json")["attempts"]
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
    change = partial(before_step, 6, partial(to_itself, signal.SIGTERM))
    assert wait(start(1, flags, tmp_path / "log", change=change), 120) == [75], (tmp_path / "log").read_text()
    assert wait(start(1, flags, tmp_path / "log"), 120) == [0], (tmp_path / "log").read_text()
    assert kill_resume.differences(result(tmp_path / "run"), pissa) == []


@pytest.mark.slow
def test_bf16_on_two_processes_stays_within_its_bound(
    pissa: dict[str, str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """docs/reference/models.md states the bound: rounding to 8 bits differs with the order of sums and the
    processor. A loss of nearly nothing has no share of its own to stay within."""
    two, _ = kill_resume.undisturbed(undisturbed.speech, tmp_path / "run", 2, **PISSA)
    ours, theirs = (json.loads(found["metrics.jsonl"]) for found in (two, pissa))
    assert [line["read"] for line in ours] == [line["read"] for line in theirs]
    expected = pytest.approx([line["loss"] for line in theirs], rel=0.05, abs=0.01)
    assert [line["loss"] for line in ours] == expected


def test_a_frozen_rank_takes_the_run_down_and_is_named(undisturbed: Undisturbed, tmp_path: Path) -> None:
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS, heartbeat_timeout=5)
    change = partial(before_step, 3, partial(to_itself, signal.SIGSTOP))
    ranks = start(2, flags, tmp_path / "log", change=change)
    codes = wait(ranks, 90)
    for rank in ranks:  # a stopped one would stay for ever
        rank.kill()
    assert codes == [1, -signal.SIGKILL]
    assert f"rank 1 (process {ranks[1].pid} on" in (tmp_path / "log").read_text()
    identity = run_dir.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert "is stopped, by SIGSTOP or a debugger" in identity["reason"]


@pytest.mark.slow
def test_a_run_that_is_stopped_as_a_whole_for_a_while_is_left_alone(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """As by a scheduler that suspends a job, for longer than a rank may be silent."""
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS, heartbeat_timeout=5)
    ranks = start(2, flags, tmp_path / "log")
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    for number, seconds in ((signal.SIGSTOP, 8), (signal.SIGCONT, 0)):
        for rank in ranks:
            os.kill(rank.pid or 0, number)
        time.sleep(seconds)
    assert wait(ranks, 120) == [0, 0], (tmp_path / "log").read_text()


def in_step_3(what: Callable[[], object], victim: int, rank: int) -> None:
    """A change for `start`: rank `victim` does `what` before its third step, where nothing has a limit."""
    whole = step.train_step

    def train_step(*args: Any) -> Any:
        if args[-1] == 3:
            what()
        return whole(*args)

    if rank == victim:
        step.train_step = train_step


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_one_that_is_left(
    undisturbed: Undisturbed, tmp_path: Path, victim: int
) -> None:
    """Rank 0 writes the record, and keeps the store here: the other one has to do both without it."""
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS)
    change = partial(in_step_3, partial(to_itself, signal.SIGKILL), victim)
    ranks = start(2, flags, tmp_path / "log", change=change)
    assert wait(ranks, 90)[1 - victim] == 1
    identity = run_dir.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert f"rank {victim} (process {ranks[victim].pid} on" in identity["reason"]
    assert "is gone" in identity["reason"]
    assert f"rank {1 - victim} (" not in identity["reason"]
    assert identity["reason"] in (tmp_path / "log").read_text()


def fail() -> None:
    raise ValueError("only here")


def hang() -> None:
    threading.Event().wait()


def hang_inside_a_collective(rank: int) -> None:
    """It has come to the same point as the others, and never calls the library."""
    whole, calls = collectives.dist.all_reduce, itertools.count()

    def all_reduce(*args: Any, **how: Any) -> Any:
        if next(calls) == 6:
            hang()
        return whole(*args, **how)

    if rank == 1:
        collectives.dist.all_reduce = all_reduce


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (partial(in_step_3, fail, 1), "ValueError: only here"),
        pytest.param(
            partial(in_step_3, hang, 1), "has not come to 'summing gradients", marks=pytest.mark.slow
        ),
        pytest.param(
            hang_inside_a_collective, r"in threading.py:\d+ wait, from collectives.py", marks=pytest.mark.slow
        ),
    ],
)
def test_what_ends_another_rank_than_0_is_recorded_with_its_number(
    undisturbed: Undisturbed, tmp_path: Path, change: Callable[[int], None], told: str
) -> None:
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS, heartbeat_timeout=10, work_timeout=6)
    ranks = start(2, flags, tmp_path / "log", change=change)
    codes = wait(ranks, 90)
    log = (tmp_path / "log").read_text()
    assert codes[0] == 1, log
    assert codes[1] in (1, -signal.SIGKILL)
    identity = run_dir.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert f"rank 1 (process {ranks[1].pid} on" in identity["reason"]
    assert "rank 0 (" not in identity["reason"]
    assert re.search(told, identity["reason"]), identity["reason"]
    assert log.count(f"asrlora: error: {identity['reason']}") == 1


def hang_in_the_last_rank(rank: int) -> None:
    """It gets three batches to train on, and waits for ever for the fourth, as on a source that is locked."""
    whole = loader.read_batches

    def locked(*args: Any, **settings: Any) -> Iterator[loader.Batch]:
        yield from itertools.islice(whole(*args, **settings), 3)
        threading.Event().wait()

    if rank == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        loader.read_batches = locked


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_takes_the_run_down_and_is_named(
    undisturbed: Undisturbed, tmp_path: Path, world: int
) -> None:
    flags = undisturbed.speech.flags(tmp_path / "run", **SETTINGS, work_timeout=6)
    ranks = start(world, flags, tmp_path / "log", change=hang_in_the_last_rank)
    codes = wait(ranks, 60)
    assert codes[0] == 1
    assert codes[-1] in (1, -signal.SIGKILL)
    told = f"rank {world - 1} (process {ranks[-1].pid} on"
    said = (tmp_path / "log").read_text() + "".join(p.read_text() for p in tmp_path.glob("run/logs/*.log"))
    assert told in said
    assert "in locked" in said, "the stack of what hangs"
    identity = run_dir.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert told in identity["reason"]
    assert "while reading a batch" in identity["reason"]


def test_a_vanished_run_directory_is_a_clear_end(undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # when the checkpoint of step 2 is there
    change = partial(before_step, 4, partial(run.rename, tmp_path / "gone"))
    ranks = start(2, undisturbed.speech.flags(run, **SETTINGS), tmp_path / "log", change=change)
    codes = wait(ranks, 60)
    told = (tmp_path / "log").read_text()
    assert codes[0] == 2, told
    assert codes[1] not in (0, None)
    # here rank 0 keeps the store that a launcher keeps otherwise, so that the other rank misses it
    errors = [line for line in told.splitlines() if "asrlora: error" in line and "ranks' store" not in line]
    assert len(errors) == 1
    assert f"--output-dir {run} cannot be written" in errors[0] or "checkpoint of step" in errors[0]
    assert list((tmp_path / "gone" / "checkpoints").glob("step-*/state.json"))


def use_up_the_time(rank: int) -> None:
    """Before step 4, as if an hour had gone by since the process was started."""
    honest, started = signals.StopRequest.listen, list[signals.StopRequest]()

    def listen(self: signals.StopRequest, max_minutes: float | None) -> None:
        honest(self, max_minutes)
        started.append(self)

    def an_hour() -> None:
        started[0].deadline -= 3600

    signals.StopRequest.listen = listen  # type: ignore[method-assign]  # of this rank alone
    before_step(4, an_hour, rank)


def test_the_time_is_kept(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Ends by itself, saved, when --max-minutes are nearly over: see test_runtime.py for how nearly."""
    flags = undisturbed.speech.flags(tmp_path / "run", **{**SETTINGS, "max_minutes": 60})
    codes = wait(start(1, flags, tmp_path / "log", change=use_up_the_time), 120)
    assert codes == [75], (tmp_path / "log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "step-000004" / "state.json").exists()


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
def test_a_run_is_not_resumed_with_other_settings(
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    told: str,
) -> None:
    """And this is found before manifests are read or a model is loaded."""
    monkeypatch.setattr(train, "check", lambda config: pytest.fail("it went on to read the manifests"))
    whole, run = undisturbed.folder / "1", tmp_path / "run"
    run.mkdir()
    identity = run_dir.read_json(whole / "run.json")
    identity["config"]["output_dir"] = str(run)
    (run / "run.json").write_text(json.dumps({**identity, "state": "preempted"}))
    with pytest.raises(UserError, match=told):
        train.main(undisturbed.speech.flags(run, **{**SETTINGS, **change}))
    assert run_dir.read_json(run / "run.json")["state"] == "preempted"


EMA = {"ema": 0.9, "save_interval": 1, "keep_checkpoints": 12}


@pytest.fixture(scope="module")
def averaged(undisturbed: Undisturbed) -> dict[str, str]:
    return kill_resume.undisturbed(undisturbed.speech, undisturbed.folder / "ema", 1, **EMA)[0]


def kept(run: Path, name: str) -> list[dict[str, torch.Tensor]]:
    """A file of every checkpoint of a run, from step 1 on."""
    return [load_file(path) for path in sorted(run.glob(f"checkpoints/*/{name}.safetensors"))]


def test_an_average_is_evaluated_and_saved_and_the_run_is_trained_as_without_it(
    averaged: dict[str, str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """From the checkpoints of all steps; by `asrlora eval`, the saved adapter writes what was scored."""
    run, speech = undisturbed.folder / "ema", undisturbed.speech
    losses = [
        [line["loss"] for line in run_dir.read_lines(folder / "metrics.jsonl")]
        for folder in (run, undisturbed.folder / "1")
    ]
    assert losses[0] == losses[1]
    raw, found = kept(run, "adapter"), kept(run, "ema")
    assert len(raw) == len(found) == 12
    average = {name: tensor.double() for name, tensor in found[0].items()}
    for number, (weights, now) in enumerate(zip(raw[1:], found[1:], strict=True), 2):
        share = min(0.9, (1 + number) / (10 + number))
        for name, tensor in now.items():
            average[name] = share * average[name] + (1 - share) * weights[name].double()
            assert torch.allclose(tensor.double(), average[name], rtol=0, atol=1e-6), (number, name)
    best = run_dir.read_json(run / "run.json")["best_step"]
    assert best > 0, "nothing was learned, so nothing is compared"
    saved = load_file(run / "adapter_best" / "adapter_model.safetensors")
    for name, tensor in found[best - 1].items():
        assert torch.equal(saved[name.replace(".default", "")], tensor)
        assert not torch.equal(raw[best - 1][name], tensor)
    words = ["eval", "--model-id", str(BASE), "--adapter-dir", str(run / "adapter_best")]
    assert cli.main([*words, "--manifest-path", str(speech.domain), "--output-dir", str(tmp_path)]) == 0
    scored = run_dir.read_lines(run_dir.step_folder(run, best) / "domain.jsonl")
    assert [line["hypothesis_raw"] for line in run_dir.read_lines(tmp_path / "hypotheses.jsonl")] == [
        line["hypothesis_raw"] for line in scored
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_with_an_average_is_resumed_to_the_byte(
    averaged: dict[str, str], undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals
) -> None:
    flags = undisturbed.speech.flags(tmp_path / "run", **{**SETTINGS, **EMA})
    change = partial(before_step, 8, partial(to_itself, number))
    code = 75 if number == signal.SIGTERM else -number
    assert wait(start(1, flags, tmp_path / "log", change=change), 120) == [code], (
        tmp_path / "log"
    ).read_text()
    assert wait(start(1, flags, tmp_path / "log"), 120) == [0], (tmp_path / "log").read_text()
    assert kill_resume.differences(result(tmp_path / "run"), averaged) == []


@pytest.mark.parametrize("zero2", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_average_on_two_processes_is_that_of_one(
    averaged: dict[str, str], undisturbed: Undisturbed, tmp_path: Path, zero2: bool
) -> None:
    """Resumed on the way: by DDP to the byte of an undisturbed run of its kind, as the others are."""
    run = tmp_path / "run"
    flags = undisturbed.speech.flags(run, **{**SETTINGS, **EMA})
    change = partial(before_step, 8, partial(to_itself, signal.SIGTERM))
    assert wait(start(2, flags, tmp_path / "log", zero2, change), 120) == [75, 75]
    assert wait(start(2, flags, tmp_path / "log", zero2), 120) == [0, 0], (tmp_path / "log").read_text()
    for ours, theirs in zip(kept(run, "ema"), kept(undisturbed.folder / "ema", "ema"), strict=True):
        for name in theirs:
            assert (ours[name] - theirs[name]).norm() <= 1e-2 * theirs[name].norm(), name
    whole, _ = kill_resume.undisturbed(undisturbed.speech, tmp_path / "whole", 2, zero2, **EMA)
    assert kill_resume.differences(result(run), whole) == []
