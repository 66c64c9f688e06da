"""What people give to `manifest import`, to `eval --hypotheses` and as manifests: each input is read as it is
meant, or refused by name, with what to write. Nothing is taken for something else in silence.

talk.wav has one level a second, 0.1, 0.2, 0.3, 0.4, so that a segment shows which one it is.
"""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrlora import cli
from asrlora.data.importers.convert import Imported, import_source
from asrlora.data.manifest import Utterance, read_manifest
from asrlora.errors import UserError

RATE = 16_000
TEXT = "they hid the galley"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    steps = np.repeat([0.1, 0.2, 0.3, 0.4], RATE)
    soundfile.write(folder / "talk.wav", steps, RATE)
    soundfile.write(folder / "u00.wav", np.full(RATE, 0.1), RATE)
    soundfile.write(folder / "u01.wav", np.full(2 * RATE, 0.2), RATE)
    soundfile.write(folder / "call.wav", np.stack([steps, -steps / 2], axis=1), RATE)  # two channels
    return folder


@pytest.fixture
def home(tmp_path: Path, recordings: Path) -> Path:
    for path in recordings.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    return tmp_path


def written(home: Path, name: str, content: Any) -> Path:
    """A file of lines of JSON, of text, or of bytes."""
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(line) + "\n" for line in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def bring_in(source: Path, **options: Any) -> Imported:
    output = source.parent / "out.jsonl"
    made = import_source(str(source), output, **options)
    assert read_manifest(output, made.outside > 0) == made.utterances  # nothing of it is refused or differs
    return made


def level(utterance: Utterance) -> float:
    samples, rate = soundfile.read(utterance.audio)
    start = round(utterance.offset * rate)
    part = samples[start : start + round(utterance.duration * rate)]
    assert part.std() < 1e-3, "more than one level"
    return round(float(part.mean()), 2)


# --- a segment, in whatever words: seconds 1 to 3 would be two levels, so 2 to 3 (level 0.3)

SEGMENTS: dict[str, tuple[str, Any]] = {
    "start, end": ("a.csv", f"audio,start,end,text\ntalk.wav,2,3,{TEXT}\n"),
    "begin, end, semicolons, decimal commas": ("a.csv", f"audio;begin;end;text\ntalk.wav;2,0;2,99;{TEXT}\n"),
    "segment_start, segment_end, tabs": (
        "a.tsv",
        f"path\tsegment_start\tsegment_end\tsentence\ntalk.wav\t2.0\t3.0\t{TEXT}\n",
    ),
    "start_time, end_time, bars": (
        "a.csv",
        f"file_name|start_time|end_time|transcription\ntalk.wav|2|3|{TEXT}\n",
    ),
    "names in capitals with spaces and units": (
        "a.csv",
        f"Audio File,Start Time (ms),End Time (ms),Transcript\ntalk.wav,2000,3000,{TEXT}\n",
    ),
    "camel case": ("a.jsonl", [{"audioPath": "talk.wav", "startTime": 2, "endTime": 3, "text": TEXT}]),
    "clock times": ("a.csv", f"audio,start,end,text\ntalk.wav,00:00:02,0:03.00,{TEXT}\n"),
    "offset_ms, duration_ms": (
        "a.jsonl",
        [{"audio": "talk.wav", "offset_ms": 2000, "duration_ms": 1000, "text": TEXT}],
    ),
    "samples": ("a.csv", f"wav,start_sample,end_sample,wrd\ntalk.wav,32000,48000,{TEXT}\n"),
    "samples at the rate that is said": (
        "a.jsonl",
        [
            {
                "audio": "talk.wav",
                "start_sample": 32000,
                "num_samples": 16000,
                "sampling_rate": 16000,
                "text": TEXT,
            }
        ],
    ),
    "numbers as strings": ("a.jsonl", [{"audio": "talk.wav", "start": "2.0", "end": "3", "text": TEXT}]),
    "a pair": ("a.jsonl", [{"audio": "talk.wav", "timestamp": [2, 3], "text": TEXT}]),
    "start, end and duration that agree": (
        "a.jsonl",
        [{"audio": "talk.wav", "start": 2, "end": 3, "duration": 1.0, "text": TEXT}],
    ),
    "German": ("a.csv", f"Datei;audio;Startzeit;Endzeit;text\n7;talk.wav;2,0;3,0;{TEXT}\n"),
    "Praat's names": ("a.csv", f"file,tmin,tmax,text\ntalk.wav,2,3,{TEXT}\n"),
    "NeMo": ("a.json", [{"audio_filepath": "talk.wav", "offset": 2, "duration": 1, "text": TEXT}]),
    "a JSON array": (
        "a.json",
        json.dumps([{"audio": "talk.wav", "start": 2, "end": 3, "text": TEXT}], indent=1),
    ),
    "objects by id": ("a.json", json.dumps({"u7": {"wav": "talk.wav", "start": 2, "end": 3, "wrd": TEXT}})),
    "Hugging Face's metadata": (
        "metadata.jsonl",
        [{"file_name": "talk.wav", "transcription": TEXT, "begin_time": 2, "end_time": 3}],
    ),
    "gzip": (
        "a.jsonl.gz",
        gzip.compress(json.dumps({"audio": "talk.wav", "start": 2, "end": 3, "text": TEXT}).encode()),
    ),
    "a channel of a segment": ("a.csv", f"audio,channel,start,end,text\ncall.wav,0,2,3,{TEXT}\n"),
}


