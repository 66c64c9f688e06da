"""Manifests: JSON lines, one utterance a line, checked and counted. Needs no torch.

A line: `{"id", "audio", "text", "duration", "offset", "speaker"}`; `audio` and `text` are required.
`audio` is a path, absolute or relative to the manifest's folder; times are in seconds.

A manifest may come from a stranger. So the audio that it names must lie in its own folder, whatever names and
links lead there, unless --allow-outside is given (`AllowedRoot`).
"""

import hashlib
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asrlora.data.decoding import decode
from asrlora.data.decoding.filetypes import AudioError
from asrlora.data.importers import fields
from asrlora.data.shards.foreign import foreign_shards
from asrlora.errors import UserError
from asrlora.storage import write_atomic

MAX_DEPTH = 100  # of nested JSON: what is read must be writable again, inside Python's recursion limit
TOLERANCE = decode.TOLERANCE  # that a segment may end behind its file: rounding of whoever cut it


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest, checked."""

    id: str
    audio: Path
    text: str
    duration: float  # seconds
    offset: float = 0.0  # seconds into the file
    speaker: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # further keys, kept
    whole_file: bool = True  # no segment was asked for: read to the end of the file
    line: int | None = field(default=None, compare=False)  # of the manifest that it was read from

    @property
    def cut(self) -> float | None:
        """How much of the file to read from `offset`, in seconds; None: to its end."""
        return None if self.whole_file else self.duration


@dataclass(frozen=True)
class BadLine:
    """What is wrong with a line that holds no utterance."""

    reason: str  # a few words, the same for every line with this fault
    message: str  # names the fault of this line and the fix


def read_manifest(path: Path, allow_outside: bool = False) -> list[Utterance]:
    """Reads and checks every line; follows every audio file's structure to its end, decodes few.

    Audio outside the manifest's folder is refused unless `allow_outside`. Raises UserError that names
    the first bad line and the fix.
    """
    utterances = []
    for number, read in read_lines(path, allow_outside):
        if isinstance(read, BadLine):
            raise UserError(f"manifest {path}, line {number}: {read.message}")
        utterances.append(read)
    return utterances


def read_lines(path: Path, allow_outside: bool = False) -> Iterator[tuple[int, Utterance | BadLine]]:
    """Yields the number of every line that is not blank, with its utterance or what is wrong.

    Raises UserError where the file as a whole is no manifest.
    """
    lines = text_lines(path)
    if not any(line.strip() for line in lines):
        raise UserError(f"manifest {path}: holds no utterance")
    line_of_id: dict[str, int] = {}
    root = AllowedRoot(path.parent, allow_outside)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            utterance = replace(_parse(line, root), line=number)
        except ValueError as error:
            yield number, BadLine(getattr(error, "reason", "field wrong"), str(error))
            continue
        if utterance.id in line_of_id:
            other = line_of_id[utterance.id]
            taken = (
                f"the id {utterance.id!r} is taken by line {other}; ids must differ"
                if "id" in parse_object(line)
                else f"names the same audio and offset as line {other}, without an id; take one of them out,"
                " or give each an id of its own"
            )
            yield number, BadLine("id taken", taken)
            continue
        line_of_id[utterance.id] = number
        yield number, utterance


def text_lines(path: Path, what: str = "manifest") -> list[str]:
    """The lines of a text file. Raises UserError where it is none, and opens regular files only."""
    if foreign := foreign_shards(path):
        raise UserError(f"{what} {foreign}")
    if path.exists() and not path.is_file():
        raise UserError(f"{what} {path}: is not a regular file")
    try:
        # not splitlines(): U+2028 and its like are no ends of lines in JSON
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path}: is not UTF-8 text; is it the right file?") from None


def parse_object(line: str) -> dict[str, Any]:
    """One line of JSON. Raises ValueError where it is no object, or one that could not be written again."""
    try:
        record = json.loads(line)
        deep = line.count("[") + line.count("{") > MAX_DEPTH and _depth(record) > MAX_DEPTH
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep; take that field out")
    if not isinstance(record, dict):
        raise ValueError('not a JSON object such as {"audio": "a.wav", "text": "hello"}')
    if "\\u" in line:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return record


def default_id(name: str, offset: float) -> str:
    """A stable id for a line that has none, from its path as written and its offset in seconds."""
    return hashlib.sha256(f"{name}@{offset}".encode()).hexdigest()[:16]


def string_field(record: Mapping[str, Any], key: str, required: bool = False) -> str | None:
    """The string in a field; or an integer in `id` or `speaker`. Raises ValueError that names the field."""
    value = record.get(key)
    if value is None and not required:
        return None
    if value is None:
        raise ValueError(f"the field {key} is missing{_instead(record, key)}")
    if isinstance(value, int) and not isinstance(value, bool) and key in ("id", "speaker"):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the field {key} must be a string, not {json.dumps(value)[:60]}")
    if key in ("audio", "id") and not value:
        raise ValueError(f"the field {key} is empty")
    return value


def seconds_field(record: Mapping[str, Any], key: str) -> float | None:
    """The seconds in a field, 0 or more. Raises ValueError that names the field."""
    value = record.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"the field {key} must be seconds, not {json.dumps(value)[:60]}")
    return float(value)


def audio_length(audio: Path) -> float:
    """Seconds that decode, by the file's structure. Raises ValueError where it cannot be used."""
    try:
        return decode.measure(audio)
    except AudioError as error:
        error.args = (f"the audio file {audio} cannot be read: it {error}",)
        raise


