"""Other projects' formats to a manifest. Needs no torch; runs nothing and opens nothing it should not.

A reader turns a source into `Found` records and raises UserError, with file and line, where the source
is malformed. What a record is worth is decided in one place, `_judge`, for all formats: each becomes an
utterance or is counted under the reason why not.
"""

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asrlora.data import manifest, sets
from asrlora.data.fence import Fence, Missing, Outside
from asrlora.data.foreign import foreign_shards
from asrlora.data.manifest import Utterance, parse_object, seconds_field, string_field
from asrlora.errors import UserError
from asrlora.files import write_whole

DOMAIN_SAMPLES = 500  # utterances; fewer make a WER a matter of luck
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
# what others call our fields, the first that is there wins
AUDIO = ("audio", "path", "audio_filepath", "file_name", "file", "filename", "wav_filename")
TEXT = ("text", "sentence", "transcript", "transcription")
SPEAKER = ("speaker", "client_id", "speaker_id")


@dataclass(frozen=True)
class Found:
    """One record of a source, before anyone has looked whether it is of use."""

    where: str  # "train.tsv, line 7"
    name: str | None  # the audio's path as the source writes it; None: it names none
    text: str | None
    id: str | None = None
    offset: float | None = None  # seconds
    duration: float | None = None  # seconds; None: to the end
    speaker: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    sound: bytes | None = None  # a whole audio file that the source itself holds


@dataclass(frozen=True)
class Imported:
    """len(utterances) + sum(left_out) == total"""

    format: str
    total: int
    utterances: list[Utterance]
    left_out: Mapping[str, int]
    outside: int  # of the utterances, how many have their audio outside the manifest's folder


class LeftOut(Exception):
    """The record cannot become an utterance; the message is the reason, which is counted."""


def import_source(
    source: str,
    output: Path,
    *,
    form: str | None = None,
    samples: int | None = None,
    seed: int = 42,
    allow_outside: bool = False,
) -> Imported:
    """Writes the manifest `output`, and sounds that the source holds to the folder OUTPUT-audio beside it.

    Neither may exist. `form` is a key of READERS; None: found out by looking.
    """
    sounds = output.parent / f"{output.stem}-audio"
    for path in (output, sounds):
        manifest.check_new(path)
    form = form or recognise(source)
    place = Path(source)
    fence = Fence(place if place.is_dir() else place.parent, allow_outside)
    aside = output.parent / f".{sounds.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed
    total = 0
    utterances: dict[str, Utterance] = {}
    places: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    try:
        for total, found in enumerate(READERS[form](source, fence), 1):
            try:
                utterance = _judge(found, fence, aside / f"{total:06d}", place.stem)
            except LeftOut as reason:
                left_out[str(reason)] += 1
                continue
            if utterance.id in utterances:
                raise UserError(
                    f"{found.where}: the id {utterance.id!r} is taken by {places[utterance.id]};"
                    " ids must differ"
                )
            utterances[utterance.id], places[utterance.id] = utterance, found.where
        if not utterances:
            raise UserError(f"{source} ({form}): {total} records; {manifest.describe(0, left_out)}")
        chosen = list(utterances.values())
        if samples is not None:
            chosen = sets.sample(chosen, samples, seed)
            left_out["not drawn"] = len(utterances) - len(chosen)
        if aside.exists():
            kept = {u.audio.name for u in chosen}
            for path in aside.iterdir():
                if path.name not in kept:
                    path.unlink()
            aside.rename(sounds)
            chosen = [
                replace(u, audio=sounds / u.audio.name) if u.audio.parent == aside else u for u in chosen
            ]
        outside = manifest.write_manifest(output, chosen)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Imported(form, total, chosen, +left_out, outside)


def recognise(source: str) -> str:
    """The format of a source, by its name and what lies there. Raises UserError where it is none."""
    place = Path(source)
    if source.startswith("hf:"):
        return "hf"
    if foreign := foreign_shards(source):
        raise UserError(foreign)
    if place.is_dir():
        if (place / "wav.scp").exists():
            return "kaldi"
        return "librispeech" if next(place.rglob("*.trans.txt"), None) else "folder"
    if not place.is_file():
        raise UserError(f"{source} is neither a file nor a folder, nor hf:NAME:CONFIG:SPLIT")
    if place.suffix.lower() in (".csv", ".tsv"):
        return "table"
    with open(place, "rb") as file:
        if file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return "jsonl"
    raise UserError(f"{source}: neither JSON lines nor .csv nor .tsv; name what it is with --format")


