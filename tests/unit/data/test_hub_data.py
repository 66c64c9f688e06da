"""hf:NAME:CONFIG:SPLIT by the real library, from a stand-in of the hub."""

import io
import json
import subprocess
from collections.abc import Generator
from pathlib import Path

import fake_hub
import numpy as np
import pytest
import soundfile
from fake_hub import TOKEN, Hub

from asrlora.data.manifest import read_manifest

pytestmark = pytest.mark.needs("datasets")

README = b"""---
configs:
- config_name: clean
  data_files: [{split: test, path: clean/test.parquet}]
- config_name: other
  data_files: [{split: test, path: other/test.parquet}]
---
"""
FILE = "other/test.parquet"
COMMAND = """
import sys, time
time.sleep = lambda seconds: None
from asrlora import cli
from asrlora.errors import exit_code
sys.exit(exit_code(lambda: cli.main(["manifest", "import", *sys.argv[1:]])))
"""


def parquet(texts: list[str]) -> bytes:
    """As `push_to_hub` writes them: each row holds its audio file, one second of a constant."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for number, text in enumerate(texts, 1):
        file = io.BytesIO()
        soundfile.write(file, np.full(16_000, 0.1 * number), 16_000, format="FLAC")
        rows.append({"audio": {"bytes": file.getvalue(), "path": f"{number}.flac"}, "text": text})
    features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    written = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(described)
    pyarrow.parquet.write_table(table, written)
    return written.getvalue()


@pytest.fixture
def hub() -> Generator[Hub, None, None]:
    with fake_hub.running() as started:
        files = {"README.md": README, "clean/test.parquet": parquet(["no"]), FILE: parquet(["one", "two"])}
        started.add("datasets/me/set", files)
        yield started


def import_from(hub: Hub, folder: Path, source: str, **more: str) -> subprocess.CompletedProcess[str]:
    return hub.run(COMMAND, folder / "cache", source, "--output", str(folder / "out.jsonl"), **more)


def test_a_split_is_streamed_with_its_audio(hub: Hub, tmp_path: Path) -> None:
    done = import_from(hub, tmp_path, "hf:me/set:other:test")
    assert done.returncode == 0, done.stderr
    made = read_manifest(tmp_path / "out.jsonl")
    assert [(u.text, u.duration) for u in made] == [("one", 1.0), ("two", 1.0)]
    assert [round(float(soundfile.read(u.audio)[0][0]), 2) for u in made] == [0.1, 0.2]
    assert not [
        line for line in hub.requests if line.endswith("clean/test.parquet")
    ]  # only what was asked for


def test_a_gated_data_set_and_a_connection_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    hub.repos["datasets/me/set"].gated = True
    hub.break_after[FILE] = [100, 0]
    done = import_from(hub, tmp_path, "hf:me/set:other:test", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert [u.text for u in read_manifest(tmp_path / "out.jsonl")] == ["one", "two"]
    assert hub.tokens == {("_Hub", f"Bearer {TOKEN}")}  # none for the CDN
    assert not hub.break_after[FILE]


@pytest.mark.parametrize(
    ("source", "environment", "expected"),
    [
        ("hf:me/tes:other:test", {}, "doesn't exist on the Hub"),
        ("hf:me/gated:other:test", {}, "is a gated dataset"),
        ("hf:me/set:nope:test", {}, "Available: ['clean', 'other']"),
        ("hf:me/set:other:nope", {}, "Available splits: ['test']"),
        ("hf:me/set:other:test", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "reach"),
        ("hf:me/set:other:test", {"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
    ],
)
def test_one_message_says_what_is_wrong(
    hub: Hub, tmp_path: Path, source: str, environment: dict[str, str], expected: str
) -> None:
    hub.add("datasets/me/gated", {"README.md": README, FILE: parquet(["no"])})
    hub.repos["datasets/me/gated"].gated = True
    done = import_from(hub, tmp_path, source, **environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"asrlora: error: {source}: cannot be loaded (")
    assert expected in last
    assert "check its name, accept the terms of a gated one and set HF_TOKEN" in last
    assert not (tmp_path / "out.jsonl").exists()


def test_a_connection_that_breaks_off_for_good(hub: Hub, tmp_path: Path) -> None:
    hub.break_after[FILE] = 200 * [0]
    done = import_from(hub, tmp_path, "hf:me/set:other:test")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("asrlora: error: hf:me/set:other:test: cannot be loaded (")
    assert not (tmp_path / "out.jsonl").exists()
