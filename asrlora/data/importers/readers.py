"""One reader a format: a source to `Found` records, in order. Needs no torch; runs nothing.

A reader raises UserError, with file and line, where the source is malformed. What a record is worth is
decided in `convert`.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asrlora.data.importers import cuts, fields, tables
from asrlora.data.importers.fields import Record, understand
from asrlora.data.importers.source import SUFFIXES, Found, Source
from asrlora.data.importers.tables import numbered_lines
from asrlora.data.manifest import parse_object
from asrlora.errors import UserError

ROWS_SEEN = 50  # of a table without names, to tell speakers from texts


def read_json(source: Source) -> Iterator[Found]:
    """Objects: one a line, in an array, or in an object by their ids.

    This project's manifests, NeMo's, those of Hugging Face (`file_name` or `audio` with bytes, a path or
    samples), and Lhotse's cuts and supervisions; also behind gzip.
    """
    path = Path(source.place)
    recordings = None
    for where, record in objects(path):
        try:
            if cuts.is_supervision(record):
                recordings = recordings or cuts.read_recordings(path, objects)
            read = cuts.understand(record, recordings)
            if read is not None:
                yield from (Found(where, one) for one in read)
            else:
                yield _from_object(record, where, source.text_field)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object); where the file is one JSON value, (file and number, object)."""
    if _is_one_value(path):
        yield from _whole(path)
        return
    for where, line in numbered_lines(path):
        if line.strip():
            try:
                yield where, parse_object(line)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None


def _is_one_value(path: Path) -> bool:
    """Whether the file is an array, a printed object of several lines, or one that holds objects only."""
    first = next((line.strip() for _, line in numbered_lines(path) if line.strip()), "")
    if first.startswith("["):
        return not first.endswith("]") or first.startswith("[{") or first == "[]"
    if re.fullmatch(r'\{(\s*"[^"]*"\s*:\s*[\[{]?)?', first):
        return True
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value) and all(isinstance(one, dict) for one in value.values())