@pytest.mark.parametrize("kind", SEGMENTS)
def test_a_segment_is_read_in_whatever_words(kind: str, home: Path) -> None:
    (utterance,) = bring_in(written(home, *SEGMENTS[kind])).utterances
    assert utterance.text == TEXT
    assert utterance.duration == pytest.approx(1.0, abs=0.02)
    assert level(utterance) == 0.3


# --- whole files, in tables and records of every sort

ROWS = f"u00.wav,{TEXT},ann\nu01.wav,there are ten rooms,bob\n"
WHOLE: dict[str, tuple[str, Any]] = {
    "SpeechBrain's JSON": (
        "a.json",
        json.dumps(
            {
                "x1": {"wav": "{data_root}/u00.wav", "length": 1.0, "words": TEXT, "spk_id": "ann"},
                "x2": {"wav": "u01.wav", "length": 2.0, "words": "there are ten rooms", "spk_id": "bob"},
            }
        ),
    ),
    "backslashes of Windows": ("a.csv", "audio,text,speaker\n" + ROWS.replace("u0", ".\\u0")),
    "a spreadsheet's semicolons": ("a.csv", "file_name;transcription;speaker\n" + ROWS.replace(",", ";")),
    "capitals": ("a.csv", "File_Name,Transcription,Speaker\n" + ROWS),
    "spaces behind commas": ("a.csv", "audio, text, speaker\n" + ROWS.replace(",", ", ")),
    "a byte order mark, CRLF and quotes": (
        "a.csv",
        '\ufeff"audio","text","speaker"\r\n' + ROWS.replace("\n", "\r\n"),
    ),
    "UTF-16": ("a.csv", ("audio\ttext\tspeaker\n" + ROWS.replace(",", "\t")).encode("utf-16")),
    "a line that says what separates": ("a.csv", "sep=;\naudio;text;speaker\n" + ROWS.replace(",", ";")),
    "bars in .txt": ("a.txt", "audio|text|speaker\n" + ROWS.replace(",", "|")),
    "an empty column and empty rows": (
        "a.csv",
        f"audio,text,speaker,,\nu00.wav,{TEXT},ann,,\n,,,,\nu01.wav,there are ten rooms,bob,,\n",
    ),
    "a numbered column without name": (
        "a.csv",
        f",audio,text,speaker\n0,u00.wav,{TEXT},ann\n1,u01.wav,there are ten rooms,bob\n",
    ),
    "a file list, text then speaker": ("list.txt", ROWS.replace(",", "|")),
    "a file list, speaker then text": ("list.txt", f"u00.wav|ann|{TEXT}\nu01.wav|bob|there are ten rooms\n"),
    "names of files without suffix": ("a.csv", "audio,text,speaker\n" + ROWS.replace(".wav", "")),
    "old Mac's lines": ("a.csv", ("audio,text,speaker\n" + ROWS).replace("\n", "\r")),
    "a channel that is all there is": (
        "a.jsonl",
        [
            {
                "audio": "u00.wav",
                "text": TEXT,
                "speaker": "ann",
                "channel": 0,
                "speed": 1.0,
                "task": "transcribe",
            },
            {"audio": "u01.wav", "text": "there are ten rooms", "speaker": "bob", "channel": "mono"},
        ],
    ),
    "Hugging Face's audio": (
        "a.jsonl",
        [
            {
                "audio": {"path": "u00.wav", "bytes": None, "sampling_rate": 16000},
                "sentence": TEXT,
                "client_id": "ann",
            },
            {"audio": {"path": "u01.wav"}, "sentence": "there are ten rooms", "client_id": "bob"},
        ],
    ),
    "durations that agree": (
        "a.csv",
        f"audio,text,speaker,duration\nu00.wav,{TEXT},ann,1.02\nu01.wav,there are ten rooms,bob,2\n",
    ),
    "segments already cut, with the times of the whole recording": (
        "a.csv",
        f"audio,text,speaker,start,end\nu00.wav,{TEXT},ann,12.4,13.4\n"
        "u01.wav,there are ten rooms,bob,20,22\n",
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_are_read_from_every_table(kind: str, home: Path) -> None:
    made = bring_in(written(home, *WHOLE[kind]))
    assert [(u.text, u.speaker, u.duration, level(u)) for u in made.utterances] == [
        (TEXT, "ann", 1.0, 0.1), ("there are ten rooms", "bob", 2.0, 0.2)
    ]  # fmt: skip
    assert made.left_out == {}


# --- what is refused, and a word of each message

LHOTSE: dict[str, Any] = {
    "id": "cut-1",
    "start": 1.0,
    "duration": 3.0,
    "channel": 0,
    "type": "MonoCut",
    "supervisions": [
        {
            "id": "s1",
            "recording_id": "r",
            "start": 0.0,
            "duration": 1.0,
            "channel": 0,
            "text": "two",
            "speaker": "a",
        },
        {
            "id": "s2",
            "recording_id": "r",
            "start": 1.0,
            "duration": 1.0,
            "channel": 0,
            "text": "three",
            "language": "en",
        },
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "talk.wav"}],
        "sampling_rate": 16000,
        "num_samples": 64000,
        "duration": 4.0,
        "channel_ids": [0],
    },
}