def _judge(found: Found, fence: Fence, aside: Path, source: str) -> Utterance:
    """The utterance of a record. Raises LeftOut; and UserError where its audio lies outside the source.

    A sound that the record holds is written to `aside` plus suffix.
    """
    if not found.text or not found.text.strip():
        raise LeftOut("without text")
    if found.sound is not None:
        length, suffix = _look_into(found.sound)
        audio = aside.with_suffix(suffix)
        default = f"{source}-{aside.name}"
    elif found.name:
        try:
            audio = fence.find(found.name)
            length = manifest.audio_length(audio)
        except Outside as error:
            raise UserError(f"{found.where}: {error}") from None
        except Missing:
            raise LeftOut("whose audio is missing") from None
        except ValueError:
            raise LeftOut("whose audio cannot be read") from None
        default = manifest.default_id(found.name, found.offset or 0.0)
    else:
        raise LeftOut("without audio")
    if length <= 0:
        raise LeftOut("whose audio is empty")
    offset, duration = found.offset or 0.0, found.duration
    if offset >= length or offset + (duration or 0.0) > length + manifest.TOLERANCE:
        raise LeftOut("whose segment ends behind its audio")
    if duration is not None and duration <= 0:
        raise LeftOut("whose segment is empty")
    cut = duration is not None and duration < length - manifest.TOLERANCE
    whole_file = found.offset is None and not cut
    if whole_file or duration is None:
        duration = length - offset
    if found.sound is not None:
        write_whole(audio, found.sound)
    return Utterance(
        found.id or default, audio, found.text, duration, offset, found.speaker, found.extra, whole_file
    )


def _look_into(sound: bytes) -> tuple[float, str]:
    """Length in seconds, and the suffix for a file of these bytes."""
    try:
        with soundfile.SoundFile(io.BytesIO(sound)) as file:
            return file.frames / file.samplerate, f".{file.format.lower()}"
    except soundfile.LibsndfileError:
        raise LeftOut("whose audio cannot be read") from None


def _read_jsonl(source: str, fence: Fence) -> Iterator[Found]:
    """This project's manifests, NeMo's, and the predecessor's with samples as numbers, line by line."""
    for where, line in _lines(Path(source)):
        if not line.strip():
            continue
        try:
            yield _from_object(parse_object(line), where)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None


def _from_object(record: dict[str, Any], where: str) -> Found:
    sound = name = None
    audio = record.get("audio")
    known = {*manifest.FIELDS, "audio_filepath"}
    if isinstance(audio, list | dict):
        sound = _from_samples(record)
        known.add("sampling_rate")
    else:
        name = string_field(record, "audio_filepath" if audio is None else "audio")
    offset, duration = seconds_field(record, "offset"), seconds_field(record, "duration")
    if "audio_filepath" not in record and offset is None:
        duration = None  # ours is a note then, NeMo's still cuts the file
    return Found(
        where, name, string_field(record, "text"), string_field(record, "id"), offset, duration,
        string_field(record, "speaker"), {k: v for k, v in record.items() if k not in known}, sound,
    )  # fmt: skip


