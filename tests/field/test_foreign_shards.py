"""Tars of other projects: each command says what was given, and how to index it."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from asrlora import cli, train
from asrlora.errors import exit_code


def tar(path: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    """wav and txt beside each other, with dots and slashes in their keys."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as file:
        for name, data in (("talks/v1.u00.wav", b"RIFF"), ("talks/v1.u00.txt", "Grüße".encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = {"comment": "ü"}
            file.addfile(member, io.BytesIO(data))
    data = packed.getvalue()
    path.write_bytes(gzip.compress(data) if path.suffix in (".gz", ".tgz") else data)
    return path


PLACES: dict[str, tuple[str, str]] = {  # what is given, and a word of what the message calls it
    "a folder without an index": (".", "holds 3 tars such as train-000000.tar, but no index"),
    "a tar": ("train-000000.tar", "a tar"),
    "a gzipped tar": ("train-000001.tar.gz", "a tar"),
    "a tar of another name": ("train.data", "a tar"),
    "a brace pattern": ("train-{000000..000003}.tar", "a brace pattern of tars"),
    "a missing tar": ("gone-000000.tar", "there is no such file"),
    "a command": ("pipe:cat s3://bucket/train-000000.tar", "a command"),
    "an address of a tar": ("https://127.0.0.1:9/train-000000.tar", "one tar and not a folder"),
    "an address with braces": ("s3://bucket/train-{000000..000003}.tar", "a brace pattern of tars"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tar(tmp_path / "train-000000.tar")
    tar(tmp_path / "train-000001.tar.gz")
    tar(tmp_path / "train-000002.tar", tarfile.USTAR_FORMAT)
    tar(tmp_path / "train.data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def training(place: str) -> int:
    words = ["--dataset-path", place, "--manifest-path", "none.jsonl", "--output-dir", "run"]
    return exit_code(lambda: train.main(words))


DOORS: dict[str, Callable[[str], int]] = {
    "train": training,
    "import": lambda place: cli.main(["manifest", "import", place, "--output", "out.jsonl"]),
    "build": lambda place: cli.main(["shards", "build", place, "shards"]),
}


@pytest.mark.parametrize(
    ("door", "kind"),
    # `shards build` takes a file, so no address
    [(door, kind) for door in DOORS for kind in PLACES if door != "build" or "address" not in kind],
)
def test_tars_of_others_are_named(
    door: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, what = PLACES[kind]
    assert DOORS[door](place) == 2
    told = capsys.readouterr().err
    assert what in told
    assert "asrlora shards index FOLDER" in told
    assert "asrlora manifest import FOLDER" in told
    assert not (folder / "out.jsonl").exists()


def test_a_tar_of_our_own_shards_is_named_with_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "shards.json").write_text("{}")
    assert training("train-000000.tar") == 2
    assert "one tar of a folder of shards; give the folder" in capsys.readouterr().err
