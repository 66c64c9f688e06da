"""The page of compared runs, one file that needs no server, and their tables for the terminal."""

import datetime
import json
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from asrlora.report.groups import SETS, Group, Run, Score, differing
from asrlora.report.templates import render
from asrlora.storage import write_atomic

LOSS_POINTS = 150  # of a loss curve; more are means of neighbours


def tables(groups: Sequence[Group]) -> list[Table]:
    """One for the terminal of each group, best first."""
    return [_table(group, _title(number, groups)) for number, group in enumerate(groups)]


def _title(number: int, groups: Sequence[Group]) -> str | None:
    if len(groups) == 1:
        return None
    others = ", ".join(differing([group.fingerprint for group in (groups[0], groups[number])]))
    return f"group {number + 1}" + (f": not comparable with group 1, other {others}" if others else "")


def _table(group: Group, title: str | None) -> Table:
    table = Table("run", title=title, title_justify="left")
    table.add_column("state", no_wrap=True)
    for name in group.sets:
        table.add_column(f"{name} {group.metric.upper()}, %\nchange, points", no_wrap=True)
    table.add_column("what differs, and why it failed", min_width=24)
    shown = [name for name in group.columns if name not in ("git_commit", "training_content")]
    for run in group.runs:
        cells = [_cell(run.scores[name]) if name in run.scores else "–" for name in group.sets]
        settings = ", ".join(f"{name} {_shown(run.settings.get(name))}" for name in shown)
        why = run.why if run.state == "failed" else ""
        table.add_row(Text(run.name), run.state, *cells, Text("\n".join(filter(None, (settings, why)))))
    return table


def _cell(score: Score) -> str:
    """ "26.49 → 8.27" and, below, "-18.22 -20.06 to -16.37" """
    ends = score.change_interval
    between = f" {100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}" if ends else ""
    return f"{100 * score.baseline:.2f} → {100 * score.rate:.2f}\n{100 * score.change:+.2f}{between}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)


def default_page(runs: Sequence[Run]) -> Path:
    """compare.html in the folder that holds all runs, so that its links live as long as they do."""
    return Path(os.path.commonpath([run.folder.resolve().parent for run in runs])) / "compare.html"


def write_page(groups: Sequence[Group], page: Path) -> None:
    """One file: data, script and plots' library; it opens without a network."""
    from plotly.offline import get_plotlyjs  # its JavaScript alone: the browser draws

    here = Path(__file__).parent
    data = {
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "groups": [_group_data(group, groups[0], page) for group in groups],
    }
    html = render(
        "compare.html",
        data=json.dumps(_plain(data), separators=(",", ":")).replace("<", "\\u003c"),
        script=(here / "compare.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )
    write_atomic(page, html)


def _group_data(group: Group, first: Group, page: Path) -> dict[str, Any]:
    others = differing([first.fingerprint, group.fingerprint])
    return {
        "runs": [_run_data(run, page) for run in group.runs],
        "metric": group.metric.upper(),
        "sets": group.sets,
        "columns": group.columns,
        "criteria": asdict(group.runs[0].criteria),
        "differs": [[key, group.fingerprint.get(key), first.fingerprint.get(key)] for key in others],
        "paired": group.paired,
        "pairs": group.pairs,
    }


def _run_data(run: Run, page: Path) -> dict[str, Any]:
    identity = run.identity
    report = run.folder / "report.html"
    steps, losses = _thinned(run.losses)
    evaluated = sorted(run.evaluations)
    rates = [[run.evaluations[step].get(name) for step in evaluated] for name in SETS]
    return {
        "name": run.name,
        "report": _link(report, page) if report.exists() else None,
        "state": run.state,
        "why": run.why,
        "command": identity.command,
        "started": identity.started,
        "settings": run.settings,
        "scores": {name: asdict(score) for name, score in run.scores.items()},
        "best_step": run.best_step,
        "learned_step": run.learned_step,
        "done": int(run.losses[-1][0]) if run.losses else max(run.evaluations, default=0),
        "seconds": sum(identity.stage_seconds.values()) or None,
        "loss": [steps, losses],
        "evaluations": [evaluated, *rates],
    }


def _link(target: Path, page: Path) -> str:
    relative = os.path.relpath(target.resolve(), page.resolve().parent)
    return urllib.parse.quote(Path(relative).as_posix())


def _thinned(curve: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Means of neighbours, so that at most LOSS_POINTS points are left."""
    width = -(-len(curve) // LOSS_POINTS) or 1
    parts = [curve[i : i + width] for i in range(0, len(curve), width)]
    return (
        [part[-1][0] for part in parts],
        [sum(value for _, value in part) / len(part) for part in parts],
    )


def _plain(value: Any) -> Any:
    """For JSON that browsers read: no NaN, and no more digits than anybody looks at."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