class OutsideRootError(ValueError):
    """The name leads out of the folder, and --allow-outside was not given."""

    reason = "audio outside"


class MissingFileError(ValueError):
    """There is no file of that name."""

    reason = "audio missing"


@dataclass(frozen=True)
class AllowedRoot:
    """The folder that a manifest's audio must lie in. `find` looks at names and links, and opens nothing."""

    folder: Path
    allow_outside: bool = False
    _inside: dict[str, bool] = field(default_factory=dict)  # folder -> whether it lies inside

    def find(self, name: str, what: str = "audio file") -> Path:
        """The regular file that `name` means, absolute or relative to the folder.

        Raises OutsideRootError where it leads out, MissingFileError where it leads nowhere, and ValueError
        where it is no regular file: a FIFO waits forever, and a device never ends.
        """
        if "\0" in name:
            raise ValueError(f"the {what} {name!r} has a NUL byte in its name; correct it")
        # absolute, because libsndfile takes the bare name "-" for standard input
        path = os.path.join(os.path.abspath(self.folder), name)
        if not self.allow_outside and not self._holds(os.path.dirname(path)):
            raise self._outside(path, what)
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not self.allow_outside and not self._holds(os.path.realpath(path)):
                    raise self._outside(path, what)
                status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFileError(f"the {what} {path} does not exist; correct its name") from None
        except OSError as error:
            raise ValueError(f"the {what} {path} cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"the {what} {path} is not a regular file; correct its name")
        return Path(path)

    def _holds(self, path: str) -> bool:
        """Whether `path`, with every link followed, is the folder or lies in it."""
        if path not in self._inside:
            root = os.path.realpath(self.folder)
            self._inside[path] = Path(os.path.realpath(path)).is_relative_to(root)
        return self._inside[path]

    def _outside(self, path: str, what: str) -> OutsideRootError:
        return OutsideRootError(
            f"the {what} {path} lies outside {self.folder}; move it there, or give --allow-outside"
            " if you trust where this came from"
        )


def check_new(path: Path) -> None:
    """Raises UserError where `path` exists: a set that was made once is not written over."""
    if path.exists():
        raise UserError(f"{path} exists; give another name or delete it first")


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> int:
    """Writes a new manifest in one step; what `read_manifest` reads of it is the same utterances.

    Audio inside the manifest's folder is named relative to it, so that the folder can be moved;
    other audio is named absolutely, and how many lines do so is returned.
    """
    root = os.path.realpath(path.parent)
    records = [_to_record(utterance, root) for utterance in utterances]
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return sum(os.path.isabs(record["audio"]) for record in records)


def trainable(
    seconds: Sequence[float] | npt.NDArray[np.float64],
    characters: Sequence[int] | npt.NDArray[np.uint32],
    min_seconds: float,
    max_seconds: float,
) -> tuple[npt.NDArray[np.bool_], Counter[str]]:
    """Which of N utterances can be trained on, (N,), and how many cannot for which reason.

    `characters` are those of their texts without white space around them. Every utterance is accounted for:
    kept.sum() + rejected.total() == N.
    """
    long, short = np.greater(seconds, max_seconds), np.less(seconds, min_seconds)
    empty = ~long & ~short & np.equal(characters, 0)
    reasons = {f"longer than {max_seconds:g} s": long, f"shorter than {min_seconds:g} s": short}
    counts = {reason: int(which.sum()) for reason, which in {**reasons, "without text": empty}.items()}
    return ~(long | short | empty), +Counter(counts)


def describe(kept: int, rejected: Mapping[str, int]) -> str:
    """ "1,900 utterances kept; left out: 3 longer than 20 s" """
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items()))
    return f"{kept:,} utterances kept" + (f"; left out: {reasons}" if reasons else "")


