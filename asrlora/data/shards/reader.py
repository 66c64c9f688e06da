"""Reading shards: those that asrlora built, those in its cache, those at an address, and tars that others
made and `asrlora shards index` has indexed. What is read is the same for all: int16 samples by number.

Tars are never unpacked: a sample is the bytes at its offset, checked by sha256, so no name and no link inside
a tar is ever followed.
"""

import functools
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, overload

import numpy as np

from asrlora.data import audio
from asrlora.data.manifest import trainable
from asrlora.data.shards import index, remote
from asrlora.data.shards.folder import FolderRecord, read_record
from asrlora.data.shards.foreign import foreign_shards
from asrlora.data.shards.index import Index, Rows, Sample
from asrlora.errors import UserError

KEEP_BYTES = 2**30  # decoded audio that a process keeps in memory: 9 hours; $ASRLORA_KEEP_BYTES


class Damage(UserError):
    """A sample whose bytes are not those that were written."""


@dataclass(frozen=True)
class Folder:
    """One opened folder of shards."""

    path: Path
    index: Index
    record: FolderRecord
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
                f"{shard}: sample {sample.id!r} is damaged (its sha256 differs from the index); {self._anew}"
            )
        try:
            if self.record.tars is None:
                return audio.decode_flac(data, sample.frames)
            pcm = audio.read_stored(data)
        except audio.AudioError as error:
            raise Damage(f"{shard}: sample {sample.id!r} {error}; {self._anew}") from None
        if len(pcm) != sample.frames:
            raise Damage(f"{shard}: sample {sample.id!r} holds {len(pcm)} samples, not {sample.frames}")
        return pcm

    @property
    def _anew(self) -> str:
        if self.record.tars is None:
            return "delete the folder and build the shards again"
        return "copy the tar again, or delete shards.json and index the folder again"

    def _open(self, name: str) -> BufferedReader:
        if self.url is None or name not in self.record.files:
            return index.open_plain(self.path / name)
        return remote.fetched(self.url, self.path, name, self.record.files[name])


@dataclass(frozen=True)
class Shards:
    """A choice of samples out of one or more folders; numbers below are positions in the choice."""

    folders: tuple[Folder, ...]
    rows: Rows  # into the folders' indexes, end to end

    @property
    def folder(self) -> Path:
        """The first of the folders."""
        return self.folders[0].path

    @property
    def samples(self) -> "Samples":
        """Of this choice, each made and checked as it is asked for."""
        return Samples(self)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> utterances that were left out when the folders were made."""
        return dict(sum((Counter(folder.record.rejected) for folder in self.folders), Counter()))

    @property
    def content(self) -> str:
        """sha256 of the folders, which fingerprints hold."""
        return "+".join(folder.record.content for folder in self.folders)

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
        """Of audio, in all."""
        return float(self.durations.sum())

    def subset(self, chosen: "Rows | Sequence[int]") -> "Shards":
        """The samples with these numbers, in this order."""
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
        """Whether so many bytes may be kept; if so they are counted."""
        with self._lock:
            enough = count <= self.left
            self.left -= count if enough else 0
            return enough

    def give(self, count: int) -> None:
        """So many bytes are kept no longer."""
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
    """What can be trained on, and how many utterances cannot for which reason."""
    characters = shards.lengths["characters"]
    kept, rejected = trainable(shards.durations, characters, min_seconds, max_seconds)
    return shards.subset(np.flatnonzero(kept)), rejected


def open_shards(place: Path | str) -> Shards:
    """Opens a folder of shards, or one at an address such as s3://bucket/folder.

    Raises UserError when it is no such folder or incomplete.
    """
    if foreign := foreign_shards(place):
        raise UserError(foreign)
    url = place if isinstance(place, str) else None
    folder = place if isinstance(place, Path) else remote.mirror(place, remote.cache_root())
    record = read_record(folder)
    if record.fingerprint.get("audio") != audio.FINGERPRINT:
        raise UserError(
            f"{folder} was built by another audio path ({record.fingerprint.get('audio')}, now"
            f" {audio.FINGERPRINT}); build the shards again"
        )
    for name in index.FILES if url else ():
        remote.fetched(url or "", folder, name, record.files[name]).close()
    opened = Folder(folder, index.open_index(folder, record.files, record.tars or ()), record, url)
    return Shards((opened,), np.arange(len(opened.index)))


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
    files = index.damaged_files(folder, opened.record.files)
    damaged: list[str] = []
    named = set()
    for row in damaged_samples(shards, range(len(shards.rows))):
        try:
            sample = opened.index[row]
        except UserError:
            damaged.append(f"row {row} of the index")
        else:
            damaged.append(sample.id)
            named.add(sample.shard)
    return [name for name in files if name not in named] + damaged
