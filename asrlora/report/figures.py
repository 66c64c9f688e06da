"""The figures of a report: SVG that takes its colours from the page, so that it suits light and dark."""

import hashlib
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlora.report.alignment import Line
from asrlora.report.templates import render
from asrlora.score.power import Z

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib wants real colours; these stand for the variables of the page's style sheet
INK, DIM, GRID, BEFORE, AFTER, LIMIT = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", DIM: "dim", GRID: "line", BEFORE: "before", AFTER: "after", LIMIT: "bad"}
SIZE = (3.6, 2.5)  # inches: one figure fills a phone, three a screen, with text that can be read
POINTS = 120  # of a running WER
MIN_UTTERANCES = 20  # below it a running WER only jumps about

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "asrlora",
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": DIM,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **{f"{axis}tick.{part}": DIM for axis in "xy" for part in ("color", "labelcolor")},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
}

Points = Sequence[tuple[int, float]]  # (step, value; an error rate is a fraction)
Strength = tuple[float, bool, float, tuple[float, float]]  # (strength, averaged, change, its interval)


def loss(entries: Points) -> str:
    """Training loss by step, and its mean over a twentieth of the run."""
    axes, finish = _axes("step", "loss, nats per token")
    steps, values = (np.array(column) for column in zip(*entries, strict=True))
    axes.plot(steps, values, color=DIM, linewidth=0.7, alpha=0.45)
    width = max(1, len(values) // 20)
    mean = np.convolve(values, np.ones(width) / width, "valid")
    axes.plot(steps[width - 1 :], mean, color=AFTER, linewidth=1.8)
    axes.set_ylim(0, None)
    return finish(
        f"Training loss by step, falling or not: {values[0]:.3f} nats per token at step {steps[0]},"
        f" {mean[-1]:.3f} on average over the last {width} steps."
    )


def curve(name: str, points: Points, circled: int, limit: float | None, label: str = "WER") -> str:
    """WER, or what else `label` names, of one set by step, with one step circled and a guardrail's limit."""
    axes, finish = _axes("step", f"{name} {label}, %")
    steps, values = [step for step, _ in points], [100 * rate for _, rate in points]
    top = max([*values, 100 * (limit or 0)]) * 1.12 or 1.0
    if limit is not None:
        axes.axhspan(100 * limit, top, color=LIMIT, alpha=0.08, linewidth=0)
        axes.axhline(100 * limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit {100 * limit:.2f}",
            (0.02, 100 * limit),
            xycoords=("axes fraction", "data"),
            va="bottom",
            color=LIMIT,
            fontsize=9,
        )
    axes.plot(steps, values, color=AFTER, linewidth=1.8, marker="o", markersize=4)
    chosen = dict(points).get(circled)
    if chosen is not None:
        axes.axvline(circled, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.plot([circled], [100 * chosen], "o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
    axes.set_ylim(0, top)
    listed = ", ".join(f"{value:.2f} % at step {step}" for step, value in zip(steps, values, strict=True))
    bound = f" The limit is {100 * limit:.2f} %." if limit is not None else ""
    return finish(f"{name} {label} by step: {listed}.{bound} Step {circled} is circled.")


def strengths(name: str, tried: Sequence[Strength], limit: float, label: str = "WER") -> str:
    """The change of a set's error rate by an adapter's strength, with 95 % intervals, and its limit."""
    axes, finish = _axes("strength", f"{name} {label}, change in points")
    axes.axhline(100 * limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
    line = sorted((at, change) for at, averaged, change, _ in tried if not averaged)
    axes.plot([0, *(at for at, _ in line)], [0, *(100 * change for _, change in line)], color=AFTER)
    listed = []
    for at, averaged, change, (low, high) in tried:
        axes.plot([at, at], [100 * low, 100 * high], color=AFTER, linewidth=1.2, alpha=0.6)
        inside = "none" if averaged else AFTER
        axes.plot([at], [100 * change], "o", color=AFTER, markersize=5, markerfacecolor=inside)
        listed.append(f"{100 * change:+.2f} at {at:g}{' (mean of checkpoints)' if averaged else ''}")
    return finish(
        f"Change of {name} {label} by strength, in points: {', '.join(listed)}; at most {100 * limit:+.2f}"
        " passes."
    )


def running(name: str, before: dict[str, Line], after: dict[str, Line], label: str = "WER") -> str:
    """WER, or what else `label` names, of the first n utterances against n, before and after, with 95 %
    intervals.

    In an order drawn by a hash of the ids, in which every prefix is a fair sample; dotted, in order of
    the ids, where a prefix often is not: the lucky first 200.
    """
    axes, finish = _axes("utterances", f"{name} {label}, %")
    drawn = sorted(before, key=lambda i: hashlib.sha256(f"order/{i}".encode()).digest())
    described: list[str] = []
    ends: dict[str, float] = {}  # rates of all utterances
    sides = {"before": (before, BEFORE), "after": (after, AFTER)}
    for side, (lines, colour) in sides.items():
        n, rate, margin = _running([lines[i] for i in drawn])
        axes.fill_between(n, rate - margin, rate + margin, color=colour, alpha=0.18, linewidth=0)
        axes.plot(n, rate, color=colour, linewidth=1.8)
        n, by_id, _ = _running([lines[i] for i in sorted(lines)])
        axes.plot(n, by_id, color=colour, linewidth=1.1, linestyle=(0, (1, 1.5)))
        ends[side] = rate[-1]
        described.append(f"{side} {rate[-1]:.2f} % plus or minus {margin[-1]:.2f}")
    for side, (_, colour) in sides.items():
        above = (side == "before") == (ends["before"] >= ends["after"])
        axes.annotate(
            side,
            (len(drawn), ends[side]),
            xytext=(4, 1 if above else -1),
            textcoords="offset points",
            va="bottom" if above else "top",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )
    # the first dozens jump about, and would press the rest flat
    axes.set_ylim(0, min(axes.get_ylim()[1], 2.5 * max(ends.values())) or 1)
    axes.margins(x=0.02)
    return finish(
        f"Running {name} {label} against the number of utterances; of all {len(drawn)}:"
        f" {'; '.join(described)}."
    )


def _running(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, WER in per cent of the first n, half its 95 % interval): score/power.py's, by running sums."""
    e = np.array([line["errors"] for line in lines], np.float64)
    w = np.array([line["length"] for line in lines], np.float64)
    ee, ew, ww, words = (np.cumsum(x) for x in (e * e, e * w, w * w, w))
    wer = np.cumsum(e) / np.maximum(words, 1)
    count = np.arange(1, len(lines) + 1)
    squares = np.maximum(ee - 2 * wer * ew + wer**2 * ww, 0) * count / np.maximum(count - 1, 1)
    margin = Z * np.sqrt(squares) / np.maximum(words, 1)
    first = min(MIN_UTTERANCES, len(lines))
    at = np.unique(np.geomspace(first, len(lines), POINTS).round().astype(int)) - 1
    return count[at], 100 * wer[at], 100 * margin[at]


def interval(change: float, ends: tuple[float, float], limit: float) -> str:
    """A change of WER with its interval, in points, on a line that shows what passes: left of `limit`."""
    low, high = min(0.0, limit, *ends), max(0.0, limit, *ends)
    room = 0.08 * (high - low or 1)
    low, high = low - room, high + room

    def x(value: float) -> float:
        """Points to pixels from the left, of 300."""
        return round(300 * (value - low) / (high - low), 1)

    return render(
        "interval.html",
        x=x,
        change=change,
        low=ends[0],
        high=ends[1],
        limit=limit,
        crowded=abs(x(0) - x(limit)) < 60,
        description=f"{change:+.2f} points, 95 % interval {ends[0]:+.2f} to {ends[1]:+.2f};"
        f" {limit:+.2f} or less passes",
    )


def _axes(across: str, up: str) -> "tuple[Axes, Callable[[str], str]]":
    """Axes to draw in, and the function that takes a text alternative and returns the SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    axes.set_xlabel(across)
    axes.set_title(up, loc="left", fontsize=10.5, color=INK, fontweight="bold")

    def finish(description: str) -> str:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
        return _for_the_page(buffer.getvalue(), description)

    return axes, finish


def _for_the_page(svg: str, description: str) -> str:
    """Without a size, colours and ids of its own, and with a text alternative."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # several figures share a page, where ids must differ: those that are used get a name of this figure's
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    prefix = "f" + hashlib.sha256(description.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
