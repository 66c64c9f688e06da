"""What `asrlora transcribe` finds, and how it is written: JSON lines and subtitles. Needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asrlora.score.metric import join


@dataclass(frozen=True)
class Segment:
    """A part of a recording and its text. Times are in seconds from the beginning of the file."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What is said in an audio file."""

    path: Path
    seconds: float
    segments: Sequence[Segment]  # one, unless the recording is longer than the model takes at once
    note: str = ""  # how a long recording was cut: see windows.describe

    @property
    def text(self) -> str:
        """Of all segments."""
        return join([segment.text for segment in self.segments])


def to_json(transcript: Transcript) -> str:
    """One line: {"audio", "duration", "text", "segments": [{"start", "end", "text"}]}."""
    record = {
        "audio": str(transcript.path),
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": [
            {"start": round(one.start, 3), "end": round(one.end, 3), "text": one.text}
            for one in transcript.segments
        ],
    }
    return json.dumps(record, ensure_ascii=False)


def subtitles(transcript: Transcript, form: str) -> str:
    """SubRip for `srt`, WebVTT for `vtt`: a cue a segment that has text."""
    mark = "," if form == "srt" else "."
    text = "" if form == "srt" else "WEBVTT\n\n"
    spoken = [segment for segment in transcript.segments if segment.text]
    for number, segment in enumerate(spoken, 1):
        text += f"{number}\n" if form == "srt" else ""
        text += f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}\n{segment.text}\n\n"
    return text


def _clock(seconds: float, mark: str) -> str:
    """ "01:02:03,004" """
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
