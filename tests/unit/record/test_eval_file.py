"""`asrlora eval --hypotheses`: another system's texts by our rules."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrlora import cli

SAID = {"a": "The colour, please.", "b": "twenty one valves", "c": "nothing"}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for number, (identity, text) in enumerate(SAID.items()):
        soundfile.write(tmp_path / f"{identity}.wav", np.zeros(16_000 * (1 + 5 * number)), 16_000)
        lines.append({"id": identity, "audio": f"{identity}.wav", "text": text, "speaker": "s"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def score(manifest: Path, lines: list[dict[str, Any]], *flags: str) -> tuple[int, dict[str, Any]]:
    file, output = manifest.parent / "theirs.jsonl", manifest.parent / "out"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    places = ["--hypotheses", file, "--manifest-path", manifest, "--output-dir", output]
    code = cli.main(["eval", *map(str, places), *flags])
    return code, json.loads((output / "scores.json").read_text()) if code == 0 else {}


THEIRS = [
    {"id": "c", "text": ""},
    {"id": "a", "text": "the color please"},
    {"id": "b", "text": "21 valve"},
]


def test_a_file_is_scored_by_the_rules_that_hold_for_models(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest.parent / "words.txt").write_text("valves\ncolour\n")
    code, scores = score(manifest, THEIRS, "--domain-words", str(manifest.parent / "words.txt"))
    assert code == 0
    assert (scores["substitutions"], scores["deletions"], scores["insertions"], scores["words"]) == (
        1,
        1,
        0,
        6,
    )
    assert scores["domain_words"] == {"recall": 0.5, "hits": 1, "occurrences": 2, "words": 2}
    assert (manifest.parent / "out/domain_words.txt").read_text() == "color\nvalves\n"
    assert scores["by_duration"]["10-15 s"] == {"wer": 1.0, "errors": 1, "words": 1, "utterances": 1}
    assert scores["fingerprint"]["text"]["name"] == "whisper-english"
    lines = [json.loads(line) for line in (manifest.parent / "out/hypotheses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert (lines[1]["hypothesis"], lines[1]["hypothesis_raw"]) == ("21 valve", "21 valve")
    told = capsys.readouterr().out
    assert "WER 33.33%" in told
    assert "recall 50.00% (1 of 2 times" in told


def test_the_normaliser_of_the_flag_is_used(manifest: Path) -> None:
    _, scores = score(manifest, THEIRS, "--text-normaliser", "none")
    assert scores["substitutions"] + scores["deletions"] == scores["words"] == 7
    assert scores["fingerprint"]["text"] == {"name": "none", "version": "1", "characters": "1"}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"text": "the reference", "pred_text": "x"}, "pred_text"),  # NeMo
        ({"hypothesis": "normalised", "hypothesis_raw": "x"}, "hypothesis_raw"),  # ours
        ({"hypothesis": "x", "text": "the reference"}, "hypothesis"),
    ],
)
def test_the_hypothesis_is_not_the_reference_beside_it(
    manifest: Path, line: dict[str, str], field: str
) -> None:
    _, scores = score(manifest, [{"id": identity, **line} for identity in SAID])
    assert scores["hypothesis_field"] == field
    assert '"hypothesis": "x"' in (manifest.parent / "out/hypotheses.jsonl").read_text()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (THEIRS[1:], "1 of the manifest's 3 utterances are missing, such as 'c'"),
        ([*THEIRS, THEIRS[0]], "line 4: the id 'c' was there before"),
        ([*THEIRS, {"id": "d", "text": "x"}], "1 ids are not in the manifest, such as 'd'"),
        ([{"id": "a", "words": "x"}], "line 1: holds no hypothesis; write one of the fields hypothesis_raw"),
        ([THEIRS[0], {"id": "a", "hypothesis": "x"}], "line 2: the field text is missing"),
        ([{"text": "x"}], "line 1: the field id is missing"),
        ([], "holds no line"),
    ],
)
def test_a_file_that_is_not_of_the_manifest_is_refused(
    manifest: Path, lines: list[dict[str, Any]], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(manifest, lines)[0] == 2
    assert told in capsys.readouterr().err
    assert not (manifest.parent / "out").exists()


def test_no_torch_is_needed(manifest: Path) -> None:
    score(manifest, THEIRS)
    places = {"hypotheses": "theirs.jsonl", "manifest-path": "manifest.jsonl", "output-dir": "again"}
    words = ["eval", *(f"--{name}={manifest.parent / place}" for name, place in places.items())]
    code = (
        f"import sys; from asrlora import cli; assert cli.main({words!r}) == 0;"
        " assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("flags", [["--adapter-dir", "x"], ["--model-id", "x"]])
def test_a_model_and_a_file_exclude_each_other(
    manifest: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(manifest, THEIRS, *flags)[0] == 2
    assert "--hypotheses" in capsys.readouterr().err
