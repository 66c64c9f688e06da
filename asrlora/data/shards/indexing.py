"""Indexes tars that others made, where they are: `asrlora shards index FOLDER`.

Plain WebDataset's tars (audio and its text are members of one key) and lhotse's Shar (`recording.000000.tar`,
whose texts are in `cuts.000000.jsonl.gz` beside it). Nothing is unpacked or written again: the index that is
added has the place and sha256 of each audio member, its length after the audio path, and its text. `reader`
then reads the folder as it reads asrlora's own, with one difference: audio goes through the audio path when
it is read (audio.read_stored).
"""

import hashlib
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asrlora.data import audio
from asrlora.data.decoding import filetypes
from asrlora.data.decoding.decode import TOLERANCE, NeedsPyAV
from asrlora.data.importers import fields
from asrlora.data.importers.fields import Record
from asrlora.data.importers.readers import objects
from asrlora.data.importers.source import SUFFIXES, LeftOut
from asrlora.data.manifest import AllowedRoot, parse_object
from asrlora.data.shards import index
from asrlora.data.shards.folder import META, is_tar_name, write_record
from asrlora.data.shards.foreign import COMPRESSED, is_compressed
from asrlora.data.shards.index import FileFacts, Sample
from asrlora.data.shards.writer import FORMAT, worker_threads
from asrlora.errors import UserError

TEXTS = ("txt", "text", "transcript")  # suffixes of members that are a text and nothing else
JSON = ("json", "jsn")
LONGEST_TEXT = 2**20  # bytes of a text or JSON member
LONGEST_AUDIO = 2**30  # bytes of an audio member

Shown = Callable[[str, int, int], None]  # tar, samples in it, and how many of them are kept


@dataclass(frozen=True)
class Indexed:
    """kept + sum(left_out) == samples of the tars"""

    tars: int
    kept: int
    seconds: float  # of audio that is kept
    left_out: Mapping[str, int]  # reason -> samples
    examples: Mapping[str, str]  # reason -> the first of them


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int  # bytes into the tar
    size: int
    is_plain: bool = True  # its bytes are there, end to end: no link, sparse file or device

    @property
    def stem(self) -> str:
        """The name without what is behind its last dot."""
        return os.path.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        """What is behind the name's last dot, in lower case."""
        return os.path.splitext(self.name)[1].lower().removeprefix(".")

    @property
    def key(self) -> str:
        """WebDataset's key of the sample: the path to the first dot of the file's own name."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]


@dataclass(frozen=True)
class Entry:
    """What may become one sample."""

    key: str
    audio: Member | None
    texts: list[Member]
    problem: str = ""  # why it cannot become one, as far as names show it


def index_folder(
    folder: Path,
    *,
    text_field: str | None = None,
    workers: int | None = None,
    shown: Shown = lambda tar, samples, kept: None,
) -> Indexed:
    """Adds an index to a folder of tars; afterwards it is opened, verified and trained from as asrlora's own
    are.

    `text_field` names the text where JSON members or suffixes leave a choice. Raises UserError where the
    folder holds an index, compressed tars, or no sample that can be used.
    """
    tars = find_tars(folder)
    samples: dict[str, Sample] = {}
    left_out: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with worker_threads(workers) as pool:
        for tar in tars:
            found = _read_tar(tar, text_field, pool)
            before = len(samples)
            for one in found:
                one = _with_free_id(one, tar, samples)
                if isinstance(one, Sample):
                    samples[one.id] = one
                else:
                    left_out[one.reason] += 1
                    examples.setdefault(one.reason, f"{tar.name}, {one.detail}")
            shown(tar.name, len(found), len(samples) - before)
    if not samples:
        raise UserError(
            f"{folder}: no sample of its {len(tars)} tars can be used; "
            + "; ".join(f"{count:,} {reason} ({examples[reason]})" for reason, count in left_out.items())
        )
    _write(folder, tars, list(samples.values()), left_out)
    seconds = sum(sample.duration for sample in samples.values())
    return Indexed(len(tars), len(samples), seconds, left_out, examples)


def find_tars(folder: Path) -> list[Path]:
    """The tars to index, by name. Raises UserError where there are none or they cannot be read in place."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the folder that holds the tars")
    if (folder / META).exists():
        raise UserError(f"{folder}: has an index already ({META}); delete that file to index the tars again")
    tars = [path for path in sorted(folder.iterdir()) if is_tar_name(path.name)]
    for path in tars:
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: is a link or no regular file; index the folder of the tar itself")
    compressed = [path.name for path in sorted(folder.iterdir()) if COMPRESSED.search(path.name)]
    compressed += [path.name for path in tars if is_compressed(path)]
    if compressed:
        raise UserError(
            f"{folder}: {len(compressed)} of its tars are compressed, such as {compressed[0]}, and a"
            " compressed tar can only be read from its beginning, not sample by sample; make plain tars of"
            " them (gunzip *.tar.gz), which are hardly larger where the audio is FLAC, Ogg or MP3"
        )
    if not tars:
        below = next((path.parent for path in sorted(folder.rglob("*.tar"))), None)
        raise UserError(f"{folder}: holds no .tar" + (f"; {below} does" if below else ""))
    # lhotse's Shar has a tar for each field of a cut, of which `recording` alone holds utterances
    of_shar = tuple(f".{path.name.split('.')[1]}.tar" for path in folder.glob("cuts.*.jsonl*"))
    return [tar for tar in tars if not tar.name.endswith(of_shar) or tar.name.startswith("recording.")]


