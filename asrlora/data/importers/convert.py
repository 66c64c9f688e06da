"""Other projects' data to a manifest. Needs no torch; runs nothing and opens nothing it should not.

`readers` turns a source into records in our terms (`fields`). What a record is worth is decided in one place,
`_judge`, for all formats: each becomes an utterance or is counted under the reason why not.
"""

import gzip
import os
import pkgutil
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from asrlora.data import manifest, subsets
from asrlora.data.decoding import decode
from asrlora.data.importers import READERS, fields
from asrlora.data.importers.readers import encode, is_table
from asrlora.data.importers.source import METADATA, SUFFIXES, Found, LeftOut, Source
from asrlora.data.manifest import AllowedRoot, MissingFileError, OutsideRootError, Utterance
from asrlora.data.shards.foreign import foreign_shards
from asrlora.errors import UserError
from asrlora.storage import write_atomic

DOMAIN_SAMPLES = 500  # utterances; fewer make a WER a matter of luck
CLIPS = ("clips/", "wavs/")  # where Common Voice and LJ Speech keep what they name without a folder
UNIT = "; times are in seconds where the field's name does not say ms or samples"
NOT_READ = {  # by suffix: what to do with files that hold no table and no JSON lines
    ".xlsx .xls .ods": "save the sheet as CSV UTF-8 and import that",
    ".parquet .arrow": "import the data set by name (hf:NAME:CONFIG:SPLIT), or write it as JSON lines and"
    " files",
    ".zip .7z .rar": "unpack it and import the folder",
    ".srt .vtt .textgrid .eaf .ctm .stm .trs": "write a table with the columns audio, start, end and text",
}


@dataclass(frozen=True)
class Imported:
    """len(utterances) + sum(left_out) == total"""

    format: str
    total: int
    utterances: list[Utterance]
    left_out: Mapping[str, int]
    outside: int  # of the utterances, how many have their audio outside the manifest's folder
    notes: list[str] = field(default_factory=list)  # how fields were read, and examples of what was left out


@dataclass
class _Tally:
    """What was seen of all records, for the notes."""

    names: dict[str, set[str]] = field(default_factory=dict)  # our field -> what it was read from
    kept: set[str] = field(default_factory=set)  # further keys
    splits: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first record of it
    counts: Counter[str] = field(default_factory=Counter)  # what was done to how many

    def see(self, found: Found) -> None:
        """Counts what a record is like, whatever becomes of it."""
        for ours, name in found.record.names.items():
            self.names.setdefault(ours, set()).add(name)
        self.kept |= found.record.extra.keys()
        if found.record.split is not None:
            self.splits[found.record.split] += 1
        if found.record.language is not None:
            self.languages[fields.language_code(found.record.language)] += 1

    def notes(self) -> list[str]:
        """What to report when the import is done."""
        read = [f"{ours} from {' and '.join(sorted(n))}" for ours, n in self.names.items() if n != {ours}]
        kept = f"kept as they are: {', '.join(sorted(self.kept)[:20])}" if self.kept else ""
        notes = [f"fields: {'; '.join(filter(None, [', '.join(read), kept]))}"] if read else []
        notes += [f"left out, for example: {example}" for example in self.examples.values()]
        if len(self.languages) > 1:
            notes.append(f"several languages: {_counted(self.languages)}; --language of a run is one")
        return notes + [f"{count:,} {what}" for what, count in self.counts.items()]


