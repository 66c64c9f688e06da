"""Faults at chosen moments of a run, on worlds 1, 2 and ZeRO-2: what is noticed, named, lost and resumed.

    make faults    # uv run python tests/e2e/faults.py --write docs/log/faults.md

Each trial plants one fault in a run and waits for its end. It asks four things. Did the run end in the time
that is stated for the fault? Does the message (run.json's reason and the lines of error on the terminal)
name the rank and the cause? Is what was saved before still there? Does `--resume auto`, without the fault,
end with the same bytes as a run that nobody disturbed? Ranks are forked from a process that has imported
everything, as in kill_resume.py. The store that a launcher keeps is kept by a process of its own, and this
program does the rest of a launcher's work: it ends the ranks that are left when one has failed. Faults of a
Slurm cluster (scancel, a node that fails) are in tests/slurm.
"""

import argparse
import functools
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import kill_resume
from asrlora.record import run_dir
from conftest import Speech
from kill_resume import SETTINGS, differences, free_port, result, server

WORLDS = {"1": (1, False), "2": (2, False), "ZeRO-2": (2, True)}
TIMEOUTS: dict[str, object] = {"heartbeat_timeout": 8, "work_timeout": 12}
GRACE = 30.0  # seconds that torchrun gives the other ranks between SIGTERM and SIGKILL
HOUR = 3600.0


# --- the faults, as they are planted in a rank: `change(rank)` is called before the run begins


@dataclass(frozen=True)
class Plant:
    """Lets `act` happen in one rank, once, just before the call number `nth` of `where`."""

    act: str
    where: str  # module:function or module:Class.method
    nth: int
    rank: int
    stamp: Path  # gets the moment, by the clock that all processes of a machine share
    port: int

    def __call__(self, rank: int) -> None:
        as_under_a_launcher(self.port, rank)
        if rank != self.rank:
            return
        module_name, _, path = self.where.partition(":")
        owner: Any = __import__(module_name, fromlist=["_"])
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        whole, calls = getattr(owner, name), iter(range(1, sys.maxsize))

        @functools.wraps(whole)
        def planted(*args: Any, **kwargs: Any) -> Any:
            number = next(calls)
            if number == self.nth or (number > self.nth and self.act == "NaN loss"):
                self.stamp.write_text(str(time.monotonic()))
                return ACTS[self.act](whole, args, kwargs)
            return whole(*args, **kwargs)

        setattr(owner, name, planted)


def as_under_a_launcher(port: int, rank: int) -> None:
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    if port == 0:  # a world of one process has no launcher
        del os.environ["TORCHELASTIC_USE_AGENT_STORE"]


def _kill(whole: Any, args: Any, kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(whole: Any, args: Any, kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSTOP)
    return whole(*args, **kwargs)


def _raise(whole: Any, args: Any, kwargs: Any) -> Any:
    raise RuntimeError("a planted error")


def _hang(whole: Any, args: Any, kwargs: Any) -> Any:
    threading.Event().wait()


def _nan(whole: Any, args: Any, kwargs: Any) -> Any:
    return whole(*args, **kwargs) * float("nan")


def _step_clock(seconds: float, whole: Any, args: Any, kwargs: Any) -> Any:
    now = time.time
    time.time = lambda: now() + seconds
    return whole(*args, **kwargs)


ACTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "SIGKILL": _kill, "SIGSTOP": _stop, "exception": _raise, "hang": _hang, "NaN loss": _nan,
    "one NaN loss": _nan, "clock an hour ahead": functools.partial(_step_clock, HOUR),
    "clock an hour back": functools.partial(_step_clock, -HOUR),
}  # fmt: skip

