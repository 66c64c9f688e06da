"""How a run is getting on: progress.json, written while it goes, and told from any shell."""

import datetime
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.run_dir import read_json, read_log
from asrlora.score import selection
from asrlora.score.verdict import Criteria
from asrlora.storage import write_json

EVERY = 5.0  # seconds between two writings: each costs the disk a sync
RESUME = "go on with --resume auto"
STALE = 120.0  # seconds; a batch on a slow CPU takes tens


class Progress:
    """Writes progress.json, but not more often than EVERY. Only rank 0 has one."""

    def __init__(self, run: Path) -> None:
        self.path, self.values = run / "progress.json", dict[str, Any]()
        self._written = 0.0

    def tell(self, **values: Any) -> None:
        changed = values.get("stage") != self.values.get("stage")
        self.values |= values
        if changed or time.monotonic() - self._written > EVERY:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        if self.path.parent.exists():  # a run directory that has vanished is not made again
            write_json(self.path, {**self.values, "written": time.time()})


def against_baseline(
    wers: Mapping[str, float], baseline: Mapping[str, float], limit: float = Criteria().max_heldout_regression
) -> str:
    """ "domain 12.40 % (base 26.49), heldout 4.21 % (base 4.33, guardrail 4.53)"

    `limit` is how far a heldout WER may rise; no set of the domain has a guardrail.
    """
    return ", ".join(
        f"{name} {wer:.2%}".replace("%", " %")
        + f" (base {100 * baseline[name]:.2f}"
        + (
            f", guardrail {100 * (baseline[name] + limit):.2f})"
            if name not in ("domain", selection.REPORT)
            else ")"
        )
        for name, wer in wers.items()
    )


def line(values: Mapping[str, Any]) -> str:
    """What matters while training goes on, in one line; `values` are those of progress.json."""
    parts = [f"step {values['step']:,} of {values['max_steps']:,}: loss {values['loss']:.4f} nats per token"]
    if "rate" in values:
        parts.append(f"{values['rate']:,.0f} audio-s/s")
    parts.append(f"data wait {values['data_wait']:.0%}")
    if "seconds_left" in values:
        parts.append(f"{duration(values['seconds_left'])} of training left")
    if values.get("wers"):
        parts.append(_against(values))
    return ", ".join(parts)


def _against(values: Mapping[str, Any]) -> str:
    limit = values.get("max_heldout_regression", Criteria().max_heldout_regression)
    metric = values.get("metric", "wer").upper()
    return f"{metric} {against_baseline(values['wers'], values['baseline'], limit)}"


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.0f} s"


def describe(run: Path) -> str:
    """The state of a run from its files alone, in a few lines. Raises UserError where there is no run."""
    if not (run / "run.json").exists():
        raise UserError(f"{run} holds no run.json; give a run directory")
    identity = run_dir.read_run(run)
    told = [f"{run}: {identity.state}" + (f" ({identity.reason})" if identity.reason else "")]
    path = run / "progress.json"
    values = _with_nan(read_json(path)) if path.exists() else {}
    if identity.state == "running":
        told[0] += f", {_alive(run, values)}"
    if values.get("stage"):
        told.append(f"  {values['stage']}" if identity.state == "running" else f"  last: {values['stage']}")
    if "loss" in values:
        told.append("  " + line(values))
    elif values.get("wers"):
        told.append("  " + _against(values))
    elif metrics := read_log(run / "metrics.jsonl"):  # of an older version
        last = metrics[-1]
        told.append(f"  step {last['step']:,} of {identity.config.max_steps:,}: loss {last['loss']:.4f}")
    if judged := run_dir.read_verdict(run):
        told.append(f"  verdict: {judged.verdict}. {judged.reason}")
    logs = sorted((run / "logs").glob("rank-*.log"))
    if logs:
        told.append(f"  logs of {len(logs)} other ranks: {run / 'logs'}")
    return "\n".join(told)


def _with_nan(value: Any) -> Any:
    """What JSON holds as null was a number that is not finite."""
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value


def _alive(run: Path, values: Mapping[str, Any]) -> str:
    held = run_dir.is_held(run)
    if "written" not in values:
        return "nothing written yet" if held else f"but it {run_dir.LOST}; {RESUME}"
    age = time.time() - values["written"]
    if not held and age > 3 * EVERY:  # a file system may not tell of locks on other machines
        return f"but it {run_dir.LOST}, {duration(age)} ago; {RESUME}"
    if age > max(STALE, 10 * values.get("step_seconds", 0.0)):
        return f"but silent for {duration(age)}: its processes have most likely gone"
    return f"last written {duration(age)} ago"
