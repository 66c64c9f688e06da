"""Running trials as processes of their own, here or as tasks of a Slurm array, and noting how each ended."""

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from asrlora import allocation
from asrlora.console import console
from asrlora.record import run_dir
from asrlora.storage import Lease, write_json
from asrlora.sweep import pruning
from asrlora.sweep.sweep_file import Phase, Sweep, Trial, command, demand
from asrlora.sweep.trials import ATTEMPTS, CLAIM, DONE, LOG, standing

PREEMPTED = os.EX_TEMPFAIL  # 75: the run is saved and can be gone on with
STOPS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
LOOK = 0.2  # seconds between two looks at the processes
HEARTBEAT = 3.0  # seconds between two


@dataclass
class _Live:
    trial: Trial
    process: subprocess.Popen[bytes]
    lease: Lease
    attempts: list[dict[str, Any]]
    kept: float = field(default_factory=time.monotonic)  # when the lease was kept last
    lost: bool = False  # another process has it, and writes down what becomes of the trial

    def keep(self) -> None:
        """A heartbeat. While this process was stopped another one may have taken the trial."""
        self.kept = time.monotonic()
        if not self.lost and not self.lease.renew():
            self.lost = True
            console.print(
                f"{self.trial.id} {self.trial.label}: left to {_owner(self.trial)}, which has taken it"
            )
            self.process.terminate()

    def note(self, **changes: Any) -> None:
        """Keeps what is known of this attempt, at once: the next moment may be SIGKILL's."""
        self.attempts[-1].update(changes)
        if self.lost:
            return
        told = {"id": self.trial.id, "settings": self.trial.own, "attempts": self.attempts}
        write_json(self.trial.folder / ATTEMPTS, told, default=str)


def run(
    sweep: Sweep, phase: Phase, trials: Sequence[Trial], chosen: Sequence[Trial], jobs: int,
    enough: Callable[[], bool] = lambda: False,
) -> int:  # fmt: skip
    """Runs those of `chosen` that are not complete, `jobs` at once; `trials` are all of the phase.

    Returns 0 when all of them are complete, 75 when a signal ended it, 1 when a trial failed, and a single
    trial's own exit code. `enough` is asked before each start. Raises UserError where the GPUs are too few.
    """
    names = {"ASRLORA_SWEEP": sweep.output_dir.name}  # W&B's group and job type; the user's own win
    if sweep.phases:
        names["ASRLORA_PHASE"] = phase.name
    jobs = max(1, min(jobs, len(chosen)))
    processes, use_gpus = demand(sweep)
    environments = [{**names, **os.environ, **p} for p in allocation.shares(jobs, processes, use_gpus)]
    cpus = allocation.of_process().worker_threads
    if jobs * processes > max(cpus, processes):
        console.print(
            f"note: {jobs} trials at once of {processes} processes each share {cpus} CPUs; more than"
            f" --jobs {max(1, cpus // processes)} gains nothing on CPUs"
        )
    waiting, live, codes = list(chosen), dict[int, _Live](), list[int]()
    with _heard() as signals:
        forwarded = 0
        while waiting or live:
            if forwarded < len(signals):
                _hand_on(signals[forwarded], live.values())
                forwarded += 1
            for slot, one in list(live.items()):
                if (code := one.process.poll()) is not None:
                    codes.append(_end(one, code, signals))
                    del live[slot]
                elif time.monotonic() - one.kept > HEARTBEAT:
                    one.keep()
            if signals or enough():
                waiting.clear()
            for trial in waiting[: jobs - len(live)]:
                state = standing(trial, sweep.criteria)
                if state.state in DONE:
                    console.print(f"{trial.id} {trial.label}: {state.state} already, not run again")
                    waiting.remove(trial)
                    continue
                slot = next(n for n in range(jobs) if n not in live)
                begun = _begin(sweep, trial, trials, environments[slot])
                if begun is not None:
                    live[slot] = begun
                    waiting.remove(trial)
                elif not _is_ours(trial):
                    console.print(f"{trial.id} {trial.label}: runs already ({_owner(trial)}); left to that")
                    waiting.remove(trial)
            time.sleep(LOOK)
    if PREEMPTED in codes or signals:
        return PREEMPTED
    return codes[0] if len(chosen) == 1 and codes else int(any(codes))


