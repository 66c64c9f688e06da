"""Figures of compared runs for papers: PDF and SVG, a column or a page wide, fonts embedded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrlora.report.groups import SETS, STATES, Group, Run

COLUMN, PAGE = 3.35, 6.9  # inches, as two-column styles have them
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "asrlora",
}
# colour and marker by state; colours of Okabe and Ito 2008, which colour-blind eyes can tell apart
LOOK = {
    "accept": ("#009e73", "o"),
    "inconclusive": ("#e69f00", "D"),
    "reject": ("#d55e00", "X"),
    "complete": ("#7f7f7f", "s"),
    "running": ("#0072b2", "^"),
    "preempted": ("#56b4e9", "v"),
    "failed": ("#cc79a7", "x"),
}


def write_figures(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Writes trade-off, curves, and a sweep for each number that was varied; returns the files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, group in enumerate(groups, 1):
        with matplotlib.rc_context(STYLE):
            drawn: dict[str, Any] = {"trade-off": _trade_off(pyplot, group), "curves": _curves(pyplot, group)}
            for name in group.columns:
                if _varied(group, name):
                    drawn[f"sweep-{name}"] = _sweep(pyplot, group, name)
            for name, figure in drawn.items():
                stem = name if len(groups) == 1 else f"group{number}-{name}"
                for suffix, dated in (("pdf", "CreationDate"), ("svg", "Date")):
                    path = folder / f"{stem}.{suffix}"
                    figure.savefig(path, metadata={dated: None})  # equal runs, equal bytes
                    written.append(path)
                pyplot.close(figure)
    return written


def _trade_off(pyplot: Any, group: Group) -> Any:
    figure, axis = pyplot.subplots(figsize=(COLUMN, 2.8), layout="constrained")
    criteria = group.runs[0].criteria
    for state, runs in _by_state([run for run in group.runs if set(SETS) <= run.scores.keys()]):
        (x, x_error), (y, y_error) = (_values(runs, name, "change", "change_interval") for name in SETS)
        axis.errorbar(x, y, xerr=x_error, yerr=y_error, **_markers(state))
    axis.axvline(0, color="#999", linewidth=0.6)
    axis.axhline(0, color="#999", linewidth=0.6)
    left, _ = axis.get_xlim()
    bottom, _ = axis.get_ylim()
    width = -100 * criteria.min_domain_reduction - left
    height = 100 * criteria.max_heldout_regression - bottom
    axis.add_patch(
        pyplot.Rectangle((left, bottom), width, height, color="#009e73", alpha=0.12, linewidth=0, zorder=0)
    )
    x_label, y_label = (f"{name} {group.metric.upper()} change, points" for name in SETS)
    axis.set(xlim=(left, None), ylim=(bottom, None), xlabel=x_label, ylabel=y_label)
    axis.legend(fontsize=7, frameon=False)
    return figure


def _curves(pyplot: Any, group: Group) -> Any:
    figure, axes = pyplot.subplots(1, 3, figsize=(PAGE, 2.2), layout="constrained")
    for run in group.runs:
        color = LOOK[run.state][0]
        if run.losses:
            axes[0].plot(*zip(*run.losses, strict=True), color=color, linewidth=0.5, alpha=0.7)
        for axis, name in zip(axes[1:], SETS, strict=True):
            points = sorted((s, 100 * rates[name]) for s, rates in run.evaluations.items() if name in rates)
            if points:
                axis.plot(*zip(*points, strict=True), color=color, marker=".", markersize=3)
    axes[0].set(xlabel="step", ylabel="nats per token", title="training loss")
    for axis, name in zip(axes[1:], SETS, strict=True):
        axis.set(xlabel="step", ylabel=f"{group.metric.upper()}, %", title=name)
    return figure


def _sweep(pyplot: Any, group: Group, setting: str) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(PAGE, 2.4), layout="constrained")
    for axis, name in zip(axes, SETS, strict=True):
        for state, runs in _by_state([run for run in group.runs if name in run.scores]):
            middle, error = _values(runs, name, "rate", "interval")
            axis.errorbar([run.settings[setting] for run in runs], middle, yerr=error, **_markers(state))
        values = [run.settings[setting] for run in group.runs]
        if min(values) > 0 and max(values) >= 8 * min(values):
            axis.set_xscale("log")
        axis.set(xlabel=setting, ylabel=f"{group.metric.upper()}, %", title=name)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _markers(state: str) -> dict[str, Any]:
    """How runs of a state look, for `errorbar`."""
    color, marker = LOOK[state]
    return {"fmt": marker, "color": color, "markersize": 4, "elinewidth": 0.5, "label": state}


def _varied(group: Group, name: str) -> bool:
    values = [run.settings.get(name) for run in group.runs]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _by_state(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    found = [(state, [run for run in runs if run.state == state]) for state in STATES]
    return [(state, some) for state, some in found if some]


def _values(
    runs: Sequence[Run], name: str, what: str, interval: str
) -> tuple[list[float], list[list[float]]]:
    """Values in points, and how far their intervals go below and above them."""
    middle = [getattr(run.scores[name], what) for run in runs]
    ends = [getattr(run.scores[name], interval) or (m, m) for run, m in zip(runs, middle, strict=True)]
    below = [100 * (m - low) for m, (low, _) in zip(middle, ends, strict=True)]
    above = [100 * (high - m) for m, (_, high) in zip(middle, ends, strict=True)]
    return [100 * m for m in middle], [below, above]
