"""Shards: standard WebDataset tars with an index that knows every byte.

A folder of shards holds `shard-NNNNN.tar` (members `KEY.flac` and `KEY.json`), the index (see
data/shards/index.py) and `shards.json` (fingerprint, counts, and the sha256 of every other file). The audio
has been through the audio path once; reading gives the same int16 samples again. Identical input
gives identical bytes, whatever the number of workers.

The tars are never unpacked: a sample is the bytes at its offset, so no name and no link inside a tar
is ever followed.
"""

import functools
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, overload

import numpy as np
import pydantic

from asrlora.data import audio
from asrlora.data.manifest import Utterance
from asrlora.data.shards import index, remote
from asrlora.data.shards import writer as builder
from asrlora.data.shards.foreign import foreign_shards
from asrlora.data.shards.index import Index, Rows, Sample
from asrlora.data.shards.writer import META, SAMPLES_PER_SHARD
from asrlora.errors import UserError

__all__ = ["META", "SAMPLES_PER_SHARD", "Sample", "Shards", "build", "cached", "open_shards", "verify"]


KEEP_BYTES = 2**30  # decoded audio that a process keeps in memory: 9 hours; $ASRLORA_KEEP_BYTES


class Damage(UserError):
    """A sample whose bytes are not those that were written."""


@dataclass(frozen=True)
class Folder:
    """One opened folder of shards."""

    path: Path
    index: Index
    fingerprint: dict[str, Any]
    rejected: dict[str, int]  # reason -> utterances that are in the manifest and not here
    files: dict[str, dict[str, Any]]  # name -> bytes, sha256
    content: str  # sha256 over those, and so over every text and every byte of audio
    url: str | None = None  # where the files come from; then `path` is a cache
    kept: dict[int, audio.Pcm] = field(default_factory=dict, compare=False, repr=False)

    def read(self, row: int) -> audio.Pcm:
        """int16 samples (T,) at 16 kHz. Raises Damage when a byte differs from the index."""
        sample = self.index[row]
        shard = self.path / sample.shard
        try:
            with self._open(sample.shard) as file:
                # a length that the file does not have would be asked of memory first
                length = min(sample.length, os.fstat(file.fileno()).st_size)
                data = os.pread(file.fileno(), length, sample.offset)
        except (OSError, OverflowError) as error:
            raise Damage(f"{shard}: sample {sample.id!r} cannot be read ({error})") from None
        if hashlib.sha256(data).hexdigest() != sample.sha256:
            raise Damage(
                f"{shard}: sample {sample.id!r} is damaged (its sha256 differs from the index);"
                " delete the folder and build the shards again"
            )
        try:
            return audio.decode_flac(data, sample.frames)
        except audio.AudioError as error:
            raise Damage(f"{shard}: sample {sample.id!r} {error}; build the shards again") from None

    def _open(self, name: str) -> BufferedReader:
        if self.url is None or name not in self.files:
            return index.open_plain(self.path / name)
        return remote.fetched(self.url, self.path, name, self.files[name])


