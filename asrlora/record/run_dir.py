"""The run directory: what was run, what came out, and why it fell short. Needs no torch.

Files: run.json, config.yaml, metrics.jsonl, eval/step-NNNNNN/{domain,heldout}.jsonl + scores.json,
adapter_best/, verdict.json, report.html. Whole files are written aside, synced and renamed.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from asrlora.config import RunConfig
from asrlora.errors import UserError
from asrlora.record.schema import Attempt, RunRecord, Scores, Verdict, read
from asrlora.record.schema import read_json as read_json  # callers of this module use it too
from asrlora.score.metric import Metric, tally
from asrlora.score.wer import Tally
from asrlora.storage import lock, to_json, write_json
from asrlora.storage import write_atomic as write_atomic  # callers of this module use it too

NOTE_TIMEOUT = 5.0  # seconds that a process may take to end before another one records why
LOCK_TIMEOUT = 30.0  # seconds that ranks may live on after their launcher or a peer was killed
LOST = "ended without a message: it was killed (SIGKILL, or memory was full), or its machine failed"
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")  # names of variables that no record may hold
LIBRARIES = "torch accelerate deepspeed transformers peft webdataset jiwer regex pyspellchecker".split()


@dataclass
class RunDirectory:
    """One run's files, for writing. Only rank 0 holds one."""

    folder: Path
    identity: RunRecord
    lock: BinaryIO  # held until the attempt ends

    @classmethod
    def create(cls, folder: Path, **identity: Any) -> "RunDirectory":
        """A new run, with these keys of run.json. Raises UserError where the folder holds something."""
        folder.mkdir(parents=True, exist_ok=True)
        held = _lock(folder)
        check_free(folder)
        record = RunRecord(
            run_id=folder.resolve().name,
            state="running",
            reason=None,
            started=utc_now(),
            ended=None,
            **identity,
            git_commit=git_commit(),
            versions=versions(),
            attempts=[],
        )
        created = cls(folder, record, held)
        created.update()
        return created

    @classmethod
    def reopen(cls, folder: Path, **same: Any) -> "RunDirectory":
        """A run that is to be resumed.

        Raises UserError when one of `same` (fingerprint, training set) differs from what the run began with.
        """
        held = _lock(folder)
        identity = read_run(folder)
        begun_with = identity.as_json()
        for key, value in same.items():
            before, now = begun_with[key], json.loads(to_json(value))
            parts = before.keys() | now.keys() if isinstance(now, dict) else ()
            changed = [part for part in sorted(parts) if before.get(part) != now.get(part)]
            if before != now:
                raise UserError(
                    f"--resume auto: {', '.join(changed) or key} of the run in {folder} has changed since it"
                    " began; put it back, or start another run in a new --output-dir"
                )
        return cls(folder, identity, held)

    def begin_attempt(self, step: int, **how: Any) -> None:
        """Notes that these processes resume the run after optimizer step `step`."""
        attempts = list(self.identity.attempts)
        if self.identity.state == "running" and attempts:
            attempts[-1] = attempts[-1].changed(reason=LOST)
        attempt = Attempt(started=utc_now(), from_step=step, **how, git_commit=git_commit())
        self.update(state="running", reason=None, ended=None, attempts=[*attempts, attempt])

    def rewind(self, step: int) -> None:
        """Takes back what was written after optimizer step `step`: it will be written again."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            lines = [line for line in read_log(metrics) if line["step"] <= step]
            write_atomic(metrics, to_lines(lines))
        for done, folder in evaluations(self.folder).items():
            if done > step:
                shutil.rmtree(folder)

    def update(self, **changes: Any) -> None:
        """Writes run.json with these keys changed or added."""
        self.identity = self.identity.changed(**changes)
        write_json(self.folder / "run.json", self.identity.as_json())

    def end(self, state: str, reason: str | None) -> None:
        """Writes down how the attempt has ended, and frees the directory."""
        self.update(state=state, reason=reason, ended=utc_now())
        self.lock.close()

    def log(self, entry: dict[str, Any], file_name: str = "metrics.jsonl") -> None:
        """Appends one line to metrics.jsonl, or to another file of lines."""
        with open(self.folder / file_name, "a", encoding="utf-8") as file:
            file.write(to_json(entry) + "\n")

    def write_evaluation(self, step: int, sets: dict[str, list[dict[str, Any]]], scores: Scores) -> None:
        """The scored lines of each set and, last, scores.json: where it is, the evaluation was finished."""
        folder = step_folder(self.folder, step)
        for name, hypotheses in sets.items():
            write_atomic(folder / f"{name}.jsonl", to_lines(hypotheses))
        write_json(folder / "scores.json", scores.as_json())


def note_failure(folder: Path, reason: str, timeout: float = NOTE_TIMEOUT) -> bool:
    """Records why a run has failed, by a process that did not run it; returns whether it did.

    Only where the run's own process can no longer do so: it holds the lock as long as it lives. A reason that
    it has left stays, but for one that could only say that a rank is gone.
    """
    held = lock(folder / ".lock", timeout) if (folder / "run.json").exists() else None
    if held is None:
        return False
    with held:
        run = RunDirectory(folder, read_run(folder), held)
        unknown = run.identity.state == "failed" and " is gone" in (run.identity.reason or "")
        if run.identity.state == "running" or unknown:
            run.end("failed", reason)
            return True
    return False


def is_held(folder: Path) -> bool:
    """Whether a process runs this run, as far as this machine can tell."""
    path = folder / ".lock"
    if not path.exists() or not os.access(path, os.W_OK):
        return True
    held = lock(path, 0)
    if held is not None:
        held.close()
    return held is None


def is_complete(folder: Path) -> bool:
    """Whether a run has ended as it should, so that nothing is left to resume."""
    return (folder / "run.json").exists() and read_run(folder).state == "complete"


def check_resumable(config: RunConfig) -> None:
    """Raises UserError where the run in `config.output_dir` began with settings that must stay as they were.

    Nothing is wrong where there is no run yet.
    """
    folder = config.output_dir
    if not (folder / "run.json").exists():
        return
    if changed := config.differences(read_run(folder).config.as_json()):
        raise UserError(
            f"--resume auto: the run in {folder} began with other settings ({'; '.join(changed)});"
            " give the same ones, or start another run in a new --output-dir"
        )


def base_of_run(folder: Path, config: RunConfig) -> str:
    """The base that the run in `folder` began with, at its commit where it came from the hub, as
    models/hub.py names it; the base of the settings where no run is there yet."""
    begun = (folder / "run.json").exists()
    commit = read_run(folder).base_commit if begun else None
    return config.base if commit is None else f"{config.model_id.partition('@')[0]}@{commit}"


def check_free(folder: Path) -> None:
    """Raises UserError unless `folder` can become a new run directory."""
    if (folder / "run.json").exists():
        raise UserError(f"--output-dir {folder} holds another run; give a new folder, or delete it first")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file; give a folder")
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output-dir {folder} cannot be written to ({existing} is read-only)")


def _lock(folder: Path) -> BinaryIO:
    """Two attempts at one run would write into each other's files: an orphan of a killed launcher, or a task
    that was requeued too early. The first ones end within this time (see engine/watchdog.py)."""
    held = lock(folder / ".lock", LOCK_TIMEOUT)
    if held is None:
        raise UserError(
            f"--output-dir {folder} is in use by another attempt at this run; wait for its end, or stop it"
        )
    return held


def gave_up() -> str | None:
    """Why a task of Slurm that was stopped is not to be run again, or None where it is.

    `slurm/task.sh` asks the same question before it requeues a task.
    """
    restarts, limit = (os.environ.get(name) for name in ("SLURM_RESTART_COUNT", "ASRLORA_MAX_RESTARTS"))
    if limit is None or int(restarts or 0) < int(limit):
        return None
    return f"given up after {int(restarts or 0)} restarts (ASRLORA_MAX_RESTARTS)"


def step_folder(run: Path, step: int) -> Path:
    """Where the evaluation after optimizer step `step` is."""
    return run / "eval" / f"step-{step:06d}"


def evaluations(run: Path) -> dict[int, Path]:
    """The folders of evaluations by step; others beside them, as of a lower strength, are not of the run."""
    found = {path.name.removeprefix("step-"): path for path in sorted(run.glob("eval/step-*"))}
    return {int(step): path for step, path in found.items() if step.isdecimal()}


def best_evaluation(run: Path, judged: Verdict) -> Path:
    """Where the evaluation of adapter_best/ is."""
    return run / "eval" / judged.rescue.evaluation if judged.rescue else step_folder(run, judged.best_step)


def shown_evaluation(run: Path, judged: Verdict) -> Path:
    """Where the evaluation is that readers are shown against the base."""
    return step_folder(run, judged.learned.step) if judged.learned else best_evaluation(run, judged)


def read_run(folder: Path) -> RunRecord:
    """run.json. Raises UserError where the folder holds none."""
    return read(folder / "run.json", RunRecord)


def read_verdict(run: Path) -> Verdict | None:
    """verdict.json; None where the run has none."""
    path = run / "verdict.json"
    return read(path, Verdict) if path.exists() else None


def read_scores(run: Path) -> dict[int, Scores]:
    """scores.json by step, of the evaluations that were finished."""
    paths = {step: folder / "scores.json" for step, folder in evaluations(run).items()}
    return {step: read(path, Scores) for step, path in paths.items() if path.exists()}


def read_rates(run: Path, metric: Metric) -> dict[int, dict[str, float]]:
    """The metric of each set, by step and name: fractions, NaN where the references are empty."""
    return {
        step: {name: one.rate(metric) for name, one in scores.sets.items()}
        for step, scores in read_scores(run).items()
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log whose writer may have been killed in the middle of the last one; none without it.

    A null stands for a number that was not finite, such as a loss, and is NaN here.
    """
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            found.append({key: math.nan if value is None else value for key, value in entry.items()})
    return found


