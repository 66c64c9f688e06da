"""Manifests: JSON lines, one utterance a line, checked and counted. Needs no torch.

A line: `{"id", "audio", "text", "duration", "offset", "speaker"}`; `audio` and `text` are required.
`audio` is a path, absolute or relative to the manifest's folder; times are in seconds.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import soundfile

from asrlora.errors import UserError


@dataclass(frozen=True)
class Utterance:
    id: str
    audio: Path
    text: str
    duration: float  # seconds
    offset: float = 0.0  # seconds into the file
    speaker: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # further keys, kept
    whole_file: bool = True  # no segment was asked for: read to the end of the file


@dataclass(frozen=True)
class BadLine:
    """What is wrong with a line that holds no utterance."""

    reason: str  # a few words, the same for every line with this fault
    message: str  # names the fault of this line and the mend


class _LineError(ValueError):
    """A line cannot be used, for a reason that many lines can share."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_manifest(path: Path) -> list[Utterance]:
    """Reads and checks every line; looks at every audio file's header, decodes none.

    Raises UserError that names the first bad line and the mend.
    """
    utterances = []
    for number, read in read_lines(path):
        if isinstance(read, BadLine):
            raise UserError(f"manifest {path}, line {number}: {read.message}")
        utterances.append(read)
    return utterances


def read_lines(path: Path) -> Iterator[tuple[int, Utterance | BadLine]]:
    """Yields the number of every line that is not blank, with its utterance or what is wrong.

    Raises UserError where the file as a whole is no manifest.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"manifest {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"manifest {path}: is not UTF-8 text; is it really a manifest?") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"manifest {path}: holds no utterance")
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            utterance = _parse(line, path.parent)
        except _LineError as error:
            yield number, BadLine(error.reason, str(error))
            continue
        except ValueError as error:
            yield number, BadLine("field wrong", str(error))
            continue
        if utterance.id in line_of_id:
            taken = f"the id {utterance.id!r} is taken by line {line_of_id[utterance.id]}; ids must differ"
            yield number, BadLine("id taken", taken)
            continue
        line_of_id[utterance.id] = number
        yield number, utterance


def _parse(line: str, folder: Path) -> Utterance:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _LineError("not JSON", f"not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise _LineError("not JSON", 'not a JSON object such as {"audio": "a.wav", "text": "hello"}')
    name = _string(record, "audio", required=True)
    text = _string(record, "text", required=True)
    assert name is not None
    assert text is not None
    offset = _seconds(record, "offset") or 0.0
    duration = _seconds(record, "duration")
    speaker = _string(record, "speaker")
    given = _string(record, "id")
    identity = given or hashlib.sha256(f"{name}@{offset}".encode()).hexdigest()[:16]
    audio = folder / name
    whole_file = "offset" not in record
    if not audio.is_file():
        raise _LineError("audio missing", f"the audio file {audio} does not exist; mend the field audio")
    length = _length(audio)
    if length == 0:
        raise _LineError("audio empty", f"the audio file {audio} holds no samples; take the line out")
    if offset >= length:
        raise _LineError(
            "segment outside", f"offset {offset:g} s lies behind the end of {audio} ({length:g} s)"
        )
    if whole_file or duration is None:
        duration = length - offset  # the file's own length; a rounded copy in the line adds nothing
    elif offset + duration > length + 0.1:
        raise _LineError(
            "segment outside",
            f"the segment ends at {offset + duration:g} s, behind the end of {audio} ({length:g} s)",
        )
    if duration <= 0:
        raise ValueError("duration must be above 0 s")
    known = {"id", "audio", "text", "duration", "offset", "speaker"}
    extra = {key: value for key, value in record.items() if key not in known}
    return Utterance(identity, audio, text, duration, offset, speaker, extra, whole_file)


def _string(record: dict[str, Any], key: str, required: bool = False) -> str | None:
    value = record.get(key)
    if value is None and not required:
        return None
    if value is None:
        raise ValueError(f"the field {key} is missing")
    if isinstance(value, int) and not isinstance(value, bool) and key in ("id", "speaker"):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the field {key} must be a string, not {json.dumps(value)[:60]}")
    if key in ("audio", "id") and not value:
        raise ValueError(f"the field {key} is empty")
    return value


def _seconds(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the field {key} must be seconds, not {json.dumps(value)[:60]}")
    return float(value)


def _length(audio: Path) -> float:
    try:
        info = soundfile.info(audio)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _LineError("audio unreadable", f"the audio file {audio} cannot be read ({error})") from None
    return float(info.frames / info.samplerate)


class Trainable(Protocol):
    """An utterance of a manifest or a sample of a shard."""

    @property
    def text(self) -> str: ...
    @property
    def duration(self) -> float: ...


Item = TypeVar("Item", bound=Trainable)


def filter_for_training(
    items: Sequence[Item], min_seconds: float, max_seconds: float
) -> tuple[list[Item], Counter[str]]:
    """What can be trained on, and how many were left out for which reason.

    Every item is accounted for: len(kept) + rejected.total() == len(items).
    """
    kept: list[Item] = []
    rejected: Counter[str] = Counter()
    for item in items:
        if item.duration > max_seconds:
            rejected[f"longer than {max_seconds:g} s"] += 1
        elif item.duration < min_seconds:
            rejected[f"shorter than {min_seconds:g} s"] += 1
        elif not item.text.strip():
            rejected["without text"] += 1
        else:
            kept.append(item)
    return kept, rejected


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
        stat = os.stat(utterance.audio)
        digest.update(
            json.dumps([
                utterance.id, str(utterance.audio.resolve()), stat.st_size, stat.st_mtime_ns,
                utterance.text, utterance.duration, utterance.offset, utterance.speaker,
            ]).encode()
        )  # fmt: skip
    return digest.hexdigest()
