"""Mistakes exit with 2 and one message, before torch is imported, and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Speech

# runs train.py's main as the script does, and prints whether torch was imported
CODE = """
import sys
from asrlora import train
from asrlora.errors import exit_code
code = exit_code(train.main)
print("torch" in sys.modules)
sys.exit(code)
"""


def run(flags: list[str]) -> tuple[int, str, bool]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *flags],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr, done.stdout.strip() == "True"


def change(flags: list[str], flag: str, value: str) -> list[str]:
    position = flags.index(flag)
    return [*flags[: position + 1], value, *flags[position + 2 :]]


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--dataset-path", "gone.jsonl", "gone.jsonl"),
        ("--manifest-path", "{broken}", "line 1: not valid JSON"),
        ("--safety-manifest-path", "{no_audio}", "line 1: the audio file"),
        ("--safety-manifest-path", "{bad_audio}", "line 1: the audio file"),
        ("--manifest-path", "{train}", "in the training set too"),
        ("--model-id", "no/such-model", "--model-id no/such-model"),
        ("--model-id", "./nowhere", "--model-id ./nowhere"),
        ("--output-dir", "{taken}", "holds another run"),
        ("--batch-size", "999", "fewer than one step needs"),
        ("--batch-size", "-1", "--batch-size"),
        ("--unknown-flag", "1", "--unknown-flag"),
        ("--text-normaliser", "wisper", "--text-normaliser wisper"),
        ("--domain-words", "{no_audio}", "--domain-words"),
        ("--general-text", "gone.txt", "--general-text gone.txt"),
    ],
)
def test_one_message_names_it(speech: Speech, tmp_path: Path, flag: str, value: str, expected: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"audio": \n')
    (tmp_path / "no_audio.jsonl").write_text('{"audio": "gone.wav", "text": "x"}\n')
    (tmp_path / "noise.wav").write_bytes(b"no audio at all")
    (tmp_path / "bad_audio.jsonl").write_text('{"audio": "noise.wav", "text": "x"}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text(json.dumps({"state": "complete"}))
    places = {path.stem: path for path in tmp_path.glob("*.jsonl")}
    value = value.format(**places, taken=tmp_path / "taken", train=speech.train)
    flags = speech.flags(tmp_path / "new")
    flags = change(flags, flag, value) if flag in flags else [*flags, flag, value]
    code, message, torch_was_imported = run(flags)
    assert code == 2
    assert expected in message
    assert message.count("\n") == 1, message
    assert not torch_was_imported
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval", "--model-id", "x"], "--manifest-path"),
        (["transcribe", "gone.wav"], "gone.wav"),
        (["verdict", "gone"], "run.json"),
        (["shards", "verify", "gone"], "gone"),
        (["nonsense"], "nonsense"),
        (["manifest", "check", "gone.jsonl", "--domain", "d.jsonl"], "jsonl"),
    ],
)
def test_the_command_line_does_the_same(words: list[str], expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asrlora.cli", *words],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
