"""A sweep as Slurm arrays: in parts that this Slurm accepts, and the lines that submit them."""

import contextlib
import getpass
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrlora.errors import UserError
from asrlora.sweep.sweep_file import Sweep, sizes

DEFAULT_ARRAY_SIZE = 1001  # MaxArraySize where nobody sets it; the highest index is one less
TOOL_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Limits:
    """What this Slurm accepts at once; None where it does not say or has no limit."""

    array_size: int | None = None
    submitted: tuple[int, str] | None = None  # jobs of one user that are queued or run, and whose limit it is

    @property
    def tasks(self) -> int:
        """Tasks of one array, at most."""
        tasks = DEFAULT_ARRAY_SIZE if self.array_size is None else self.array_size
        return min(tasks, self.submitted[0]) if self.submitted else tasks

    def describe(self) -> str:
        """All limits that are known, for people."""
        if self.array_size is None:
            described = f"MaxArraySize {DEFAULT_ARRAY_SIZE}, Slurm's default, since no scontrol answers here"
        else:
            described = f"MaxArraySize {self.array_size}"
        if self.submitted:
            described += f"; {self.submitted[0]} jobs submitted at once ({self.submitted[1]})"
        return described


@dataclass(frozen=True)
class Part:
    """An array that runs `count` trials from number `offset` on."""

    offset: int
    count: int

    def array(self, at_once: int) -> str:
        """The value of --array; a part's own indices begin at 0."""
        return f"0-{self.count - 1}%{at_once}"


def limits() -> Limits:
    """Asks Slurm's own tools, where they are installed and answer."""
    found: dict[str, str] = {}
    for line in _asked("scontrol", "show", "config"):
        name, _, value = line.partition("=")
        found[name.strip()] = value.strip()
    size = found.get("MaxArraySize", "")
    return Limits(int(size) if size.isdecimal() else None, min(_submitted(found), default=None))


def _submitted(config: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """The limits on submitted jobs: of the controller, of this user's associations, and of their QOS."""
    if config.get("MaxJobCount", "").isdecimal():
        yield int(config["MaxJobCount"]), "MaxJobCount, of all users together"
    if "slurmdbd" not in config.get("AccountingStorageType", ""):
        return
    mine, asked_qos = os.environ.get("SBATCH_ACCOUNT"), os.environ.get("SBATCH_QOS")
    qualities = {asked_qos} if asked_qos else set[str]()
    columns = "format=Account,QOS,MaxSubmitJobs,GrpSubmitJobs"
    for line in _asked("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", columns):
        account, names, *counts = [*line.split("|"), "", "", ""][:4]
        if mine in (None, account):
            if asked_qos is None:
                qualities |= set(names.split(","))
            yield from _counts(("MaxSubmitJobs", "GrpSubmitJobs"), counts, f"of the account {account}")
    names_of_qos = ("MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount", "GrpSubmitJobs")
    for line in _asked("sacctmgr", "-nP", "show", "qos", f"format=Name,{','.join(names_of_qos)}"):
        name, *counts = line.split("|")
        if name in qualities:
            yield from _counts(names_of_qos, counts, f"of the QOS {name}")


def _counts(names: Sequence[str], values: Sequence[str], whose: str) -> Iterator[tuple[int, str]]:
    for name, value in zip(names, values, strict=False):
        if value.strip().isdecimal() and int(value):
            yield int(value), f"{name} {whose}"


def _asked(*words: str) -> list[str]:
    """The lines that a tool of Slurm prints; none where it is not there or does not answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=True)
        return done.stdout.splitlines()
    return []


def parts(count: int, allowed: Limits) -> list[Part]:
    """`count` trials in arrays that Slurm accepts, in their order. Raises UserError where it accepts none."""
    if allowed.tasks < 1:
        raise UserError(
            f"this Slurm takes no job arrays ({allowed.describe()}); run the trials by `asrlora sweep run"
            " FILE --jobs N` in one job"
        )
    return [Part(n, min(allowed.tasks, count - n)) for n in range(0, count, allowed.tasks)]


def sbatch_lines(sweep: Sweep, file: Path, allowed: Limits) -> list[str]:
    """Lines for a shell that submit the whole sweep; each part begins when the one before has ended."""
    if sweep.phases:
        return [shlex.join(["sbatch", "slurm/programme.sh", str(file)])]
    (count,) = sizes(sweep).values()
    found = parts(count, allowed)
    lines = []
    for number, part in enumerate(found):
        line = ["sbatch", f"--array={part.array(sweep.at_once)}", "slurm/sweep.sh", str(file)]
        if len(found) > 1:
            line.insert(1, "--parsable")
            line += ["--offset", str(part.offset)] if part.offset else []
        words = shlex.join(line)
        if number:
            words = words.replace("--parsable", '--parsable --dependency="afterany:${job%%;*}"', 1)
        lines.append(f"job=$({words})" if len(found) > 1 else words)
    return lines


def describe(sweep: Sweep, file: Path, allowed: Limits) -> Iterator[str]:
    """How to submit the sweep, in lines; the last ones are for a shell."""
    lines, counts = sbatch_lines(sweep, file, allowed), sizes(sweep).values()
    if allowed.submitted and sum(counts) > allowed.submitted[0]:
        yield (
            f"note: of {sum(counts)} trials this Slurm takes {allowed.submitted[0]} at once, queued ones"
            f" counted ({allowed.submitted[1]}); submit the rest when tasks have ended"
        )
    if max(counts) <= allowed.tasks:
        yield f"on Slurm: {lines[0]}"
        return
    yield f"on Slurm: {max(counts)} trials are more than one array takes ({allowed.describe()})"
    if not sweep.phases:
        yield "in parts, each after the one before (`sbatch slurm/programme.sh FILE` does the same):"
    yield from (f"  {line}" for line in lines)


def number_of(trial: int, offset: int, count: int, file: Path, sweep: Sweep) -> int:
    """The trial that a task of an array runs. Raises UserError where there is none of that number."""
    number = trial + offset
    if trial < 0 or number >= count:
        counted = f"--trial {trial}" + (f" --offset {offset}" if offset else "")
        message = f"{counted}: {file} has {count} trials, 0 to {count - 1}"
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            message += f"; `asrlora sweep plan {file}` prints the line that submits them"
            if len(lines := sbatch_lines(sweep, file, Limits())) == 1:
                message += f": {lines[0]}"
        raise UserError(message)
    return number


def partial_array_note(count: int, environment: Mapping[str, str]) -> str | None:
    """What a task prints whose array is not the whole sweep; that may be intended."""
    given = environment.get("SLURM_ARRAY_TASK_COUNT")
    if given is None or not given.isdecimal() or int(given) >= count:
        return None
    first, last = (environment.get(f"SLURM_ARRAY_TASK_{name}", "?") for name in ("MIN", "MAX"))
    return (
        f"note: this array has {given} of the sweep's {count} trials (indices {first} to {last});"
        " `asrlora sweep status FILE` says which still wait"
    )
