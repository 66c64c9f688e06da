"""The run directory: what was run, what came out, and why it fell short. Needs no torch.

Files: run.json, config.yaml, metrics.jsonl, eval/step-NNNNNN/{domain,heldout}.jsonl + scores.json,
adapter_best/, verdict.json, report.html. Whole files are written aside, synced and renamed.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlora.errors import UserError
from asrlora.files import write_whole as write_whole  # callers of this module use it too
from asrlora.score import verdict
from asrlora.score.wer import Counts

LIBRARIES = ("torch", "accelerate", "deepspeed", "transformers", "peft", "webdataset", "jiwer")


def to_lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def is_complete(folder: Path) -> bool:
    """Whether a run has ended as it should, so that nothing is left to go on with."""
    return (folder / "run.json").exists() and read_json(folder / "run.json")["state"] == "complete"


def check_free(folder: Path) -> None:
    """Raises UserError unless `folder` can become a new run directory."""
    if (folder / "run.json").exists():
        raise UserError(f"--output-dir {folder} holds another run; give a new folder, or delete it first")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file; give a folder")
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output-dir {folder} cannot be written to ({existing} is read-only)")


@dataclass
class RunRecord:
    """Writes one run's files. Only rank 0 holds one."""

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def create(cls, folder: Path, **identity: Any) -> "RunRecord":
        record = cls(
            folder,
            {
                "run_id": folder.resolve().name,
                "state": "running",
                "reason": None,
                "started": _now(),
                "ended": None,
                **identity,
                "git_commit": _git_commit(),
                "versions": versions(),
                "attempts": [],
            },
        )
        record._write()
        return record

    @classmethod
    def reopen(cls, folder: Path, **same: Any) -> "RunRecord":
        """The record of a run that is to be gone on with.

        Raises UserError when one of `same` (fingerprint, data) differs from what the run began with.
        """
        identity = read_json(folder / "run.json")
        for key, value in same.items():
            before, now = identity[key], json.loads(json.dumps(value))
            parts = before.keys() | now.keys() if isinstance(now, dict) else ()
            odd = [part for part in sorted(parts) if before.get(part) != now.get(part)]
            if before != now:
                raise UserError(
                    f"--resume auto: {', '.join(odd) or key} of the run in {folder} has changed since it"
                    " began; put it back, or start another run in a new --output-dir"
                )
        return cls(folder, identity)

    def begin_attempt(self, step: int, **how: Any) -> None:
        """Notes that these processes take the run on after optimizer step `step`."""
        attempt = {"started": _now(), "from_step": step, **how, "git_commit": _git_commit()}
        self.update(state="running", reason=None, ended=None, attempts=[*self.identity["attempts"], attempt])

    def rewind(self, step: int) -> None:
        """Takes back what was written after optimizer step `step`: it will be written again."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            lines = [line for line in read_log(metrics) if line["step"] <= step]
            write_whole(metrics, to_lines(lines))
        for folder in (self.folder / "eval").glob("step-*"):
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)

    def update(self, **changes: Any) -> None:
        self.identity.update(changes)
        self._write()

    def end(self, state: str, reason: str | None) -> None:
        self.update(state=state, reason=reason, ended=_now())

    def log(self, entry: dict[str, Any], file_name: str = "metrics.jsonl") -> None:
        """Appends one line to metrics.jsonl, or to another file of lines."""
        with open(self.folder / file_name, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def write_evaluation(
        self, step: int, sets: dict[str, list[dict[str, Any]]], scores: dict[str, Any]
    ) -> None:
        folder = step_folder(self.folder, step)
        for name, hypotheses in sets.items():
            write_whole(folder / f"{name}.jsonl", to_lines(hypotheses))
        write_whole(folder / "scores.json", json.dumps(scores, indent=1))

    def _write(self) -> None:
        write_whole(self.folder / "run.json", json.dumps(self.identity, indent=1) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log whose writer may have been killed in the middle of the last one; none without it."""
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def gave_up() -> str | None:
    """Why a task of Slurm that was stopped is not to be run again, or None where it is.

    `slurm/task.sh` asks the same question before it requeues a task.
    """
    restarts, limit = (os.environ.get(name) for name in ("SLURM_RESTART_COUNT", "ASRLORA_MAX_RESTARTS"))
    if limit is None or int(restarts or 0) < int(limit):
        return None
    return f"given up after {int(restarts or 0)} restarts (ASRLORA_MAX_RESTARTS)"


def step_folder(run: Path, step: int) -> Path:
    return run / "eval" / f"step-{step:06d}"


def read_json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is this a run directory?") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        # not splitlines(): U+2028 and its like are no ends of lines in JSON
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON lines ({error})") from None


def read_counts(path: Path) -> dict[str, Counts]:
    """Integer counts by utterance id. Raises UserError when an id stands there twice."""
    records = read_lines(path)
    counts = {
        r["id"]: Counts(r["substitutions"], r["deletions"], r["insertions"], r["words"]) for r in records
    }
    if len(counts) != len(records):
        raise UserError(
            f"{path}: {len(records) - len(counts)} utterances are there twice; every utterance counts once"
        )
    return counts


def judge_run(run: Path) -> dict[str, Any]:
    """The verdict of a run from its files alone; writes verdict.json and returns it.

    Raises UserError when the baseline and the best step were scored with different fingerprints.
    """
    best = read_json(run / "run.json")["best_step"]
    old, new = step_folder(run, 0), step_folder(run, best)
    before, after = (read_json(folder / "scores.json")["fingerprint"] for folder in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise UserError(
                f"{run}: step 0 and step {best} differ in {name} ({before.get(name)} and"
                f" {after.get(name)}); they cannot be compared"
            )
    comparisons = {
        name: verdict.compare(read_counts(old / f"{name}.jsonl"), read_counts(new / f"{name}.jsonl"))
        for name in ("domain", "heldout")
        if (old / f"{name}.jsonl").exists()
    }
    judged = {
        **verdict.judge(comparisons["domain"], comparisons.get("heldout")),
        "best_step": best,
        "fingerprint": before,
    }
    write_whole(run / "verdict.json", json.dumps(judged, indent=1) + "\n")
    return judged


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def _git_commit() -> str | None:
    """The commit of the code, with "+changes" where the working tree differs; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
        dirty = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if dirty else "")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