def list_members(tar: Path) -> list[Member]:
    """All but the folders in a tar. Raises UserError where it is damaged or cut off."""
    try:
        with index.open_plain(tar) as file, tarfile.open(fileobj=file, mode="r:", errors="replace") as opened:
            return [
                Member(
                    member.name.removeprefix("./"),
                    member.offset_data,
                    member.size,
                    member.isreg() and not member.issparse(),
                )
                for member in opened
                if not member.isdir()
            ]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar}: cannot be read as a tar ({error}); copy or download it again") from None


def group(members: Sequence[Member], is_audio: Callable[[Member], bool]) -> Iterator[Entry]:
    """Which audio belongs to which texts. Every member is in one entry, all of a name once.

    Members of one WebDataset key belong together. Where a key has several audio members, for it has dots of
    its own (`talk.u00.wav`, `talk.u01.wav`), those that differ only behind the last dot do.
    """
    by_key: dict[str, list[Member]] = defaultdict(list)
    for member in {member.name: member for member in members}.values():
        if member.is_plain:
            by_key[member.key].append(member)
        else:
            yield Entry(member.name, None, [], "that are links or sparse files")
    for key, alike in by_key.items():
        sounds = [member for member in alike if is_audio(member)]
        texts = [member for member in alike if member.suffix in (*TEXTS, *JSON) and member not in sounds]
        if len(sounds) == 1:
            of_stem = any(text.stem == sounds[0].stem for text in texts)
            yield Entry(sounds[0].stem if of_stem else key, sounds[0], texts)
        elif not sounds:
            yield Entry(key, None, texts, "without audio")
        else:
            for sound in sounds:
                own = [text for text in texts if text.stem == sound.stem]
                yield Entry(sound.stem, sound, own, "" if own else "without text")
            for stem in sorted({text.stem for text in texts} - {sound.stem for sound in sounds}):
                yield Entry(stem, None, [], "without audio")


def _read_tar(tar: Path, text_field: str | None, pool: Executor) -> list[Sample | LeftOut]:
    """What becomes of each entry of a tar, in order."""
    cuts = _cuts_beside(tar)
    with index.open_plain(tar) as file:

        def read(member: Member, most: int) -> bytes:
            return os.pread(file.fileno(), min(member.size, most), member.offset)

        def look(entry: Entry) -> Sample | LeftOut:
            try:
                record = _from_texts(entry, read, text_field) if cuts is None else _from_cut(entry, cuts)
                return _sample(entry, record, tar.name, read)
            except LeftOut as left:
                left.detail = f"{entry.audio.name if entry.audio else entry.key}{left.detail}"
                return left

        entries = group(list_members(tar), lambda member: _is_audio(member, read(member, filetypes.HEAD)))
        return list(pool.map(look, entries))


def _is_audio(member: Member, head: bytes) -> bool:
    """By its first bytes; by its name where it is called audio, so that what is none is counted as such."""
    if member.suffix in (*TEXTS, *JSON):
        return False
    if f".{member.suffix}" in SUFFIXES:
        return True
    try:
        known = filetypes.recognise(head) is not None
    except filetypes.AudioError:
        return False
    return known or head.startswith(b"ID3") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")  # MPEG


def _from_texts(entry: Entry, read: Callable[[Member, int], bytes], text_field: str | None) -> Record:
    """What the text and JSON members of an entry say, by the table that imports use."""
    said: dict[str, Any] = {}
    for member in entry.texts:
        if member.size > LONGEST_TEXT:
            raise LeftOut("with a text that is too long", f": {member.name} has {member.size:,} bytes")
        try:
            text = read(member, LONGEST_TEXT).decode("utf-8-sig")
            said |= parse_object(text) if member.suffix in JSON else {member.suffix: " ".join(text.split())}
        except UnicodeDecodeError:
            raise LeftOut("whose text is not UTF-8", f": {member.name}") from None
        except ValueError as error:
            raise LeftOut("whose JSON cannot be read", f": {member.name}: {error}") from None
    # paths and shard numbers of where the audio was before
    said = {name: value for name, value in said.items() if fields.meaning(name) not in ("audio", "tar")}
    try:
        return fields.understand(said, text_field)
    except ValueError as error:
        raise LeftOut("whose fields cannot be read", f": {error}") from None


def _cuts_beside(tar: Path) -> dict[str, dict[str, Any]] | None:
    """Of lhotse's Shar, the cuts of `recording.NNNNNN.tar` by id; None: it is another tar."""
    match = re.fullmatch(r"recording\.(\d+)\.tar", tar.name)
    names = [f"cuts.{match[1]}.jsonl{packed}" for packed in ("", ".gz")] if match else []
    for name in names:
        if (tar.parent / name).exists():
            try:
                path = AllowedRoot(tar.parent).find(name, "file of cuts")
            except ValueError as error:
                raise UserError(str(error)) from None
            return {str(cut.get("id")): cut for _, cut in objects(path)}
    return None


