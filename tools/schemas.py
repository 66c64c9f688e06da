"""Writes the JSON schemas in docs/reference/schemas: `uv run python tools/schemas.py`."""

import json
from pathlib import Path

from asrlora.record import schema
from asrlora.record.rescue_record import RescueRecord
from asrlora.sweep.phases import Outcome
from asrlora.sweep.pruning import PruningRules
from asrlora.sweep.trials import TrialRecord

FOLDER = Path(__file__).parents[1] / "docs" / "reference" / "schemas"
FILES: dict[str, type[schema.Record]] = {
    "run": schema.RunRecord,
    "verdict": schema.Verdict,
    "rescue": RescueRecord,
    "scores": schema.Scores,
    "eval_scores": schema.EvalScores,
    "progress": schema.ProgressRecord,
    "trial": TrialRecord,
    "outcome": Outcome,
    "prune": PruningRules,
}


def schemas() -> dict[Path, str]:
    """The text of each schema, by its path."""
    return {
        FOLDER / f"{name}.json": json.dumps(kind.model_json_schema(), indent=1) + "\n"
        for name, kind in FILES.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in schemas().items():
        path.write_text(text)
