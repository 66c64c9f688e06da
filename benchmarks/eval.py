"""What evaluation costs: `asrlora bench eval`, against Transformers' own pipeline.

Both decode the same speech greedily with the same base on the same cores. Ours is the command that
people run, on one process and on two as in the demo; its seconds are those of scores.json, without imports
and loading, as the pipeline's are without. The pipeline runs as one calls it: in a process of its own, with
torch's defaults, in the order of the manifest (and sorted by length, to see what that alone is worth). It
gets decoded audio; ours reads, checks and decodes its shards. Each figure is the best of two taken in turn.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from asrlora import allocation
from asrlora.arguments import count
from asrlora.console import console
from asrlora.data import audio, manifest
from asrlora.demo import corpus
from asrlora.demo.demo import ROOT, on_two_processes
from asrlora.record.run_dir import read_lines
from asrlora.record.schema import EvalScores, read
from benchmarks.common import Figures, add_output, report

REPEATS = 2
BATCH_SIZES = (1, 4, 8, 16, 32)  # of the pipeline
BASE = ROOT / "asrlora" / "demo" / "base"
ALONE = "pipeline, batch size 1"

Texts = dict[str, str]  # by id
Turn = tuple[Texts, float]  # and seconds
Way = Callable[[], Turn]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench eval`."""
    parser.set_defaults(run=lambda args: report(bench_eval(args.utterances), args.output))
    add_output(parser)
    parser.add_argument("--utterances", type=count, default=300, help="to speak (default: 300)")


def bench_eval(utterances: int, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> Figures:
    """All figures; the first batch size must be 1."""
    from asrlora.models import moonshine, registry

    for name, value in allocation.WAITING.items():  # torch's defaults, for the pipeline; ours sets it again
        if os.environ.get(name) == value:
            del os.environ[name]
    with (
        tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        console.print(f"bench: speaking {utterances} utterances")
        spoken = _speak(Path(name), utterances)
        seconds = sum(u.duration for u in spoken)
        limit = moonshine.token_limit(registry.load_base(str(BASE)), max(u.duration for u in spoken))
        alone = [sys.executable, str(ROOT / "asrlora" / "cli.py")]
        ours: dict[str, Way] = {
            "asrlora, one process": functools.partial(_ours, alone, Path(name)),
            "asrlora, two processes": functools.partial(_ours, on_two_processes("cli.py"), Path(name)),
        }
        pipelines: dict[str, Way] = {
            way: functools.partial(_in, process, functools.partial(_pipeline, files, size, limit))
            for way, (files, size) in _batchings(spoken, batch_sizes).items()
        }
        ways = {**ours, **pipelines}
        texts: dict[str, Texts] = {}
        best = dict.fromkeys(ways, 0.0)
        for turn, way in itertools.product(range(REPEATS), ways):
            if way != ALONE or turn == 0:  # it takes as long as all others together
                console.print(f"bench: {way}, turn {turn + 1} of {REPEATS}")
                texts[way], spent = ways[way]()
                best[way] = max(best[way], seconds / spent)
    speech = {"utterances": len(spoken), "audio seconds": seconds}
    return {"speech": speech, **_figures(texts, best, list(ours))}


def _batchings(
    spoken: list[manifest.Utterance], batch_sizes: tuple[int, ...]
) -> dict[str, tuple[dict[str, Path], int]]:
    """How the pipeline is called: files by id, in order, and how many of them make a batch."""
    orders = {"": spoken, ", sorted": sorted(spoken, key=lambda u: -u.duration)}
    return {
        f"pipeline, batch size {size}{order}": ({u.id: u.audio for u in utterances}, size)
        for (order, utterances), size in itertools.product(orders.items(), batch_sizes)
        if size > 1 or not order  # batches of one are not padded, in whatever order
    }


def _figures(texts: dict[str, Texts], best: dict[str, float], ours: list[str]) -> Figures:
    """Speeds and equal texts of each way, and how many times as fast ours are as the fastest pipelines."""
    figures: Figures = {}
    for way, speed in best.items():
        same = sum(texts[way][i] == text for i, text in texts[ALONE].items())
        figures[way] = {"audio-s per second": speed, "texts as of the pipeline one by one": same}
    pipelines = {way: speed for way, speed in best.items() if way not in ours}
    kinds = {
        "at its best": [speed for way, speed in pipelines.items() if "sorted" not in way],
        "at its best, sorted": [speed for way, speed in pipelines.items() if "sorted" in way],
        "at its best with the texts of one by one": [
            speed for way, speed in pipelines.items() if texts[way] == texts[ALONE]
        ],
    }
    for kind, speeds in kinds.items():
        figures[f"times the pipeline {kind}"] = {way: best[way] / max(speeds) for way in ours}
    return figures


def _in(process: ProcessPoolExecutor, work: Way) -> Turn:
    return process.submit(work).result()


def _ours(command: list[str], folder: Path) -> Turn:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        words = ["--model-id", BASE, "--manifest-path", folder / "manifest.jsonl", "--output-dir", output]
        subprocess.run(
            [*command, "eval", *map(str, words)],
            env={**os.environ, "ASRLORA_CACHE": str(folder / "cache")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        texts = {one["id"]: one["hypothesis_raw"] for one in read_lines(Path(output) / "hypotheses.jsonl")}
        return texts, read(Path(output) / "scores.json", EvalScores).seconds


def _speak(folder: Path, count: int) -> list[manifest.Utterance]:
    """Half of it like the demo's domain, half like its heldout."""
    records: list[dict[str, Any]] = []
    for name, style in (("domain", corpus.DOMAIN), ("heldout", corpus.GENERAL)):
        lines = corpus.draw_lines(name, -(-count // 2), style, True, 3)
        records += corpus.write_set(lines, folder / name)
    corpus.write_manifest(folder / "manifest.jsonl", records[:count])
    return manifest.read_manifest(folder / "manifest.jsonl")


def _pipeline(files: dict[str, Path], size: int, limit: int) -> Turn:
    """In a process of its own. Loading and decoding are not timed."""
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model=str(BASE), dtype="float32", device="cpu")
    inputs = [
        {"raw": (audio.read_audio(path) / 32768).astype("float32"), "sampling_rate": audio.SAMPLE_RATE}
        for path in files.values()
    ]
    settings = {"max_new_tokens": limit, "num_beams": 1, "do_sample": False}

    start = time.perf_counter()
    results = list(recognise(inputs, batch_size=size, generate_kwargs=settings))
    seconds = time.perf_counter() - start
    return {i: one["text"].strip() for i, one in zip(files, results, strict=True)}, seconds
