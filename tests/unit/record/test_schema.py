"""Files of old versions are read, and written as they were; the schemas in docs/reference are current."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from asrlora.errors import UserError
from asrlora.record import schema
from asrlora.storage import write_json
from asrlora.sweep import trials
from asrlora.sweep.pruning import PruningRules
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))
import schemas

KINDS: dict[str, type[schema.Record]] = {"verdict.json": schema.Verdict, "run.json": schema.RunRecord}
OLD = [path for name in KINDS for path in sorted((ROOT / "docs" / "runs").rglob(name))]


@pytest.mark.parametrize("path", OLD, ids=lambda path: str(path.relative_to(ROOT / "docs" / "runs")))
def test_a_file_of_an_older_version_is_read_and_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    record = schema.read(path, KINDS[path.name])
    write_json(tmp_path / "again.json", record.as_json())
    assert (tmp_path / "again.json").read_text() == path.read_text()


# as 0.1.0 wrote them, which had neither metric nor characters
COUNTS = {"wer": 0.25, "substitutions": 2, "deletions": 1, "insertions": 0, "words": 12, "utterances": 3}
ATTEMPT = {"owner": "process 7 on n1", "started": "2026-11-01T10:00:00+00:00", "ended": None, "restart": 0,
           "cause": None, "told": ""}  # fmt: skip
WRITTEN: list[tuple[type[schema.Record], dict[str, Any]]] = [
    (schema.Scores, {"step": 0, "fingerprint": {"base": "b"}, "seconds": 1.5, "domain": COUNTS,
                     "far field": {**COUNTS, "wer": None, "interval": [None, 0.5]}}),
    (schema.EvalScores, {"wer": 0.25, "cer": 0.1, "by_speaker": {"a": {"wer": None, "errors": 0, "words": 0,
                                                                       "utterances": 1}}}),
    (trials.TrialRecord, {"id": "0a", "settings": {"seed": 1}, "attempts": [{**ATTEMPT, "code": 0}]}),
    (schema.ProgressRecord, {"stage": "training", "step": 2, "loss": None, "wers": {"domain": 0.1}}),
    (PruningRules, {"rules": {"heldout_margin": 0.1, "loss_factor": None, "halving": None}, "guardrail": 0.1,
                    "peers": ["0a"]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), WRITTEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_record_is_written_as_it_was_read(
    kind: type[schema.Record], values: dict[str, Any], tmp_path: Path
) -> None:
    write_json(tmp_path / "one.json", values)
    write_json(tmp_path / "again.json", schema.read(tmp_path / "one.json", kind).as_json())
    assert (tmp_path / "again.json").read_text() == (tmp_path / "one.json").read_text()


def test_there_are_files_of_older_versions() -> None:
    assert {path.name for path in OLD} == KINDS.keys()


def test_unknown_keys_and_the_order_of_keys_are_kept() -> None:
    values = {"units": 3, "drawn": {"seed": 1}, "by": "utterance"}
    record = schema.Resampled.model_validate(values)
    assert list(record.as_json().items()) == list(values.items())
    assert list(record.changed(by="speaker", late=1).as_json()) == ["units", "drawn", "by", "late"]


def test_null_is_what_is_not_finite(tmp_path: Path) -> None:
    values = {"baseline_wer": None, "tuned_wer": 0.1, "interval": [None, 1.0], "regression": 0.0}
    section = schema.SetVerdict.model_validate(values)
    assert math.isnan(section.baseline("wer"))
    assert math.isnan(section.change_interval[0])
    write_json(tmp_path / "set.json", section.as_json())
    assert json.loads((tmp_path / "set.json").read_text()) == values


def test_a_file_that_is_no_record_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text('{"verdict": "maybe"}')
    with pytest.raises(UserError, match=r"verdict\.json: verdict: input should be 'accept'"):
        schema.read(path, schema.Verdict)


def test_the_schemas_are_current() -> None:
    for path, text in schemas.schemas().items():
        assert path.read_text() == text, "write them again: uv run python tools/schemas.py"