def import_source(
    source: str,
    output: Path,
    *,
    form: str | None = None,
    samples: int | None = None,
    seed: int = 42,
    allow_outside: bool = False,
    audio_root: Path | None = None,
    split: str | None = None,
    text_field: str | None = None,
) -> Imported:
    """Writes the manifest `output`, and sounds that the source holds to the folder OUTPUT-audio beside it.

    Neither may exist. `form` is a key of READERS; None: found out by looking. `audio_root` is the folder that
    relative paths start from, else that of the source; `split` is the value of a field split to keep.
    """
    sounds = output.parent / f"{output.stem}-audio"
    for path in (output, sounds):
        manifest.check_new(path)
    form = form or recognise(source)
    if form in ("jsonl", "table") and Path(source).is_dir():
        source = str(_metadata(Path(source)) or source)
    place = Path(source)
    folder = place if place.is_dir() else place.parent
    if audio_root is not None and not audio_root.is_dir():
        raise UserError(f"--audio-root {audio_root}: is no folder")
    root = AllowedRoot(audio_root or folder, allow_outside)
    reading = Source(source, AllowedRoot(folder, allow_outside), text_field)
    aside = output.parent / f".{sounds.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed
    try:
        reader = pkgutil.resolve_name(f"asrlora.data.importers.{READERS[form]}")
        read = _collect(reader(reading), root, aside, place.stem, split)
        if split is None and len(read.tally.splits) > 1:
            raise UserError(
                f"{source}: the field {' or '.join(sorted(read.tally.names['split']))} has the values"
                f" {_counted(read.tally.splits)}; choose one with --split NAME, or take the field out"
            )
        if not read.utterances:
            kept = manifest.describe(0, read.left_out)
            examples = read.tally.examples.values()
            raise UserError("; ".join([f"{source} ({form}): {read.total} records", kept, *examples]))
        chosen = list(read.utterances.values())
        if samples is not None:
            chosen = subsets.sample(chosen, samples, seed)
            read.left_out["not drawn"] = len(read.utterances) - len(chosen)
        chosen = _publish(aside, sounds, chosen)
        outside = manifest.write_manifest(output, chosen)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Imported(form, read.total, chosen, +read.left_out, outside, read.tally.notes())


@dataclass
class _Collected:
    """What the records of a source have become. len(utterances) + sum(left_out) == total"""

    total: int = 0
    utterances: dict[str, Utterance] = field(default_factory=dict)  # by id
    left_out: Counter[str] = field(default_factory=Counter)
    tally: _Tally = field(default_factory=_Tally)


def _collect(
    records: Iterable[Found], root: AllowedRoot, aside: Path, source: str, split: str | None
) -> _Collected:
    """Judges every record. Raises UserError where two have one id."""
    read = _Collected()
    places: dict[str, str] = {}
    for number, found in enumerate(records, 1):
        read.total = number
        read.tally.see(found)
        try:
            if split is not None and found.record.split != split:
                raise LeftOut("of other splits")
            utterance = _judge(found, root, aside / f"{number:06d}", source, read.tally)
        except LeftOut as left:
            read.left_out[left.reason] += 1
            if left.detail:
                read.tally.examples.setdefault(left.reason, f"{found.where}: {left.detail}")
            continue
        if found.record.id is None:
            utterance = _with_free_id(utterance, read.utterances)
        if utterance.id in read.utterances:
            raise UserError(_taken(found, utterance, places[utterance.id]))
        read.utterances[utterance.id], places[utterance.id] = utterance, found.where
    return read


def _publish(aside: Path, sounds: Path, chosen: list[Utterance]) -> list[Utterance]:
    """Gives the folder of sounds that the source held its name, without those that were not chosen."""
    if not aside.exists():
        return chosen
    kept = {utterance.audio.name for utterance in chosen}
    for path in aside.iterdir():
        if path.name not in kept:
            path.unlink()
    aside.rename(sounds)
    return [replace(u, audio=sounds / u.audio.name) if u.audio.parent == aside else u for u in chosen]


def recognise(source: str) -> str:
    """The format of a source, by its name and what lies there. Raises UserError where it is none."""
    place = Path(source)
    if source.startswith("hf:"):
        return "hf"
    if foreign := foreign_shards(source):
        raise UserError(foreign)
    if place.is_dir():
        return _recognise_folder(place)
    if not place.is_file():
        raise UserError(f"{source} is neither a file nor a folder, nor hf:NAME:CONFIG:SPLIT")
    with open(place, "rb") as raw:
        head = raw.read(4096)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(place) as packed:
                head = packed.read(4096)
        except (OSError, EOFError) as error:
            raise UserError(f"{source}: cannot be unpacked ({error})") from None
    suffix = Path(place.name.removesuffix(".gz")).suffix.lower()
    if suffix not in (".csv", ".tsv") and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return "jsonl"
    for suffixes, advice in NOT_READ.items():
        if suffix in suffixes.split():
            raise UserError(f"{source}: {suffix} files are not read; {advice}")
    if suffix in SUFFIXES:
        raise UserError(f"{source}: is audio; import the folder that holds it, with a .txt beside each file")
    if suffix in (".csv", ".tsv") or is_table(place):
        return "table"
    raise UserError(f"{source}: neither JSON lines nor .csv nor .tsv; name what it is with --format")


