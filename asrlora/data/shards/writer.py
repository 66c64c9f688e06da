"""Builds a folder of shards: in parallel, in slices on many machines, and resumed after a kill.

Shards are standard WebDataset tars (members `KEY.flac` and `KEY.json`) of audio that has been through the
audio path once, with an index. Identical input gives identical bytes, whatever the number of workers.

Work is done in `.OUT.building` beside OUT. A finished shard is a tar and a JSON-lines file with its samples
and the tar's sha256; each is written to a temporary file and renamed. `finish` checks them all by sha256,
syncs them, makes the index from them and renames the folder to OUT: a folder of that name is whole or not
there.

Threads, not processes: decoding, FLAC and sha256 release Python's lock, torch is imported once, and a script
without a `__main__` guard starts nothing twice.
"""

import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from asrlora import allocation
from asrlora.data import audio
from asrlora.data.manifest import TOLERANCE, Utterance, fingerprint
from asrlora.data.shards import index, reader
from asrlora.data.shards.folder import META, write_record
from asrlora.data.shards.index import FileFacts, Sample, shard_name
from asrlora.errors import UserError
from asrlora.storage import atomic_file, sync

FORMAT = 3
SAMPLES_PER_SHARD = 256
PLAN = "plan.json"

T = TypeVar("T")
Progress = Callable[[float], None]  # audio-seconds that are done


@dataclass(frozen=True)
class Chunk:
    """The utterances of one shard."""

    number: int
    utterances: Sequence[Utterance]
    fingerprint: str

    @property
    def seconds(self) -> float:
        """Of audio, in all."""
        return sum(utterance.duration for utterance in self.utterances)


def build(
    utterances: Sequence[Utterance],
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress = lambda seconds: None,
) -> reader.Shards:
    """Builds `out`, which must not exist; it appears only when every byte is on disk.

    Shards that an interrupted build has finished are verified and kept. Silent utterances are left
    out and counted; audio that cannot be decoded raises UserError.
    """
    write_shards(cut(utterances), out, workers=workers, progress=progress)
    finish(out)
    return reader.open_shards(out)


def cut(utterances: Sequence[Utterance]) -> list[Chunk]:
    """Divides utterances, in order, among shards."""
    starts = range(0, len(utterances), SAMPLES_PER_SHARD)
    pieces = [utterances[start : start + SAMPLES_PER_SHARD] for start in starts]
    return [Chunk(number, piece, fingerprint(piece)) for number, piece in enumerate(pieces)]


