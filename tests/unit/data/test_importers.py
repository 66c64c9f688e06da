"""Every format, from real files to decoded audio; every record imported or counted under a reason."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from asrlora import cli
from asrlora.data import audio
from asrlora.data.importers.convert import Imported, import_source
from asrlora.data.manifest import read_manifest
from asrlora.errors import UserError

RATE = 16_000  # what needs no resampling, and so no torch


def tone(path: Path, seconds: float = 1.0, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(RATE * seconds), level), RATE)
    return path


def lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def bring_in(source: object, folder: Path, **options: Any) -> Imported:
    made = import_source(str(source), folder / "out.jsonl", **options)
    assert len(made.utterances) + sum(made.left_out.values()) == made.total
    assert read_manifest(folder / "out.jsonl", made.outside > 0) == made.utterances
    assert not list(folder.glob(".*"))
    return made


def level(utterance: Any) -> float:
    """Of the segment as training hears it, before the level is evened out."""
    with soundfile.SoundFile(utterance.audio) as file:
        file.seek(round(utterance.offset * file.samplerate))
        return float(np.mean(file.read(round(utterance.duration * file.samplerate))))


def test_our_own_and_nemos_lines(tmp_path: Path) -> None:
    for name in "abc":
        tone(tmp_path / f"{name}.wav", 2.0)
    source = lines(
        tmp_path / "in.jsonl",
        {"audio": "a.wav", "text": "ours", "duration": 2.0, "id": "x", "speaker": 7, "room": "hall"},
        {"audio_filepath": "b.wav", "text": "nemo", "duration": 2.01},
        "",
        {"audio_filepath": "b.wav", "text": "a cut without offset", "duration": 0.5, "id": "cut"},
        {"audio_filepath": "c.wav", "text": "a cut", "offset": 0.5, "duration": 0.75},
        {"audio_filepath": "gone.wav", "text": "gone"},
        {"audio_filepath": "a.wav", "text": " "},
        {"audio_filepath": "a.wav"},
        {"text": "no audio"},
        {"audio_filepath": "c.wav", "text": "late", "offset": 9},
        {"audio": "in.jsonl", "text": "no audio file"},
    )
    made = bring_in(source, tmp_path)
    assert [(u.text, u.offset, u.duration, u.whole_file) for u in made.utterances] == [
        ("ours", 0.0, 2.0, True),
        ("nemo", 0.0, 2.0, True),
        ("a cut without offset", 0.0, 0.5, False),
        ("a cut", 0.5, 0.75, False),
    ]
    assert made.utterances[0].extra == {"room": "hall"}
    assert made.utterances[0].speaker == "7"
    assert made.left_out == {
        "whose audio is missing": 1, "without text": 2, "without audio": 1,
        "whose segment ends behind its audio": 1, "whose audio cannot be read": 1,
    }  # fmt: skip


def test_importing_a_manifest_changes_nothing(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 2.0)
    source = lines(
        tmp_path / "in.jsonl",
        {"audio": "a.wav", "text": "whole \u2028 é"},
        {
            "audio": "a.wav",
            "text": "cut",
            "offset": 0.25,
            "duration": 1.0,
            "speaker": "s",
            "n": [1, {"a": None}],
        },
    )
    assert bring_in(source, tmp_path).utterances == read_manifest(source)


def kaldi(folder: Path) -> Path:
    """Two recordings whose loudness rises in steps of a second: 0.1, 0.2, 0.3."""
    for name in ("rec1", "rec2"):
        steps = np.repeat([0.1, 0.2, 0.3], RATE)
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{name}.wav", steps if name == "rec1" else -steps, RATE)
    (folder / "wav.scp").write_text(f"rec1 rec1.wav\nrec2 {folder}/rec2.wav\nrec3 gone.wav\n")
    (folder / "segments").write_text(
        "a-1 rec1 0.0 1.0\na-2 rec1 1.0 2.0\nb-1 rec2 2.0 -1\nb-2 rec9 0 1\nc-1 rec3 0 1\nc-2 rec1 2 9\n"
    )
    (folder / "text").write_text(
        "a-1 one one\na-2  two\nb-1 three\nb-2 nowhere\nc-1 gone\nc-2 too long\nd-1 only text\n"
    )
    (folder / "utt2spk").write_text("a-1 anna\na-2 anna\nb-1 bert\n")
    return folder


def test_kaldi_segments_reach_the_decoded_audio(tmp_path: Path) -> None:
    made = bring_in(kaldi(tmp_path / "k"), tmp_path)
    assert made.format == "kaldi"
    assert [(u.id, u.text, u.speaker, u.offset, u.duration) for u in made.utterances] == [
        ("a-1", "one one", "anna", 0.0, 1.0),
        ("a-2", "two", "anna", 1.0, 1.0),
        ("b-1", "three", "bert", 2.0, 1.0),
    ]
    assert [round(level(u), 3) for u in made.utterances] == [0.1, 0.2, -0.3]
    for utterance in made.utterances:
        pcm = audio.read_audio(utterance.audio, utterance.offset, utterance.duration)
        assert len(pcm) == audio.SAMPLE_RATE
    assert made.left_out == {
        "without audio": 2, "whose audio is missing": 1, "whose segment ends behind its audio": 1
    }  # fmt: skip


def test_nemo_offsets_reach_the_shards(tmp_path: Path) -> None:
    from asrlora.data.shards import writer

    # a hill, a valley, silence, and a hill
    steps = np.repeat([0.1, -0.1, 0.0, 0.1], RATE) * np.tile(np.sin(np.linspace(0, np.pi, RATE)), 4)
    soundfile.write(tmp_path / "long.wav", steps, RATE)
    source = lines(
        tmp_path / "nemo.json",
        *(
            {"audio_filepath": "long.wav", "text": "x", "offset": i, "duration": 1.0, "id": i}
            for i in range(4)
        ),
    )
    built = writer.build(bring_in(source, tmp_path).utterances, tmp_path / "shards")
    assert built.rejected == {"silent": 1}
    signs = [int(np.sign(int(built.read(i)[audio.SAMPLE_RATE // 2]))) for i in range(3)]
    assert signs == [1, -1, 1]
    assert built.durations.tolist() == [1.0, 1.0, 1.0]


def test_kaldi_without_segments(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "k")
    (folder / "segments").unlink()
    (folder / "utt2spk").unlink()
    (folder / "text").write_text("rec1 hello\nrec2\n")
    made = bring_in(folder, tmp_path)
    assert [(u.id, u.text, u.duration, u.whole_file) for u in made.utterances] == [
        ("rec1", "hello", 3.0, True)
    ]
    assert made.left_out == {"without text": 2}


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("wav.scp", "rec1 touch {marker} |\n", "wav.scp, line 1: 'touch .* is a command"),
        ("wav.scp", "rec1 rec1.wav\nrec2 | touch {marker}\n", "wav.scp, line 2: .*is a command"),
        ("wav.scp", "rec1 rec1.wav\nrec1 rec2.wav\n", "wav.scp, line 2: 'rec1' stands there twice"),
        ("segments", "a-1 rec1 zero 1\n", "segments, line 1: must be UTTERANCE RECORDING START END"),
        ("segments", "a-1 rec1 2 1\n", "segments, line 1: must be"),
        ("segments", "a-1 rec1 0\n", "segments, line 1: must be"),
        ("segments", "a-1 rec1 nan 1\n", "segments, line 1: must be"),
        ("text", "a-1 x\na-1 y\n", "text, line 2: 'a-1' stands there twice"),
        ("text", b"a-1 \xff\xfe\n", "text: is not UTF-8"),
        ("text", None, "text"),
    ],
)
def test_a_malformed_kaldi_folder_is_named(tmp_path: Path, file: str, content: Any, told: str) -> None:
    folder = kaldi(tmp_path / "k")
    marker = tmp_path / "marker"
    if content is None:
        (folder / file).unlink()
    else:
        raw = content if isinstance(content, bytes) else content.format(marker=marker).encode()
        (folder / file).write_bytes(raw)
    with pytest.raises(UserError, match=told):
        import_source(str(folder), tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k"]  # nothing made, nothing run


def test_common_voice(tmp_path: Path) -> None:
    for i in range(3):
        tone(tmp_path / f"cv/clips/c{i}.mp3", 1.0 + i)
    (tmp_path / "cv/train.tsv").write_text(
        "client_id\tpath\tsentence\tage\n"
        'ann\tc0.mp3\t"Hello", she said\tforties\n'
        'bob\tc1.mp3\tone " quote\t\n'
        "bob\tgone.mp3\tgone\t\n"
        "bob\tc2.mp3\t\t\n"
    )
    made = bring_in(tmp_path / "cv/train.tsv", tmp_path)
    assert [(u.text, u.speaker, u.extra) for u in made.utterances] == [
        ('"Hello", she said', "ann", {"age": "forties"}), ('one " quote', "bob", {})
    ]  # fmt: skip
    assert made.left_out == {"whose audio is missing": 1, "without text": 1}
    record = json.loads((tmp_path / "out.jsonl").read_text().split("\n")[0])
    assert record["audio"] == "cv/clips/c0.mp3"


def test_csv_with_quotes_and_segments(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 4.0)
    (tmp_path / "in.csv").write_text(
        'id,file_name,transcription,offset,duration\r\nx,a.wav,"two\nlines, quoted",1,2.5\r\n'
        "y,a.wav,rest,3.5,\r\n"
    )
    made = bring_in(tmp_path / "in.csv", tmp_path)
    assert [(u.id, u.text, u.offset, u.duration) for u in made.utterances] == [
        ("x", "two\nlines, quoted", 1.0, 2.5), ("y", "rest", 3.5, 0.5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "a.csv, line 1: must name"),
        ("a.csv", "path,speech\n", "a.csv, line 1: must name .*text, sentence.* 'path', 'speech'"),
        ("a.csv", "path,path,text\n", "a.csv, line 1: must name each column once"),
        ("a.csv", "path,text\na.wav,x\na.wav\n", "a.csv, line 3: 1 cells where line 1 names 2"),
        ("a.csv", 'path,text\n"a.wav"x,x\n', "a.csv, line 2: "),
        ("a.csv", "path,text,offset\na.wav,x,soon\n", "a.csv, line 2: the field offset must be seconds"),
        ("a.tsv", b"path\ttext\na.wav\t\xff\n", "a.tsv: is not UTF-8"),
        ("a.jsonl", '{"audio": "a.wav"\n', "a.jsonl, line 1: not valid JSON"),
        ("a.jsonl", '{"audio": "a.wav", "text": "x"}\n["a.wav"]\n', "a.jsonl, line 2: not a JSON object"),
        ("a.jsonl", '{"audio": "a.wav", "text": 7}\n', "a.jsonl, line 1: the field text must be a string"),
        ("a.jsonl", '{"audio": ["a.wav"], "text": "x"}\n', "line 1: audio must be a path, .* a list"),
        ("a.jsonl", '{"audio": [[0.1]], "text": "x"}\n', "line 1: audio must be a path, .* a list"),
        ("a.jsonl", '{"audio": [0.1], "text": "x", "sampling_rate": 0}\n', "line 1: sampling_rate must be"),
        ("a.jsonl", '{"audio": {"name": "x"}, "text": "x"}\n', "line 1: audio must be a path, .* a list"),
        ("a.jsonl", '{"audio": "a.wav", "text": "x", "id": 1}\n' * 2, "line 2: the id '1' is taken by .* 1"),
        ("a.jsonl", '{"audio": "gone.wav", "text": "x"}\n', "1 records; 0 .*1 whose audio is missing"),
        ("a.txt", "hello\n", "a.txt: neither JSON lines nor"),
        ("gone.tsv", None, "gone.tsv is neither a file nor a folder"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: Any, told: str) -> None:
    tone(tmp_path / "a.wav")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=told):
        import_source(str(tmp_path / name), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_librispeech(tmp_path: Path) -> None:
    root = tmp_path / "LibriSpeech"
    for chapter in ("12/34", "56/78"):
        first = "-".join(chapter.split("/"))
        for i in range(3):
            tone(root / chapter / f"{first}-{i:04d}.flac")
        (root / chapter / f"{first}.trans.txt").write_text(f"{first}-0000 HELLO THERE\n{first}-0009 GONE\n\n")
    made = bring_in(root, tmp_path)
    assert [(u.id, u.text, u.speaker) for u in made.utterances] == [
        ("12-34-0000", "HELLO THERE", "12"), ("56-78-0000", "HELLO THERE", "56")
    ]  # fmt: skip
    assert made.left_out == {"without audio": 2, "without text": 4}
    assert made.total == 8


def test_a_folder_of_audio_with_text_beside_it(tmp_path: Path) -> None:
    for name in ("a.WAV", "deep/a.flac", "silent.wav", "deep/empty.wav"):
        tone(tmp_path / "in" / name, 0.0 if "empty" in name else 1.0)
    for name, text in {
        "a.txt": "first\nline \n",
        "deep/a.txt": "\ufeffsecond",
        "deep/empty.txt": "x",
        "z.txt": "z",
    }.items():
        (tmp_path / "in" / name).write_text(text)
    made = bring_in(tmp_path / "in", tmp_path)
    assert [(u.id, u.text) for u in made.utterances] == [("a", "first line"), ("deep/a", "second")]
    assert made.left_out == {"without text": 1, "without audio": 1, "whose audio is empty": 1}
    tone(tmp_path / "in/a.ogg")
    with pytest.raises(UserError, match="share one name"):
        import_source(str(tmp_path / "in"), tmp_path / "other.jsonl")


def test_samples_as_numbers_are_kept_bit_for_bit(tmp_path: Path) -> None:
    """The predecessor's manifests. 16-bit samples come back exactly, and so do float ones."""
    rng = np.random.default_rng(1)
    sixteen = (rng.integers(-32768, 32768, 4000) / 32768).astype(np.float32)
    free = rng.normal(0, 2, 4000).astype(np.float32)
    source = lines(
        tmp_path / "old.jsonl",
        {"audio": sixteen.tolist(), "text": "sixteen", "speaker": "s", "note": 1},
        {"audio": {"array": free.tolist(), "sampling_rate": 8000}, "text": "free"},
        {"audio": sixteen.tolist(), "text": "rate", "sampling_rate": 4000},
        {"audio": [float("nan")] * 9, "text": "nan"},
        {"audio": [], "text": "empty"},
    )
    made = bring_in(source, tmp_path)
    for utterance, samples, rate in zip(
        made.utterances, (sixteen, free, sixteen), (16000, 8000, 4000), strict=True
    ):
        kept, written_rate = soundfile.read(utterance.audio, dtype="float32")
        assert np.array_equal(kept, samples)
        assert (written_rate, utterance.duration) == (rate, 4000 / rate)
    assert [u.audio.suffix for u in made.utterances] == [".flac", ".wav", ".flac"]
    assert made.utterances[0].extra == {"note": 1}
    assert made.left_out == {"whose audio cannot be read": 1, "whose audio is empty": 1}
    names = [json.loads(line)["audio"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert names == ["out-audio/000001.flac", "out-audio/000002.wav", "out-audio/000003.flac"]


def test_only_sounds_that_were_drawn_are_kept(tmp_path: Path) -> None:
    source = lines(tmp_path / "old.jsonl", *({"audio": [0.5] * (90 + i), "text": f"{i}"} for i in range(20)))
    made = bring_in(source, tmp_path, samples=5, seed=3)
    assert len(made.utterances) == 5
    assert made.left_out == {"not drawn": 15}
    assert sorted((tmp_path / "out-audio").iterdir()) == sorted(u.audio for u in made.utterances)


def test_a_failing_import_leaves_nothing_behind(tmp_path: Path) -> None:
    source = lines(tmp_path / "old.jsonl", {"audio": [0.5] * 90, "text": "x"}, "broken")
    with pytest.raises(UserError, match="line 2"):
        import_source(str(source), tmp_path / "new/out.jsonl")
    assert not list(tmp_path.rglob("*out*"))


# --- Hugging Face: the library is an optional extra, so a stand-in with its streaming interface ---


class Rows:
    def __init__(self, rows: list[dict[str, Any]], decode: bool = True) -> None:
        self.rows, self.decode = rows, decode
        self.features = {"sound": FakeAudio(), "text": "string"}

    def cast_column(self, column: str, feature: SimpleNamespace) -> "Rows":
        assert column == "sound"
        return Rows(self.rows, feature.decode)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert not self.decode, "decoding needs torchcodec"
        return iter(self.rows)


class FakeAudio(SimpleNamespace):
    def __init__(self, decode: bool = True) -> None:
        super().__init__(decode=decode)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Puts a stand-in for `datasets` in place; returns the calls of load_dataset."""
    calls: list[tuple[Any, ...]] = []
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(RATE, 0.1), RATE, format="FLAC")
    rows = [
        {"sound": {"path": "../../evil.flac", "bytes": buffer.getvalue()}, "text": "A",
         "speaker_id": 3, "id": 17, "snr": 2.5},
        {"sound": {"path": "/etc/passwd", "bytes": None}, "text": "B"},
        {"sound": {"path": None, "bytes": b"no audio"}, "text": "C"},
        {"sound": None, "text": "D"},
        {"sound": {"path": None, "bytes": buffer.getvalue()}, "text": ""},
        {"sound": {"path": None, "bytes": buffer.getvalue()}, "text": "E"},
    ]  # fmt: skip

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Rows:
        calls.append((name, config, split, streaming))
        if split == "nowhere":
            raise ValueError('Bad split: "nowhere".\nAvailable splits: test')
        return Rows(rows)

    module = ModuleType("datasets")
    module.__dict__.update(Audio=FakeAudio, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hugging_face_by_name(tmp_path: Path, hub: list[tuple[Any, ...]]) -> None:
    made = bring_in("hf:librispeech_asr:other:test", tmp_path)
    assert hub == [("librispeech_asr", "other", "test", True)]
    assert [(u.id, u.text, u.speaker, u.duration) for u in made.utterances] == [
        ("17", "A", "3", 1.0), (made.utterances[1].id, "E", None, 1.0)
    ]  # fmt: skip
    assert made.utterances[0].extra == {"snr": 2.5}
    assert made.left_out == {"without audio": 2, "whose audio cannot be read": 1, "without text": 1}
    assert [p.name for p in sorted((tmp_path / "out-audio").iterdir())] == ["000001.flac", "000006.flac"]


def test_hugging_face_mistakes(
    tmp_path: Path, hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_source("hf:me/mine:test", tmp_path / "mine.jsonl")
    assert hub == [("me/mine", None, "test", True)]
    with pytest.raises(UserError, match=r"hf:x:nowhere: cannot be loaded .Bad split"):
        import_source("hf:x:nowhere", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="must be hf:NAME:CONFIG:SPLIT"):
        import_source("hf:librispeech_asr", tmp_path / "out.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"install asrlora\[hf\]"):
        import_source("hf:x:test", tmp_path / "out.jsonl")


# --- the command --------------------------------------------------------------------------------


def test_the_command_accounts_for_every_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kaldi(tmp_path / "k")
    words = ["manifest", "import", str(source), "--output", str(tmp_path / "out.jsonl")]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "7 records (kaldi); 3 utterances kept; left out: 1 whose audio is missing" in told
    assert cli.main(words) == 2
    assert "out.jsonl exists" in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "b.jsonl"), "--format", "librispeech"]) == 2
    assert "0 records" in capsys.readouterr().err


def test_a_domain_manifest_has_500_samples_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "a.wav", 60)
    source = lines(
        tmp_path / "in.jsonl",
        *(
            {"audio": "a.wav", "text": "x", "offset": i / 10, "duration": 0.1 + i % 7 / 10}
            for i in range(550)
        ),
    )

    def count(*flags: str) -> int:
        assert (
            cli.main(["manifest", "import", str(source), "--output", str(tmp_path / "o.jsonl"), *flags]) == 0
        )
        made = (tmp_path / "o.jsonl").read_text().count("\n")
        (tmp_path / "o.jsonl").unlink()
        return made

    assert count() == 550
    assert count("--role", "domain") == 500
    assert "50 not drawn" in capsys.readouterr().out
    assert count("--role", "domain", "--samples", "20") == 20
    assert count("--samples", "900") == 550
    assert "900 samples were wanted" in capsys.readouterr().out
    assert cli.main(["manifest", "import", str(source), "--output", "o.jsonl", "--samples", "0"]) == 2
    assert "--samples: must be a whole number above 0" in capsys.readouterr().err


def test_audio_elsewhere_needs_leave_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tone(tmp_path / "far/a.wav")
    source = lines(tmp_path / "near/in.jsonl", {"audio_filepath": str(tmp_path / "far/a.wav"), "text": "x"})
    words = ["manifest", "import", str(source), "--output", str(tmp_path / "near/out.jsonl")]
    assert cli.main(words) == 2
    assert "in.jsonl, line 1: the audio file" in capsys.readouterr().err
    assert cli.main([*words, "--allow-outside"]) == 0
    assert "1 utterances have their audio outside" in capsys.readouterr().out
    assert read_manifest(tmp_path / "near/out.jsonl", allow_outside=True)[0].audio == tmp_path / "far/a.wav"
