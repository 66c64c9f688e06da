"""Lhotse's cuts and supervisions in our terms. https://lhotse.readthedocs.io/en/latest/cuts.html

A supervision's `start` counts from the beginning of its cut, a cut's from that of its recording; a
supervision outside a cut counts from that of its recording.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asrlora.data.importers.fields import Record, Time
from asrlora.data.importers.fields import understand as understand_fields

Objects = Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]


def is_supervision(record: Mapping[str, Any]) -> bool:
    """Whether it is a supervision outside a cut, which names its recording."""
    return "recording_id" in record and {"start", "duration"} <= record.keys() and "recording" not in record


def read_recordings(supervisions: Path, objects: Objects) -> dict[str, dict[str, Any]]:
    """id -> recording, of the file beside the supervisions that has `recordings` in its name.

    Raises ValueError where there is none.
    """
    path = supervisions.with_name(supervisions.name.replace("supervisions", "recordings"))
    if path == supervisions or not path.is_file():
        looked = path if path != supervisions else "a file of that name with supervisions for recordings"
        raise ValueError(
            f"a supervision names its recording by recording_id, and there is no {looked}; put it beside,"
            " or write cuts: lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS"
        )
    return {str(recording.get("id")): recording for _, recording in objects(path)}


def understand(
    record: Mapping[str, Any], recordings: Mapping[str, dict[str, Any]] | None
) -> list[Record] | None:
    """The utterances of a cut, one a supervision, or the one of a supervision; None: it is neither.

    Raises ValueError where it cannot be read as it is meant.
    """
    if is_supervision(record):
        recording = (recordings or {}).get(str(record["recording_id"]))
        if recording is None:
            raise ValueError(f"the recording {record['recording_id']!r} is not among the recordings")
        return [_utterance(record, recording, 0.0, None)]
    kind = record.get("type")
    if "supervisions" not in record and kind not in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut"):
        if "sources" in record:
            raise ValueError("is a recording of Lhotse's, without text; import the supervisions or cuts")
        return None
    if kind in ("MixedCut", "PaddingCut") or "tracks" in record:
        raise ValueError(
            f"is a {kind}, whose audio is mixed when it is read; save it to files: cuts.save_audios(DIR)"
        )
    recording = record.get("recording")
    if not isinstance(recording, dict):
        raise ValueError("is a cut without recording (features only), and audio is needed")
    supervisions = record.get("supervisions")
    if not isinstance(supervisions, list) or not all(isinstance(one, dict) for one in supervisions):
        raise ValueError("is a cut whose supervisions are no list of objects")
    start = _seconds(record, "start")
    read = [_utterance(one, recording, start, record.get("channel")) for one in supervisions]
    if not read:
        return [Record(id=str(record.get("id")), audio=_source(recording, record.get("channel"))[0])]
    return read


def _utterance(
    supervision: Mapping[str, Any], recording: Mapping[str, Any], start: float, channel: Any
) -> Record:
    own = supervision.get("channel", channel)
    path, channels = _source(recording, own)
    custom = supervision.get("custom") or {}
    said = {name: supervision.get(name) for name in ("id", "text", "speaker", "language")}
    further = {f"custom_{k}": v for k, v in custom.items()} if isinstance(custom, dict) else {}
    read = understand_fields({**said, "audio": path, **further})
    offset = round(start + _seconds(supervision, "start"), 6)
    if offset < 0:
        raise ValueError(f"the supervision {read.id!r} starts before its recording, at {offset:g} s")
    times = (Time("start", "start", offset), Time("duration", "duration", _seconds(supervision, "duration")))
    extra = {name: value for name, value in read.extra.items() if value is not None}
    names = {"audio": "recording", "offset": "start"}
    return Record(
        path, read.text, read.id, read.speaker, times, channels, None, read.language, None, names, extra
    )


def _source(recording: Mapping[str, Any], wanted: Any) -> tuple[str, tuple[int, ...] | None]:
    """The file that holds the wanted channels, and which of its own they are; None: all of them."""
    name = recording.get("id")
    if recording.get("transforms"):
        raise ValueError(
            f"the recording {name!r} has transforms (speed, volume, …), which are not applied; save it to"
            " files: cuts.save_audios(DIR)"
        )
    channels = [wanted] if isinstance(wanted, int) else wanted
    for source in recording.get("sources") or ():
        there = source.get("channels") or [0]
        if channels is None or set(channels) <= set(there):
            if source.get("type") != "file":
                raise ValueError(
                    f"the recording {name!r} is a {source.get('type')} ({str(source.get('source'))[:60]}),"
                    " and only files are read, nothing is run or fetched; save it to a file"
                )
            among = tuple(there.index(c) for c in channels or there)
            return str(source["source"]), among if len(there) > 1 else None
    raise ValueError(f"the recording {name!r} has no source with channel {wanted}")


def _seconds(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the field {key} must be seconds, not {str(value)[:60]}")
    return float(value)
