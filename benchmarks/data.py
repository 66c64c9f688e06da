"""What the data side costs: `asrlora bench data`.

Everything is measured twice, and compared within one run: a figure of a busy machine says little, a
ratio of two figures taken in turn says much. CPU seconds are those of all threads of this process, so
audio-seconds by CPU second is speed per core.
"""

import argparse
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from asrlora.console import console
from asrlora.data import audio, manifest, plan
from asrlora.data.shards import index, reader, writer
from asrlora.data.shards.folder import META, digest
from benchmarks.common import Figures, add_output, report

REPEATS = 3
BATCH_SIZE = 8
TIMEOUT = 600.0  # seconds for two processes to be ready
COLOUR = (1.0, 1.3, 1.09, 0.637, 0.174, -0.156, -0.307, -0.306, -0.213)  # noise like speech's resonances


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench data`."""
    parser.set_defaults(run=lambda args: report(bench_data(0.01 if args.small else 1.0), args.output))
    add_output(parser)
    parser.add_argument("--small", action="store_true", help="a hundredth of everything: does it run?")


def bench_data(scale: float = 1.0) -> Figures:
    """All measurements; `scale` shortens them, for a test that they run."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name:
        folder = Path(name)
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "plan": lambda: _plan(round(1_000_000 * scale)),
            "index": lambda: _index(folder / "index", round(1_000_000 * scale)),
            "damage": lambda: _damage(folder / "damage", round(1000 * scale)),
            "build": lambda: _build(folder / "build", max(16, round(1536 * scale))),
            "loader": lambda: _loader(folder / "loader", max(16, round(512 * scale))),
        }
        for step, measure in steps.items():
            console.print(f"bench: {step}")
            figures[step] = measure()
    return figures


def speech_lengths(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Seconds, (count,), spread like LibriSpeech's training utterances: most of them from 12 to 16 s, a
    broad shoulder down to 1.5 s, 12.3 s in the mean."""
    rng = np.random.default_rng(seed)
    usual = np.clip(rng.normal(14.6, 1.1, count), 10.0, 17.5)
    short = rng.uniform(1.5, 15.5, count)
    return np.round(np.where(rng.random(count) < 0.62, usual, short) * audio.SAMPLE_RATE) / audio.SAMPLE_RATE


def clip(seconds: float, seed: int, rate: int = audio.SAMPLE_RATE) -> audio.Wave:
    """Coloured noise in syllables: FLAC finds as much to save in it as in speech, unlike in zeros."""
    rng = np.random.default_rng(seed)
    wave = np.convolve(rng.standard_normal(round(seconds * rate)), COLOUR, mode="same")
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * np.arange(len(wave)) / rate + rng.uniform(0, 6)), 0.0, 1.0)
    wave *= 0.1 + 0.9 * syllables**2
    scaled: audio.Wave = (0.5 * wave / np.abs(wave).max()).astype(np.float32)
    return scaled


def write_corpus(folder: Path, lengths: npt.NDArray[np.float64], rate: int) -> list[manifest.Utterance]:
    """Writes WAV files of so many seconds each, and manifest.jsonl, into a new folder; returns its lines."""
    folder.mkdir(parents=True)
    lines = []
    for number, seconds in enumerate(lengths):
        soundfile.write(folder / f"{number}.wav", clip(seconds, number, rate), rate, subtype="PCM_16")
        lines.append(json.dumps({"audio": f"{number}.wav", "text": f"utterance {number} " * 8}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return manifest.read_manifest(folder / "manifest.jsonl")


def _plan(count: int) -> dict[str, Any]:
    durations = speech_lengths(count, 0)
    figures: dict[str, Any] = {"utterances": count}
    budgets: dict[str, dict[str, Any]] = {
        "160 s": {"batch_seconds": 160.0},
        "8 utterances": {"batch_size": 8},
    }
    for name, budget in budgets.items():
        planned = functools.partial(
            plan.plan_epoch, durations, seed=0, epoch=0, microbatches_per_step=8, **budget
        )
        figures[f"{name}: seconds"] = min(_cpu_seconds(planned) for _ in range(REPEATS))
        tracemalloc.start()
        whole = planned()
        figures[f"{name}: peak MB"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        figures[f"{name}: padding"] = plan.padding(whole, durations)
        figures[f"{name}: left over"] = whole.dropped
    return figures


def _index(folder: Path, count: int) -> dict[str, Any]:
    folder.mkdir()
    lengths = speech_lengths(count, 0).tolist()
    samples = (
        index.Sample(
            id=f"speaker-{n // 100}-{n}",
            text="the words of this utterance " * 6,
            duration=seconds,
            speaker=f"speaker-{n // 100}",
            shard=index.shard_name(n // 256),
            offset=512 + n % 256 * 250_000,
            length=249_000,
            sha256=hashlib.sha256(b"%d" % n).hexdigest(),
            level=0.05,
            clipped=0.0,
            rate=audio.SAMPLE_RATE,
            channels=1,
            dc=0.0,
            still=0.0,
            faults=0,
        )
        for n, seconds in enumerate(lengths)
    )
    start = time.perf_counter()
    facts = index.write_index(folder, samples)
    written = time.perf_counter() - start
    for number in range(-(-count // 256)):
        facts[index.shard_name(number)] = index.FileFacts(bytes=64_000_000, sha256="0" * 64)
    meta = {
        "fingerprint": {"audio": audio.FINGERPRINT},
        "utterances": count,
        "seconds": sum(lengths),
        "rejected": {},
        "files": {name: file.model_dump() for name, file in facts.items()},
    }
    (folder / META).write_text(json.dumps({**meta, "sha256": digest(meta)}))
    opened = reader.open_shards(folder).samples
    rng = np.random.default_rng(0)
    some = rng.integers(count, size=1000).tolist()
    return {
        "utterances": count,
        "write seconds": written,
        "open seconds": min(_cpu_seconds(lambda: reader.open_shards(folder)) for _ in range(REPEATS)),
        "bytes per utterance": sum(facts[name].bytes for name in index.FILES) / count,
        "microseconds per checked sample": 1e3 * _cpu_seconds(lambda: [opened[n] for n in some]),
    }


def _damage(folder: Path, count: int) -> dict[str, Any]:
    utterances = write_corpus(folder / "wav", np.full(8, 0.5), audio.SAMPLE_RATE)
    writer.build(utterances, folder / "shards")
    path = folder / "shards" / index.shard_name(0)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = {"truncations": 0, "bit flips": 0}
    for _ in range(count):
        at, bit = rng.integers(len(whole)), rng.integers(8)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        for kind, data in {"truncations": whole[:at], "bit flips": bytes(flipped)}.items():
            path.write_bytes(data)
            noticed[kind] += bool(reader.verify(folder / "shards"))
    return {f"{kind} noticed of {count}": number for kind, number in noticed.items()}


def _build(folder: Path, count: int) -> dict[str, Any]:
    """Of six shards: of two, half of the time would go into the beginning and the end, which are serial.

    Two processes with half of the utterances each share no lock: what they gain is what the machine gives.
    """
    figures: dict[str, Any] = {"cores": os.cpu_count()}
    for rate in (audio.SAMPLE_RATE, 24_000):
        lengths = speech_lengths(count, 1)
        utterances = write_corpus(folder / str(rate), lengths, rate)
        audio.read_audio(utterances[0].audio)  # torch, where it is needed, is imported before the clock runs
        ways: dict[str, Callable[[Path], float]] = {
            "one worker": functools.partial(_build_seconds, utterances, 1),
            "two workers": functools.partial(_build_seconds, utterances, 2),
            "two processes": functools.partial(_two_processes, utterances),
        }
        best = dict.fromkeys(ways, float("inf"))
        for repeat, (way, build_all) in itertools.product(range(REPEATS), ways.items()):
            best[way] = min(best[way], build_all(folder / f"out-{rate}-{way}-{repeat}"))
        figures[f"{rate} Hz: audio-s/s, one worker"] = float(lengths.sum()) / best["one worker"]
        figures |= {f"{rate} Hz: {way}, times one": best["one worker"] / best[way] for way in list(ways)[1:]}
    return figures


def _build_seconds(utterances: list[manifest.Utterance], workers: int, out: Path) -> float:
    start = time.perf_counter()
    writer.build(utterances, out, workers=workers)
    return time.perf_counter() - start


def _two_processes(utterances: list[manifest.Utterance], out: Path) -> float:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(3, timeout=TIMEOUT)
    halves = [
        spawn.Process(target=_half, args=(utterances[n::2], out.with_name(f"{out.name}-{n}"), together))
        for n in (0, 1)
    ]
    for half in halves:
        half.start()
    together.wait()
    start = time.perf_counter()
    together.wait()
    seconds = time.perf_counter() - start
    for half in halves:
        half.join()
    return seconds


def _half(utterances: list[manifest.Utterance], out: Path, together: Any) -> None:
    audio.read_audio(utterances[0].audio)
    together.wait()
    writer.build(utterances, out, workers=1)
    together.wait()


def _loader(folder: Path, count: int) -> dict[str, Any]:
    """Our loader and plain webdataset through the same shards in the same batches, so equally padded.

    Ours hands out 16-bit audio and lengths, of which the device makes waves and mask: on a GPU that costs
    the CPU nothing, on a CPU it counts. The others make waves and masks themselves, in a process of their
    own: ours reads in one that is set up as training sets it up.
    """
    import torch

    from asrlora.data.loader import read_batches
    from asrlora.engine.runtime import keep_memory

    lengths = np.sort(speech_lengths(count - count % BATCH_SIZE, 2))
    opened = writer.build(write_corpus(folder / "wav", lengths, audio.SAMPLE_RATE), folder / "shards")
    batches = [(0, list(range(n, n + BATCH_SIZE))) for n in range(0, len(lengths), BATCH_SIZE)]
    torch.set_num_threads(1)  # as in a worker: threads that wait for work by spinning would be counted
    keep_memory()

    def for_a_gpu() -> None:
        deque(read_batches(opened, batches, workers=1), maxlen=0)

    def on_the_cpu() -> None:
        for batch in read_batches(opened, batches, workers=1):
            batch.to(torch.device("cpu"))

    def empty_memory(epoch: Callable[[], None], room: int) -> float:
        """CPU seconds of an epoch with room for so many bytes of decoded audio, none of it there yet."""
        reader.forget(opened)
        reader.memory.left = room
        with contextlib.suppress(AttributeError):  # glibc; so that memory is as new as in a first epoch
            ctypes.CDLL(None).malloc_trim(0)
        return _cpu_seconds(epoch)

    work: dict[str, Callable[[], float]] = {
        "more audio than memory, for a GPU": lambda: empty_memory(for_a_gpu, 0),
        "more audio than memory, on the CPU": lambda: empty_memory(on_the_cpu, 0),
        "first epoch, on the CPU": lambda: empty_memory(on_the_cpu, reader.KEEP_BYTES),
        "later epochs, on the CPU": lambda: _cpu_seconds(on_the_cpu),
    }
    mine = list(work)
    figures: dict[str, Any] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as theirs:
        work["plain webdataset"] = lambda: theirs.submit(_epoch, plain_webdataset, folder / "shards").result()
        if importlib.util.find_spec("lhotse"):
            write_lhotse_shar(sorted((folder / "wav").glob("*.wav")), folder / "shar")
            work["lhotse Shar"] = lambda: theirs.submit(_epoch, lhotse_shar, folder / "shar").result()
        else:
            figures["lhotse Shar"] = "not installed; uv run --with lhotse asrlora bench data compares with it"
        best = dict.fromkeys(work, 0.0)
        for _ in range(4 * REPEATS):  # of a second each: one alone is off by a quarter
            for name, epoch in work.items():
                best[name] = max(best[name], opened.seconds / epoch())
    figures |= {f"{name}: audio-s per CPU second": speed for name, speed in best.items()}
    figures |= {f"{name}, times {o}": best[name] / best[o] for o in work if o not in mine for name in mine}
    return figures


def _epoch(batches: Callable[[Path], Iterator[Any]], folder: Path) -> float:
    """CPU seconds of all batches."""
    import torch

    torch.set_num_threads(1)
    return _cpu_seconds(lambda: deque(batches(folder), maxlen=0))


def plain_webdataset(folder: Path) -> Iterator[Any]:
    """What a user of webdataset writes: decode to float32, pad to half a second, mask."""
    import torch
    import webdataset

    def decode(key: str, data: bytes) -> Any:
        return soundfile.read(io.BytesIO(data), dtype="float32")[0] if key.endswith("flac") else None

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    waves: list[audio.Wave] = []
    for (wave,) in webdataset.WebDataset(urls, shardshuffle=False).decode(decode).to_tuple("flac"):
        waves.append(wave)
        if len(waves) == BATCH_SIZE:
            longest = -(-max(map(len, waves)) // 8000) * 8000
            padded = torch.zeros(len(waves), longest)
            mask = torch.zeros(len(waves), longest, dtype=torch.long)
            for row, one in enumerate(waves):
                padded[row, : len(one)] = torch.from_numpy(one)
                mask[row, : len(one)] = 1
            yield padded, mask
            waves.clear()


def write_lhotse_shar(paths: list[Path], folder: Path) -> None:
    """Writes recordings as lhotse's shards."""
    import lhotse

    folder.mkdir()
    cuts = lhotse.CutSet.from_cuts(lhotse.Recording.from_file(path).to_cut() for path in paths)
    cuts.to_shar(folder, fields={"recording": "flac"}, shard_size=writer.SAMPLES_PER_SHARD, verbose=False)


def lhotse_shar(folder: Path) -> Iterator[Any]:
    """What a user of lhotse writes: cuts from Shar, padded by its own collation."""
    import lhotse
    from lhotse.dataset.collation import collate_audio

    cuts = iter(lhotse.CutSet.from_shar(in_dir=folder))
    while batch := list(itertools.islice(cuts, BATCH_SIZE)):
        yield collate_audio(lhotse.CutSet.from_cuts(batch))


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
