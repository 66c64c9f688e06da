"""The index of a folder of shards: memory-mapped, so that a million utterances open at once.

    lengths.bin   what planning reads of all samples; its sha256 is checked at opening
    rows.bin      where a sample's bytes are, their sha256, and the source; checked row by row
    texts.bin     id, text and speaker, end to end in UTF-8

Each holds a row a sample, in manifest order; the first two are of fixed width. Every row holds a checksum
over itself, its number, its lengths and its texts, so that a flipped bit anywhere is noticed when the sample
is read, without hashing 100 MB at every start. No row names a file: shards are numbered, so an index cannot
point outside its folder. Nothing here is a pickle.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic

from asrlora.data.audio import SAMPLE_RATE
from asrlora.errors import UserError
from asrlora.storage import atomic_file

LENGTHS, ROWS, TEXTS = FILES = ("lengths.bin", "rows.bin", "texts.bin")

LENGTH = np.dtype(
    [
        ("frames", "<u4"),  # samples of the audio in the shard
        ("characters", "<u4"),  # of the text, without white space around it
        ("key", "<u8"),  # of the id: what random draws about this utterance start from
    ]
)
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),  # bytes into the tar, of the audio
        ("length", "<u4"),  # bytes of the audio
        ("sha256", "u1", 32),  # of the audio
        ("level", "<f8"),  # this and what follows to `faults` are of the source, see Sample
        ("clipped", "<f8"),
        ("rate", "<u4"),
        ("channels", "<u4"),
        ("dc", "<f8"),
        ("still", "<f8"),
        ("faults", "<u4"),
        ("at", "<u8"),  # of the id in texts.bin; text and speaker follow it
        ("id", "<u4"),  # bytes, as the next two
        ("text", "<u4"),
        ("speaker", "<i4"),  # -1: None
        ("check", "u1", 8),
    ]
)

SOURCE = ("level", "clipped", "rate", "channels", "dc", "still", "faults")  # fields of Sample and ROW

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One row of the index."""

    id: str
    text: str
    duration: float  # seconds, of the audio in the shard
    speaker: str | None
    shard: str  # name of the tar
    offset: int  # bytes into the shard, of the audio (FLAC, where asrlora built the shards)
    length: int  # bytes of the audio
    sha256: str  # of the audio
    level: float  # RMS of the source, full scale 1.0
    clipped: float  # share of the source's samples at full scale
    rate: int  # of the source, Hz
    channels: int  # of the source
    dc: float  # of the source: its offset, full scale 1.0, which was taken out
    still: float  # of the source: seconds of the longest stretch of one value
    faults: int  # of the source: of decoding.Fault

    @property
    def frames(self) -> int:
        """Samples at 16 kHz."""
        return round(self.duration * SAMPLE_RATE)


