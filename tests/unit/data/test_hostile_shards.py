"""Folders of shards made to do harm: whatever they say, nothing outside them is opened and nothing is run.

The author of such a folder knows how it protects itself, so checksums are made right after each change.
"""

import hashlib
import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# imported before the watch is on, as the first sample to be decoded would import it
import miniaudio  # noqa: F401
import numpy as np
import pytest
import soundfile

from asrlora.data.shards import index, reader, writer
from asrlora.data.shards.folder import META, digest
from asrlora.errors import UserError
from benchmarks import data as bench

WATCHED = ("open", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class",
           "socket.connect", "shutil.unpack_archive")  # fmt: skip


class Watch:
    """Python's own audit events, while `on`; a hook cannot be taken off again."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, Any]] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in WATCHED:
            self.events.append((event, args[0] if args else None))


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    writer.build(bench.write_corpus(folder / "wav", np.full(3, 0.3), 16_000), folder / "shards")
    return folder / "shards"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "root" / "shards"
    copy.mkdir(parents=True)
    for path in sound.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (tmp_path / "secret").write_bytes((sound / "shard-00000.tar").read_bytes())
    return copy


Harm = Callable[[Path], object]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads((folder / META).read_text())
    meta.pop("sha256")
    change(meta)
    (folder / META).write_text(json.dumps({**meta, "sha256": digest(meta)}))


def refresh(folder: Path) -> None:
    """Right sizes and checksums of whatever files there are now."""

    def facts(meta: dict[str, Any]) -> None:
        for name in meta["files"]:
            data = (folder / name).read_bytes()
            meta["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite(folder, facts)


def meta(**changes: Any) -> Harm:
    return lambda folder: rewrite(folder, lambda found: found.update(changes))


def listed(name: str) -> Harm:
    """One more file in shards.json."""
    return lambda folder: rewrite(
        folder, lambda found: found["files"].update({name: {"bytes": 1, "sha256": "0" * 64}})
    )


def fact(name: str, **changes: Any) -> Harm:
    return lambda folder: rewrite(folder, lambda found: found["files"][name].update(changes))


def raw_meta(data: bytes) -> Harm:
    return lambda folder: (folder / META).write_bytes(data)


def row(texts: bytes | None = None, frames: int | None = None, **changes: Any) -> Harm:
    """Another row 0, with a right check."""

    def harm(folder: Path) -> None:
        rows = np.fromfile(folder / index.ROWS, index.ROW)
        lengths = np.fromfile(folder / index.LENGTHS, index.LENGTH)
        blob = texts if texts is not None else (folder / index.TEXTS).read_bytes()
        if frames is not None:
            lengths[0]["frames"] = frames
        for name, value in changes.items():
            rows[0][name] = value
        start = int(rows[0]["at"])
        end = start + sum(max(0, int(rows[0][name])) for name in ("id", "text", "speaker"))
        rows[0]["check"] = list(index._check(0, lengths[0].tobytes(), rows[0].tobytes(), blob[start:end]))
        rows.tofile(folder / index.ROWS)
        lengths.tofile(folder / index.LENGTHS)
        (folder / index.TEXTS).write_bytes(blob)
        refresh(folder)

    return harm


def other_audio(data: bytes, frames: int) -> Harm:
    """Row 0 describes these bytes, and rightly."""

    def harm(folder: Path) -> None:
        shard = folder / "shard-00000.tar"
        shard.write_bytes(data + shard.read_bytes()[len(data) :])
        sha256 = list(hashlib.sha256(data).digest())
        row(frames=frames, offset=0, length=len(data), sha256=sha256)(folder)

    return harm


def audio_file(format: str, rate: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((800, channels), np.int16), rate, format=format)
    return buffer.getvalue()


def linked(name: str, target: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return harm


def replaced(name: str, make: Callable[[Path], object]) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return harm


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> Harm:
    """One more member at the end of a tar that is right otherwise."""

    def harm(folder: Path) -> None:
        with tarfile.open(folder / "shard-00000.tar", "a") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            tar.addfile(info, io.BytesIO(data))
        refresh(folder)

    return harm


HARMLESS = {  # the samples are right; what else the tar holds is never looked at
    "member-symlink-out": member("00000000000.flac", tarfile.SYMTYPE, "../../secret"),
    "member-symlink-absolute": member("a.flac", tarfile.SYMTYPE, "/etc/passwd"),
    "member-hardlink-out": member("b.flac", tarfile.LNKTYPE, "../../secret"),
    "member-device": member("c.flac", tarfile.CHRTYPE),
    "member-fifo": member("d.flac", tarfile.FIFOTYPE),
    "member-climbs": member("../../canary", data=b"x"),
    "member-absolute": member("/tmp/asrlora-canary", data=b"x"),
    "member-pickle": member("00000000000.pyd", data=pickle.dumps(Boom())),
    "member-torch": member("00000000000.pth", data=pickle.dumps(Boom())),
}
HARMFUL = {
    "meta-missing": lambda folder: (folder / META).unlink(),
    "meta-empty": raw_meta(b""),
    "meta-list": raw_meta(b"[]"),
    "meta-deep": raw_meta(b"[" * 100_000),
    "meta-pickle": raw_meta(pickle.dumps(Boom())),
    "meta-not-utf8": raw_meta(b"\xff\xfe{}"),
    "meta-long-number": raw_meta(b'{"utterances": ' + b"9" * 10_000 + b"}"),
    "meta-further-key": meta(command="touch canary"),
    "meta-fingerprint-list": meta(fingerprint=[]),
    "meta-other-audio-path": meta(fingerprint={"audio": "pipe:touch canary"}),
    "meta-rejected-nested": meta(rejected={"silent": {"a": 1}}),
    "meta-nan": meta(utterances=float("nan")),
    "meta-no-index": meta(files={}),
    "meta-symlink": linked(META, "../../secret"),
    "file-climbs": listed("../../secret"),
    "file-absolute": listed("/etc/passwd"),
    "file-pipe": listed("pipe:touch canary"),
    "file-url": listed("http://127.0.0.1:1/shard-00000.tar"),
    "file-shard-climbs": listed("shard-00000.tar/../../../secret"),
    "file-nul": listed("shard-00000.tar\0x"),
    "file-newline": listed("shard-00000.tar\n"),
    "file-other-digits": listed("shard-\u0660\u0660\u0660\u0660\u0660.tar"),
    "bytes-negative": fact(index.ROWS, bytes=-1),
    "bytes-huge": fact(index.ROWS, bytes=2**62),
    "bytes-text": fact(index.LENGTHS, bytes="pipe:"),
    "bytes-odd": fact(index.LENGTHS, bytes=17),
    "rows-symlink": linked(index.ROWS, "../../secret"),
    "lengths-endless": linked(index.LENGTHS, "/dev/zero"),
    "texts-directory": replaced(index.TEXTS, Path.mkdir),
    "shard-symlink": linked("shard-00000.tar", "../../secret"),
    "shard-fifo": replaced("shard-00000.tar", os.mkfifo),
    "shard-directory": replaced("shard-00000.tar", Path.mkdir),
    "rows-pickle": lambda folder: (
        (folder / index.ROWS).write_bytes(pickle.dumps(Boom())),
        refresh(folder),
    ),
    "row-shard-nowhere": row(shard=2**32 - 1),
    "row-offset-behind": row(offset=2**40),
    "row-offset-overflows": row(offset=2**64 - 1),
    "row-length-huge": row(length=2**32 - 1),
    "row-length-nothing": row(length=0),
    "row-text-behind": row(at=2**40),
    "row-text-overflows": row(at=2**64 - 1),
    "row-text-huge": row(text=2**32 - 1),
    "row-text-not-utf8": row(texts=b"\xff" * 1000),
    "row-frames-many": row(frames=2**32 - 1),
    "audio-wav": other_audio(audio_file("WAV"), 800),
    "audio-ogg": other_audio(audio_file("OGG"), 800),
    "audio-stereo": other_audio(audio_file("FLAC", channels=2), 800),
    "audio-other-rate": other_audio(audio_file("FLAC", rate=8_000), 800),
    "audio-longer-than-said": other_audio(audio_file("FLAC"), 799),
    "audio-pickle": other_audio(pickle.dumps(Boom()), 800),
}  # fmt: skip


def use(folder: Path) -> Iterator[str]:
    """All that a run and `shards verify` do with a folder; yields what they complain of."""
    try:
        opened = reader.open_shards(folder)
    except UserError as error:
        yield str(error)
        return
    yield from reader.verify(folder)
    for number in range(len(opened.samples)):
        try:
            opened.read(number)
            assert opened.samples[number].text
        except UserError as error:
            yield str(error)


@pytest.mark.parametrize("kind", [*HARMFUL, *HARMLESS])
def test_nothing_outside_is_opened_and_nothing_is_run(
    kind: str, folder: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    {**HARMFUL, **HARMLESS}[kind](folder)
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.parent.rglob("*"))
    watch.events.clear()
    watch.on = True
    try:
        complaints = list(use(folder))
    finally:
        watch.on = False
    opened = [args for event, args in watch.events if event == "open" and isinstance(args, str | Path)]
    assert opened
    for path in opened:
        assert Path(path).parent == folder, f"{path} was opened"
    assert [event for event, _ in watch.events if event != "open"] == []
    assert sorted(folder.parent.parent.rglob("*")) == before
    assert bool(complaints) == (kind in HARMFUL), complaints


def test_a_sound_folder_gives_no_complaint(folder: Path) -> None:
    assert list(use(folder)) == []
