"""Distributed evaluation: each utterance once, hypotheses gathered by id, integer counts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from asrlora.config import RunConfig
from asrlora.data import audio, plan
from asrlora.data.audit.checks import baseline
from asrlora.data.audit.findings import Audit
from asrlora.data.loader import read_batches
from asrlora.data.shards.reader import Shards
from asrlora.engine import longform, memory
from asrlora.engine.recorder import Recorder
from asrlora.engine.runtime import Runtime
from asrlora.engine.selection import Rates, Selection
from asrlora.models import decode
from asrlora.models.family import Base, Decoded
from asrlora.record import run_dir, status
from asrlora.record.schema import Scores, read
from asrlora.score import bootstrap, degenerate, keyword_recall, power, text
from asrlora.score.metric import Metric
from asrlora.score.scoring import Hypothesis, score, summary
from asrlora.score.selection import CHOSEN_ON, REPORT, halves
from asrlora.score.text import Normaliser
from asrlora.sweep import pruning


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
    """What a model wrote of a set."""

    hypotheses: list[Hypothesis]  # sorted by id
    degenerate: dict[str, Any]  # see score/degenerate.py
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
        parts,
        ((0, batch) for batch in mine),
        workers=runtime.threads.loader_threads,
        pin=runtime.device.type == "cuda",
    )
    reading = runtime.work.each("reading a batch to evaluate", batches_read)
    for numbers, batch in zip(mine, reading, strict=True):
        seconds = [sample.duration for sample in batch.samples]
        full = memory.explained(batch, "evaluating", memory.evaluation_remedy(batch_seconds))
        with runtime.work.on("evaluating a batch"), full:
            waves, mask = batch.to(runtime.device)
            written = decode.transcribe(model, base, waves, mask, seconds)
        pairs += zip(numbers, written, strict=True)
        progress(sum(seconds) * runtime.world_size)
        if runtime.stop.requested:
            break
    model.train(was_training)
    gathered = runtime.collectives.gather(pairs)
    (stops,) = runtime.collectives.all_reduce_sum(runtime.stop.requested)
    if stops:
        return None
    if gathered is None:
        return Evaluation([], {})
    joined = parts.join(gathered)
    hypotheses = assemble(shards, [(identity, one.text) for identity, one in joined], normaliser)
    unfinished = {identity for identity, one in joined if one.unfinished}
    return Evaluation(
        hypotheses,
        degenerate.count(hypotheses, unfinished),
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
        differ = sorted(texts.keys() ^ samples.keys())
        raise RuntimeError(f"{len(differ)} utterances are missing or foreign, such as {differ[0]!r}")
    return [
        score(i, samples[i].text, texts[i], normaliser, samples[i].speaker, samples[i].duration)
        for i in sorted(samples)
    ]


@dataclass
class Evaluator:
    """The evaluations of a run: all its sets at a step, scored, and taken into the selection."""

    config: RunConfig
    runtime: Runtime
    base: Base
    sets: dict[str, Shards]
    cuts: Mapping[str, longform.Cuts]  # windows of their long utterances, by set
    selection: Selection
    recorder: Recorder
    audit: Audit  # before the baseline
    texts: Sequence[str]  # what the labels say
    domain_words: frozenset[str] = frozenset()  # on rank 0
    described: bool = False  # what the guardrails can show

    @cached_property
    def normaliser(self) -> Normaliser:
        """What references and hypotheses are scored after."""
        return text.normaliser(self.config.text_normaliser, self.config.language)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same at all steps of a run."""
        found = fingerprint(self.base, self.normaliser, self.selection.metric, any(self.cuts.values()))
        return {**found, **{f"{name} manifest": data.content for name, data in self.sets.items()}}

    def evaluate(self, step: int, model: Any) -> bool:
        """Collective. Scores all sets; returns False where a rank was asked to stop meanwhile.

        Then nothing of it is kept, and a resumed attempt begins with this evaluation. What an earlier attempt
        has finished is not done again.
        """
        recorder, selection = self.recorder, self.selection
        recorder.book("training" if step else "start and shards")
        recorder.close_bar()
        known = self.runtime.collectives.on_main("reading scores", lambda: self._known(step))
        scores = known or self._score(step, model)
        if scores is None:
            return False
        rates = {name: scores.sets[name].rate(selection.metric) for name in self.sets}
        chosen_on = scores.sets.get(CHOSEN_ON, scores.sets["domain"]).rate(selection.metric)
        best = selection.update(step, rates, chosen_on)
        self._print(step, scores, rates, best)
        if selection.stopped is None:
            selection.stopped = self._prune(step)
        if selection.stopped:
            recorder.message(selection.stopped)
        recorder.log_evaluation(step, scores, rates, selection, new=known is None)
        recorder.book("evaluations" if step else "baseline")
        return True

    def _known(self, step: int) -> Scores | None:
        """Only rank 0. The scores that an earlier attempt has left."""
        path = run_dir.step_folder(self.config.output_dir, step) / "scores.json"
        return read(path, Scores) if self.recorder.resumed and path.exists() else None

    def _prune(self, step: int) -> str | None:
        """Collective. Why a sweep's trial should end after this evaluation."""
        at = (step, self.config.max_steps, self.config.eval_interval)
        return self.runtime.collectives.on_main(
            "asking whether to prune", lambda: pruning.reason(self.config.output_dir, *at)
        )

    def _print(self, step: int, scores: Scores, rates: Rates, best: bool) -> None:
        limit = self.config.max_heldout_regression
        compared = status.against_baseline(rates, self.selection.baseline, limit)
        self.recorder.message(
            f"step {step}: {self.selection.metric.upper()} {compared}"
            + f" ({scores.rtfx:,.0f} audio-s/s)"
            + (", best so far" if best else "")
        )
        for name in self.sets:
            if described := degenerate.describe(scores.sets[name].as_json()):
                self.recorder.message(f"{name}: of the hypotheses {described}")
        if step and not self.described:
            self.described = True
            self._describe_guardrails(scores, limit)

    def _describe_guardrails(self, scores: Scores, limit: float) -> None:
        """After the first step that is evaluated, while there is time to get more utterances."""
        for name in sorted(self.sets.keys() - {"domain", REPORT}):
            one = scores.sets[name]
            if one.change_interval and (
                said := power.guardrail(name, one.utterances, one.change_interval, limit)
            ):
                self.recorder.message(said)

    def _score(self, step: int, model: Any) -> Scores | None:
        """Collective. Evaluates all sets and writes hypotheses and scores; None where a rank should stop."""
        found: dict[str, Evaluation] = {}
        total = sum(data.seconds for data in self.sets.values())
        start = time.monotonic()
        with self.runtime.strategy.evaluated(), self.recorder.evaluating(step, total) as advance:
            for name, data in self.sets.items():
                one = evaluate(
                    self.runtime,
                    model,
                    self.base,
                    data,
                    self.config.eval_batch_seconds,
                    self.normaliser,
                    advance,
                    self.cuts[name],
                )
                if one is None:
                    return None
                found[name] = one
        seconds = time.monotonic() - start
        return self.runtime.collectives.on_main(
            "scoring", lambda: self._summarise(step, found, total, seconds)
        )

    def _summarise(self, step: int, found: Mapping[str, Evaluation], total: float, seconds: float) -> Scores:
        """Only rank 0: scores.json, written; `total` seconds of audio took so many seconds."""
        scores: dict[str, Any] = {
            "step": step,
            "metric": self.selection.metric,
            "fingerprint": self.fingerprint,
            "seconds": round(seconds, 2),
            "rtfx": round(total / seconds, 1),
        }
        results = {name: one.hypotheses for name, one in found.items()}
        for name, one in found.items():
            scores[name] = {**summary(one.hypotheses), **one.degenerate, **one.windows}
        scores["domain"] |= keyword_recall.summary(results["domain"], self.domain_words)
        if self.config.report_manifest == "auto":
            parts = halves({one.id: one for one in results["domain"]})
            scores |= {name: summary(list(half.values())) for name, half in parts.items()}
        for name, hypotheses in results.items():
            scores[name] |= self._intervals(step, name, hypotheses)
        lines = {name: [one.line() for one in hypotheses] for name, hypotheses in results.items()}
        written = Scores.model_validate(scores)
        self.recorder.record.write_evaluation(step, lines, written)
        if step == 0:
            self._audit_baseline(results)
        return written

    def _intervals(self, step: int, name: str, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
        """95 % intervals, as the verdict's, of the metric and, after step 0, of its change since then."""
        metric, by = self.selection.metric, self.recorder.record.identity.config.resample_by
        speakers, _ = bootstrap.choose_speakers(name, {one.id: one.speaker for one in hypotheses}, by)
        now = {one.id: one.tally(metric) for one in hypotheses}
        if step == 0:
            (drawn,) = bootstrap.resample([now], speakers)
            return {"interval": bootstrap.interval(drawn)}
        before = run_dir.read_counts(run_dir.step_folder(self.config.output_dir, 0) / f"{name}.jsonl", metric)
        old, new = bootstrap.resample([before, now], speakers)
        return {"interval": bootstrap.interval(new), "change_interval": bootstrap.interval(new - old)}

    def _audit_baseline(self, results: dict[str, list[Hypothesis]]) -> None:
        """What the base writes, and how its errors vary, complete the audit."""
        metric, criteria = self.selection.metric, self.selection.criteria
        by = self.recorder.record.identity.config.resample_by
        found = baseline(self.audit, self.texts, results, metric, criteria, by)
        for finding in found.findings:
            if finding not in self.audit.findings:
                self.recorder.message(f"audit: {finding.kind}: {finding.message}")
        self.recorder.record.update(audit=found.as_json())
