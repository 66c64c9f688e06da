"""The run matrix of docs/experiment_plan.md, drawn from run records: failures stay in it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asrlora.runs.record import read_json

BEGIN = "<!-- run matrix: written by `uv run asrlora ledger`; do not edit by hand -->"
END = "<!-- end of run matrix -->"

HEADER = (
    "| Run ID | Date | Command | Steps | LR | Manifest | Baseline WER | Tuned WER |"
    " Heldout WER | State | Why |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """All run directories at and below `folders`, oldest first."""
    found = {path.parent for folder in folders for path in folder.rglob("run.json")}
    return sorted(found, key=lambda run: (read_json(run / "run.json")["started"], str(run)))


def row(run: Path) -> str:
    """One line of the matrix. A run that failed has a line too, with the reason."""
    identity = read_json(run / "run.json")
    config = identity["config"]
    judged = read_json(run / "verdict.json") if (run / "verdict.json").exists() else None
    state = identity["state"] if judged is None else judged["verdict"]
    why = (judged or identity)["reason"] or ""
    cells = [
        identity["run_id"], identity["started"][:10], f"`{identity['command']}`",
        config["max_steps"], f"{config['learning_rate']:g}", f"`{config['manifest_path']}`",
        _percent(judged, "domain", "baseline_wer"), _percent(judged, "domain", "tuned_wer"),
        f"{_percent(judged, 'heldout', 'baseline_wer')} → {_percent(judged, 'heldout', 'tuned_wer')}",
        state, why,
    ]  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _percent(judged: dict[str, Any] | None, name: str, key: str) -> str:
    return f"{judged[name][key]:.2%}" if judged and judged[name] else "–"


def write_matrix(page: Path, runs: list[Path]) -> None:
    """Replaces what stands between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([HEADER, *(row(run) for run in runs)])
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