def describe(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The fingerprint of shards made from these: the audio path and the content of the manifest."""
    manifest = hashlib.sha256("".join(chunk.fingerprint for chunk in chunks).encode()).hexdigest()
    return {"format": FORMAT, "audio": audio.FINGERPRINT, "manifest": manifest}


def work_folder(out: Path) -> Path:
    """Where `out` is built."""
    return out.parent / f".{out.name}.building"


def write_shards(
    chunks: Sequence[Chunk],
    out: Path,
    *,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    progress: Progress = lambda seconds: None,
) -> None:
    """Writes the shards of slice I of N (`part`, from 1) that are not there yet.

    `progress` gets the audio-seconds of each shard, of the kept ones too. Raises UserError on audio
    that cannot be decoded; the finished shards stay for the next attempt.
    """
    number, count = part
    if out.exists():
        raise UserError(f"{out} exists; give another folder or delete it first")
    work = work_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {work} cannot be made ({error.strerror}); give another folder") from None
    planned = {"fingerprint": describe(chunks), "slices": count, "chunks": [c.fingerprint for c in chunks]}
    with atomic_file(work / PLAN) as file:
        file.write(json.dumps(planned).encode())
    ours = chunks[number - 1 :: count]
    with worker_threads(workers) as pool:
        there = pool.map(lambda chunk: _finished(work, chunk.number, chunk.fingerprint), ours)
        missing = []
        for chunk, found in zip(ours, there, strict=True):
            if found is None:
                missing.append(chunk)
            else:
                progress(chunk.seconds)
        _write_missing(work, missing, pool, progress)


def finish(out: Path) -> None:
    """Makes the index of all shards and gives the folder its name. Raises UserError on missing ones."""
    work = work_folder(out)
    try:
        planned = json.loads((work / PLAN).read_text())
    except OSError:
        raise UserError(f"{out}: no build has been begun; run `asrlora shards build` first") from None
    parts = _finished_parts(out, work, planned)
    samples = [sample for part in parts for sample in part.samples]
    rejected = sum((Counter(part.rejected) for part in parts), Counter[str]())
    for number in range(len(parts)):  # quick where `write_shards` has done it in this process
        sync(work / shard_name(number))
    tars = {shard_name(n): FileFacts(bytes=p.bytes, sha256=p.sha256) for n, p in enumerate(parts)}
    files = {**index.write_index(work, samples), **tars}
    write_record(work, planned["fingerprint"], samples, rejected, files)
    try:
        os.rename(work, out)
    except OSError:
        shutil.rmtree(work)  # another process was faster, and its bytes are the same
        raise
    sync(out.parent)
    for path in out.iterdir():
        if path.name not in files and path.name != META:
            path.unlink()


def read_utterance(utterance: Utterance) -> tuple[audio.Pcm, audio.Source]:
    """Decodes it. Raises AudioError where that cannot be done, or where less decodes than was found when
    the manifest was read."""
    pcm, source = audio.read_measured(utterance.audio, utterance.offset, utterance.cut)
    seconds = len(pcm) / audio.SAMPLE_RATE
    if seconds < utterance.duration - TOLERANCE:
        raise audio.AudioError(
            f"holds {seconds:.2f} s of the {utterance.duration:.2f} s that the manifest means; it was changed"
            " meanwhile"
        )
    return pcm, source


@contextmanager
def worker_threads(count: int | None) -> Iterator[Executor]:
    """As many threads as asked for, or as this process may use. After an error, what has not begun is
    dropped."""
    allotted = allocation.of_process()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else allotted.torch_threads
    with ThreadPoolExecutor(count or allotted.worker_threads, initializer=audio.resample_alone) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(threads)  # see audio.resample_alone


def _write_missing(work: Path, missing: Sequence[Chunk], pool: Executor, progress: Progress) -> None:
    """Encodes one shard while the one before it is written and those before that are synced."""

    def encoding() -> Iterator[tuple[Chunk, list[Future[_Encoded | None]]]]:
        for chunk in missing:
            yield chunk, [pool.submit(_encode, utterance) for utterance in chunk.utterances]

    def writing() -> Iterator[tuple[Chunk, Future[None]]]:
        for chunk, encoded in _one_ahead(encoding()):
            wait(encoded, return_when=FIRST_EXCEPTION)  # here: a writer that waited would occupy a worker
            yield chunk, pool.submit(_write_shard, work, chunk, encoded)

    # its own thread syncs, which takes no core and which no worker should wait for
    with ThreadPoolExecutor(1) as disk:
        synced = []
        for chunk, written in _one_ahead(writing()):
            written.result()
            synced.append(disk.submit(sync, work / shard_name(chunk.number)))
            progress(chunk.seconds)
        for done in synced:
            done.result()


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each given when the one behind it has been taken, and so started."""
    ahead: deque[T] = deque()
    for item in items:
        ahead.append(item)
        if len(ahead) == 2:
            yield ahead.popleft()
    yield from ahead


@dataclass(frozen=True)
class _Part:
    """A finished shard, as its JSON-lines file describes it."""

    chunk: str
    sha256: str
    bytes: int
    rejected: dict[str, int]
    samples: list[Sample]


def _finished_parts(out: Path, work: Path, planned: dict[str, Any]) -> list[_Part]:
    """All shards that were planned. Raises UserError that names the slices of missing ones."""
    chunks, count = planned["chunks"], planned["slices"]
    with ThreadPoolExecutor(allocation.of_process().worker_threads) as pool:
        found = list(pool.map(lambda number: _finished(work, number, chunks[number]), range(len(chunks))))
    missing = [number for number, part in enumerate(found) if part is None]
    if missing:
        slices = ", ".join(f"{i}/{count}" for i in sorted({number % count + 1 for number in missing}))
        raise UserError(
            f"{out}: {len(missing)} of {len(chunks)} shards are missing or damaged; build the slices"
            f" {slices} (again)"
        )
    return [part for part in found if part]


def _finished(work: Path, number: int, chunk: str) -> _Part | None:
    """The shard, if it is there, whole, and made from these utterances."""
    try:
        head, *lines = (work / f"{shard_name(number)}.jsonl").read_text().splitlines()
        part = _Part(**json.loads(head), samples=[Sample(**json.loads(line)) for line in lines])
    except (OSError, ValueError, TypeError):
        return None
    whole = part.chunk == chunk and part.sha256 == index.sha256_of(work / shard_name(number))
    return part if whole else None


@dataclass(frozen=True)
class _Encoded:
    data: bytes  # FLAC
    sha256: str
    seconds: float
    source: audio.Source


def _encode(utterance: Utterance) -> _Encoded | None:
    """None for silence."""
    try:
        pcm, source = read_utterance(utterance)
    except audio.AudioError as error:
        where = f"line {utterance.line} of the manifest: " if utterance.line else ""
        raise UserError(f"{where}the audio file {utterance.audio} {error}; fix or remove it") from None
    if audio.is_silent(pcm):
        return None
    data = audio.encode_flac(pcm)
    return _Encoded(data, hashlib.sha256(data).hexdigest(), len(pcm) / audio.SAMPLE_RATE, source)


def _write_shard(work: Path, chunk: Chunk, encoded: list[Future[_Encoded | None]]) -> None:
    from webdataset.writer import TarWriter  # imports torch

    samples: list[Sample] = []
    rejected: Counter[str] = Counter()
    path = work / shard_name(chunk.number)
    # no owner and no time of writing, so that the same utterances give the same bytes
    same = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with (
        atomic_file(path, synced=False) as file,
        TarWriter(file, encoder=False, **same) as tar,
    ):
        for number, (utterance, one) in enumerate(zip(chunk.utterances, encoded, strict=True)):
            found = one.result()
            if found is None:
                rejected["silent"] += 1
                continue
            # WebDataset takes all behind the first dot for the field, so the key has none
            key = f"{chunk.number:05d}{number:06d}"
            said = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
            info = json.dumps({**utterance.extra, **said}).encode()
            # of the FLAC data: members are written in the order of their names, each behind one block of head
            offset = tar.tarstream.offset + tarfile.BLOCKSIZE
            tar.write({"__key__": key, "flac": found.data, "json": info})
            about = (utterance.id, utterance.text, found.seconds, utterance.speaker)
            where = (path.name, offset, len(found.data), found.sha256)
            samples.append(Sample(*about, *where, **asdict(found.source)))
    facts = {"sha256": index.sha256_of(path), "bytes": path.stat().st_size, "rejected": rejected}
    with atomic_file(work / f"{path.name}.jsonl", synced=False) as file:
        for record in ({"chunk": chunk.fingerprint, **facts}, *map(asdict, samples)):
            file.write(json.dumps(record).encode() + b"\n")