def _whole(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array, or of an object whose keys are their ids."""
    with tables.open_text(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{where}: not valid JSON ({getattr(error, 'msg', 'nested too deep')})"
        ) from None
    if isinstance(value, dict) and value and all(isinstance(one, dict) for one in value.values()):
        value = [{"id": name, **one} for name, one in value.items()]
    if not isinstance(value, list):
        shown = ", ".join(list(value)[:8])
        raise UserError(f"{path}: one JSON object, with the keys {shown}; write its records one a line")
    for number, one in enumerate(value, 1):
        if not isinstance(one, dict):
            raise UserError(f"{path}, record {number}: not a JSON object")
        yield f"{path}, record {number}", parse_object(json.dumps(one))


def _from_object(record: Mapping[str, Any], where: str, text_field: str | None) -> Found:
    read = understand(record, text_field)
    sound = None
    if isinstance(read.audio, list | dict):
        read, sound = _embedded(read, record)
    elif read.audio is not None and not isinstance(read.audio, str):
        raise ValueError(
            f"the field {read.names['audio']} must be a string, not {json.dumps(read.audio)[:60]}"
        )
    return Found(where, read, sound, cuts="audio_filepath" in record)


def _embedded(read: Record, record: Mapping[str, Any]) -> tuple[Record, bytes | None]:
    """What Hugging Face writes in place of a path: bytes, a path, or samples."""
    audio = read.audio
    extra = {name: value for name, value in read.extra.items() if fields.meaning(name) != "rate"}
    if isinstance(audio, dict) and "array" not in audio:
        if isinstance(audio.get("bytes"), str):
            try:
                return replace(read, audio=None, extra=extra), base64.b64decode(audio["bytes"], validate=True)
            except binascii.Error:
                raise ValueError("audio: bytes must be base64, or be left out for the path") from None
        if isinstance(audio.get("path"), str) and audio.get("bytes") is None:
            return replace(read, audio=audio["path"]), None
        if "src" in audio:
            raise ValueError("audio is an address (src); download the files, and name them by path")
    rate = (
        audio.get("sampling_rate", read.rate)
        if isinstance(audio, dict)
        else record.get("sampling_rate", read.rate)
    )
    return replace(read, audio=None, extra=extra), _from_samples(audio, 16_000 if rate is None else rate)


def _from_samples(audio: Any, rate: Any) -> bytes:
    """The audio file of `"audio": [0.1, …]` or `"audio": {"array": […], "sampling_rate": 16000}`."""
    if not isinstance(rate, int) or not 1_000 <= rate <= 384_000:
        raise ValueError(f"sampling_rate must be a whole number of Hz, not {json.dumps(rate)[:60]}")
    try:
        samples = np.array(audio["array"] if isinstance(audio, dict) else audio, dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        samples = np.zeros((0, 0), np.float32)
    if samples.ndim != 1:
        raise ValueError(
            'audio must be a path, {"path": "a.wav"}, a list of samples, or'
            ' {"array": […], "sampling_rate": 16000}'
        )
    if not np.isfinite(samples).all():
        return b""  # which is no audio file, and counted so
    return encode(samples, rate)


def encode(samples: "np.ndarray[Any, np.dtype[np.float32]]", rate: int) -> bytes:
    """An audio file of samples (T,), without loss: 16-bit FLAC where they are whole multiples of 2^-15, else
    32-bit float WAV."""
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


def read_table(source: Source) -> Iterator[Found]:
    """A table of any delimiter: with names in line 1, or a file list such as LJ Speech's."""
    path = Path(source.place)
    table, known = _find_table(path, source.text_field)
    if known == 0:
        raise UserError(_no_columns(table))
    if known == 1:
        table = _without_names(table, path.parent)
    columns = {name: f"column {number}" for number, name in enumerate(table.names, 1)} if known == 1 else {}
    for where, cells in table.records():
        try:
            read = understand(cells, source.text_field, decimal_comma=table.decimal_comma)
            names = {ours: columns.get(name, name) for ours, name in read.names.items()}
            yield Found(where, replace(read, names=names))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None


def is_table(path: Path) -> bool:
    """Whether the columns of a text file have known names, or can be recognised without them."""
    return _find_table(path, None)[1] > 0


def _find_table(path: Path, text_field: str | None) -> tuple[tables.Table, int]:
    """The table, and 2 where line 1 names its columns, 1 where it is a row, 0 where it is neither."""

    def known(names: Sequence[str]) -> int:
        meanings = {fields.meaning(name) for name in names}
        if text_field and fields.fold(text_field) in map(fields.fold, names):
            meanings.add("text")
        if {"audio", "text"} <= meanings:
            return 2
        return int(len(names) > 1 and sum(_looks_like_audio(cell, path.parent) for cell in names) == 1)

    table = tables.find_table(path, known)
    return table, known(table.names)


def _no_columns(table: tables.Table) -> str:
    holds = ", ".join(repr(name[:60]) for name in table.names[:12]) or "nothing"
    return (
        f"{table.path}, line 1: must name a column of audio ({', '.join(fields.AUDIO[:5])}, …) and one of"
        f" text ({', '.join(fields.TEXT[:4])}, …); it holds {holds}, split at {table.split_at}. Rename the"
        " columns, or name that of the text with --text-field"
    )


def _without_names(table: tables.Table, folder: Path) -> tables.Table:
    """The table with names for its columns, where line 1 is a row: a path (or the name of a file in wavs/),
    and a text. Raises UserError where it is not clear which column is what."""
    first = table.names
    audio = next(number for number, cell in enumerate(first) if _looks_like_audio(cell, folder))
    table = replace(table, skip=table.skip - 1)
    rows = [cells for _, (_, cells) in zip(range(ROWS_SEEN), table.rows(), strict=False)]
    others = [number for number in range(len(first)) if number != audio]
    cells = {n: [row[n] for row in rows if n < len(row)] for n in others}
    spoken = [n for n in others if any(" " in cell for cell in cells[n])]
    names = [f"column {number + 1}" for number in range(len(first))]
    names[audio] = "audio"
    fractions = any(all(re.fullmatch(r"\d+[.,]\d+", cell) for cell in cells[n]) for n in others)  # times?
    if len(others) == 1 and any(char.isalpha() for cell in cells[others[0]] for char in cell):
        names[others[0]] = "text"
    elif len(spoken) == 1 and len(others) == 2 and not fractions:
        names[spoken[0]] = "text"
        names[next(n for n in others if n not in spoken)] = "speaker"
    elif len(first) == 3 and audio == 0 and (folder / "wavs").is_dir():
        names[1] = "text"  # LJ Speech: as printed, then with numbers and abbreviations written out
    else:
        holds = ", ".join(repr(cell[:40]) for cell in first[:8])
        raise UserError(
            f"{table.path}, line 1: names no columns, and which of {holds} holds the text is not clear; put"
            f" a line of names above it, such as {table.delimiter.join(('audio', 'start', 'end', 'text'))}"
        )
    return replace(table, names=tuple(names))


def _looks_like_audio(cell: str, folder: Path) -> bool:
    if Path(cell).suffix.lower() in SUFFIXES:
        return True
    return " " not in cell and "/" not in cell and bool(cell) and (folder / "wavs" / f"{cell}.wav").is_file()


def read_librispeech(source: Source) -> Iterator[Found]:
    """*.trans.txt anywhere below, lines of "ID TEXT", with ID.flac beside; the speaker leads the id."""
    for transcript in sorted(Path(source.place).rglob("*.trans.txt")):
        audio = _audio_below(transcript.parent.glob("*"))
        for where, line in numbered_lines(source.inside(transcript)):
            identity, *text = line.strip().split(maxsplit=1) or [""]
            if identity:
                path = audio.pop(transcript.parent / identity, None)
                name = None if path is None else str(path.absolute())
                yield Found(where, Record(name, "".join(text), identity, identity.split("-")[0]))
        for path in audio.values():
            yield Found(str(path), Record(str(path.absolute())))


def read_folder(source: Source) -> Iterator[Found]:
    """Audio anywhere below, with a .txt of the same name beside it; the id is the path without suffix."""
    root = Path(source.place)
    audio = _audio_below(root.rglob("*"))
    texts = {path.with_suffix(""): path for path in root.rglob("*.txt")}
    for stem in sorted(audio.keys() | texts.keys()):
        path = audio.get(stem)
        text = None
        if stem in texts:
            lines = numbered_lines(source.inside(texts[stem]))
            text = " ".join(" ".join(line for _, line in lines).split())
        yield Found(
            str(path or texts[stem]),
            Record(None if path is None else str(path.absolute()), text, stem.relative_to(root).as_posix()),
        )


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


def read_hf(source: Source) -> Iterator[Found]:
    """hf:NAME:CONFIG:SPLIT or hf:NAME:SPLIT. Streamed, so that only the split itself is fetched.

    Audio comes as the bytes of its file: torchcodec is not needed to decode it.
    """
    name = source.place
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name}: Hugging Face datasets need the library datasets; install asrlora[hf] (uv sync --extra"
            " hf)"
        ) from None
    words = name.split(":")[1:]
    if len(words) not in (2, 3) or not all(words):
        raise UserError(f"{name}: must be hf:NAME:CONFIG:SPLIT, such as hf:librispeech_asr:other:test")
    for number, (row, sound) in enumerate(_hf_rows(name, words, datasets), 1):
        try:
            read = understand(row, source.text_field)
        except ValueError as error:
            raise UserError(f"{name}, row {number}: {error}") from None
        extra = {k: v for k, v in read.extra.items() if isinstance(v, str | int | float)}
        yield Found(f"{name}, row {number}", replace(read, extra=extra), sound=sound)


def _hf_rows(name: str, words: list[str], datasets: Any) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """The fields of each row, and the file of its audio. Raises UserError where the library fails."""
    try:
        config = words[1] if len(words) == 3 else None
        rows = datasets.load_dataset(words[0], config, split=words[-1], streaming=True)
        features = rows.features or {}
        audio = next((name for name, kind in features.items() if isinstance(kind, datasets.Audio)), "audio")
        for row in rows.cast_column(audio, datasets.Audio(decode=False)):
            # the file's own name is the column that holds it; other columns of paths name the same file
            plain = {k: v for k, v in row.items() if k != audio and fields.meaning(k) != "audio"}
            yield plain, (row.get(audio) or {}).get("bytes")
    except Exception as error:  # the library's own, of a dozen kinds: no network, no such name, no such split
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: cannot be loaded ({why}); check its name, accept the terms of a gated one and set"
            " HF_TOKEN; it is streamed, so HF_HUB_OFFLINE=1 finds nothing, but HF_ENDPOINT may name a mirror"
        ) from error
