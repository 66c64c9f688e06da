"""Kaldi's data folders. https://kaldi-asr.org/doc/data_prep.html"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from asrlora.data.importers import fields
from asrlora.data.importers.fields import Record, Time, understand
from asrlora.data.importers.source import Found, Source
from asrlora.data.importers.tables import numbered_lines
from asrlora.errors import UserError


def read_kaldi(source: Source) -> Iterator[Found]:
    """A data folder: wav.scp, text, and where they are there segments, utt2spk, utt2lang and
    reco2file_and_channel. Commands ("sox … |") are refused, never run.
    """
    folder = Path(source.place)

    def table(name: str, optional: bool = True) -> dict[str, tuple[str, str]]:
        """A file of the folder, empty where it is optional and missing."""
        there = not optional or (folder / name).exists()
        return _kaldi_table(source.inside(folder / name)) if there else {}

    recordings = table("wav.scp", optional=False)
    for where, path in recordings.values():
        if path.endswith("|") or path.startswith("|"):
            raise UserError(
                f"{where}: {path[:60]!r} is a command, and none is run; write its output to an audio file"
                " and name that instead"
            )
        if re.search(r"\.ark:\d+$", path):
            raise UserError(
                f"{where}: {path[:60]!r} is a place in an archive, which is not read; copy the audio to"
                " files and name those instead"
            )
    texts, speakers, languages = table("text", optional=False), table("utt2spk"), table("utt2lang")
    channels = table("reco2file_and_channel")
    cut = (folder / "segments").exists()
    segments = table("segments")
    for identity, (where, line) in (segments if cut else recordings).items():
        recording, times = _kaldi_segment(where, line) if cut else (identity, ())
        found: dict[str, Any] = {"id": identity, "text": texts.get(identity, ("", None))[1]}
        found["speaker"], found["language"] = (
            t[identity][1] if identity in t else None for t in (speakers, languages)
        )
        if recording in channels:
            found["channel"] = channels[recording][1].split()[-1:] or None
        try:
            read = understand(found)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        extra = {name: value for name, value in read.extra.items() if value is not None}
        audio = recordings[recording][1] if recording in recordings else None
        yield Found(where, replace(read, audio=audio, times=times, names={}, extra=extra))
    for identity, (where, text) in texts.items():
        if identity not in (segments if cut else recordings):
            yield Found(where, Record(text=text, id=identity))


def _kaldi_table(path: Path) -> dict[str, tuple[str, str]]:
    """key -> (file and line, rest of the line)"""
    table: dict[str, tuple[str, str]] = {}
    for where, line in numbered_lines(path):
        key, *rest = line.strip().split(maxsplit=1) or [""]
        if not key:
            continue
        if key in table:
            raise UserError(f"{where}: {key!r} stands there twice; ids must differ")
        table[key] = where, "".join(rest)
    return table


def _kaldi_segment(where: str, line: str) -> tuple[str, tuple[Time, ...]]:
    """RECORDING START END, in seconds; an END of -1 is the end of the file."""
    try:
        recording, start, end = line.split()
        first = Time("START", "start", float(start))
        times = (first,) if float(end) == -1 else (first, Time("END", "end", float(end)))
        if not all(0 <= time.value < float("inf") for time in times):
            raise ValueError
        fields.segment(times, 1)
    except ValueError:
        raise UserError(f"{where}: must be UTTERANCE RECORDING START END, with times in seconds") from None
    return recording, times