def _from_cut(entry: Entry, cuts: Mapping[str, Mapping[str, Any]]) -> Record:
    """What lhotse's cut says of the audio member that is called after it."""
    cut = cuts.get(entry.key)
    if cut is None:
        raise LeftOut("without a cut", ": is not named in the cuts beside the tar")
    supervisions = cut.get("supervisions") or []
    if "tracks" in cut or len(supervisions) > 1:
        raise LeftOut(
            "of several supervisions or tracks",
            ": cuts.trim_to_supervisions() makes a cut of each supervision, cuts.save_audios() audio of"
            " tracks",
        )
    if not supervisions:
        return Record()
    (one,) = supervisions
    said = {name: one.get(name) for name in ("id", "text", "speaker", "language", "channel")}
    start, seconds = one.get("start"), one.get("duration")
    try:
        record = fields.understand({**said, "offset": start, "duration": seconds})
        offset, duration = fields.segment(record.times, 1)
        whole = float(cut["duration"])
    except (KeyError, TypeError, ValueError) as error:
        raise LeftOut("whose fields cannot be read", f": {error}") from None
    if (offset or 0.0) > TOLERANCE or (duration is not None and duration < whole - TOLERANCE):
        raise LeftOut(
            "whose text is that of a part of the audio", ": cuts.trim_to_supervisions() cuts the audio to it"
        )
    return replace(record, times=())


def _sample(entry: Entry, record: Record, tar: str, read: Callable[[Member, int], bytes]) -> Sample:
    member = entry.audio
    if member is None or entry.problem:
        raise LeftOut(entry.problem)
    if not record.text or not record.text.strip():
        raise LeftOut("without text")
    if member.size > LONGEST_AUDIO:
        raise LeftOut("whose audio is too large", f": {member.size:,} bytes; cut it into utterances")
    data = read(member, LONGEST_AUDIO)
    try:
        pcm, source = audio.read_measured(data)
    except NeedsPyAV as error:
        raise LeftOut("whose audio needs PyAV (uv sync --extra av)", f": {error}") from None
    except audio.AudioError as error:
        raise LeftOut("whose audio cannot be read", f": {error}") from None
    if audio.is_silent(pcm):
        raise LeftOut("silent")
    seconds = len(pcm) / audio.SAMPLE_RATE
    _refuse_part(record, seconds, source)
    return Sample(
        record.id or entry.key,
        record.text,
        seconds,
        record.speaker,
        tar,
        member.offset,
        member.size,
        hashlib.sha256(data).hexdigest(),
        **asdict(source),
    )


def _refuse_part(record: Record, seconds: float, source: audio.Source) -> None:
    """Raises LeftOut where fields say that the text is that of a part or of one channel of the audio."""
    try:
        offset, duration = fields.segment(record.times, record.rate or source.rate)
    except ValueError as error:
        raise LeftOut("whose fields cannot be read", f": {error}") from None
    if (offset or 0.0) > TOLERANCE or (
        duration is not None and abs(duration - seconds) > TOLERANCE + 0.01 * seconds
    ):
        said = f"{offset or 0:g} s on" if duration is None else f"{offset or 0:g} s on, for {duration:g} s"
        raise LeftOut(
            "whose text is that of a part of the audio",
            f": of {seconds:.2f} s the fields mean those from {said}; write each segment as a sample of its"
            " own",
        )
    if record.channels is not None and set(record.channels) != set(range(source.channels)):
        shown = ", ".join(map(str, record.channels))
        raise LeftOut(
            "whose text is that of one channel of the audio",
            f": channel {shown} of {source.channels}; write the channel to a file of its own",
        )


def _with_free_id(found: Sample | LeftOut, tar: Path, others: Mapping[str, Sample]) -> Sample | LeftOut:
    """Where two tars count from 0, the id of the later sample begins with its tar's name."""
    if isinstance(found, LeftOut) or found.id not in others:
        return found
    other = others[found.id]
    identity = f"{tar.stem}/{found.id}"
    if identity in others:
        return LeftOut("whose id is taken", f"{found.id}: ids must differ, and {other.shard} has it too")
    return replace(found, id=identity)


def _write(
    folder: Path, tars: Sequence[Path], samples: Sequence[Sample], left_out: Mapping[str, int]
) -> None:
    names = [tar.name for tar in tars]
    try:
        files = index.write_index(folder, samples, names)
        for tar in tars:
            files[tar.name] = FileFacts(bytes=tar.stat().st_size, sha256=index.sha256_of(tar) or "")
        said = [[sample.id, sample.text, sample.speaker, sample.sha256] for sample in samples]
        content = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        fingerprint = {"format": FORMAT, "audio": audio.FINGERPRINT, "manifest": content}
        write_record(folder, fingerprint, samples, left_out, files, names)
    except OSError as error:
        raise UserError(
            f"{folder}: the index cannot be written there ({error.strerror}); make the folder writable, or"
            " copy the tars to one that is"
        ) from None