@dataclass(frozen=True)
class Shards:
    """A choice of samples out of one or more folders; numbers below are positions in the choice."""

    folders: tuple[Folder, ...]
    rows: Rows  # into the folders' indexes, end to end

    @property
    def folder(self) -> Path:
        return self.folders[0].path

    @property
    def samples(self) -> "Samples":
        return Samples(self)

    @property
    def rejected(self) -> dict[str, int]:
        return dict(sum((Counter(folder.rejected) for folder in self.folders), Counter()))

    @property
    def content(self) -> str:
        return "+".join(folder.content for folder in self.folders)

    @functools.cached_property
    def lengths(self) -> "np.ndarray":
        """What planning reads, (N,) of index.LENGTH; no Python object a sample."""
        return np.concatenate([folder.index.lengths for folder in self.folders])[self.rows]

    @property
    def durations(self) -> "np.ndarray":
        """Seconds, float64 (N,)."""
        return self.lengths["frames"] / float(audio.SAMPLE_RATE)

    @property
    def seconds(self) -> float:
        return float(self.durations.sum())

    def subset(self, chosen: "Rows | Sequence[int]") -> "Shards":
        return replace(self, rows=self.rows[np.asarray(chosen, np.int64)])

    def join(self, other: "Shards") -> "Shards":
        """The samples of both, the other's behind ours."""
        ours = sum(len(folder.index) for folder in self.folders)
        return Shards(self.folders + other.folders, np.concatenate([self.rows, other.rows + ours]))

    def read(self, number: int) -> audio.Pcm:
        """int16 samples (T,) at 16 kHz, not to be changed. Raises Damage when a byte differs.

        What has been read is kept in memory until that is full, and stays: an epoch reads everything
        once, so to make room for the newest would throw away just what is needed next.
        """
        folder, row = self._place(number)
        pcm = folder.kept.get(row)
        if pcm is None:
            pcm = folder.read(row)
            if memory.take(pcm.nbytes):
                folder.kept[row] = pcm
        return pcm

    def _place(self, number: int) -> tuple[Folder, int]:
        row = int(self.rows[number])
        for folder in self.folders:
            if row < len(folder.index):
                return folder, row
            row -= len(folder.index)
        raise IndexError(number)


class Memory:
    """How much audio this process may still keep."""

    def __init__(self) -> None:
        self.left = int(os.environ.get("ASRLORA_KEEP_BYTES", KEEP_BYTES))
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        with self._lock:
            enough = count <= self.left
            self.left -= count if enough else 0
            return enough

    def give(self, count: int) -> None:
        with self._lock:
            self.left += count


memory = Memory()


def forget(shards: Shards) -> None:
    """Frees the memory that `Shards.read` has filled, for others to fill."""
    for folder in shards.folders:
        memory.give(sum(pcm.nbytes for pcm in folder.kept.values()))
        folder.kept.clear()


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """The samples of a choice, each made as it is asked for."""

    shards: Shards

    def __len__(self) -> int:
        return len(self.shards.rows)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        folder, row = self.shards._place(number)
        return folder.index[row]


def for_training(shards: Shards, min_seconds: float, max_seconds: float) -> tuple[Shards, Counter[str]]:
    """`manifest.filter_for_training` for shards: the same choice and reasons, without an object each."""
    lengths = shards.durations
    long, short = lengths > max_seconds, lengths < min_seconds
    empty = ~long & ~short & (shards.lengths["characters"] == 0)
    reasons = {f"longer than {max_seconds:g} s": long, f"shorter than {min_seconds:g} s": short}
    rejected = {reason: int(which.sum()) for reason, which in {**reasons, "without text": empty}.items()}
    kept = shards.subset(np.flatnonzero(~(long | short | empty)))
    return kept, Counter({reason: count for reason, count in rejected.items() if count})


