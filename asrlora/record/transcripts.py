"""What `asrlora transcribe` writes with times: JSON lines and subtitles. Needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Segment(Protocol):
    """Times are in seconds from the beginning of the file."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def text(self) -> str: ...


class Transcript(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def seconds(self) -> float: ...
    @property
    def text(self) -> str: ...
    @property
    def segments(self) -> Sequence[Segment]: ...


def to_json(found: Transcript) -> str:
    """One line: {"audio", "duration", "text", "segments": [{"start", "end", "text"}]}."""
    segments = [{"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text} for s in found.segments]
    record = {
        "audio": str(found.path), "duration": round(found.seconds, 3), "text": found.text,
        "segments": segments,
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False)


def subtitles(found: Transcript, form: str) -> str:
    """SubRip for `srt`, WebVTT for `vtt`: a cue a segment that has text."""
    mark = "," if form == "srt" else "."
    text = "" if form == "srt" else "WEBVTT\n\n"
    said = [segment for segment in found.segments if segment.text]
    for number, segment in enumerate(said, 1):
        text += f"{number}\n" if form == "srt" else ""
        text += f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}\n{segment.text}\n\n"
    return text


def _clock(seconds: float, mark: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
