"""Shards: standard WebDataset tars with an index that knows every byte.

A folder of shards holds `shard-NNNNN.tar` (members `KEY.flac` and `KEY.json`), `index.jsonl` (one
line a sample, in manifest order) and `shards.json` (fingerprint and counts). The audio has been
through the audio path once; reading gives the same int16 samples again. Identical input gives
identical bytes, whatever the number of workers.
"""

import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asrlora.data import audio
from asrlora.data.manifest import Utterance, fingerprint
from asrlora.errors import UserError

FORMAT = 1
SAMPLES_PER_SHARD = 256
SMALL = 64  # below this many utterances, starting processes costs more than it saves
META, INDEX = "shards.json", "index.jsonl"


@dataclass(frozen=True)
class Sample:
    """One line of the index."""

    id: str
    text: str
    duration: float  # seconds, of the audio in the shard
    speaker: str | None
    shard: str
    offset: int  # bytes into the shard, of the FLAC data
    length: int  # bytes
    sha256: str  # of the FLAC data


@dataclass(frozen=True)
class Shards:
    folder: Path
    samples: list[Sample]
    fingerprint: dict[str, Any]
    rejected: dict[str, int]  # reason -> utterances that are in the manifest and not here
    content: str  # sha256 of the index, and so of every text and every byte of audio

    @property
    def durations(self) -> list[float]:
        return [sample.duration for sample in self.samples]

    @property
    def seconds(self) -> float:
        return sum(self.durations)

    def subset(self, samples: list[Sample]) -> "Shards":
        return replace(self, samples=samples)

    def read(self, index: int) -> audio.Pcm:
        """int16 samples (T,) at 16 kHz. Raises UserError when a byte differs from the index."""
        sample = self.samples[index]
        with open(self.folder / sample.shard, "rb") as file:
            file.seek(sample.offset)
            data = file.read(sample.length)
        if hashlib.sha256(data).hexdigest() != sample.sha256:
            raise UserError(
                f"{self.folder / sample.shard}: sample {sample.id!r} is damaged (its sha256 differs from"
                " the index); delete the folder and build the shards again"
            )
        return audio.decode_flac(data)


def shards_fingerprint(utterances: Sequence[Utterance]) -> dict[str, Any]:
    return {"format": FORMAT, "audio": audio.FINGERPRINT, "manifest": fingerprint(utterances)}