def _begin(
    sweep: Sweep, trial: Trial, trials: Sequence[Trial], environment: Mapping[str, str]
) -> _Live | None:
    """Starts a trial's process; None where another process has the trial."""
    lease = Lease(trial.folder / CLAIM)
    if not lease.acquire(_me()):
        return None
    if sweep.prune.model_dump(exclude_none=True):
        pruning.write_rules(sweep.prune, sweep.criteria, trial, list(trials))
    words = command(sweep, trial)
    path = trial.folder / ATTEMPTS
    attempts = run_dir.read_json(path)["attempts"] if path.exists() else []
    if attempts and attempts[-1]["ended"] is None:  # it could not say so itself
        attempts[-1].update(cause="lost", told=f"no heartbeat from {attempts[-1]['owner']}")
    with open(trial.folder / LOG, "ab") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(environment)
        )
    live = _Live(trial, process, lease, [*attempts, {}])
    live.note(
        owner=_me(), started=_now(), ended=None, restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        cause=None, told="",
    )  # fmt: skip
    console.print(f"{trial.id} {trial.label}: attempt {len(live.attempts)}, log {trial.folder / LOG}")
    return live


def _end(one: _Live, code: int, signals: Sequence[int]) -> int:
    """Notes how an attempt has ended; returns its exit code, as a shell gives it."""
    known = one.attempts[-1]["cause"]
    if signals and -code in STOPS:  # it was met before it could save anything, and has lost nothing
        code = PREEMPTED
    if code == 0:
        cause = "complete"
    elif signals and known is not None:
        cause = known
    elif code == PREEMPTED:
        cause = "preempted"
    else:
        cause = "refused" if code == 2 else "failed"
    if cause == "preempted" and (gave_up := run_dir.gave_up()):
        cause, told = "given up", gave_up
    else:
        told = "" if cause == "complete" else _last_words(one.trial.folder / LOG)
    one.note(ended=_now(), code=code, cause=cause, told=told)
    one.lease.release()
    console.print(f"{one.trial.id} {one.trial.label}: {cause}{told and ': '}{told}")
    return code if code >= 0 else 128 - code


def _hand_on(number: int, live: Iterator[_Live] | Any) -> None:
    """Tells the trials to save and end, and notes why."""
    cause = "preempted" if number == signal.SIGUSR1 else "stopped"
    for one in list(live):
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
        one.note(cause=cause)
    if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
        cause = why_slurm_ends(os.environ["SLURM_JOB_ID"])
        for one in list(live):
            one.note(cause=cause)


def why_slurm_ends(job: str) -> str:
    """Why Slurm has sent SIGTERM: "timed out", "cancelled" or "preempted"; "stopped" where it does not say.

    The job is completing by then, which hides its state; but its reason and the time at which it had to end
    are told.
    """
    try:
        asked = subprocess.run(
            ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "stopped"
    told = dict(word.split("=", 1) for word in asked.stdout.split() if "=" in word)
    return slurm_cause(told, datetime.datetime.now())


def slurm_cause(told: Mapping[str, str], now: datetime.datetime) -> str:
    """The same from the words of `scontrol show job`, at the time `now` of its machine's clock."""
    words = f"{told.get('JobState', '')} {told.get('Reason', '')}".lower()
    if "timeout" in words or "timelimit" in words:
        return "timed out"
    with contextlib.suppress(ValueError, KeyError):
        limit = sum(
            int(part) * unit
            for part, unit in zip(
                reversed(told["TimeLimit"].replace("-", ":").split(":")), (1, 60, 3600, 86400), strict=False
            )
        )
        if (now - datetime.datetime.fromisoformat(told["StartTime"])).total_seconds() >= limit:
            return "timed out"
    return "preempted" if "preempt" in words else "cancelled"


@contextlib.contextmanager
def _heard() -> Iterator[list[int]]:
    """Collects the signals that ask for an end."""
    found: list[int] = []

    def hear(number: int, frame: types.FrameType | None) -> None:
        found.append(number)

    before = {number: signal.signal(number, hear) for number in STOPS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _me() -> str:
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        array = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", "?"))
        return f"job {array}_{task} on {_host()}"
    job = os.environ.get("SLURM_JOB_ID")
    return f"job {job} on {_host()}" if job else f"process {os.getpid()} on {_host()}"


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _owner(trial: Trial) -> str:
    return Lease(trial.folder / CLAIM).owner() or "nobody any more"


def _is_ours(trial: Trial) -> bool:
    """Whether an earlier attempt of this job has it, on a node that was lost: then it is waited for."""
    owner = _owner(trial)
    kind, _, host = owner.partition(" on ")
    if kind.startswith("process ") and host == _host() and not psutil.pid_exists(int(kind.split()[1])):
        Lease(trial.folder / CLAIM).revoke(owner)  # killed on this machine, a moment ago
        return True
    return "SLURM_JOB_ID" in os.environ and kind in (_me().split(" on ")[0], "nobody any more")


def _last_words(log: Path) -> str:
    """The last error line of a log, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    errors = [line for line in lines if line.startswith("asrlora: error: ")]
    return (errors or [line for line in lines if line] or [""])[-1].removeprefix("asrlora: error: ")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
