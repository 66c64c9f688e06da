"""`asrlora shards index`: tars of webdataset, Shar and others are read where they are."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from webdataset import ShardWriter

from asrlora import cli
from asrlora.data import audio
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import folder as folders
from asrlora.data.shards import index, indexing, reader, writer
from asrlora.errors import UserError


def sound(number: int, form: str = "WAV", rate: int = 22_050, seconds: float = 0.5) -> bytes:
    """Noise that differs by number."""
    wave = np.random.default_rng(number).normal(0, 0.05, round(rate * seconds))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_plain(folder: Path, samples: list[dict[str, Any]], count: int = 3) -> None:
    """As a user of webdataset does."""
    folder.mkdir(exist_ok=True)
    with ShardWriter(f"{folder}/train-%06d.tar", maxcount=count, verbose=0) as tars:
        for sample in samples:
            tars.write(sample)


def as_text(number: int) -> dict[str, Any]:
    return {"__key__": f"talks.2024/u{number:03d}", "wav": sound(number), "txt": f"text {number}\n"}


def as_json(number: int) -> dict[str, Any]:
    info = {"text": f"text {number}", "speaker": f"s{number % 2}", "duration": 0.5, "audio": "/old/a.flac"}
    return {"__key__": f"{number:03d}", "flac": sound(number, "FLAC"), "json": info}


@pytest.mark.parametrize("layout", [as_text, as_json])
def test_tars_of_webdataset_are_indexed_verified_and_read(
    layout: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    samples = [layout(number) for number in range(7)]
    write_plain(folder, samples)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = indexing.index_folder(folder)
    assert (found.tars, found.kept, dict(found.left_out)) == (3, 7, {})
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert reader.verify(folder) == []
    opened = reader.open_shards(folder)
    assert [sample.id for sample in opened.samples] == [sample["__key__"] for sample in samples]
    assert [sample.text for sample in opened.samples] == [f"text {number}" for number in range(7)]
    assert [sample.rate for sample in opened.samples] == [22_050] * 7
    assert opened.samples[3].speaker == ("s1" if layout is as_json else None)
    kind = "flac" if layout is as_json else "wav"
    for number, sample in enumerate(samples):
        expected = audio.read_audio(sample[kind])
        assert np.array_equal(opened.read(number), expected)
        assert opened.samples[number].frames == len(expected)


def test_keys_may_hold_dots(tmp_path: Path) -> None:
    """WebDataset takes all behind the first dot for the field, so that one key has the audio of two."""
    members = {}
    for name in ("a/v1.u00", "a/v1.u01", "./b.c/v2"):
        members |= {f"{name}.wav": sound(len(members)), f"{name}.txt": name.encode()}
    members |= {"c.audio.wav": sound(9), "c.json": b'{"id": 7, "sentence": "named"}'}
    write_tar(tmp_path / "x.tar", members)
    indexing.index_folder(tmp_path)
    found = {sample.id: sample.text for sample in reader.open_shards(tmp_path).samples}
    assert found == {"a/v1.u00": "a/v1.u00", "a/v1.u01": "a/v1.u01", "b.c/v2": "./b.c/v2", "7": "named"}


def test_tars_that_count_from_nought_each(tmp_path: Path) -> None:
    for tar in ("a", "b"):
        write_tar(tmp_path / f"{tar}.tar", {"0.wav": sound(ord(tar)), "0.txt": tar.encode()})
    indexing.index_folder(tmp_path)
    found = {sample.id: sample.text for sample in reader.open_shards(tmp_path).samples}
    assert found == {"0": "a", "b/0": "b"}


UNUSABLE: dict[str, tuple[dict[str, bytes], str]] = {  # the reason, members, and what the example says
    "without text": ({"x.wav": sound(1)}, "x.wav"),
    "without audio": ({"x.txt": b"text", "x.npy": b"\x93NUMPY"}, "x"),
    "silent": ({"x.wav": sound(1)[:44] + bytes(2 * 11_025), "x.txt": b"text"}, "x.wav"),
    "whose text is not UTF-8": ({"x.wav": sound(1), "x.txt": b"Gr\xfc\xdfe"}, "x.txt"),
    "whose JSON cannot be read": ({"x.wav": sound(1), "x.json": b"[1]"}, "not a JSON object"),
    "whose audio cannot be read": ({"x.flac": b"not audio", "x.txt": b"text"}, "is text, not audio"),
    "whose fields cannot be read": (
        {"x.wav": sound(1), "x.json": b'{"text": "one", "transcript": "two"}'},
        "--text-field text",
    ),
    "whose text is that of a part of the audio": (
        {"x.wav": sound(1), "x.json": b'{"text": "one", "offset": 1.5, "duration": 2}'},
        "those from 1.5 s on, for 2 s",
    ),
    "whose text is that of one channel of the audio": (
        {"x.wav": sound(1), "x.json": b'{"text": "one", "channel": 1}'},
        "channel 1 of 1",
    ),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_is_left_out_is_counted_with_an_example(reason: str, tmp_path: Path) -> None:
    members, example = UNUSABLE[reason]
    write_tar(tmp_path / "train-0.tar", {"good.wav": sound(0), "good.txt": b"good", **members})
    found = indexing.index_folder(tmp_path)
    assert (found.kept, dict(found.left_out)) == (1, {reason: 1})
    assert found.examples[reason].startswith("train-0.tar, x")
    assert example in found.examples[reason]
    assert reader.open_shards(tmp_path).rejected == {reason: 1}


def test_links_in_a_tar_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"good.wav": sound(0), "good.txt": b"good"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind, target in (
            ("bad.wav", tarfile.SYMTYPE, "/etc/passwd"),
            ("x.wav", tarfile.LNKTYPE, "good.wav"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    assert dict(indexing.index_folder(tmp_path).left_out) == {"that are links or sparse files": 2}


def test_a_field_is_chosen_where_texts_differ(tmp_path: Path) -> None:
    members = {"x.wav": sound(0), "x.txt": b"AS READ", "x.json": b'{"text": "as written"}'}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match="choose one with --text-field"):
        indexing.index_folder(tmp_path)
    indexing.index_folder(tmp_path, text_field="txt")
    assert [sample.text for sample in reader.open_shards(tmp_path).samples] == ["AS READ"]


def test_audio_is_known_by_its_content(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"x.sph": sound(0, "FLAC"), "x.txt": b"x", "y.bin": sound(1), "y.txt": b"y"}
    )
    assert indexing.index_folder(tmp_path).kept == 2


def test_own_shards_without_their_index_are_the_same_samples(tmp_path: Path) -> None:
    """Our FLAC is not put through the audio path once more, which would round it again."""
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(sound(number, rate=16_000 if number else 44_100))
    lines = [{"audio": f"{n}.wav", "text": f"text {n}", "id": f"u{n}", "speaker": "s"} for n in range(3)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    built = writer.build(read_manifest(tmp_path / "m.jsonl"), tmp_path / "built")
    (tmp_path / "tars").mkdir()
    shutil.copy(tmp_path / "built" / "shard-00000.tar", tmp_path / "tars")
    indexing.index_folder(tmp_path / "tars")
    opened = reader.open_shards(tmp_path / "tars")
    for number, (ours, theirs) in enumerate(zip(built.samples, opened.samples, strict=True)):
        assert (ours.id, ours.text, ours.speaker, ours.sha256) == (
            theirs.id, theirs.text, theirs.speaker, theirs.sha256,
        )  # fmt: skip
        assert np.array_equal(built.read(number), opened.read(number))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_tars_are_refused_with_the_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "plain.tar", {"x.wav": sound(0), "x.txt": b"x"})
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    assert cli.main(["shards", "index", str(tmp_path)]) == 2
    assert "can only be read from its beginning" in capsys.readouterr().err
    assert not (tmp_path / "shards.json").exists()


def test_the_command_says_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plain(tmp_path / "tars", [as_text(0), as_text(1), {"__key__": "x", "wav": sound(2)}])
    assert cli.main(["shards", "index", str(tmp_path / "tars")]) == 0
    printed = capsys.readouterr().out
    assert "train-000000.tar: 2 of 3 samples" in printed
    assert "left out, without text, for example: train-000000.tar, x.wav" in printed
    assert "2 utterances kept; left out: 1 without text" in printed
    assert cli.main(["shards", "verify", str(tmp_path / "tars")]) == 0
    assert cli.main(["shards", "index", str(tmp_path / "tars")]) == 2
    assert "has an index already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, "holds no .tar"),
        (lambda folder: (folder / "a.tar").write_bytes(b"x" * 10_240), "cannot be read as a tar"),
        (lambda folder: (folder / "a.tar").symlink_to("/dev/null"), "is a link or no regular file"),
        (lambda folder: write_tar(folder / "a.tar", {"x.txt": b"x"}), "no sample of its 1 tars can be used"),
    ],
)
def test_folders_that_cannot_be_indexed(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        indexing.index_folder(tmp_path)


def test_a_tar_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.txt": b"x", "x.wav": sound(0)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:4_000])
    with pytest.raises(UserError, match="copy or download it again"):
        indexing.index_folder(tmp_path)


def test_damage_is_found_when_it_is_read_and_by_verify(tmp_path: Path) -> None:
    write_plain(tmp_path / "tars", [as_text(0), as_text(1)])
    indexing.index_folder(tmp_path / "tars")
    opened = reader.open_shards(tmp_path / "tars")
    path = tmp_path / "tars" / "train-000000.tar"
    broken = bytearray(path.read_bytes())
    broken[opened.samples[1].offset + 100] ^= 1
    path.write_bytes(broken)
    assert reader.verify(tmp_path / "tars") == [opened.samples[1].id]
    opened.read(0)
    with pytest.raises(reader.Damage, match="copy the tar again"):
        opened.read(1)


def test_an_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    write_plain(tmp_path / "tars", [as_text(0)])
    indexing.index_folder(tmp_path / "tars")
    meta = json.loads((tmp_path / "tars" / "shards.json").read_text())
    for name in ("../train-000000.tar", "/etc/x.tar", ".hidden.tar", "rows.bin", "a\\b.tar"):
        changed = json.loads(json.dumps(meta).replace("train-000000.tar", name.replace("\\", "\\\\")))
        changed.pop("sha256")
        changed["sha256"] = folders.digest(changed)
        (tmp_path / "tars" / "shards.json").write_text(json.dumps(changed))
        with pytest.raises(UserError):
            reader.open_shards(tmp_path / "tars").read(0)


def test_an_indexed_folder_is_read_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRLORA_CACHE", str(tmp_path / "cache"))
    write_plain(tmp_path / "tars", [as_text(0), as_text(1)])
    indexing.index_folder(tmp_path / "tars")
    here, there = reader.open_shards(tmp_path / "tars"), reader.open_shards(f"file://{tmp_path}/tars")
    assert here.content == there.content
    assert np.array_equal(here.read(1), there.read(1))


def write_shar(folder: Path, cuts: Mapping[str, list[tuple[float, float, str]]]) -> None:
    """As lhotse's SharWriter does: 0.5 s of audio a cut, with supervisions (start, duration, text)."""
    members: dict[str, bytes] = {}
    lines = []
    for number, (identity, spoken) in enumerate(cuts.items()):
        recording = {
            "id": f"rec-{number}",
            "sampling_rate": 22_050,
            "num_samples": 11_025,
            "duration": 0.5,
            "channel_ids": [0],
            "sources": [{"type": "shar", "channels": [0], "source": ""}],
        }
        members |= {
            f"{identity}.flac": sound(number, "FLAC"),
            f"{identity}.json": json.dumps(recording).encode(),
        }
        said = [
            {
                "id": f"sup-{identity}",
                "recording_id": f"rec-{number}",
                "start": start,
                "duration": duration,
                "channel": 0,
                "text": text,
                "language": "en",
                "speaker": "s",
            }
            for start, duration, text in spoken
        ]
        lines.append(
            {
                "id": identity,
                "start": 0,
                "duration": 0.5,
                "channel": 0,
                "supervisions": said,
                "recording": recording,
                "type": "MonoCut",
            }
        )
    write_tar(folder / "recording.000000.tar", members)
    write_tar(folder / "target.000000.tar", {f"{identity}.flac": sound(99, "FLAC") for identity in cuts})
    packed = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(packed))