def _recognise_folder(place: Path) -> str:
    if (place / "shards.json").exists():
        raise UserError(f"{place}: holds shards that asrlora built; give the folder to --dataset-path")
    if (place / "wav.scp").exists():
        return "kaldi"
    if metadata := _metadata(place):
        return "jsonl" if metadata.suffix == ".jsonl" else "table"
    if next(place.rglob("*.trans.txt"), None):
        return "librispeech"
    tables = [
        path.name for path in sorted(place.iterdir()) if path.suffix in (".tsv", ".csv", ".jsonl", ".json")
    ]
    if tables and not next(place.rglob("*.txt"), None):
        raise UserError(
            f"{place}: holds no .txt beside audio, but {', '.join(tables[:8])}; import one of these"
        )
    return "folder"


def _metadata(folder: Path) -> Path | None:
    """The file that describes all audio of a folder, as Hugging Face and LJ Speech have it."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _judge(found: Found, root: AllowedRoot, aside: Path, source: str, tally: _Tally) -> Utterance:
    """The utterance of a record. Raises LeftOut; and UserError where its audio lies outside the source, or
    its fields contradict each other or the audio.

    A sound that the record holds, or a channel of a file, is written to `aside` plus suffix.
    """
    record, sound = found.record, found.sound
    if not record.text or not record.text.strip():
        raise LeftOut("without text")
    if sound is not None:
        length, suffix = _look_into(sound)
        audio, default = aside.with_suffix(suffix), f"{source}-{aside.name}"
    elif record.audio:
        name, audio, length = _find(found, root, tally)
        default = name
    else:
        raise LeftOut("without audio")
    if length <= 0:
        raise LeftOut("whose audio is empty")
    try:
        channels, rate = _shape(audio if sound is None else sound, found, tally)
        offset, duration = _segment(found, audio, length, rate, tally)
        channel = _channel(found, channels)
    except ValueError as error:
        raise UserError(f"{found.where}: {error}") from None
    whole_file = offset is None and duration is None
    start = offset or 0.0
    if duration is None:
        duration = length - start
    if sound is None:
        default = manifest.default_id(default if channel is None else f"{default}#{channel}", start)
    if channel is not None:
        sound = _one_channel(audio if sound is None else sound, channel, start, duration)
        duration, suffix = _look_into(sound)
        audio, start, whole_file = aside.with_suffix(suffix), 0.0, True
        tally.counts[
            "utterances are one channel of their file, counted from 0, in a file of its own now"
        ] += 1
    if sound is not None:
        write_atomic(audio, sound)
    return Utterance(
        record.id or default, audio, record.text, duration, start, record.speaker, record.extra, whole_file
    )


def _find(found: Found, root: AllowedRoot, tally: _Tally) -> tuple[str, Path, float]:
    """The audio that a record names: the name that leads there, the file, and its length in seconds."""
    named = found.record.audio
    missing = ""
    for name in (named, *_other_names(named)):
        try:
            audio = root.find(name)
            return name, audio, manifest.audio_length(audio)
        except OutsideRootError as error:
            raise UserError(f"{found.where}: {error}") from None
        except MissingFileError as error:
            missing = missing or str(error).partition("; ")[0]
        except decode.NeedsPyAV as error:
            raise LeftOut(
                f"whose audio ({audio.suffix}) needs PyAV (uv sync --extra av)", str(error)
            ) from None
        except ValueError as error:
            raise LeftOut("whose audio cannot be read", str(error)) from None
    if "://" in named:
        missing = f"{named[:200]} is an address, and nothing is fetched; download it and name the file"
    reason = "whose audio is missing"
    raise LeftOut(reason, missing + ("" if reason in tally.examples else _elsewhere(named, root.folder)))


def _other_names(name: str) -> Iterator[str]:
    """What a name that leads nowhere may stand for."""
    if placeholder := re.match(r"\{\w+\}/", name):  # SpeechBrain's {data_root}
        yield name[placeholder.end() :]
    elif "\\" in name:  # of a spreadsheet on Windows
        yield name.replace("\\", "/")
    elif "/" not in name:
        suffixes = ["", *sorted(SUFFIXES)] if Path(name).suffix.lower() not in SUFFIXES else [""]
        yield from (
            f"{folder}{name}{suffix}" for suffix in suffixes for folder in ("", *CLIPS) if folder or suffix
        )


def _elsewhere(name: str, folder: Path) -> str:
    """Where a relative path leads to a file, as a sentence."""
    if os.path.isabs(name) or ".." in name.split("/"):
        return ""
    for root in (Path.cwd(), *folder.absolute().parents):
        if os.path.isfile(root / name):
            return f"; relative to {root} it is there: --audio-root {root}"
    return "; where paths start from another folder, name it with --audio-root"


def _look_into(sound: bytes) -> tuple[float, str]:
    """Length in seconds, and the suffix for a file of these bytes."""
    try:
        return decode.measure(sound), decode.suffix(sound)
    except ValueError as error:
        raise LeftOut("whose audio cannot be read", f"it {error}") from None


def _shape(audio: Path | bytes, found: Found, tally: _Tally) -> tuple[int, int]:
    """Channels and rate of the audio; 1 and 1 where no field of the record asks for them."""
    record = found.record
    counted = next((time.name for time in record.times if time.unit == "samples"), None)
    if record.channels is None and record.rate is None and counted is None:
        return 1, 1
    channels, rate = decode.shape(audio)
    if record.rate is not None and record.rate != rate:
        if counted:
            raise ValueError(
                f"{counted} counts samples at {record.rate} Hz as {record.names.get('rate')} says, and the"
                f" file has {rate} Hz; write seconds, in the fields offset and duration"
            )
        tally.counts["records give another sampling rate than their file, whose own is used"] += 1
    return channels, rate


def _segment(
    found: Found, audio: Path, length: float, rate: int, tally: _Tally
) -> tuple[float | None, float | None]:
    """Offset and duration in seconds of what to cut out; both None: the whole file.

    Raises LeftOut where the audio does not hold it, ValueError where fields and audio contradict each other.
    """
    offset, duration = fields.segment(found.record.times, rate)
    if duration is not None and duration <= 0:
        raise LeftOut("whose segment is empty")
    beyond = "whose segment ends behind its audio"
    if offset is None:
        slack = manifest.TOLERANCE + (0.0 if found.cuts else 0.01 * length)
        if duration is None or abs(duration - length) <= slack:
            return None, None
        name = next(time.name for time in found.record.times if time.role == "duration")
        said = f"{name} is {duration:g} s, and {audio} holds {length:.2f} s"
        if duration > length:
            raise LeftOut(beyond if found.cuts else "whose audio is shorter than its duration", said + UNIT)
        if not found.cuts:
            raise ValueError(
                f"{said}; where the text is that of a segment, write its offset too (0 for the beginning),"
                f" and else correct {name} or take it out"
            )
        return None, duration
    end = offset + (duration or 0.0)
    if offset >= length or end > length + manifest.TOLERANCE:
        if duration is not None and abs(duration - length) <= manifest.TOLERANCE:
            tally.counts["files are as long as their segment, which is not in them: they are it, whole"] += 1
            return None, None
        said = f"the segment is {offset:g} to {end:g} s, and {audio} holds {length:.2f} s"
        raise LeftOut(beyond, said + UNIT)
    return offset, duration


def _channel(found: Found, count: int) -> int | None:
    """The one channel of several that the record is about; None: the file as it is. Raises ValueError."""
    wanted, name = found.record.channels, found.record.names.get("channel", "channel")
    if wanted is None or set(wanted) == set(range(count)):
        return None
    if len(wanted) == 1 and wanted[0] < count:
        return wanted[0]
    shown = ", ".join(map(str, wanted))
    there = "one channel, 0" if count == 1 else f"channels 0 to {count - 1}"
    raise ValueError(
        f"{name} is {shown}, and the file has {there}; correct it, or take {name} out to read all"
    )


def _one_channel(audio: Path | bytes, channel: int, start: float, duration: float) -> bytes:
    """A channel of a segment as an audio file of its own, without loss."""
    with decode.open_audio(audio) as opened:
        samples, rate = opened.read(start, duration)
    return encode(samples[:, channel], rate)


def _with_free_id(utterance: Utterance, others: Mapping[str, Utterance]) -> Utterance:
    """Where two segments start at one place and end at two, the second's id is made of its duration too."""
    other = others.get(utterance.id)
    if other is None or abs(other.duration - utterance.duration) < 0.001:
        return utterance
    return replace(utterance, id=manifest.default_id(utterance.id, utterance.duration))


def _taken(found: Found, utterance: Utterance, place: str) -> str:
    if found.record.id is None:
        return (
            f"{found.where}: names the same audio and the same times as {place}; take one of them out, or"
            " give each an id of its own"
        )
    return f"{found.where}: the id {utterance.id!r} is taken by {place}; ids must differ"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(8))