def fingerprint(utterances: Sequence[Utterance]) -> str:
    """sha256 over what the utterances say and which files they point to.

    Files count by name, size and time of change: hashing the audio itself would read a whole
    corpus at every start. Independent of where the corpus lies only by its audio path.
    """
    digest = hashlib.sha256()
    for utterance in utterances:
        status = os.stat(utterance.audio)
        file = [str(utterance.audio.resolve()), status.st_size, status.st_mtime_ns]
        said = [utterance.text, utterance.duration, utterance.offset, utterance.speaker]
        digest.update(json.dumps([utterance.id, *file, *said]).encode())
    return digest.hexdigest()


class _LineError(ValueError):
    """A line cannot be used, for a reason that many lines can share."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _parse(line: str, root: AllowedRoot) -> Utterance:
    try:
        record = parse_object(line)
    except ValueError as error:
        raise _LineError("not JSON", str(error)) from None
    name = string_field(record, "audio", required=True)
    text = string_field(record, "text", required=True)
    assert name is not None
    assert text is not None
    offset = seconds_field(record, "offset")
    duration = seconds_field(record, "duration")
    speaker = string_field(record, "speaker")
    identity = string_field(record, "id") or default_id(name, offset or 0.0)
    audio = root.find(name)
    try:
        fields.refuse_in_manifest(record, lambda: _channels(audio))
    except ValueError as error:
        raise _LineError("field not read", str(error)) from None
    try:
        length = audio_length(audio)
    except ValueError as error:
        raise _LineError("audio unreadable", str(error)) from None
    if length == 0:
        raise _LineError("audio empty", f"the audio file {audio} holds no samples; take the line out")
    whole_file = "offset" not in record
    duration = _checked_duration(offset or 0.0, duration, audio, length, whole_file)
    extra = {key: value for key, value in record.items() if key not in fields.OURS}
    return Utterance(identity, audio, text, duration, offset or 0.0, speaker, extra, whole_file)


def _checked_duration(
    offset: float, duration: float | None, audio: Path, length: float, whole_file: bool
) -> float:
    """Seconds of the utterance in a file of `length` seconds. Raises ValueError where the line and the file
    contradict each other."""
    if offset >= length:
        raise _LineError(
            "segment outside", f"offset {offset:g} s lies behind the end of {audio} ({length:g} s)"
        )
    if duration is None:
        return length - offset
    if whole_file:
        if abs(duration - length) > TOLERANCE + 0.01 * length:
            raise _LineError(
                "duration wrong",
                f"the field duration says {duration:g} s, and {audio} holds {length:.2f} s; correct or"
                " delete the field, or add offset where only a part of the file is meant",
            )
        return length  # the line's may be rounded
    if offset + duration > length + TOLERANCE:
        raise _LineError(
            "segment outside",
            f"the segment ends at {offset + duration:g} s, behind the end of {audio} ({length:g} s)",
        )
    if duration <= 0:
        raise ValueError("duration must be above 0 s")
    return duration


def _instead(record: Mapping[str, Any], key: str) -> str:
    """What a record has in place of a field of ours."""
    other = next((name for name in record if fields.meaning(name) == key), None)
    there = ", ".join(map(str, list(record)[:12]))
    return (
        f"; {other} is what other projects call it: write {key}, or have asrlora manifest import convert"
        " the file"
        if other
        else f"; the fields are {there}"
        if record
        else ""
    )


def _channels(audio: Path) -> int:
    try:
        return decode.shape(audio)[0]
    except AudioError as error:
        raise ValueError(f"the audio file {audio} cannot be read: it {error}") from None


def _to_record(utterance: Utterance, root: str) -> dict[str, Any]:
    audio = Path(os.path.realpath(utterance.audio))
    inside = audio.is_relative_to(root)
    record: dict[str, Any] = {
        "id": utterance.id,
        "audio": audio.relative_to(root).as_posix() if inside else str(audio),
        "text": utterance.text,
        "duration": round(utterance.duration, 6),
    }
    if not utterance.whole_file:
        record["offset"] = utterance.offset
    if utterance.speaker is not None:
        record["speaker"] = utterance.speaker
    return {**record, **utterance.extra}
