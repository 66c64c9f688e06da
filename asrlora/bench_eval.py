"""What evaluation costs: `asrlora bench eval`, against Transformers' own pipeline.

Both hear the same speech and write greedily with the same base on the same cores, the pipeline as one calls
it: in a process of its own, with torch's defaults, in the order of the manifest (and sorted by length, to
see what that alone is worth). It gets decoded audio; ours reads, checks and decodes its shards. Each figure
is the best of two taken in turn. CPU seconds, which a busy machine disturbs less, stand beside the clock's.
"""

import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from asrlora.console import console
from asrlora.data import audio, manifest, shards
from asrlora.demo import corpus
from asrlora.score import text

REPEATS = 2
BATCH_SIZES = (1, 4, 8, 16, 32)  # of the pipeline
BUDGET = 160.0  # of ours: padded seconds, the default of --eval-batch-seconds
BASE = Path(__file__).parent / "demo" / "base"

Texts = dict[str, str]  # by id
Turn = tuple[Texts, dict[str, float]]  # with its seconds, by "clock" and "cpu"


def bench_eval(utterances: int, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> dict[str, dict[str, Any]]:
    """All figures; the first batch size must be 1."""
    from asrlora.engine import evaluate, offline
    from asrlora.models import families, moonshine

    with (
        tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own,
    ):
        console.print(f"bench: speaking {utterances} utterances")
        spoken = _speak(Path(name), utterances)
        data = shards.build(spoken, Path(name) / "shards")
        base = families.load_base(str(BASE))
        limit = moonshine.token_limit(base, float(data.durations.max()))
        runtime = offline.one_process()

        def ours() -> Texts:
            shards.forget(data)  # decoded audio of the turn before
            found = evaluate.evaluate(runtime, base.model, base, data, BUDGET, text.normaliser(None, "en"))
            assert found is not None
            return {h.id: h.hypothesis_raw for h in found.hypotheses}

        ways: dict[str, Callable[[], Turn]] = {"asrlora": lambda: _timed(ours)}
        for by_length, size in itertools.product((False, True), batch_sizes):
            if by_length and size == 1:
                continue
            order = sorted(data.samples, key=lambda s: -s.duration) if by_length else list(data.samples)
            paths = {u.id: u.audio for u in spoken}
            work = functools.partial(_pipeline, {s.id: paths[s.id] for s in order}, size, limit)
            label = f"pipeline, batch size {size}" + ", sorted" * by_length
            ways[label] = lambda work=work: own.submit(work).result()  # type: ignore[misc]
        texts: dict[str, Texts] = {}
        best = {way: {"clock": 0.0, "cpu": 0.0} for way in ways}
        for turn, way in itertools.product(range(REPEATS), ways):
            console.print(f"bench: {way}, turn {turn + 1} of {REPEATS}")
            texts[way], spent = ways[way]()
            best[way] = {key: max(best[way][key], data.seconds / spent[key]) for key in spent}
    alone = texts["pipeline, batch size 1"]  # batches of one are not padded
    figures: dict[str, dict[str, Any]] = {
        "speech": {"utterances": len(data.samples), "audio seconds": data.seconds}
    }
    for way, speed in best.items():
        figures[way] = {
            "audio-s per second": speed["clock"],
            "audio-s per CPU second": speed["cpu"],
            "texts as of the pipeline one by one": sum(texts[way][i] == alone[i] for i in alone),
        }
    pipelines = [way for way in best if way != "asrlora"]
    for name, those in {
        "at its best": [way for way in pipelines if "sorted" not in way],
        "at its best, sorted": [way for way in pipelines if "sorted" in way],
        "at its best with the texts of one by one": [way for way in pipelines if texts[way] == alone],
    }.items():
        others = [best[way] for way in those]
        figures[f"asrlora, times the pipeline {name}"] = {
            key: best["asrlora"][key] / max(speed[key] for speed in others) for key in ("clock", "cpu")
        }
    return figures


def _timed(work: Callable[[], Texts]) -> Turn:
    clock, cpu = time.perf_counter(), time.process_time()
    texts = work()
    return texts, {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


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

    hear = pipeline("automatic-speech-recognition", model=str(BASE), dtype="float32", device="cpu")
    inputs = [
        {"raw": (audio.read_audio(path) / 32768).astype("float32"), "sampling_rate": audio.SAMPLE_RATE}
        for path in files.values()
    ]
    settings = {"max_new_tokens": limit, "num_beams": 1, "do_sample": False}

    def work() -> Texts:
        heard = hear(inputs, batch_size=size, generate_kwargs=settings)
        return {i: one["text"].strip() for i, one in zip(files, heard, strict=True)}

    return _timed(work)
