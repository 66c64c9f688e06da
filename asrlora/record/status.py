"""How far a run has come: progress.json, written while it runs, and read from any shell."""

import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.schema import ProgressRecord, read
from asrlora.score import selection
from asrlora.score.verdict import Criteria
from asrlora.storage import write_json

WRITE_INTERVAL = 5.0  # seconds between two writings: each costs the disk a sync
SILENCE = 120.0  # seconds; a batch on a slow CPU takes tens
MUCH_PADDING = 1.25  # times the audio: shown from here on, such as for Whisper, which computes on 30 s always
RESUME = "continue with --resume auto"


class Progress:
    """Writes progress.json, but not more often than WRITE_INTERVAL. Only rank 0 has one."""

    def __init__(self, run: Path) -> None:
        self.path, self.values = run / "progress.json", ProgressRecord()
        self._written = 0.0

    def update(self, **values: Any) -> None:
        """Takes new values of progress.json; the next stage is written at once."""
        changed = values.get("stage", self.values.stage) != self.values.stage
        self.values = self.values.changed(**values)
        if changed or time.monotonic() - self._written > WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Writes all values now."""
        self._written = time.monotonic()
        if self.path.parent.exists():  # a run directory that has vanished is not made again
            write_json(self.path, {**self.values.as_json(), "written": time.time()})


def against_baseline(
    wers: Mapping[str, float], baseline: Mapping[str, float], limit: float = Criteria().max_heldout_regression
) -> str:
    """ "domain 12.40 % (base 26.49), heldout 4.21 % (base 4.33, guardrail 4.53)"

    `limit` is how far a heldout WER may rise; no set of the domain has a guardrail.
    """
    parts = []
    for name, wer in wers.items():
        base = f"base {100 * baseline[name]:.2f}"
        if name not in ("domain", selection.REPORT):
            base += f", guardrail {100 * (baseline[name] + limit):.2f}"
        parts.append(f"{name} {100 * wer:.2f} % ({base})")
    return ", ".join(parts)


def line(values: ProgressRecord) -> str:
    """What matters while training goes on, in one line."""
    parts = [f"step {values.step:,} of {values.max_steps:,}: loss {values.loss:.4f} nats per token"]
    if values.rate is not None:
        padded = values.padded_rate or values.rate
        shown = f" ({padded:,.0f} with padding)" if padded > MUCH_PADDING * values.rate else ""
        parts.append(f"{values.rate:,.0f} audio-s/s{shown}")
    parts.append(f"data wait {values.data_wait:.0%}")
    if values.seconds_left is not None:
        parts.append(f"{duration(values.seconds_left)} of training left")
    if values.wers:
        parts.append(_rates(values))
    return ", ".join(parts)


def _rates(values: ProgressRecord) -> str:
    limit = values.max_heldout_regression
    return f"{values.metric.upper()} {against_baseline(values.wers, values.baseline, limit)}"


def duration(seconds: float) -> str:
    """ "45 s", or "1:30:00" """
    return str(datetime.timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.0f} s"


def describe(run: Path) -> str:
    """The state of a run from its files alone, in a few lines. Raises UserError where there is no run."""
    if not (run / "run.json").exists():
        raise UserError(f"{run} holds no run.json; give a run directory")
    identity, path = run_dir.read_run(run), run / "progress.json"
    values = read(path, ProgressRecord) if path.exists() else ProgressRecord()
    running = identity.state == "running"
    lines = [f"{run}: {identity.state}" + (f" ({identity.reason})" if identity.reason else "")]
    if running:
        lines[0] += f", {_heartbeat(run, values)}"
    if values.stage:
        lines.append(f"  {values.stage}" if running else f"  last: {values.stage}")
    if values.trained:
        lines.append("  " + line(values))
    elif values.wers:
        lines.append("  " + _rates(values))
    elif metrics := run_dir.read_log(run / "metrics.jsonl"):  # of an older version
        last, steps = metrics[-1], identity.config.max_steps
        lines.append(f"  step {last['step']:,} of {steps:,}: loss {last['loss']:.4f}")
    if judged := run_dir.read_verdict(run):
        lines.append(f"  verdict: {judged.verdict}. {judged.reason}")
    if logs := sorted((run / "logs").glob("rank-*.log")):
        lines.append(f"  logs of {len(logs)} other ranks: {run / 'logs'}")
    return "\n".join(lines)


def _heartbeat(run: Path, values: ProgressRecord) -> str:
    """Whether a run that is said to run still does, as far as its lock and its last writing show."""
    held = run_dir.is_held(run)
    if values.written is None:
        return "nothing written yet" if held else f"but it {run_dir.LOST}; {RESUME}"
    age = time.time() - values.written
    if not held and age > 3 * WRITE_INTERVAL:  # a file system may not show the locks of other machines
        return f"but it {run_dir.LOST}, {duration(age)} ago; {RESUME}"
    if age > max(SILENCE, 10 * values.step_seconds):
        return f"but silent for {duration(age)}: its processes have most likely gone"
    return f"last written {duration(age)} ago"