def to_lines(records: Iterable[dict[str, Any]]) -> str:
    """JSON lines, as `read_lines` reads them."""
    return "".join(to_json(record, ensure_ascii=False) + "\n" for record in records)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file. Raises UserError where it cannot be read."""
    try:
        # not splitlines(): U+2028 and its like are no ends of lines in JSON
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON lines ({error})") from None


def read_hypotheses(path: Path) -> dict[str, dict[str, Any]]:
    """Scored lines by utterance id. Raises UserError when an id stands there twice."""
    records = read_lines(path)
    by_id = {record["id"]: record for record in records}
    if len(by_id) != len(records):
        raise UserError(
            f"{path}: {len(records) - len(by_id)} utterances are there twice; every utterance counts once"
        )
    return by_id


def read_counts(path: Path, metric: Metric = "wer") -> dict[str, Tally]:
    """Integer counts by utterance id. Raises UserError when an id stands there twice."""
    return tallies(read_hypotheses(path), metric)


def tallies(lines: Mapping[str, Mapping[str, Any]], metric: Metric) -> dict[str, Tally]:
    """Integer counts of scored lines, by the same keys."""
    return {i: tally(line, metric) for i, line in lines.items()}


def versions() -> dict[str, str]:
    """Of Python and of the libraries on which results depend."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def redacted(text: str) -> str:
    """Without the keys that the environment holds, and without passwords in addresses."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return re.sub(r"(://[^/@\s:]*):[^/@\s]+@", r"\1:***@", text)


def git_commit() -> str | None:
    """The commit of the code, with "+changes" where the working tree differs; None outside git."""

    def git(*words: str) -> str:
        """What a command of git prints."""
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def utc_now() -> str:
    """As the records have times: ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
