import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asrlora.data.manifest import read_manifest, trainable
from asrlora.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.full(32_000, 0.1), 16_000)
    return tmp_path


def write(folder: Path, *lines: object, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_defaults_and_further_keys(folder: Path) -> None:
    path = write(folder, {"audio": "a.wav", "text": "hello", "noise": 3}, "", {"audio": "b.wav", "text": ""})
    first, second = read_manifest(path)
    assert first.audio == folder / "a.wav"
    assert first.duration == 2.0
    assert first.extra == {"noise": 3}
    assert first.id != second.id
    assert read_manifest(path)[0].id == first.id  # stable


def test_two_segments_of_one_file_differ(folder: Path) -> None:
    path = write(
        folder,
        {"audio": "a.wav", "text": "x", "offset": 0.0, "duration": 0.5},
        {"audio": "a.wav", "text": "y", "offset": 0.5},
    )
    first, second = read_manifest(path)
    assert (first.duration, second.duration) == (0.5, 1.5)
    assert first.id != second.id


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"audio": "a.wav", ', "line 2.*not valid JSON"),
        ('["a.wav"]', "line 2.*not a JSON object"),
        ({"text": "x"}, "line 2.*audio is missing"),
        ({"audio": "a.wav"}, "line 2.*text is missing"),
        ({"audio": "a.wav", "text": 3}, "line 2.*text must be a string"),
        ({"audio": "gone.wav", "text": "x"}, "line 2.*gone.wav does not exist"),
        ({"audio": "m.jsonl", "text": "x"}, "line 2.*m.jsonl cannot be read"),
        ({"audio": "a.wav", "text": "x", "duration": "2 s"}, "line 2.*duration must be seconds"),
        ({"audio": "a.wav", "text": "x", "duration": -1}, "line 2.*duration must be seconds"),
        ({"audio": "a.wav", "text": "x", "offset": 9}, "line 2.*behind the end"),
        ({"audio": "a.wav", "text": "x", "offset": 1, "duration": 5}, "line 2.*behind the end"),
        ({"audio": "a.wav", "text": "x", "id": "first"}, "line 2.*'first' is taken by line 1"),
    ],
)
def test_the_bad_line_is_named(folder: Path, line: object, told: str) -> None:
    path = write(folder, {"audio": "a.wav", "text": "x", "id": "first"}, line)
    with pytest.raises(UserError, match=told):
        read_manifest(path)


def test_missing_empty_and_binary_manifests(folder: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        read_manifest(folder / "gone.jsonl")
    with pytest.raises(UserError, match="no utterance"):
        read_manifest(write(folder, ""))
    with pytest.raises(UserError, match="UTF-8"):
        read_manifest(folder / "a.wav")


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 3))))
def test_every_utterance_is_kept_or_counted(utterances: list[tuple[float, int]]) -> None:
    seconds, characters = [one[0] for one in utterances], [one[1] for one in utterances]
    kept, rejected = trainable(seconds, characters, 0.5, 20.0)
    assert kept.tolist() == [0.5 <= s <= 20 and c > 0 for s, c in utterances]
    assert kept.sum() + rejected.total() == len(utterances)
    assert rejected["longer than 20 s"] == sum(s > 20 for s in seconds)
    assert rejected["without text"] == sum(0.5 <= s <= 20 and not c for s, c in utterances)