def lhotse(source: dict[str, Any] | None = None, **changes: Any) -> list[dict[str, Any]]:
    recording = {**LHOTSE["recording"], **({"sources": [source]} if source else {})}
    return [{**LHOTSE, "recording": recording, **changes}]


REFUSED: dict[str, tuple[str, Any, str]] = {
    "an end before its start": (
        "a.csv",
        "audio,start,end,text\ntalk.wav,3,2,x\n",
        "line 2: end .2 s. is not behind",
    ),
    "an end without start": ("a.jsonl", [{"audio": "talk.wav", "end": 2, "text": "x"}], "start is not given"),
    "start, end and duration that differ": (
        "a.jsonl",
        [{"audio": "talk.wav", "start": 1, "end": 2, "duration": 3, "text": "x"}],
        "line 1: start and end .1 to 2 s. contradict duration .3 s",
    ),
    "two starts that differ": (
        "a.csv",
        "audio,start,begin,text\ntalk.wav,1,2,x\n",
        "start .1 s. and begin .2 s. contra",
    ),
    "frames": (
        "a.csv",
        "audio,start_frame,end_frame,text\ntalk.wav,100,200,x\n",
        "start_frame counts frames",
    ),
    "a date": ("a.csv", "audio,start_time,text\ntalk.wav,2024-05-01 10:00,x\n", "start_time must be seconds"),
    "a decimal comma in quotes": ("a.csv", 'audio,start,text\ntalk.wav,"1,234",x\n', "start must be seconds"),
    "samples at another rate": (
        "a.jsonl",
        [{"audio": "talk.wav", "start_sample": 8000, "sampling_rate": 8000, "text": "x"}],
        "start_sample counts samples at 8000 Hz",
    ),
    "a duration that is not the file's": (
        "a.csv",
        "audio,duration,text\ntalk.wav,2.37,x\n",
        "line 2: duration is 2.37 s, and .*talk.wav holds 4.00 s",
    ),
    "a channel that is not there": (
        "a.csv",
        "audio,channel,text\nu00.wav,1,x\n",
        "channel is 1, and the file has one",
    ),
    "channels counted from 1": ("a.csv", "audio,channel,text\ncall.wav,2,x\n", "has channels 0 to 1"),
    "a channel in words": (
        "a.csv",
        "audio,channel,text\ncall.wav,agent,x\n",
        "channel must be a channel counted",
    ),
    "a translation": (
        "a.jsonl",
        [{"audio": "u00.wav", "text": "x", "task": "translate"}],
        'task is "translate": the text is a',
    ),
    "another language in the text": (
        "a.json",
        [{"audio_filepath": "u00.wav", "text": "x", "source_lang": "de", "target_lang": "en"}],
        "translation",
    ),
    "another speed": (
        "a.csv",
        "audio,speed,text\nu00.wav,0.9,x\n",
        'speed is "0.9": a file is read at its own',
    ),
    "NeMo's tars": ("a.json", [{"audio_filepath": "u00.wav", "text": "x", "shard_id": 3}], "lies in a tar"),
    "several splits": (
        "a.csv",
        "audio,split,text\nu00.wav,train,x\nu01.wav,test,y\n",
        "split has the values .*--split NAME",
    ),
    "two texts": (
        "a.csv",
        "audio,text,transcription\nu00.wav,x,y\n",
        "text and transcription hold different .*--text-field text",
    ),
    "two files": (
        "a.csv",
        "audio,path,text\nu00.wav,u01.wav,x\n",
        "audio .u00.wav. and path .u01.wav. name different",
    ),
    "the same segment twice": (
        "a.csv",
        "audio,start,end,text\ntalk.wav,1,2,x\ntalk.wav,1,2,y\n",
        "line 3: names the same audio and the same times as .*line 2",
    ),
    "Windows-1252": (
        "a.csv",
        "audio,text\nu00.wav,grüße\n".encode("cp1252"),
        "is not UTF-8 .*iconv -f WINDOWS-1252",
    ),
    "other names": ("a.csv", "clip;words spoken\nu00.wav;x\n", "line 1: must name .*'clip', 'words spoken'"),
    "two columns of one name": ("a.csv", "audio,text,Text\nu00.wav,x,y\n", "names 'text' twice"),
    "text that a comma cut": (
        "a.csv",
        "audio,text\nu00.wav,hello, there\n",
        "line 2: 3 cells where line 1 names 2",
    ),
    "a file list of unclear columns": (
        "a.txt",
        "u00.wav|red sun|blue moon\n",
        "which of .*blue moon. holds the text",
    ),
    "a file list with times": ("a.txt", "talk.wav|0.0|2.37|hello there\n", "which of .*holds the text"),
    "a file list with one time": ("a.txt", "talk.wav|2.37|hello there\n", "which of .*holds the text"),
    "a file list of numbers": ("a.csv", "talk.wav,3.5\n", "which of .*holds the text"),
    "an address": ("a.csv", "audio,text\nhttps://x.org/u.wav,x\n", "is an address, and nothing is fetched"),
    "a spreadsheet": ("a.xlsx", b"PK\x03\x04", "save the sheet as CSV UTF-8"),
    "subtitles": ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nhello\n", "audio, start, end and text"),
    "one recording": ("u00.wav", None, "import the folder that holds it"),
    "a cut that mixes": ("c.jsonl", lhotse(type="MixedCut", tracks=[]), "MixedCut, whose audio is mixed"),
    "a cut by a command": (
        "c.jsonl",
        lhotse({"type": "command", "channels": [0], "source": "touch run"}),
        "is a command .touch run., and",
    ),
    "a cut at an address": (
        "c.jsonl",
        lhotse({"type": "url", "channels": [0], "source": "https://x.org/a"}),
        "is a url .*only files",
    ),
    "a cut with another speed": (
        "c.jsonl",
        [{**LHOTSE, "recording": {**LHOTSE["recording"], "transforms": [{"name": "Speed"}]}}],
        "has transforms",
    ),
    "a cut of features": ("c.jsonl", [{**LHOTSE, "recording": None}], "without recording"),
    "a single JSON object": (
        "a.json",
        '{\n "info": 3,\n "audios": []\n}',
        "one JSON object, with the keys info, audios",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(kind: str, home: Path) -> None:
    name, content, message = REFUSED[kind]
    source = home / name if content is None else written(home, name, content)
    before = sorted(home.iterdir())
    with pytest.raises(UserError, match=message):
        import_source(str(source), home / "out.jsonl")
    assert sorted(home.iterdir()) == before


# --- channels, Lhotse, Kaldi, folders


def test_a_channel_becomes_a_file_of_its_own(home: Path) -> None:
    source = written(
        home,
        "a.csv",
        "audio,channel,start,end,text\ncall.wav,A,0,1,agent\ncall.wav,B,0,1,caller\ncall.wav,1,3,4,x\n",
    )
    made = bring_in(source)
    assert [(u.text, level(u)) for u in made.utterances] == [("agent", 0.1), ("caller", -0.05), ("x", -0.2)]
    assert all(u.audio.parent == home / "out-audio" for u in made.utterances)
    assert "3 utterances are one channel of their file" in " ".join(made.notes)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_cuts_have_one_utterance_a_supervision(name: str, home: Path) -> None:
    content = (json.dumps(LHOTSE) + "\n").encode()
    made = bring_in(written(home, name, gzip.compress(content) if name.endswith("gz") else content))
    assert [(u.id, u.text, u.speaker, u.offset, level(u)) for u in made.utterances] == [
        ("s1", "two", "a", 1.0, 0.2), ("s2", "three", None, 2.0, 0.3)
    ]  # fmt: skip


def test_lhotse_supervisions_find_their_recordings(home: Path) -> None:
    written(home, "x_recordings_dev.jsonl", [LHOTSE["recording"]])
    source = written(home, "x_supervisions_dev.jsonl", LHOTSE["supervisions"])
    assert [(u.id, level(u)) for u in bring_in(source).utterances] == [("s1", 0.1), ("s2", 0.2)]
    source = written(home, "alone.jsonl", LHOTSE["supervisions"])
    with pytest.raises(UserError, match=r"names its recording by recording_id.*lhotse cut simple"):
        import_source(str(source), home / "other.jsonl")


def test_a_lhotse_cut_of_one_of_two_channels(home: Path) -> None:
    source = {"type": "file", "channels": [0, 1], "source": "call.wav"}
    supervision = {**LHOTSE["supervisions"][0], "channel": 1}
    made = bring_in(written(home, "c.jsonl", lhotse(source, channel=1, supervisions=[supervision])))
    assert [level(u) for u in made.utterances] == [-0.1]


def kaldi(home: Path) -> Path:
    """As a recipe leaves it: paths relative to where it ran, which is `home`."""
    written(home, "data/train/wav.scp", "r1 talk.wav\nr2 call.wav\n")
    written(home, "data/train/segments", "a r1 2 3\nb r2 0 1\n")
    written(home, "data/train/text", f"a {TEXT}\nb caller\n")
    written(home, "data/train/reco2file_and_channel", "r2 call B\n")
    return home / "data/train"


def test_paths_start_from_the_root_that_is_given(home: Path) -> None:
    folder = kaldi(home)
    with pytest.raises(
        UserError, match=rf"{folder}/talk.wav does not exist; relative to {home} it is there: --audio-r"
    ):
        import_source(str(folder), home / "out.jsonl")
    made = import_source(str(folder), home / "out.jsonl", audio_root=home)
    assert [level(u) for u in made.utterances] == [0.3, -0.05]
    with pytest.raises(UserError, match="--audio-root nowhere: is no folder"):
        import_source(str(folder), home / "b.jsonl", audio_root=Path("nowhere"))


@pytest.mark.parametrize("name", ["m.json", "m.csv"])
def test_the_root_holds_for_every_format(name: str, home: Path) -> None:
    content: Any = [{"audio_filepath": "u00.wav", "text": TEXT}]
    source = written(home, f"lists/{name}", content if name == "m.json" else f"audio,text\nu00.wav,{TEXT}\n")
    (utterance,) = import_source(str(source), home / "out.jsonl", audio_root=home).utterances
    assert utterance.audio == home / "u00.wav"


@pytest.mark.parametrize(
    ("scp", "message"), [("r1 sox x |", "is a command"), ("r1 a.ark:15", "place in an archive")]
)
def test_kaldi_commands_and_archives_are_refused(scp: str, message: str, home: Path) -> None:
    folder = kaldi(home)
    written(home, "data/train/wav.scp", scp + "\n")
    with pytest.raises(UserError, match=f"wav.scp, line 1: .*{message}"):
        import_source(str(folder), home / "out.jsonl", audio_root=home)


def test_lj_speech_as_it_is(home: Path) -> None:
    (home / "lj/wavs").mkdir(parents=True)
    (home / "u00.wav").rename(home / "lj/wavs/LJ001-0001.wav")
    written(
        home,
        "lj/metadata.csv",
        'LJ001-0001|Printing, "in 1450", was new|Printing, "in fourteen fifty", was new\n',
    )
    made = import_source(str(home / "lj"), home / "lj.jsonl")
    (utterance,) = made.utterances
    assert (utterance.text, level(utterance)) == ('Printing, "in 1450", was new', 0.1)
    assert made.notes == ["fields: audio from column 1, text from column 2; kept as they are: column 3"]
    assert utterance.extra == {"column 3": 'Printing, "in fourteen fifty", was new'}


def test_a_folder_of_tables_says_which(home: Path) -> None:
    written(home, "train.tsv", "path\tsentence\n")
    written(home, "dev.tsv", "path\tsentence\n")
    with pytest.raises(
        UserError, match=r"holds no .txt beside audio, but dev.tsv, train.tsv; import one of these"
    ):
        import_source(str(home), home / "out.jsonl")


def test_a_split_and_a_text_field_are_chosen(home: Path) -> None:
    source = written(home, "a.csv", "audio,split,text,raw\nu00.wav,train,x,X.\nu01.wav,test,y,Y!\n")
    made = bring_in(source, split="test", text_field="Raw")
    assert [u.text for u in made.utterances] == ["Y!"]
    assert made.left_out == {"of other splits": 1}
    assert made.utterances[0].extra == {"split": "test", "source_text": "y"}


def test_two_segments_from_one_start_differ(home: Path) -> None:
    made = bring_in(written(home, "a.csv", "audio,start,end,text\ntalk.wav,1,2,x\ntalk.wav,1,3,y\n"))
    assert len({u.id for u in made.utterances}) == 2


def test_the_command_says_how_fields_were_read_and_what_was_left_out(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(
        home, "a.csv",
        "File_Name;start;end;sentence;lang;room\ntalk.wav;1;2;x;de;hall\ngone.wav;1;2;y;en;hall\ntalk.wav;3;9;z;de;a\n",
    )  # fmt: skip
    assert cli.main(["manifest", "import", str(source), "--output", str(home / "out.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "fields: audio from File_Name, text from sentence, language from lang, offset from start" in told
    assert "kept as they are: lang, room" in told
    assert f"the audio file {home}/gone.wav does not exist" in told
    assert f"the segment is 3 to 9 s, and {home}/talk.wav holds 4.00 s" in told
    assert "several languages: de (2), en (1)" in told


# --- manifests themselves

LINES: dict[str, tuple[dict[str, Any], str]] = {
    "start, end": (
        {"start": 1, "end": 2},
        "start, end: no fields of a manifest.*write those, or have asrlora man",
    ),
    "begin": ({"begin": 1.5}, "begin: no fields of a manifest"),
    "start_ms": ({"start_ms": 100}, "start_ms: no fields"),
    "frames": ({"start_frame": 100}, "start_frame counts frames"),
    "an end that contradicts": (
        {"offset": 1, "duration": 1, "end": 3},
        "end .3. contradicts offset and duration",
    ),
    "an end that nothing repeats": ({"offset": 1, "end": 2}, "end .2. contradicts"),
    "a channel": ({"audio": "call.wav", "channel": 1}, "channel is 1, and the file has 2: .*all channels"),
    "a translation": ({"task": "translate"}, "translation"),
    "a speed": ({"speed": 1.1}, "speed is 1.1"),
    "a tar": ({"shard_id": 1}, "lies in a tar"),
    "NeMo's name": (
        {"audio": None, "audio_filepath": "talk.wav"},
        "audio is missing; audio_filepath is what other",
    ),
    "another name of the text": ({"text": None, "sentence": "x"}, "text is missing; sentence is what other"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_manifest_with_fields_of_others_is_refused(kind: str, home: Path) -> None:
    line, message = LINES[kind]
    record = {"audio": "talk.wav", "text": "x", **line}
    source = written(home, "m.jsonl", [{key: value for key, value in record.items() if value is not None}])
    with pytest.raises(UserError, match=f"m.jsonl, line 1: .*{message}"):
        read_manifest(source)


@pytest.mark.parametrize(
    "line",
    [
        {"offset": 1.0, "duration": 1.0, "start": 1, "end": 2.0, "end_ms": 2000},
        {
            "channel": 0,
            "speed": 1,
            "task": "transcribe",
            "lang": "en",
            "sampling_rate": 16000,
            "split": "train",
        },
        {
            "words": [{"word": "x", "start": 0.1, "end": 0.2}],
            "snr": 3,
            "start_date": "2024-05-01",
            "length": 7,
        },
        {"start": None, "end": ""},
    ],
)
def test_further_keys_that_change_nothing_are_kept(line: dict[str, Any], home: Path) -> None:
    source = written(home, "m.jsonl", [{"audio": "talk.wav", "text": "x", **line}])
    (utterance,) = read_manifest(source)
    assert utterance.extra == {key: v for key, v in line.items() if key not in ("offset", "duration")}


def test_lines_of_one_place_without_ids_are_named_by_their_place(home: Path) -> None:
    source = written(
        home, "m.jsonl", [{"audio": "talk.wav", "text": "x"}, {"audio": "talk.wav", "text": "y"}]
    )
    with pytest.raises(UserError, match="line 2: names the same audio and offset as line 1, without an id"):
        read_manifest(source)


def test_other_languages_and_splits_are_reported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = written(
        home, "train.jsonl",
        [{"audio": "u00.wav", "text": "x", "lang": "de-DE", "split": "train"},
         {"audio": "u01.wav", "text": "y", "lang": "English", "split": "test"}],
    )  # fmt: skip
    domain = written(home, "domain.jsonl", [{"audio": "talk.wav", "text": "z"}])
    cli.main(["manifest", "check", str(train), "--domain", str(domain), "--quick"])
    told = capsys.readouterr().out
    assert (
        "language: the training set: 1 utterances name another language than --language en: de-DE (1)" in told
    )
    assert "split: the training set: its lines are of several splits: train (1), test (1)" in told


# --- eval --hypotheses

REFERENCES = [
    {"id": "a", "audio": "u00.wav", "text": "red sun"},
    {"id": "b", "audio": "talk.wav", "text": "blue moon", "offset": 1.0, "duration": 1.0},
    {"id": "c", "audio": "talk.wav", "text": "green sky", "offset": 2.0, "duration": 1.0},
]
NEMO = [
    {"audio_filepath": "u00.wav", "duration": 1.0, "text": "red sun", "pred_text": "red tin"},
    {
        "audio_filepath": "talk.wav",
        "offset": 2,
        "duration": 1.0,
        "text": "green sky",
        "pred_text": "green sky",
    },
    {
        "audio_filepath": "talk.wav",
        "offset": 1.0,
        "duration": 1,
        "text": "blue moon",
        "pred_text": "blue moon",
    },
]
HYPOTHESES: dict[str, tuple[str, Any]] = {
    "NeMo's lines": ("h.json", NEMO),
    "NeMo's lines with null": ("h.json", [{**NEMO[0], "offset": None}, *NEMO[1:]]),
    "a table": ("h.csv", "id,hypothesis\na,red tin\nb,blue moon\nc,green sky\n"),
    "a table with semicolons, capitals and the references": (
        "h.csv",
        "ID;Text;Prediction\na;red sun;red tin\nb;blue moon;blue moon\nc;green sky;green sky\n",
    ),
    "the reference in text, the hypothesis in prediction": (
        "h.jsonl",
        [
            {"id": "a", "text": "red sun", "prediction": "red tin"},
            {"id": "b", "text": "blue moon", "prediction": "blue moon"},
            {"id": "c", "text": "green sky", "prediction": "green sky"},
        ],
    ),
    "an array": (
        "h.json",
        json.dumps(
            [{"id": i, "text": t} for i, t in (("a", "red tin"), ("b", "blue moon"), ("c", "green sky"))]
        ),
    ),
    "lines of another folder": ("out/h.json", NEMO),
}


def evaluated(home: Path, name: str, content: Any) -> tuple[int, Path]:
    references = written(home, "refs.jsonl", REFERENCES)
    file = written(home, name, content)
    output = home / "scored"
    words = ["--hypotheses", file, "--manifest-path", references, "--output-dir", output]
    return cli.main(["eval", *map(str, words)]), output / "scores.json"


@pytest.mark.parametrize("kind", HYPOTHESES)
def test_hypotheses_of_others_are_scored(kind: str, home: Path) -> None:
    code, scores = evaluated(home, *HYPOTHESES[kind])
    assert code == 0
    assert json.loads(scores.read_text())["wer"] == pytest.approx(1 / 6)


LEFT_OUT: dict[str, tuple[Any, str, str]] = {  # left out and counted; the example says what to look at
    "samples for seconds": (
        [{"wav": "u00.wav", "start": 0, "stop": 16000, "wrd": "x"}],
        "whose segment ends behind its audio",
        "0 to 16000 s, and .*u00.wav holds 1.00 s; times are in seconds where the field's name does not say",
    ),
    "a file cut off": (
        [{"audio": "u00.wav", "duration": 9.5, "text": "x"}],
        "whose audio is shorter than its duration",
        "duration is 9.5 s, and .*u00.wav holds 1.00 s",
    ),
    "a drive of Windows": (
        [{"audio": "C:\\data\\u00.wav", "text": "x"}],
        "whose audio is missing",
        "u00.wav does not exist; .*--audio-root",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out_is_counted_with_an_example(kind: str, home: Path) -> None:
    records, reason, example = LEFT_OUT[kind]
    made = bring_in(written(home, "a.jsonl", [*records, {"audio": "u01.wav", "text": "y"}]))
    assert made.left_out == {reason: 1}
    assert re.search(f"left out, for example: .*a.jsonl, line 1: .*{example}", "\n".join(made.notes))


UNCLEAR: dict[str, tuple[str, Any, str]] = {
    "no offset": (
        "h.json",
        [NEMO[0], {"audio_filepath": "talk.wav", "pred_text": "x"}],
        "0 utterances of the manifest",
    ),
    "a duration that does not fit": ("h.json", [{**NEMO[0], "duration": 0.5}], "that lasts 0.5 s"),
    "another file": (
        "h.json",
        [{**NEMO[0], "audio_filepath": "gone.wav"}],
        "of no utterance in the manifest (looked",
    ),
    "the same segment twice": ("h.json", [NEMO[0], NEMO[0]], "line 2: the audio of 'a' was there before"),
    "neither id nor audio": (
        "h.json",
        [{"pred_text": "x"}],
        "the field id is missing, and there is no audio",
    ),
    "two that may be meant": (
        "h.json",
        [{"id": "a", "text": "red sun", "transcription": "red tin"}],
        "which is the hypothesis is not clear",
    ),
    "a table without ids": ("h.csv", "name,hypothesis\na,x\n", "must name a column id"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_hypotheses_that_fit_no_utterance_are_refused(
    kind: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, message = UNCLEAR[kind]
    code, scores = evaluated(home, name, content)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not scores.exists()


def test_references_in_place_of_hypotheses_are_suspected(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(home, "h.jsonl", [{"id": r["id"], "text": r["text"]} for r in REFERENCES])[0] == 0
    assert "no error at all; is text the reference" in capsys.readouterr().out
