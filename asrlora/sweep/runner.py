"""Running trials as processes of their own, here or as tasks of a Slurm array, and noting how each ended."""

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from asrlora import allocation
from asrlora.console import console
from asrlora.record.run_dir import gave_up, utc_now
from asrlora.storage import Lease, write_json
from asrlora.sweep import pruning
from asrlora.sweep.sweep_file import Phase, Sweep, Trial, command, demand
from asrlora.sweep.trials import (
    ATTEMPTS,
    DONE,
    LEASE,
    LOG,
    TrialAttempt,
    TrialRecord,
    read_attempts,
    read_status,
)

PREEMPTED = os.EX_TEMPFAIL  # 75: the run is saved and can be resumed
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
POLL_INTERVAL = 0.2  # seconds between two looks at the processes
HEARTBEAT_INTERVAL = 3.0  # seconds


@dataclass
class _RunningTrial:
    """A trial's process, the lease on the trial, and what trial.json holds."""

    trial: Trial
    process: subprocess.Popen[bytes]
    lease: Lease
    attempts: list[TrialAttempt]  # this one is the last
    renewed: float = field(default_factory=time.monotonic)  # when the lease was renewed last
    lost: bool = False  # another process has it, and writes down what becomes of the trial

    def renew(self) -> None:
        """A heartbeat. While this process was stopped another one may have taken the trial."""
        self.renewed = time.monotonic()
        if not self.lost and not self.lease.renew():
            self.lost = True
            _say(self.trial, f"left to {_owner(self.trial)}, which has taken it")
            self.process.terminate()

    def note(self, **changes: Any) -> None:
        """Writes what is known of this attempt, at once: SIGKILL may come the next moment."""
        self.attempts[-1] = self.attempts[-1].changed(**changes)
        if self.lost:
            return
        record = TrialRecord(id=self.trial.id, settings=self.trial.own, attempts=self.attempts)
        write_json(self.trial.folder / ATTEMPTS, record.as_json(), default=str)


@dataclass
class _Pool:
    """Trials that wait, those that run, each in a slot with its share of the machine, and exit codes."""

    sweep: Sweep
    trials: Sequence[Trial]  # all of the phase
    environments: Sequence[Mapping[str, str]]  # one a slot
    waiting: list[Trial]
    running: dict[int, _RunningTrial] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)

    def look(self, signals: Sequence[int]) -> None:
        """Notes the trials that have ended, and renews the leases of the others."""
        for slot, one in list(self.running.items()):
            if (code := one.process.poll()) is not None:
                self.codes.append(_end(one, code, signals))
                del self.running[slot]
            elif time.monotonic() - one.renewed > HEARTBEAT_INTERVAL:
                one.renew()

    def start(self) -> None:
        """Starts as many waiting trials as there are free slots."""
        for trial in self.waiting[: len(self.environments) - len(self.running)]:
            state = read_status(trial, self.sweep.criteria).state
            if state in DONE:
                _say(trial, f"{state} already, not run again")
                self.waiting.remove(trial)
                continue
            slot = next(n for n in range(len(self.environments)) if n not in self.running)
            begun = _begin(self.sweep, trial, self.trials, self.environments[slot])
            if begun is not None:
                self.running[slot] = begun
                self.waiting.remove(trial)
            elif not _will_be_free(trial):
                _say(trial, f"is running already ({_owner(trial)}), not started again")
                self.waiting.remove(trial)


