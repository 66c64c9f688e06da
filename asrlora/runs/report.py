"""report.html: one self-contained page per run, drawn from the run directory alone."""

import io
from pathlib import Path
from typing import Any

import jinja2
import jiwer

from asrlora.runs.record import read_json, read_lines, step_folder, write_whole

EXAMPLES = 10  # most improved and most regressed utterances shown


def write_report(run: Path) -> Path:
    """Draws run.json, metrics.jsonl, eval/ and verdict.json into report.html; returns its path."""
    judged = read_json(run / "verdict.json")
    identity = read_json(run / "run.json")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["points"] = lambda fraction: f"{100 * fraction:+.2f}"
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f} %"
    page = environment.get_template("report.html").render(
        run=identity,
        judged=judged,
        curves=_curves(run, judged),
        sets={name: _examples(run, judged["best_step"], name) for name in ("domain", "heldout")},
    )
    write_whole(run / "report.html", page)
    return run / "report.html"


def _curves(run: Path, judged: dict[str, Any]) -> str:
    """Learning curves as SVG: loss, and the WER of both sets with the guardrail and the best step."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({
        "svg.hashsalt": "asrlora", "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "text.color": "#777", "axes.labelcolor": "#777",
        "xtick.color": "#777", "ytick.color": "#777", "axes.edgecolor": "#777",
        "axes.titlecolor": "#777", "axes.grid": True, "grid.color": "#7773",
    })  # fmt: skip
    metrics = read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    losses = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in (run / "eval").glob("step-*"))
    scores = {step: read_json(step_folder(run, step) / "scores.json") for step in steps}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    if losses:
        left.plot(*zip(*losses, strict=True), color="#8884d8", linewidth=1)
    left.set(title="training loss, nats per token", xlabel="step", ylim=(0, None))
    for axis, name, color in ((middle, "domain", "#d1495b"), (right, "heldout", "#00798c")):
        axis.set(title=f"{name} WER, %", xlabel="step")
        if judged[name] is None:
            continue
        axis.plot(steps, [100 * scores[s][name]["wer"] for s in steps], "o-", color=color)
        axis.axvline(judged["best_step"], color="#777", linestyle=":", linewidth=1)
        if name == "heldout":
            limit = judged[name]["baseline_wer"] + judged["criteria"]["max_heldout_regression"]
            axis.axhline(100 * limit, color=color, linestyle="--", linewidth=1)
        axis.set_ylim(0, None)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _examples(run: Path, best: int, name: str) -> dict[str, list[dict[str, Any]]] | None:
    path = step_folder(run, 0) / f"{name}.jsonl"
    if not path.exists():
        return None
    before = {h["id"]: h for h in read_lines(path)}
    after = {h["id"]: h for h in read_lines(step_folder(run, best) / f"{name}.jsonl")}
    changed = sorted((_errors(after[i]) - _errors(before[i]), i) for i in before)
    improved = [i for change, i in changed if change < 0][:EXAMPLES]
    regressed = [i for change, i in reversed(changed) if change > 0][:EXAMPLES]
    return {
        title: [
            {
                "id": i,
                "reference": before[i]["reference"],
                "before": _marked(before[i]),
                "after": _marked(after[i]),
            }
            for i in ids
        ]
        for title, ids in (("most improved", improved), ("most regressed", regressed))
    }


def _errors(hypothesis: dict[str, Any]) -> int:
    return int(hypothesis["substitutions"] + hypothesis["deletions"] + hypothesis["insertions"])


def _marked(hypothesis: dict[str, Any]) -> list[tuple[str, str]]:
    """The hypothesis as (kind, words) runs: equal, substitute, insert, and delete with the lost words."""
    if not hypothesis["reference"]:
        return [("insert", hypothesis["hypothesis"])]
    reference, words = hypothesis["reference"].split(), hypothesis["hypothesis"].split()
    runs = []
    aligned = jiwer.process_words(hypothesis["reference"], hypothesis["hypothesis"])
    for chunk in aligned.alignments[0]:
        if chunk.type == "delete":
            shown = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        else:
            shown = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        runs.append((chunk.type, " ".join(shown)))
    return runs