class Index:
    """A folder's samples; each is made and checked as it is asked for."""

    def __init__(
        self,
        folder: Path,
        lengths: "np.ndarray",
        rows: "np.ndarray",
        texts: "np.ndarray",
        tars: Sequence[str] = (),
    ) -> None:
        self.folder, self.lengths, self._rows, self._texts = folder, lengths, rows, texts
        self._tars = tars  # by shard number; none: they are called as asrlora calls its own

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        """Raises UserError where a bit of the row differs from what was written."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = index % len(self)
        row, lengths = self._rows[number], self.lengths[number]
        shard, offset, length, sha256, *source, at, id_size, text_size, speaker_size, check = row.item()
        sizes = (id_size, text_size, speaker_size)
        ends = list(itertools.accumulate((max(0, size) for size in sizes), initial=at))
        texts = self._texts[at : ends[-1]].tobytes()
        whole = len(texts) == ends[-1] - at
        if not whole or _check(number, lengths.tobytes(), row.tobytes(), texts) != bytes(check):
            raise UserError(
                f"{self.folder}: row {number} of the index is damaged; build the shards again"
                " or copy them again"
            )
        try:
            cut = [texts[start - at : end - at].decode() for start, end in itertools.pairwise(ends)]
        except UnicodeDecodeError:
            raise UserError(f"{self.folder}: row {number} of the index is not UTF-8") from None
        speaker = cut[2] if speaker_size >= 0 else None
        name = self._tars[shard] if self._tars else shard_name(shard)
        seconds = lengths["frames"].item() / SAMPLE_RATE
        return Sample(cut[0], cut[1], seconds, speaker, name, offset, length, bytes(sha256).hex(), *source)


class FileFacts(pydantic.BaseModel, extra="forbid", strict=True, frozen=True):
    """What a file of a folder of shards must be."""

    bytes: int
    sha256: str


def shard_name(number: int) -> str:
    """What asrlora calls its own tars."""
    return f"shard-{number:05d}.tar"


def is_shard_name(name: str) -> bool:
    """Whether `shard_name` makes such names."""
    return re.fullmatch(r"shard-[0-9]{5,9}\.tar", name, re.ASCII) is not None


def shard_number(name: str) -> int:
    """The inverse of `shard_name`."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def key(identity: str) -> int:
    """64 bits of the id's sha256."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little")


def _check(number: int, lengths: bytes, row: bytes, texts: bytes) -> bytes:
    whole = number.to_bytes(8, "little") + lengths + row[: -ROW["check"].itemsize] + texts
    return hashlib.sha256(whole).digest()[:8]


def write_index(folder: Path, samples: Iterable[Sample], tars: Sequence[str] = ()) -> dict[str, FileFacts]:
    """Writes the three .bin files; returns what they are, which `open_index` compares them with.

    `tars` are the names of others' tars, by number; without them the shards are called as asrlora's own."""
    number_of = {name: number for number, name in enumerate(tars)}
    files = {name: bytearray() for name in FILES}
    for number, sample in enumerate(samples):
        texts = [part.encode() for part in (sample.id, sample.text, sample.speaker or "")]
        speaker = -1 if sample.speaker is None else len(texts[2])
        lengths = np.array((sample.frames, len(sample.text.strip()), key(sample.id)), LENGTH).tobytes()
        shard = number_of[sample.shard] if tars else shard_number(sample.shard)
        sha256 = list(bytes.fromhex(sample.sha256))
        source = [getattr(sample, name) for name in SOURCE]
        place = (shard, sample.offset, sample.length, sha256)
        sizes = (len(files[TEXTS]), len(texts[0]), len(texts[1]), speaker)
        row = np.array((*place, *source, *sizes, [0] * 8), ROW).tobytes()
        text = b"".join(texts)
        check = _check(number, lengths, row, text)
        files[LENGTHS] += lengths
        files[ROWS] += row[: -len(check)] + check
        files[TEXTS] += text
    for name, data in files.items():
        # whole and on disk at once: another process that builds the same shards may have given its own, of
        # the same bytes, to readers
        with atomic_file(folder / name) as file:
            file.write(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {name: FileFacts(bytes=len(data), sha256=digests[name]) for name, data in files.items()}


def open_index(folder: Path, facts: Mapping[str, FileFacts], tars: Sequence[str] = ()) -> Index:
    """Maps the files that `write_index` described. Raises UserError where they differ from that."""
    lengths = _map(folder / LENGTHS, LENGTH, facts[LENGTHS].bytes)
    rows = _map(folder / ROWS, ROW, facts[ROWS].bytes)
    texts = _map(folder / TEXTS, np.dtype("u1"), facts[TEXTS].bytes)
    if len(lengths) != len(rows):
        raise UserError(f"{folder}: {LENGTHS} and {ROWS} differ in length; build the shards again")
    if hashlib.sha256(lengths.data).hexdigest() != facts[LENGTHS].sha256:
        raise UserError(f"{folder / LENGTHS} is damaged (its sha256 differs); build the shards again")
    return Index(folder, lengths, rows, texts, tars)


def damaged_files(folder: Path, facts: Mapping[str, FileFacts]) -> list[str]:
    """Hashes every byte of the named files; returns the names that differ or are missing."""
    return [name for name, fact in facts.items() if sha256_of(folder / name) != fact.sha256]


def sha256_of(path: Path) -> str | None:
    """None where the file cannot be read."""
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def open_plain(path: Path) -> BufferedReader:
    """Opens for reading; a symbolic link in the file's place is refused, for it may lead anywhere."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _map(path: Path, dtype: "np.dtype[Any]", size: int) -> "np.ndarray":
    try:
        with open_plain(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found == size and size % dtype.itemsize == 0:
                return np.memmap(file, dtype, mode="r") if size else np.empty(0, dtype)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); build the shards again") from None
    raise UserError(f"{path} is damaged ({found} bytes, not {size}); build the shards again")