def build(
    utterances: Sequence[Utterance],
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Shards:
    """Builds `out`, which must not exist; it appears only when every byte is on disk.

    `progress` is called with the audio-seconds of each finished shard. Silent utterances are left
    out and counted; audio that cannot be decoded raises UserError.
    """
    if out.exists():
        raise UserError(f"{out} exists; give another folder or delete it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        chunks = [
            (f"shard-{i // SAMPLES_PER_SHARD:05d}.tar", list(utterances[i : i + SAMPLES_PER_SHARD]))
            for i in range(0, len(utterances), SAMPLES_PER_SHARD)
        ]
        samples: list[Sample] = []
        rejected: Counter[str] = Counter()
        write = functools.partial(_write_shard, aside)
        if len(utterances) < SMALL:
            results = map(write, chunks)
            _collect(results, samples, rejected, progress)
        else:
            # a fresh interpreter each: forking a process that holds threads is not safe
            with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count(), _one_thread) as pool:
                _collect(pool.imap(write, chunks), samples, rejected, progress)
        _write_synced(
            aside / INDEX, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples).encode()
        )
        meta = {
            "fingerprint": shards_fingerprint(utterances),
            "utterances": len(samples),
            "seconds": round(sum(sample.duration for sample in samples), 3),
            "rejected": dict(rejected),
            "index_sha256": hashlib.sha256((aside / INDEX).read_bytes()).hexdigest(),
        }
        _write_synced(aside / META, json.dumps(meta, indent=1).encode())
        aside.chmod(0o755)
        os.rename(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return open_shards(out)


def _one_thread() -> None:
    """Workers share the cores out among themselves; torch in each must not do it again."""
    os.environ["OMP_NUM_THREADS"] = "1"


def _collect(
    results: Any, samples: list[Sample], rejected: Counter[str], progress: Callable[[float], None]
) -> None:
    for written, left_out in results:
        samples += written
        rejected.update(left_out)
        progress(sum(sample.duration for sample in written))


def _write_shard(folder: Path, chunk: tuple[str, list[Utterance]]) -> tuple[list[Sample], Counter[str]]:
    name, utterances = chunk
    samples: list[Sample] = []
    rejected: Counter[str] = Counter()
    with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, utterance in enumerate(utterances):
            try:
                duration = None if utterance.whole_file else utterance.duration
                pcm = audio.read_audio(utterance.audio, utterance.offset, duration)
            except audio.AudioError as error:
                raise UserError(f"the audio file {utterance.audio} {error}; mend or remove it") from None
            if audio.is_silent(pcm):
                rejected["silent"] += 1
                continue
            # WebDataset takes all behind the first dot for the field, so the key has none
            key = f"{name[6:11]}{number:06d}"
            data = audio.encode_flac(pcm)
            info = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
            offset = _add(tar, f"{key}.flac", data)
            _add(tar, f"{key}.json", json.dumps({**utterance.extra, **info}).encode())
            samples.append(
                Sample(
                    utterance.id, utterance.text, len(pcm) / audio.SAMPLE_RATE, utterance.speaker,
                    name, offset, len(data), hashlib.sha256(data).hexdigest(),
                )
            )  # fmt: skip
    with open(folder / name, "rb+") as file:
        os.fsync(file.fileno())
    return samples, rejected


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member with fixed owner, mode and time; returns the offset of its data in bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o644, 0
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_shards(folder: Path) -> Shards:
    """Opens a folder that `build` made. Raises UserError when it is no such folder or incomplete."""
    try:
        meta = json.loads((folder / META).read_text())
        index = (folder / INDEX).read_bytes()
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is not a whole folder of shards ({error}); build it again") from None
    if hashlib.sha256(index).hexdigest() != meta["index_sha256"]:
        raise UserError(f"{folder / INDEX} is damaged (its sha256 differs); build the shards again")
    if meta["fingerprint"]["audio"] != audio.FINGERPRINT:
        raise UserError(
            f"{folder} was built by another audio path ({meta['fingerprint']['audio']}, now"
            f" {audio.FINGERPRINT}); build the shards again"
        )
    samples = [Sample(**json.loads(line)) for line in index.splitlines()]
    return Shards(folder, samples, meta["fingerprint"], meta["rejected"], meta["index_sha256"])


def cached(
    utterances: Sequence[Utterance], progress: Callable[[float], None] = lambda seconds: None
) -> Shards:
    """The shards of these utterances, built at the first call and found again by fingerprint.

    They live in $ASRLORA_CACHE, else ~/.cache/asrlora.
    """
    identity = json.dumps(shards_fingerprint(utterances), sort_keys=True)
    root = Path(os.environ.get("ASRLORA_CACHE") or Path.home() / ".cache" / "asrlora")
    folder = root / "shards" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not folder.exists():
        try:
            return build(utterances, folder, progress=progress)
        except OSError as error:
            # another process built the same folder meanwhile: rename refuses, its bytes are ours
            if not folder.exists():
                raise UserError(
                    f"shards cannot be written to {folder} ({error}); set ASRLORA_CACHE"
                ) from None
    return open_shards(folder)


def verify(folder: Path) -> list[str]:
    """Reads every byte; returns the ids of damaged samples (empty: sound)."""
    shards = open_shards(folder)
    damaged = []
    for index, sample in enumerate(shards.samples):
        try:
            shards.read(index)
        except (UserError, OSError):
            damaged.append(sample.id)
    return damaged