def _from_samples(record: dict[str, Any]) -> bytes:
    """The audio file of `"audio": [0.1, …]` or `"audio": {"array": […], "sampling_rate": 16000}`.

    Lossless: 16-bit FLAC where the samples are whole multiples of 2^-15, else 32-bit float WAV.
    """
    audio = record["audio"]
    holder = audio if isinstance(audio, dict) else {"array": audio}
    rate = holder.get("sampling_rate", record.get("sampling_rate", 16_000))
    if not isinstance(rate, int) or not 1_000 <= rate <= 384_000:
        raise ValueError(f"sampling_rate must be a whole number of Hz, not {json.dumps(rate)[:60]}")
    try:
        samples = np.array(holder["array"], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        samples = np.zeros((0, 0), np.float32)
    if samples.ndim != 1:
        raise ValueError('audio must be a path, a list of samples or {"array": […], "sampling_rate": 16000}')
    if not np.isfinite(samples).all():
        return b""  # which is no audio file, and counted so
    scaled = samples * 32768
    exact = (
        len(samples)
        and (scaled == np.round(scaled)).all()
        and -32768 <= scaled.min() <= scaled.max() <= 32767
    )
    buffer = io.BytesIO()
    if exact:
        soundfile.write(buffer, scaled.astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _read_kaldi(source: str, fence: Fence) -> Iterator[Found]:
    """A data folder: wav.scp, text, and where they are there segments and utt2spk.

    Relative paths in wav.scp are relative to the folder. Commands ("sox … |") are refused, never run.
    """
    folder = Path(source)
    recordings = _kaldi_table(folder / "wav.scp", fence)
    for where, path in recordings.values():
        if path.endswith("|") or path.startswith("|"):
            raise UserError(
                f"{where}: {path[:60]!r} is a command, and none is run; write its output to an audio file"
                " and name that instead"
            )
    texts = _kaldi_table(folder / "text", fence)
    speakers = _kaldi_table(folder / "utt2spk", fence) if (folder / "utt2spk").exists() else {}
    cut = (folder / "segments").exists()
    segments = _kaldi_table(folder / "segments", fence) if cut else {}
    for identity, (where, line) in (segments if cut else recordings).items():
        recording, offset, duration = _kaldi_segment(where, line) if cut else (identity, None, None)
        name = recordings[recording][1] if recording in recordings else None
        text, speaker = (table[identity][1] if identity in table else None for table in (texts, speakers))
        yield Found(where, name, text, identity, offset, duration, speaker)
    for identity, (where, text) in texts.items():
        if identity not in (segments if cut else recordings):
            yield Found(where, None, text, identity)


def _kaldi_table(path: Path, fence: Fence) -> dict[str, tuple[str, str]]:
    """key -> (file and line, rest of the line)"""
    table: dict[str, tuple[str, str]] = {}
    for where, line in _lines(_inside(path, fence)):
        key, *rest = line.strip().split(maxsplit=1) or [""]
        if not key:
            continue
        if key in table:
            raise UserError(f"{where}: {key!r} stands there twice; ids must differ")
        table[key] = where, "".join(rest)
    return table


def _kaldi_segment(where: str, line: str) -> tuple[str, float, float | None]:
    """RECORDING START END, in seconds; an END of -1 is the end of the file."""
    try:
        recording, start, end = line.split()
        offset, last = float(start), float(end)
        duration = None if last == -1 else last - offset
        seconds_field({"start": offset}, "start")
        seconds_field({"end": duration}, "end")
    except ValueError:
        raise UserError(f"{where}: must be UTTERANCE RECORDING START END, with times in seconds") from None
    return recording, offset, duration


def _read_table(source: str, fence: Fence) -> Iterator[Found]:
    """CSV, or TSV without quoting as Common Voice writes it, with a line of column names."""
    path = Path(source)
    tabs = path.suffix.lower() == ".tsv"
    number = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = (
                csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                if tabs
                else csv.reader(file, strict=True)
            )
            header = next(rows, [])
            audio, text = (_column(header, names, source) for names in (AUDIO, TEXT))
            speaker = next((name for name in SPEAKER if name in header), None)
            known = {audio, text, speaker, "id", "offset", "duration", ""}
            for cells in rows:
                first, number = number + 1, rows.line_num
                where = f"{source}, line {first}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{where}: {len(cells)} cells where line 1 names {len(header)} columns")
                row = dict(zip(header, cells, strict=True))
                offset = _cell_seconds(row, "offset", where)
                yield Found(
                    where,
                    _in_clips(path.parent, row[audio]),
                    row[text],
                    row.get("id") or None,
                    offset,
                    None if offset is None else _cell_seconds(row, "duration", where),
                    row[speaker] or None if speaker else None,
                    {name: cell for name, cell in row.items() if name not in known and cell},
                )
    except UnicodeDecodeError:
        raise UserError(f"{source}: is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{source}, line {number + 1}: {error}") from None


def _column(header: list[str], names: tuple[str, ...], source: str) -> str:
    found = next((name for name in names if name in header), None)
    if found is None or len(set(header)) < len(header):
        raise UserError(f"{source}, line 1: must name each column once, and one of them {', '.join(names)}")
    return found


def _in_clips(folder: Path, name: str) -> str:
    """Common Voice names files without their folder. Looks for plain names only: none leads elsewhere."""
    clip = os.path.join("clips", name)
    beside, inside = (os.path.exists(folder / path) for path in (name, clip))
    return clip if name == os.path.basename(name) and inside and not beside else name


def _cell_seconds(row: dict[str, str], name: str, where: str) -> float | None:
    try:
        return seconds_field({name: float(row[name])}, name) if row.get(name) else None
    except ValueError:
        raise UserError(f"{where}: the column {name} must be seconds, not {row[name][:60]!r}") from None


def _read_librispeech(source: str, fence: Fence) -> Iterator[Found]:
    """*.trans.txt anywhere below, lines of "ID TEXT", with ID.flac beside; the speaker leads the id."""
    for transcript in sorted(Path(source).rglob("*.trans.txt")):
        audio = _audio_below(transcript.parent.glob("*"))
        for where, line in _lines(_inside(transcript, fence)):
            identity, *text = line.strip().split(maxsplit=1) or [""]
            if identity:
                path = audio.pop(transcript.parent / identity, None)
                yield Found(
                    where, None if path is None else str(path.absolute()), "".join(text), identity,
                    speaker=identity.split("-")[0],
                )  # fmt: skip
        for path in audio.values():
            yield Found(str(path), str(path.absolute()), None)


def _read_folder(source: str, fence: Fence) -> Iterator[Found]:
    """Audio anywhere below, with a .txt of the same name beside it; the id is the path without suffix."""
    root = Path(source)
    audio = _audio_below(root.rglob("*"))
    texts = {path.with_suffix(""): path for path in root.rglob("*.txt")}
    for stem in sorted(audio.keys() | texts.keys()):
        path = audio.get(stem)
        text = None
        if stem in texts:
            text = " ".join(" ".join(line for _, line in _lines(_inside(texts[stem], fence))).split())
        yield Found(
            str(path or texts[stem]), None if path is None else str(path.absolute()), text,
            stem.relative_to(root).as_posix(),
        )  # fmt: skip


def _audio_below(paths: Iterator[Path]) -> dict[Path, Path]:
    """Path without suffix -> audio file."""
    found: dict[Path, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() in SUFFIXES:
            stem = path.with_suffix("")
            if stem in found:
                raise UserError(f"{path} and {found[stem].name} share one name; whose is the text?")
            found[stem] = path
    return found


def _read_hf(source: str, fence: Fence) -> Iterator[Found]:
    """hf:NAME:CONFIG:SPLIT or hf:NAME:SPLIT. Streamed, so that only the split itself is fetched.

    Audio comes as the bytes of its file, and is decoded by soundfile: torchcodec is not needed.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{source}: Hugging Face datasets need the library datasets; install asrlora[hf]"
            " (uv sync --extra hf)"
        ) from None
    words = source.split(":")[1:]
    if len(words) not in (2, 3) or not all(words):
        raise UserError(f"{source}: must be hf:NAME:CONFIG:SPLIT, such as hf:librispeech_asr:other:test")
    try:
        rows = datasets.load_dataset(
            words[0], words[1] if len(words) == 3 else None, split=words[-1], streaming=True
        )
        features = rows.features or {}
        audio = next((name for name, kind in features.items() if isinstance(kind, datasets.Audio)), "audio")
        rows = rows.cast_column(audio, datasets.Audio(decode=False))
        for number, row in enumerate(rows, 1):
            text = next((row[name] for name in TEXT if name in row), None)
            speaker = next((row[name] for name in SPEAKER if name in row), None)
            known = {audio, "id", *TEXT, *SPEAKER, *manifest.FIELDS}
            extra = {k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float)}
            yield Found(
                f"{source}, row {number}", None, text, str(row["id"]) if row.get("id") else None,
                speaker=None if speaker is None else str(speaker), extra=extra,
                sound=(row.get(audio) or {}).get("bytes"),
            )  # fmt: skip
    except Exception as error:  # the library's own, of a dozen kinds: no network, no such name, no such split
        raise UserError(f"{source}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, line), one by one: lines that hold samples are long."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}, line {number}", line
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _inside(path: Path, fence: Fence) -> Path:
    """A text file of a source folder; links out of it are as unwelcome as those of audio."""
    try:
        return fence.find(str(path.absolute()), "text file")
    except ValueError as error:
        raise UserError(str(error)) from None


READERS: dict[str, Callable[[str, Fence], Iterator[Found]]] = {
    "jsonl": _read_jsonl,
    "kaldi": _read_kaldi,
    "table": _read_table,
    "librispeech": _read_librispeech,
    "folder": _read_folder,
    "hf": _read_hf,
}