# Moments: what the rank is about to call, and which call of it. Evaluations are of the steps 0, 6 and 12.
MOMENTS = {
    "baseline": ("asrlora.engine.evaluate:evaluate", 1),
    "step 1": ("asrlora.engine.step:train_step", 1),
    "step 5": ("asrlora.engine.step:train_step", 5),
    "evaluation": ("asrlora.engine.evaluate:evaluate", 2),
    "save": ("asrlora.engine.checkpoint:Checkpoints.save", 2),
    "end": ("asrlora.engine.finish:finish", 1),
}


@dataclass(frozen=True)
class Fault:
    """What must hold after a fault that ends the run."""

    within: float  # seconds from the fault to the end of all ranks
    cause: str  # regular expression that the message must match
    codes: tuple[int, ...] = (1,)  # exit codes that a rank may have, beside the signals of a launcher


FATAL = {
    "SIGKILL": Fault(GRACE + 5, r"SIGKILL|signal 9|was killed|is gone|died"),
    "SIGSTOP": Fault(30, r"stopped|has not answered|no heartbeat|heartbeat"),
    "exception": Fault(GRACE + 5, "RuntimeError: a planted error"),
    "hang": Fault(30, r"hung|hang|has not"),
    "NaN loss": Fault(GRACE + 5, "steps in a row were not finite"),
    "disk full": Fault(GRACE + 5, "No space left on device", (1, 2)),
    "read-only output": Fault(GRACE + 5, "Read-only file system", (1, 2)),
}


@dataclass
class Trial:
    """One row of the table."""

    fault: str
    moment: str
    world: str
    rank: int | None
    noticed: float | None = None  # seconds from the fault to the end of the last rank
    in_time: bool = True
    named: bool | None = None  # the message names rank and cause; None where nobody is there to say it
    lost: str = ""  # what was promised and is gone
    same: bool | None = None  # resumed, the files are those of a run that nobody disturbed
    said: str = ""

    @property
    def good(self) -> bool:
        return self.in_time and self.named is not False and not self.lost and self.same is not False


# --- a launcher, as far as a run sees it


def _keep_store(port: int, ready: Any) -> None:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # noqa: F841 - kept
    ready.send(True)
    threading.Event().wait()


@dataclass
class Launch:
    """The processes of one attempt."""

    ranks: list[multiprocessing.Process]
    store: multiprocessing.Process | None
    codes: list[int | None] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        """Until all ranks have ended. Like torchrun: when one fails, SIGTERM to the others, SIGKILL later."""
        end, failed_at = time.monotonic() + seconds, None
        while any(rank.is_alive() for rank in self.ranks):
            now = time.monotonic()
            if failed_at is None and any(rank.exitcode not in (None, 0) for rank in self.ranks):
                failed_at = now
                for rank in self.ranks:
                    if rank.is_alive():
                        rank.terminate()
            if now > end or (failed_at is not None and now > failed_at + GRACE):
                for rank in self.ranks:
                    rank.kill()
            multiprocessing.connection.wait([r.sentinel for r in self.ranks if r.is_alive()], 0.1)
        self.codes = [rank.exitcode for rank in self.ranks]

    def close(self) -> None:
        for process in [*self.ranks, *([self.store] if self.store else [])]:
            process.kill()
            process.join()


