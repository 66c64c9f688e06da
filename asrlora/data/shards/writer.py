"""Builds a folder of shards: in parallel, in slices on many machines, and on from where it was killed.

Work goes on in `.OUT.building` beside OUT. A finished shard is a tar and a JSON-lines file that tells
its samples and the tar's sha256; each is written aside and renamed. `finish` checks them all by sha256, syncs
them, makes the index from them and renames the folder to OUT: a folder of that name is whole or not there.

Threads, not processes: decoding, FLAC and sha256 leave Python's lock alone, torch is imported once,
and a script without a `__main__` guard starts nothing twice.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asrlora import allocation
from asrlora.data import audio
from asrlora.data.manifest import TOLERANCE, Utterance, fingerprint
from asrlora.data.shards import index
from asrlora.data.shards.index import Sample, shard_name
from asrlora.errors import UserError
from asrlora.storage import atomic_file, sync

FORMAT = 3
SAMPLES_PER_SHARD = 256
META, PLAN = "shards.json", "plan.json"


@dataclass(frozen=True)
class Chunk:
    """The utterances of one shard."""

    number: int
    utterances: Sequence[Utterance]
    fingerprint: str

    @property
    def seconds(self) -> float:
        return sum(utterance.duration for utterance in self.utterances)


def cut(utterances: Sequence[Utterance]) -> list[Chunk]:
    starts = range(0, len(utterances), SAMPLES_PER_SHARD)
    pieces = [utterances[start : start + SAMPLES_PER_SHARD] for start in starts]
    return [Chunk(number, piece, fingerprint(piece)) for number, piece in enumerate(pieces)]


def describe(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The fingerprint of shards made from these: the audio path and what the manifest says."""
    manifest = hashlib.sha256("".join(chunk.fingerprint for chunk in chunks).encode()).hexdigest()
    return {"format": FORMAT, "audio": audio.FINGERPRINT, "manifest": manifest}


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.building"


def write_shards(
    chunks: Sequence[Chunk],
    out: Path,
    *,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
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
    described = {"fingerprint": describe(chunks), "slices": count, "chunks": [c.fingerprint for c in chunks]}
    with atomic_file(work / PLAN) as file:
        file.write(json.dumps(described).encode())
    allotted = allocation.of_process()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else allotted.torch_threads
    # one more thread brings shards to the disk, which takes no core and which no worker should wait for
    with ThreadPoolExecutor(workers or allotted.worker_threads) as pool, ThreadPoolExecutor(1) as disk:
        try:
            ours = chunks[number - 1 :: count]
            there = pool.map(lambda chunk: _finished(work, chunk.number, chunk.fingerprint), ours)
            missing = []
            for chunk, found in zip(ours, there, strict=True):
                if found is None:
                    missing.append(chunk)
                else:
                    progress(chunk.seconds)
            encoding: deque[tuple[Chunk, list[Future[_Encoded | None]]]] = deque()
            writing: deque[tuple[Chunk, Future[None]]] = deque()
            synced: list[Future[None]] = []
            for following in [*missing, None]:
                if following:  # encoded while the shard before it is written
                    encoding.append((following, [pool.submit(_encode, u) for u in following.utterances]))
                if len(encoding) == 2 or (encoding and not following):
                    chunk, encoded = encoding.popleft()
                    wait(
                        encoded, return_when=FIRST_EXCEPTION
                    )  # a writer that waited would keep a worker from encoding
                    writing.append((chunk, pool.submit(_write_shard, work, chunk, encoded)))
                while len(writing) == 2 or (writing and not following):
                    chunk, written = writing.popleft()
                    written.result()
                    synced.append(disk.submit(sync, work / shard_name(chunk.number)))
                    progress(chunk.seconds)
            for done in synced:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(threads)  # what audio._resample has lowered


def finish(out: Path) -> None:
    """Makes the index of all shards and gives the folder its name. Raises UserError on missing ones."""
    work = work_folder(out)
    try:
        planned = json.loads((work / PLAN).read_text())
    except OSError:
        raise UserError(f"{out}: no build has been begun; run `asrlora shards build` first") from None
    with ThreadPoolExecutor(allocation.of_process().worker_threads) as pool:
        numbers = range(len(planned["chunks"]))
        parts = list(pool.map(lambda number: _finished(work, number, planned["chunks"][number]), numbers))
    missing = [number for number, found in enumerate(parts) if found is None]
    if missing:
        count = planned["slices"]
        slices = ", ".join(f"{i}/{count}" for i in sorted({number % count + 1 for number in missing}))
        raise UserError(
            f"{out}: {len(missing)} of {len(parts)} shards are missing or damaged; build the slices"
            f" {slices} (again)"
        )
    samples = [sample for found in parts if found for sample in found.samples]
    rejected: Counter[str] = Counter()
    for found in parts:
        rejected.update(found.rejected if found else {})
    for number in numbers:  # quick where `write_shards` has done it in this process
        sync(work / shard_name(number))
    files = index.write_index(work, samples)
    for number, found in enumerate(parts):
        if found:
            files[shard_name(number)] = {"bytes": found.bytes, "sha256": found.sha256}
    meta = {
        "fingerprint": planned["fingerprint"],
        "utterances": len(samples),
        "seconds": round(sum(sample.duration for sample in samples), 3),
        "rejected": dict(sorted(rejected.items())),
        "files": files,
    }
    with atomic_file(work / META) as file:
        file.write(json.dumps({**meta, "sha256": digest(meta)}, indent=1).encode())
    try:
        os.rename(work, out)
    except OSError:
        shutil.rmtree(work)  # another process was faster, and its bytes are the same
        raise
    sync(out.parent)
    for path in out.iterdir():
        if path.name not in files and path.name != META:
            path.unlink()


def digest(meta: dict[str, Any]) -> str:
    """What protects shards.json itself."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    """A finished shard as its JSON-lines file tells it."""

    chunk: str
    sha256: str
    bytes: int
    rejected: dict[str, int]
    samples: list[Sample]


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
    samples: list[Sample] = []
    rejected: Counter[str] = Counter()
    path = work / shard_name(chunk.number)
    with (
        atomic_file(path, synced=False) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, utterance in enumerate(chunk.utterances):
            found = encoded[number].result()
            if found is None:
                rejected["silent"] += 1
                continue
            # WebDataset takes all behind the first dot for the field, so the key has none
            key = f"{chunk.number:05d}{number:06d}"
            info = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
            offset = _add(tar, f"{key}.flac", found.data)
            _add(tar, f"{key}.json", json.dumps({**utterance.extra, **info}).encode())
            samples.append(
                Sample(
                    utterance.id, utterance.text, found.seconds, utterance.speaker, path.name, offset,
                    len(found.data), found.sha256, **asdict(found.source),
                )
            )  # fmt: skip
    head = {
        "chunk": chunk.fingerprint, "sha256": index.sha256_of(path), "bytes": path.stat().st_size,
        "rejected": rejected,
    }  # fmt: skip
    with atomic_file(work / f"{path.name}.jsonl", synced=False) as file:
        for record in (head, *map(asdict, samples)):
            file.write(json.dumps(record).encode() + b"\n")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member with fixed owner, mode and time; returns the offset of its data in bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o644, 0
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
