"""Hypotheses that somebody else's system has written, by the ids of the manifest that was transcribed."""

import functools
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
NO_ID = "the field id is missing, and"


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
    """Finds the utterance of a record that has no id."""

    def __init__(self, utterances: Sequence[Utterance], folders: Sequence[Path]) -> None:
        self.utterances = utterances
        self.folders = list(dict.fromkeys(map(os.path.realpath, folders)))

    @functools.cached_property
    def by_file(self) -> dict[str, list[Utterance]]:
        """Utterances by the real path of their file: looked up only where an id is missing."""
        found = defaultdict(list)
        for utterance in self.utterances:
            found[os.path.realpath(utterance.audio)].append(utterance)
        return found

    def find(self, record: Mapping[str, Any]) -> str:
        """The id of the one utterance at the record's place in its audio. Raises ValueError."""
        audio, utterances = self._in_file(record)
        times = fields.read_times({key: v for key, v in record.items() if v is not None and v != ""})
        if any(time.unit == "samples" for time in times):
            raise ValueError(f"{NO_ID} times in samples find no utterance; write the id")
        offset, duration = fields.segment(times, 1)
        found = [u for u in utterances if abs(u.offset - (offset or 0.0)) <= SAME_OFFSET]
        if duration is not None:
            found = [u for u in found if abs(u.duration - duration) <= fields.SAME + 0.01 * duration]
        if len(found) != 1:
            ids = ", ".join(repr(u.id) for u in utterances[:5])
            at = f"{offset or 0.0:g} s" + ("" if duration is None else f" that lasts {duration:g} s")
            raise ValueError(
                f"{NO_ID} {len(found)} utterances of the manifest are in {audio!r} from {at}; write the id,"
                f" such as {ids}"
            )
        return found[0].id

    def _in_file(self, record: Mapping[str, Any]) -> tuple[str, list[Utterance]]:
        """The audio that a record names, and the utterances in it."""
        name = next((n for n in record if fields.meaning(n) == "audio" and isinstance(record[n], str)), None)
        if not name or not record[name]:
            raise ValueError(
                f"{NO_ID} there is no audio to find the utterance by; the fields are {', '.join(record)}"
            )
        audio = record[name]
        paths = list(dict.fromkeys(os.path.realpath(os.path.join(folder, audio)) for folder in self.folders))
        known = [path for path in paths if path in self.by_file]
        if len(known) > 1:
            raise ValueError(
                f"{NO_ID} {name} is {audio!r}, which may be {known[0]} or {known[1]}; write the whole path,"
                " or the id"
            )
        if not known:
            raise ValueError(
                f"{NO_ID} {name} is {audio!r}, which is the audio of no utterance in the manifest (looked for"
                f" {' and '.join(paths)}); write the id that the manifest has"
            )
        return audio, self.by_file[known[0]]
