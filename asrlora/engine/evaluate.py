"""Distributed evaluation: each utterance once, hypotheses gathered by id, integer counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asrlora.data import audio, plan
from asrlora.data.loader import read_batches
from asrlora.data.shards.reader import Shards
from asrlora.engine import longform, memory
from asrlora.engine.runtime import Runtime
from asrlora.models import decode
from asrlora.models.family import Base, Decoded
from asrlora.score import degenerate
from asrlora.score.metric import Metric
from asrlora.score.scoring import Hypothesis, score
from asrlora.score.text import Normaliser


def fingerprint(base: Base, normaliser: Normaliser, metric: Metric, windowed: bool = False) -> dict[str, Any]:
    """What decides hypotheses and scores, but for adapter and manifest. `windowed`: an utterance was
    longer than the model takes at once."""
    return {
        "audio": audio.FINGERPRINT,
        "text": normaliser.fingerprint,
        "metric": metric,
        "decode": {**decode.fingerprint(base), **longform.fingerprint(base, windowed)},
        "base": base.sha256,
    }


@dataclass(frozen=True)
class Evaluation:
    hypotheses: list[Hypothesis]  # sorted by id
    odd: dict[str, int]  # see score/degenerate.py
    windows: dict[str, int] = field(default_factory=dict)  # see longform.count


def evaluate(
    runtime: Runtime,
    model: Any,
    base: Base,
    shards: Shards,
    batch_seconds: float,
    normaliser: Normaliser,
    progress: Callable[[float], None] = lambda seconds: None,
    cuts: longform.Cuts | None = None,
) -> Evaluation | None:
    """Collective. Hypotheses of all utterances on rank 0; none elsewhere.

    None, on all ranks, where one of them was asked to stop before all was done.

    `model` is evaluated as it is, with its adapter active. No hypothesis depends on the budget of
    padded audio-seconds in a batch, on who shares it, or on the number of processes (models/decode).
    `progress` gets the audio-seconds of each finished batch of this rank, times the world size.
    `cuts` are the windows of utterances longer than the model takes at once, made here unless given.
    """
    parts = longform.Parts(shards, longform.cut_set(runtime, base, shards) if cuts is None else cuts)
    ids, durations = [s.id for s in parts.samples], [s.duration for s in parts.samples]
    batches = plan.plan_evaluation(ids, durations, batch_seconds, base.cost)
    mine = plan.share(batches, runtime.rank, runtime.world_size)
    was_training = model.training
    model.eval()
    pairs: list[tuple[int, Decoded]] = []
    batches_read = read_batches(
        parts, ((0, batch) for batch in mine), workers=runtime.threads.loader_threads,
        pin=runtime.device.type == "cuda",
    )  # fmt: skip
    reading = runtime.work.each("reading a batch to evaluate", batches_read)
    for numbers, batch in zip(mine, reading, strict=True):
        seconds = [sample.duration for sample in batch.samples]
        full = memory.explained(batch, "evaluating", memory.evaluation_remedy(batch_seconds))
        with runtime.work.on("evaluating a batch"), full:
            waves, mask = batch.to(runtime.device)
            written = decode.transcribe(model, base, waves, mask, seconds)
        pairs += zip(numbers, written, strict=True)
        progress(sum(seconds) * runtime.world_size)
        if runtime.stop_requested:
            break
    model.train(was_training)
    gathered = runtime.gather(pairs)
    (stops,) = runtime.sum(runtime.stop_requested)
    if stops:
        return None
    if gathered is None:
        return Evaluation([], {})
    joined = parts.join(gathered)
    hypotheses = assemble(shards, [(identity, one.text) for identity, one in joined], normaliser)
    unfinished = {identity for identity, one in joined if one.unfinished}
    return Evaluation(
        hypotheses,
        degenerate.count((h.reference, h.hypothesis, h.id in unfinished) for h in hypotheses),
        longform.count(parts.cuts),
    )


def assemble(shards: Shards, pairs: list[tuple[str, str]], normaliser: Normaliser) -> list[Hypothesis]:
    """Scores gathered (id, hypothesis) pairs. Raises RuntimeError unless every id is there once."""
    texts = dict(pairs)
    if len(texts) != len(pairs):
        twice = sorted({i for i, _ in pairs if sum(i == j for j, _ in pairs) > 1})
        raise RuntimeError(f"{len(twice)} utterances were evaluated twice, such as {twice[0]!r}")
    samples = {sample.id: sample for sample in shards.samples}
    if texts.keys() != samples.keys():
        odd = sorted(texts.keys() ^ samples.keys())
        raise RuntimeError(f"{len(odd)} utterances are missing or foreign, such as {odd[0]!r}")
    return [
        score(i, samples[i].text, texts[i], normaliser, samples[i].speaker, samples[i].duration)
        for i in sorted(samples)
    ]