def run(
    sweep: Sweep,
    phase: Phase,
    trials: Sequence[Trial],
    chosen: Sequence[Trial],
    jobs: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Runs those of `chosen` that are not complete, `jobs` at once; `trials` are all of the phase.

    Returns 0 when all of them are complete, 75 when a signal ended it, 1 when a trial failed, and a single
    trial's own exit code. `should_stop` is asked before each start. Raises UserError where the GPUs are too
    few.
    """
    names = {"ASRLORA_SWEEP": sweep.output_dir.name}  # W&B's group and job type; the user's own win
    if sweep.phases:
        names["ASRLORA_PHASE"] = phase.name
    jobs = max(1, min(jobs, len(chosen)))
    processes, use_gpus = demand(sweep)
    cpus = allocation.of_process().worker_threads
    if jobs * processes > max(cpus, processes):
        console.print(
            f"note: {jobs} trials at once of {processes} processes each share {cpus} CPUs; more than"
            f" --jobs {max(1, cpus // processes)} gains nothing on CPUs"
        )
    shares = allocation.shares(jobs, processes, use_gpus)
    pool = _Pool(sweep, trials, [{**names, **os.environ, **share} for share in shares], list(chosen))
    with _caught_signals() as signals:
        forwarded = 0
        while pool.waiting or pool.running:
            if forwarded < len(signals):
                _forward(signals[forwarded], list(pool.running.values()))
                forwarded += 1
            pool.look(signals)
            if signals or should_stop():
                pool.waiting.clear()
            pool.start()
            time.sleep(POLL_INTERVAL)
    if PREEMPTED in pool.codes or signals:
        return PREEMPTED
    return pool.codes[0] if len(chosen) == 1 and pool.codes else int(any(pool.codes))


def _begin(
    sweep: Sweep, trial: Trial, trials: Sequence[Trial], environment: Mapping[str, str]
) -> _RunningTrial | None:
    """Starts a trial's process; None where another process has the trial."""
    lease = Lease(trial.folder / LEASE)
    if not lease.acquire(_this_process()):
        return None
    if sweep.prune.model_dump(exclude_none=True):
        pruning.write_rules(sweep.prune, sweep.criteria, trial, list(trials))
    attempts = read_attempts(trial)
    if attempts and attempts[-1].ended is None:  # it could not write that itself
        attempts[-1] = attempts[-1].changed(cause="lost", told=f"no heartbeat from {attempts[-1].owner}")
    with open(trial.folder / LOG, "ab") as log:
        process = subprocess.Popen(
            command(sweep, trial),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
    attempt = TrialAttempt(
        owner=_this_process(),
        started=utc_now(),
        ended=None,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        cause=None,
        told="",
    )
    begun = _RunningTrial(trial, process, lease, [*attempts, attempt])
    begun.note()
    _say(trial, f"attempt {len(begun.attempts)}, log {trial.folder / LOG}")
    return begun


def _end(one: _RunningTrial, code: int, signals: Sequence[int]) -> int:
    """Notes how an attempt has ended; returns its exit code, as a shell gives it."""
    known = one.attempts[-1].cause
    if signals and -code in STOP_SIGNALS:  # before it could save anything: it has lost nothing
        code = PREEMPTED
    if code == 0:
        cause = "complete"
    elif signals and known is not None:
        cause = known
    elif code == PREEMPTED:
        cause = "preempted"
    else:
        cause = "refused" if code == 2 else "failed"
    if cause == "preempted" and (limit := gave_up()):
        cause, message = "given up", limit
    else:
        message = "" if cause == "complete" else _last_error(one.trial.folder / LOG)
    one.note(ended=utc_now(), code=code, cause=cause, told=message)
    one.lease.release()
    _say(one.trial, f"{cause}{message and ': '}{message}")
    return code if code >= 0 else 128 - code


def _forward(number: int, running: Iterable[_RunningTrial]) -> None:
    """Has the trials save and end, and notes why."""
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
        one.note(cause="preempted" if number == signal.SIGUSR1 else "stopped")
    if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
        cause = why_slurm_ends(os.environ["SLURM_JOB_ID"])
        for one in running:
            one.note(cause=cause)


def why_slurm_ends(job: str) -> str:
    """Why Slurm has sent SIGTERM: "timed out", "cancelled" or "preempted"; "stopped" where it does not say.

    The job is completing by then, which hides its state; but its reason and the time at which it had to end
    are shown.
    """
    try:
        asked = subprocess.run(
            ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "stopped"
    shown = dict(word.split("=", 1) for word in asked.stdout.split() if "=" in word)
    return slurm_cause(shown, datetime.datetime.now())


def slurm_cause(shown: Mapping[str, str], now: datetime.datetime) -> str:
    """The same from what `scontrol show job` shows, at the time `now` of its machine's clock."""
    words = f"{shown.get('JobState', '')} {shown.get('Reason', '')}".lower()
    if "timeout" in words or "timelimit" in words:
        return "timed out"
    with contextlib.suppress(ValueError, KeyError):
        units = (1, 60, 3600, 86400)  # D-HH:MM:SS from behind
        parts = reversed(shown["TimeLimit"].replace("-", ":").split(":"))
        limit = sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
        if (now - datetime.datetime.fromisoformat(shown["StartTime"])).total_seconds() >= limit:
            return "timed out"
    return "preempted" if "preempt" in words else "cancelled"


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects the signals that ask for an end."""
    found: list[int] = []

    def collect(number: int, frame: types.FrameType | None) -> None:
        found.append(number)

    before = {number: signal.signal(number, collect) for number in STOP_SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _this_process() -> str:
    """As the owner of a lease."""
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        array = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", "?"))
        return f"job {array}_{task} on {_host()}"
    job = os.environ.get("SLURM_JOB_ID")
    return f"job {job} on {_host()}" if job else f"process {os.getpid()} on {_host()}"


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _owner(trial: Trial) -> str:
    return Lease(trial.folder / LEASE).owner() or "nobody any more"


def _will_be_free(trial: Trial) -> bool:
    """Whether an earlier attempt of this job has it, on a node that was lost: then it is waited for."""
    owner = _owner(trial)
    kind, _, host = owner.partition(" on ")
    if kind.startswith("process ") and host == _host() and not psutil.pid_exists(int(kind.split()[1])):
        Lease(trial.folder / LEASE).revoke(owner)  # killed on this machine, a moment ago
        return True
    return "SLURM_JOB_ID" in os.environ and kind in (_this_process().split(" on ")[0], "nobody any more")


def _last_error(log: Path) -> str:
    """The last error line of a log, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    errors = [line for line in lines if line.startswith("asrlora: error: ")]
    return (errors or [line for line in lines if line] or [""])[-1].removeprefix("asrlora: error: ")


def _say(trial: Trial, message: str) -> None:
    console.print(f"{trial.id} {trial.label}: {message}")
