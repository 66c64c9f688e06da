"""Hypotheses that somebody else's system has written, by the ids of the manifest that was transcribed."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrlora.data.importers import fields, tables
from asrlora.data.importers.readers import objects
from asrlora.data.manifest import Utterance, string_field
from asrlora.data.shards.foreign import foreign_shards
from asrlora.errors import UserError

# Where a line holds several, the first of these is the hypothesis: in NeMo's files `text` is the
# reference beside `pred_text`, and in ours `hypothesis` is already normalised.
FIELDS = "hypothesis_raw pred_text predicted_text prediction pred hypothesis hyp".split()
PLAIN = ("text", "transcription", "transcript", "sentence")  # where none of these is there; may be references
SAME_OFFSET = 0.005  # seconds


def read_hypotheses(path: Path, utterances: Sequence[Utterance], folder: Path) -> tuple[dict[str, str], str]:
    """Hypotheses by id, and the name of the field that they were taken from.

    A line without id, such as NeMo's, is found by its audio, offset and duration: paths start from the file's
    own folder or from `folder`, the manifest's. Raises UserError that names the line.
    """
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    field = None
    by_audio = _ByAudio(utterances, (path.parent, folder, Path()))
    for place, record in _records(path):
        try:
            field = field or _field(record)
            text = string_field(record, field, required=True)
            given = next((name for name in record if fields.meaning(name) == "id"), None)
            identity = string_field({"id": record[given]}, "id") if given else None
            if identity is None:
                identity = by_audio.find(record)
        except ValueError as error:
            raise UserError(f"--hypotheses {place}: {error}") from None
        assert text is not None
        if identity in texts:
            what = f"the id {identity!r}" if given else f"the audio of {identity!r}"
            raise UserError(
                f"--hypotheses {place}: {what} was there before ({places[identity]}); give every utterance"
                " one line"
            )
        texts[identity], places[identity] = text, place
    if field is None:
        raise UserError(f"--hypotheses {path}: holds no line")
    return texts, field


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, record): JSON, or a table with names in line 1."""
    if foreign := foreign_shards(path):
        raise UserError(f"--hypotheses {foreign}")
    if path.exists() and not path.is_file():
        raise UserError(f"--hypotheses {path}: is not a regular file")
    if path.suffix.lower() not in (".csv", ".tsv"):
        yield from objects(path)
        return

    def known(names: Sequence[str]) -> int:
        meanings = {fields.meaning(name) for name in names}
        folded = {fields.fold(name) for name in (*FIELDS, *PLAIN)}
        return int(bool({"id", "audio"} & meanings) and any(fields.fold(name) in folded for name in names))

    table = tables.find_table(path, known)
    if not known(table.names):
        raise UserError(
            f"--hypotheses {path}, line 1: must name a column id and one of {', '.join((*FIELDS, *PLAIN))};"
            f" it holds {', '.join(map(repr, table.names)) or 'nothing'}, split at {table.split_at}"
        )
    for place, cells in table.records():
        yield place, {**dict.fromkeys(filter(None, table.names), ""), **cells}


def _field(record: Mapping[str, Any]) -> str:
    """The field that holds the hypothesis. Raises ValueError where there is none, or which is not clear."""
    names = {fields.fold(name): name for name in record}
    for wanted in FIELDS:
        if fields.fold(wanted) in names:
            return names[fields.fold(wanted)]
    plain = [names[name] for name in PLAIN if name in names]
    if not plain:
        raise ValueError(
            f"holds no hypothesis; write one of the fields {', '.join((*FIELDS, *PLAIN))}; there are"
            f" {', '.join(record)}"
        )
    if len(plain) > 1:
        raise ValueError(f"{' and '.join(plain)}: which is the hypothesis is not clear; call it hypothesis")
    return plain[0]


class _ByAudio:
    """Utterances by the file that they are in."""

    def __init__(self, utterances: Sequence[Utterance], folders: Sequence[Path]) -> None:
        self.folders = list(dict.fromkeys(map(os.path.realpath, folders)))
        self.utterances: dict[str, list[Utterance]] = defaultdict(list)
        self._listed = utterances

    def find(self, record: Mapping[str, Any]) -> str:
        """The id of the one utterance that a record without id is about. Raises ValueError."""
        if not self.utterances:
            for utterance in self._listed:
                self.utterances[os.path.realpath(utterance.audio)].append(utterance)
        name = next((n for n in record if fields.meaning(n) == "audio" and isinstance(record[n], str)), None)
        if not name or not record[name]:
            raise ValueError(
                "the field id is missing, and there is no audio to find the utterance by; the fields are"
                f" {', '.join(record)}"
            )
        audio = record[name]
        paths = list(dict.fromkeys(os.path.realpath(os.path.join(folder, audio)) for folder in self.folders))
        there = [path for path in paths if path in self.utterances]
        if len(there) != 1:
            raise ValueError(
                f"the field id is missing, and {name} is {audio!r}, which"
                + (
                    f" may be {there[0]} or {there[1]}; write the whole path, or the id"
                    if there
                    else f" is the audio of no utterance in the manifest (looked for {' and '.join(paths)});"
                    " write the id that the manifest has"
                )
            )
        times = fields.read_times({key: v for key, v in record.items() if v is not None and v != ""})
        if any(time.unit == "samples" for time in times):
            raise ValueError("the field id is missing, and times in samples find no utterance; write the id")
        offset, duration = fields.segment(times, 1)
        found = [u for u in self.utterances[there[0]] if abs(u.offset - (offset or 0.0)) <= SAME_OFFSET]
        if duration is not None:
            found = [u for u in found if abs(u.duration - duration) <= fields.SAME + 0.01 * duration]
        if len(found) != 1:
            ids = ", ".join(repr(u.id) for u in self.utterances[there[0]][:5])
            at = f"{offset or 0.0:g} s" + ("" if duration is None else f" that lasts {duration:g} s")
            raise ValueError(
                f"the field id is missing, and {len(found)} utterances of the manifest are in {audio!r}"
                f" from {at}; write the id, such as {ids}"
            )
        return found[0].id