def test_shar_is_read_with_the_texts_of_its_cuts(tmp_path: Path) -> None:
    write_shar(
        tmp_path,
        {
            "cut.1-2": [(0, 0.5, "one")],
            "cut.1-3": [(0, 0.5, "two")],
            "part": [(0.2, 0.1, "a part")],
            "both": [(0, 0.2, "this"), (0.3, 0.2, "that")],
            "none": [],
        },
    )
    found = indexing.index_folder(tmp_path)
    opened = reader.open_shards(tmp_path)
    assert [(sample.id, sample.text, sample.speaker) for sample in opened.samples] == [
        ("sup-cut.1-2", "one", "s"),
        ("sup-cut.1-3", "two", "s"),
    ]
    assert dict(found.left_out) == {
        "whose text is that of a part of the audio": 1,
        "of several supervisions or tracks": 1,
        "without text": 1,
    }
    assert np.array_equal(opened.read(1), audio.read_audio(sound(1, "FLAC")))
    assert index.LENGTHS in opened.folders[0].record.files


@pytest.mark.needs("lhotse")
def test_what_lhotse_wrote(tmp_path: Path) -> None:
    import lhotse

    cuts = []
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(sound(number))
        recording = lhotse.Recording.from_file(tmp_path / f"{number}.wav")
        said = lhotse.SupervisionSegment(
            f"s{number}", recording.id, 0, recording.duration, text=f"text {number}"
        )
        cuts.append(lhotse.MonoCut(f"c.{number}", 0, recording.duration, 0, [said], recording=recording))
    shar = tmp_path / "shar"
    shar.mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(shar, fields={"recording": "flac"}, shard_size=2)
    assert indexing.index_folder(shar).kept == 3
    assert [sample.text for sample in reader.open_shards(shar).samples] == [f"text {n}" for n in range(3)]
    assert reader.verify(shar) == []


@pytest.mark.needs("datasets")
def test_datasets_reads_the_same_samples(tmp_path: Path) -> None:
    """Hugging Face's reader of WebDatasets finds the texts that we find."""
    import datasets

    # not called .flac, which it would decode, by torchcodec
    samples = [{"bin" if name == "flac" else name: v for name, v in as_json(n).items()} for n in range(4)]
    write_plain(tmp_path / "tars", samples)
    files = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    theirs = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
    rows = list(theirs)
    indexing.index_folder(tmp_path / "tars")
    ours = reader.open_shards(tmp_path / "tars").samples
    assert [row["json"]["text"] for row in rows] == [sample.text for sample in ours]
    assert [row["__key__"] for row in rows] == [sample.id for sample in ours]
