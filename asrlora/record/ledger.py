"""The run matrix of docs/experiment_plan.md, drawn from run records: failures stay in it.

It is drawn by one command from all records, so however many runs end at once, nothing is lost. Rows whose
records are not there (any more) are kept as they stand, and so is all that is written around the block.
"""

import datetime
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from asrlora.errors import UserError
from asrlora.record.run_dir import read_run, read_verdict
from asrlora.record.schema import Archived, SetVerdict, Verdict, read
from asrlora.storage import Lease, atomic_file, write_json

BEGIN = "<!-- run matrix: written by `uv run asrlora ledger`; do not edit by hand -->"
END = "<!-- end of run matrix -->"
COLUMNS = (
    "Run ID, Date, Command, Settings, Steps, LR, Manifest, Baseline WER, Tuned WER, Heldout WER, State, Why,"
    " Diagnosis"
).split(", ")
HEADER = "| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS)
SETTINGS = """use_dora init_lora_weights lora_r lora_alpha lora_targets lr_scheduler_type batch_size
gradient_accumulation_steps replay_path seed""".split()
LOCK_TIMEOUT = 60.0  # seconds for another command that draws the same page


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """All run directories at and below `folders`, oldest first; copies of one run only once."""
    found: dict[tuple[str, str, str], Path] = {}
    for folder in folders:
        for place, below, names in os.walk(folder):
            if "run.json" in names:
                below.clear()  # a run directory holds no other one, and thousands of files
                identity = read_run(Path(place))
                key = (identity.started, identity.run_id, identity.command)
                found.setdefault(key, Path(place))
    return [found[key] for key in sorted(found)]


def row(run: Path) -> str:
    """One line of the matrix. A run that failed has a line too, with the reason."""
    identity, judged = read_run(run), read_verdict(run)
    config, shown = identity.config.as_json(), (judged.learned or judged) if judged else None
    learned = f" (step {judged.learned.step}, not kept)" if judged and judged.learned else ""
    why = (judged.reason if judged else identity.reason) or ""
    if identity.archived:
        why = f"archived {identity.archived.date}: {identity.archived.reason}; {why}"
    cells = [
        identity.run_id,
        identity.started[:10],
        f"`{identity.command}`",
        ", ".join(f"{name} {config[name]}" for name in SETTINGS if config.get(name) not in (None, False)),
        identity.config.max_steps,
        f"{identity.config.learning_rate:g}",
        f"`{identity.config.manifest_path}`",
        *_rates(shown.domain if shown else None, judged, learned),
        " → ".join(_rates(shown.heldout if shown else None, judged, learned)),
        judged.verdict if judged else identity.state,
        why,
        identity.diagnoses or "–",
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _rates(one: SetVerdict | None, judged: Verdict | None, learned: str) -> tuple[str, str]:
    """A set's rate before and after: "26.49% [24.31, 28.66]", with its 95 % interval, and with `learned`."""
    if one is None or judged is None:
        return "–", "–"
    named = "" if judged.metric == "wer" else f"{judged.metric.upper()} "
    before = (one.baseline(judged.metric), one.baseline_interval)
    after = (one.tuned(judged.metric), one.tuned_interval)
    found = [
        f"{named}{rate:.2%}" + (f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else "")
        for rate, ends in (before, after)
    ]
    return found[0], found[1] + learned


def write_matrix(page: Path, archive_page: Path, runs: list[Path]) -> tuple[int, int]:
    """Draws both pages; returns how many rows each has. Commands that draw at once wait for each other."""
    lease = Lease(page.with_name(f".{page.name}.lock"))
    until = time.monotonic() + LOCK_TIMEOUT
    while not lease.acquire(f"process {os.getpid()}"):
        if time.monotonic() > until:
            raise UserError(f"{lease.path}: another `asrlora ledger` is drawing; try again when it has ended")
        time.sleep(0.05)
    try:
        rows: dict[bool, dict[str, str]] = {False: {}, True: {}}
        for run in runs:
            drawn = row(run)
            rows[read_run(run).archived is not None][_name(drawn)] = drawn
        both = rows[False].keys() | rows[True].keys()
        active = _draw(page, rows[False], both)
        archived = _draw(archive_page, rows[True], both) if archive_page.exists() or rows[True] else 0
        return active, archived
    finally:
        lease.release()


def _draw(page: Path, drawn: dict[str, str], known: Iterable[str]) -> int:
    """Replaces what stands between the two marks of the page, but for rows of runs that are not `known`."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Archived runs\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise UserError(
            f"{page}: has no run matrix; put these two lines where it should stand: {BEGIN} {END}"
        )
    before, _, rest = text.partition(BEGIN)
    block, _, after = rest.partition(END)
    old = [line for line in block.split("\n") if line.startswith("| ") and line not in HEADER.split("\n")]
    others = [line for line in old if _name(line) not in set(known)]
    complete = [line for line in others if line.replace("\\|", "").count("|") == len(COLUMNS) + 1]
    rows = [*complete, *drawn.values()]
    table = "\n".join([HEADER, *rows])
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(page) as file:
        file.write(f"{before}{BEGIN}\n{table}\n{END}{after}".encode())
    return len(rows)


def _name(line: str) -> str:
    """Run ID, date and command, which holds the folder: they tell one run from another."""
    return "|".join(line.split(" | ", 3)[:3])


def archive(run: Path, reason: str) -> None:
    """Marks a run as archived: the pages are drawn accordingly from then on."""
    if not reason.strip():
        raise UserError("--reason must say why the run is archived")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    identity = read_run(run).changed(archived=Archived(date=today, reason=reason))
    write_json(run / "run.json", identity.as_json())


def verify(run: Path) -> list[str]:
    """Runs the command of a run again, into another folder; returns what came out otherwise."""
    identity = read_run(run)
    if not (run / "verdict.json").exists():
        raise UserError(f"{run} has no verdict that could come out again; its state is {identity.state}")
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        again = Path(folder) / "run"
        done = subprocess.run(again_command(identity.command, again))
        if done.returncode:
            return [f"the command ends with exit code {done.returncode}"]
        return compare(run, again)


def again_command(typed: str, output: Path) -> list[str]:
    """The command of a record for this environment, into another folder."""
    words = shlex.split(typed)
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if not words or Path(words[0]).name not in ("python", "accelerate"):
        raise UserError(f"the command of the record is none of training: {typed}")
    program = sys.executable if words[0] == "python" else str(Path(sys.executable).parent / "accelerate")
    return [program, *words[1:], "--output-dir", str(output), "--resume", "never"]  # the last one counts


def compare(run: Path, again: Path) -> list[str]:
    """What differs between two runs of one command: verdict, best step, and rates by more than 0.1 points."""
    one, other = (read(folder / "verdict.json", Verdict) for folder in (run, again))
    both = one.learned and other.learned  # a record of an earlier version has none
    found = [
        f"{key}: {getattr(one, key)} and now {getattr(other, key)}"
        for key in ("verdict", "best_step")
        if getattr(one, key) != getattr(other, key)
    ]
    for name in ("domain", "heldout"):
        before, now = (getattr(judged.learned if both else judged, name) for judged in (one, other))
        for which in ("baseline", "tuned") if before and now else ():
            rates = [getattr(section, which)(one.metric) for section in (before, now)]
            if not abs(rates[0] - rates[1]) <= 0.001:
                found.append(f"{name} {which}_{one.metric}: {rates[0]:.2%} and now {rates[1]:.2%}")
    return found