def build(
    utterances: Sequence[Utterance],
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Shards:
    """Builds `out`, which must not exist; it appears only when every byte is on disk.

    Shards that an interrupted build has finished are verified and kept. Silent utterances are left
    out and counted; audio that cannot be decoded raises UserError.
    """
    builder.write_shards(builder.cut(utterances), out, workers=workers, progress=progress)
    builder.finish(out)
    return open_shards(out)


class _File(pydantic.BaseModel, extra="forbid", strict=True):
    bytes: int
    sha256: str


class _Meta(pydantic.BaseModel, extra="forbid", strict=True):
    """shards.json: nothing but this is believed."""

    fingerprint: dict[str, Any]
    utterances: int
    seconds: float
    rejected: dict[str, int]
    files: dict[str, _File]
    sha256: str


def open_shards(place: Path | str) -> Shards:
    """Opens a folder that `build` made, or one at an address such as s3://bucket/folder.

    Raises UserError when it is no such folder or incomplete.
    """
    if foreign := foreign_shards(place):
        raise UserError(foreign)
    url = place if isinstance(place, str) else None
    folder = place if isinstance(place, Path) else remote.mirror(place, cache_root())
    try:
        with index.open_plain(folder / META) as file:
            meta = json.load(file)
        _Meta.model_validate(meta)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder} is not a whole folder of shards, as asrlora builds it ({reason}); build it again:"
            f" uv run asrlora shards build MANIFEST {folder}"
        ) from None
    if meta.pop("sha256") != builder.digest(meta):
        raise UserError(f"{folder / META} is damaged (its sha256 differs); build the shards again")
    files: dict[str, dict[str, Any]] = meta["files"]
    for name in files:
        if name not in index.FILES and not index.is_shard_name(name):
            raise UserError(f"{folder / META} lists {name!r}, which is no file of shards; build them again")
    if not files.keys() >= set(index.FILES):
        raise UserError(f"{folder / META} lists no index; build the shards again")
    if meta["fingerprint"].get("audio") != audio.FINGERPRINT:
        raise UserError(
            f"{folder} was built by another audio path ({meta['fingerprint'].get('audio')}, now"
            f" {audio.FINGERPRINT}); build the shards again"
        )
    for name in index.FILES if url else ():
        remote.fetched(url or "", folder, name, files[name]).close()
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    opened = Folder(
        folder, index.open_index(folder, files), meta["fingerprint"], meta["rejected"], files, content,
        url=url,
    )  # fmt: skip
    return Shards((opened,), np.arange(len(opened.index)))


def cached(
    utterances: Sequence[Utterance], progress: Callable[[float], None] = lambda seconds: None
) -> Shards:
    """The shards of these utterances, built at the first call and found again by fingerprint.

    They live in $ASRLORA_CACHE, else ~/.cache/asrlora.
    """
    chunks = builder.cut(utterances)
    identity = json.dumps(builder.describe(chunks), sort_keys=True)
    folder = cache_root() / "shards" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not folder.exists():
        try:
            builder.write_shards(chunks, folder, progress=progress)
            builder.finish(folder)
        except (OSError, UserError) as error:
            # another process built the same folder meanwhile, and took ours away; its bytes are ours
            if not folder.exists():
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"shards cannot be written to {folder} ({error}); set ASRLORA_CACHE"
                ) from None
    return open_shards(folder)


def cache_root() -> Path:
    return Path(os.environ.get("ASRLORA_CACHE") or Path.home() / ".cache" / "asrlora")


def damaged_samples(shards: Shards, numbers: Iterable[int]) -> dict[int, str]:
    """Reads these samples from disk; returns the number of each damaged one with what is wrong."""
    damaged = {}
    for number in numbers:
        folder, row = shards._place(number)
        try:
            folder.read(row)
        except UserError as error:
            damaged[number] = str(error)
    return damaged


def without_damage(
    shards: Shards, rank: int, world_size: int, together: Callable[[list[Any]], list[Any]]
) -> tuple[Shards, list[str]]:
    """Collective. The samples that are sound, and what is wrong with each of the others.

    Every rank reads a share of all samples; `together` gives every rank what all have found. So all
    leave out the same ones before anything is planned, and a step's denominator stays the same
    everywhere. What is damaged later than this stops the run.
    """
    found = damaged_samples(shards, range(rank, len(shards.rows), world_size))
    damaged = dict(sorted(together(list(found.items()))))
    kept = np.setdiff1d(np.arange(len(shards.rows)), np.fromiter(damaged, np.int64))
    return shards.subset(kept), list(damaged.values())


def verify(folder: Path) -> list[str]:
    """Reads every byte; returns the names of damaged files and the ids of damaged samples.

    A shard is named only where no sample of it is damaged: its damage lies between them.
    """
    shards = open_shards(folder)
    (opened,) = shards.folders
    files = index.damaged_files(folder, opened.files)
    damaged: list[str] = []
    told = set()
    for row in damaged_samples(shards, range(len(shards.rows))):
        try:
            sample = opened.index[row]
        except UserError:
            damaged.append(f"row {row} of the index")
        else:
            damaged.append(sample.id)
            told.add(sample.shard)
    return [name for name in files if name not in told] + damaged