def launch(world: str, flags: list[str], log: Path, change: Callable[[int], Callable[[int], None]]) -> Launch:
    """`change(port)` gives what is called in each rank, with its number, before the run."""
    size, zero2 = WORLDS[world]
    port, store = (free_port(), None) if size > 1 else (0, None)
    if size > 1:
        here, there = multiprocessing.Pipe()
        store = server().Process(target=_keep_store, args=(port, there))
        store.start()
        here.recv()
    given = (size, port, flags, log, zero2, change(port))
    ranks = [server().Process(target=kill_resume._rank, args=(rank, *given)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    return Launch(ranks, store)


def undisturbed(port: int) -> Callable[[int], None]:
    return functools.partial(as_under_a_launcher, port)


# --- trials


@dataclass(frozen=True)
class Bench:
    """What all trials share."""

    speech: Speech
    folder: Path
    expected: dict[str, dict[str, str]]  # by world

    def flags(self, run: Path, **settings: object) -> list[str]:
        return self.speech.flags(run, **{**SETTINGS, **TIMEOUTS, **settings})


def reason(run: Path, log: Path) -> str:
    """The one message that names the cause: run.json's reason, and the terminal's lines of error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "asrlora: error" in line]
    told = run_dir.read_json(run / "run.json").get("reason") if (run / "run.json").exists() else None
    return " | ".join([*lines, str(told)])


def resumed(bench: Bench, trial: Trial, run: Path, log: Path, **settings: object) -> str:
    """Goes on without the fault; notes whether the result is that of an undisturbed run."""
    attempt = launch(trial.world, bench.flags(run, **settings), log, undisturbed)
    attempt.wait(300)
    attempt.close()
    if any(attempt.codes):
        trial.same, trial.said = False, f"resume ended with {attempt.codes}: {log.read_text()[-500:]}"
        return ""
    odd = differences(result(run), bench.expected[trial.world])
    trial.same = not odd
    trial.said = trial.said or f"differ: {odd}" * bool(odd)
    return log.read_text()


def fatal(bench: Bench, world: str, act: str, moment: str, rank: int, folder: Path) -> Trial:
    """A fault in one rank that must end the run."""
    trial, fault = Trial(act, moment, world, rank), FATAL[act]
    run, log, stamp = folder / "run", folder / "log", folder / "stamp"
    where, nth = MOMENTS[moment]
    if act == "NaN loss":
        where, nth = "asrlora.models.objective:summed_loss", 2 * nth

    attempt = launch(world, bench.flags(run), log, lambda port: Plant(act, where, nth, rank, stamp, port))
    attempt.wait(fault.within + 60)
    ended = time.monotonic()
    attempt.close()
    assert stamp.exists(), f"{act} at {moment} never happened: {attempt.codes} {log.read_text()[-1500:]}"
    trial.noticed = ended - float(stamp.read_text())
    trial.in_time = trial.noticed <= fault.within
    before = {p.name for p in (run / "checkpoints").glob("step-*") if (p / "state.json").exists()}
    told = reason(run, log)
    after = resumed(bench, trial, run, folder / "log-resumed")
    if act == "NaN loss":  # steps that were not applied are steps of this run, and of no undisturbed one
        trial.same, trial.said = None, ""
    if act == "SIGKILL" and WORLDS[world][0] == 1:
        told = after  # nobody is left to tell; the next attempt does
    everyone = act in ("NaN loss", "disk full", "read-only output")
    names = everyone or WORLDS[world][0] == 1 or f"rank {rank}" in told
    wrong = [r for r in range(WORLDS[world][0]) if r != rank and re.search(rf"rank {r} \(process", told)]
    trial.named = bool(re.search(fault.cause, told)) and names and (everyone or not wrong)
    trial.said = trial.said or ("" if trial.named else told[-400:])
    done = int(max(before, default="step-0").removeprefix("step-"))
    attempts = run_dir.read_json(run / "run.json")["attempts"]
    if attempts[-1]["from_step"] < done:
        trial.lost = f"checkpoint of step {done}: resumed after {attempts[-1]['from_step']}"
    return trial


def on_small_disk(bench: Bench, world: str, act: str, moment: str, folder: Path) -> Trial:
    """The run directory's file system is full, or read-only, from a moment on. Needs root, for mount."""
    trial, fault = Trial(act, moment, world, 0), FATAL[act]
    disk, log, stamp = folder / "disk", folder / "log", folder / "stamp"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        where, nth = MOMENTS[moment]
        plant = functools.partial(DiskPlant, act, where, nth, 0, stamp, disk=disk)
        attempt = launch(world, bench.flags(disk / "run"), log, lambda port: plant(port))
        attempt.wait(fault.within + 60)
        trial.noticed = time.monotonic() - float(stamp.read_text())
        attempt.close()
        trial.in_time = trial.noticed <= fault.within
        told = log.read_text()  # run.json cannot be written any more
        if act == "disk full":
            (disk / "filler").unlink()
        else:
            subprocess.run(["umount", "-l", str(disk / "run")], check=True)
        trial.named = bool(re.search(fault.cause, told)) and str(disk / "run") in told
        trial.said = "" if trial.named else told[-400:]
        resumed(bench, trial, disk / "run", folder / "log-resumed")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return trial


@dataclass(frozen=True)
class DiskPlant(Plant):
    disk: Path = Path()

    def __call__(self, rank: int) -> None:
        ACTS["disk full"] = functools.partial(_fill, self.disk)
        ACTS["read-only output"] = functools.partial(_read_only, self.disk)
        super().__call__(rank)


def _fill(disk: Path, whole: Any, args: Any, kwargs: Any) -> Any:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return whole(*args, **kwargs)


def _read_only(disk: Path, whole: Any, args: Any, kwargs: Any) -> Any:
    # a mount over the folder: a remount of the whole would be refused while the run's lock is open
    subprocess.run(["mount", "--bind", str(disk / "run"), str(disk / "run")], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(disk / "run")], check=True)
    return whole(*args, **kwargs)


def harmless(bench: Bench, world: str, act: str, moment: str, rank: int, folder: Path) -> Trial:
    """A fault that the run must go through as if it were not there."""
    trial = Trial(act, moment, world, rank)
    run, log, stamp = folder / "run", folder / "log", folder / "stamp"
    where, nth = MOMENTS[moment]
    settings: dict[str, object] = {}
    if act == "one NaN loss":
        where, nth = "asrlora.models.objective:summed_loss", 2 * nth
    if act == "W&B dead":
        settings["wandb_mode"] = "online"
    attempt = launch(
        world,
        bench.flags(run, **settings),
        log,
        lambda port: Plant(act, where, nth, rank, stamp, port) if act in ACTS else undisturbed(port),
    )
    attempt.wait(200)
    attempt.close()
    if any(attempt.codes):
        trial.same, trial.said = False, f"ended with {attempt.codes}: {reason(run, log)[-500:]}"
        return trial
    if act == "one NaN loss":  # that step must not be applied, so the bytes are others
        lines = run_dir.read_lines(run / "nonfinite.jsonl")
        trial.named = len(lines) == 1 and "was not applied" in log.read_text()
    else:
        odd = differences(result(run), bench.expected[world])
        trial.same, trial.said = not odd, f"differ: {odd}" * bool(odd)
    return trial


def launcher_killed(bench: Bench, world: str, folder: Path) -> Trial:
    """SIGKILL of the process that keeps the ranks' store."""
    trial = Trial("launcher killed", "step 5", world, None)
    run, log = folder / "run", folder / "log"
    attempt = launch(world, bench.flags(run), log, undisturbed)
    until_step(run, 4)
    assert attempt.store is not None
    attempt.store.kill()
    killed = time.monotonic()
    while any(rank.is_alive() for rank in attempt.ranks) and time.monotonic() < killed + 60:
        multiprocessing.connection.wait([r.sentinel for r in attempt.ranks if r.is_alive()], 0.1)
    trial.noticed = time.monotonic() - killed
    trial.in_time = trial.noticed <= 15
    attempt.close()
    told = reason(run, log)
    trial.named = "launcher" in told
    trial.said = "" if trial.named else told[-400:]
    resumed(bench, trial, run, folder / "log-resumed")
    return trial


def until_step(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(run_dir.read_log(run / "metrics.jsonl")) < step:
        assert time.monotonic() < end, "the run makes no steps"
        time.sleep(0.01)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2 * len(data) // 3] ^= 4
    path.write_bytes(data)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _half_a_line(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


# what is damaged between two attempts -> how, and what the next attempt must say (None: nothing)
DAMAGE: dict[str, tuple[str, Callable[[Path], None], str | None]] = {
    "truncated checkpoint": ("checkpoints/*/adapter.safetensors", _truncate, "damaged"),
    "truncated moments": ("checkpoints/*/optimizer.safetensors", _truncate, "damaged"),
    "bit flip in checkpoint": ("checkpoints/*/adapter.safetensors", _flip, "damaged"),
    "empty checkpoint state": ("checkpoints/*/state.json", _empty, "damaged"),
    "half a line in metrics.jsonl": ("metrics.jsonl", _half_a_line, None),
}


def damaged(bench: Bench, world: str, what: str, folder: Path) -> Trial:
    """A file is damaged between a stop and the attempt that goes on."""
    trial = Trial(what, "between attempts", world, None)
    run, log = folder / "run", folder / "log"
    attempt = launch(world, bench.flags(run), log, undisturbed)
    until_step(run, 5)
    pattern, act, told = DAMAGE[what]
    # a line that was cut off is one of a step behind the last checkpoint, for lines are synced before it
    asked = signal.SIGKILL if pattern == "metrics.jsonl" else signal.SIGTERM
    for rank in attempt.ranks:
        os.kill(rank.pid or 0, asked)
    attempt.wait(60)
    attempt.close()
    assert set(attempt.codes) == {75 if asked == signal.SIGTERM else -9}, log.read_text()
    path = max(run.glob(pattern))
    act(path)
    said = resumed(bench, trial, run, folder / "log-resumed")
    where = path.parent.name if "checkpoints" in pattern else path.name
    trial.named = told is None or (told in said and where in said)
    trial.said = trial.said or ("" if trial.named else said[-400:])
    return trial


def refused(bench: Bench, what: str, folder: Path) -> Trial:
    """A flipped bit that nothing can repair must stop whoever reads it, and be named."""
    trial = Trial(what, "between attempts", "1", None)
    run, log = folder / "run", folder / "log"
    if what == "bit flip in shard":
        shards = folder / "shards"
        command("shards", "build", bench.speech.train, shards)
        path = min(shards.glob("*.tar"))
        _flip(path)
        attempt = launch("1", bench.flags(run, dataset_path=shards), log, undisturbed)
        attempt.wait(200)
        attempt.close()
        code, told = attempt.codes[0], log.read_text()
    else:  # of the adapter that a run has chosen
        attempt = launch("1", bench.flags(run), log, undisturbed)
        attempt.wait(200)
        attempt.close()
        path = run / "adapter_best" / "adapter_model.safetensors"
        _flip(path)
        code, told = command(
            "eval", "--model-id", flag(bench.flags(run), "--model-id"), "--adapter-dir", path.parent,
            "--manifest-path", bench.speech.domain, "--output-dir", folder / "scores",
        )  # fmt: skip
    named = path.name if what == "bit flip in shard" else str(path.parent)
    trial.named = code == 2 and named in told and bool(re.search("sha256|damaged", told))
    trial.said = "" if trial.named else f"exit code {code}: {told[-400:]}"
    return trial


def flag(flags: list[str], name: str) -> str:
    return flags[flags.index(name) + 1]


def command(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "asrlora.cli", *map(str, words)], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def trials(bench: Bench, worlds: list[str]) -> Iterator[tuple[str, Callable[[Path], Trial]]]:
    """All of the matrix: a name, and what makes the trial in a folder of its own."""
    for world in worlds:
        size = WORLDS[world][0]
        for moment in MOMENTS:
            for act in ("SIGKILL", "SIGSTOP", "exception", "hang"):
                for rank in range(size):
                    if size == 1 and act in ("SIGSTOP", "hang"):
                        continue  # one process has no peer that could miss it; test_resume.py has the loader
                    if rank > 0 and moment == "end":
                        continue  # there rank 0 works alone, and the others have nothing left to do
                    yield (
                        f"{act} {moment} rank {rank}",
                        functools.partial(fatal, bench, world, act, moment, rank),
                    )
        for moment in ("step 5", "evaluation"):
            for act in ("clock an hour ahead", "clock an hour back"):
                yield f"{act} {moment}", functools.partial(harmless, bench, world, act, moment, size - 1)
        yield "NaN loss", functools.partial(fatal, bench, world, "NaN loss", "step 5", size - 1)
        yield "one NaN loss", functools.partial(harmless, bench, world, "one NaN loss", "step 5", size - 1)
        yield "W&B dead", functools.partial(harmless, bench, world, "W&B dead", "step 5", 0)
        for moment in ("step 5", "save", "evaluation", "end"):
            for act in ("disk full", "read-only output"):
                yield f"{act} {moment}", functools.partial(on_small_disk, bench, world, act, moment)
        for what in DAMAGE:
            yield what, functools.partial(damaged, bench, world, what)
        if size > 1:
            yield "launcher killed", functools.partial(launcher_killed, bench, world)
    for what in ("bit flip in shard", "bit flip in adapter"):
        yield what, functools.partial(refused, bench, what)


def table(rows: list[Trial]) -> str:
    def mark(value: bool | None) -> str:
        return "–" if value is None else "yes" if value else "NO"

    lines = [
        "| fault | moment | world | rank | noticed, s | in time | rank and cause named | lost | same bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.fault} | {row.moment} | {row.world} | {'–' if row.rank is None else row.rank} |"
            f" {'–' if row.noticed is None else f'{row.noticed:.1f}'} | {mark(row.in_time)} |"
            f" {mark(row.named)} | {row.lost or 'nothing'} | {mark(row.same)} |"
        )
    return "\n".join(lines) + "\n"


def summary(rows: list[Trial]) -> str:
    named = [row.named for row in rows if row.named is not None]
    same = [row.same for row in rows if row.same is not None]
    return (
        f"{len(rows)} trials. Rank and cause named rightly in {sum(named)} of {len(named)}"
        f" ({sum(named) / max(1, len(named)):.1%}); in time {sum(r.in_time for r in rows)} of {len(rows)};"
        f" something lost in {sum(bool(row.lost) for row in rows)}; the same bytes after resuming (or without"
        f" a stop) in {sum(same)} of {len(same)}.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--only", default="", help="regular expression on the names of trials")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ |= {
        "ASRLORA_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody is there
    }  # fmt: skip
    speech = kill_resume.small(folder / "speech")
    expected = {}
    for world in args.worlds:
        attempt = launch(
            world, speech.flags(folder / world, **SETTINGS, **TIMEOUTS), folder / f"{world}.log", undisturbed
        )
        attempt.wait(300)
        attempt.close()
        assert not any(attempt.codes), (folder / f"{world}.log").read_text()
        expected[world] = result(folder / world)
    bench, rows = Bench(speech, folder, expected), []
    for number, (name, trial) in enumerate(trials(bench, args.worlds)):
        if not re.search(args.only, name):
            continue
        place = folder / f"trial-{number}"
        place.mkdir()
        try:
            row = trial(place)
        except Exception:  # a trial that could not be made is one that failed
            row = Trial(name, "", "", None, in_time=False, named=False, said=traceback.format_exc()[-600:])
        rows.append(row)
        print(f"{'good' if row.good else 'BAD '} {table([row]).splitlines()[-1]} {row.said}", flush=True)
        if row.good:
            shutil.rmtree(place)
    print(summary(rows))
    if args.write:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        head = f"# Faults\n\n{time.strftime('%Y-%m-%d')}, commit {commit}, `make faults`. {summary(rows)}\n"
        args.write.write_text(head + table(rows))
    bad = [row for row in rows if not row.good]
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
