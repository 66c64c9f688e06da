"""Using a model outside a training run: base or adapter, the same audio path."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.console import console, progress, stderr
from asrlora.data import audio, windows
from asrlora.data.audit import recordings
from asrlora.data.audit.findings import Audit
from asrlora.data.audit.transcript_style import compare_styles, style
from asrlora.data.manifest import Utterance, audio_length
from asrlora.data.shards import reader
from asrlora.engine import longform
from asrlora.engine import runtime as runtimes
from asrlora.engine.evaluate import evaluate, fingerprint
from asrlora.engine.training_set import cached, label
from asrlora.errors import UserError
from asrlora.models import adapters, key_terms, registry
from asrlora.models.family import Base
from asrlora.models.hub import BASE_FILE, adapter_settings, chosen, pin, split, trained_on
from asrlora.models.key_terms import TermList
from asrlora.models.pretrained import No4BitError
from asrlora.models.registry import Decoding
from asrlora.record.schema import EvalScores
from asrlora.record.scores import write_scores
from asrlora.record.transcripts import Transcript
from asrlora.score import keyword_recall, text
from asrlora.score import metric as metrics
from asrlora.score.scoring import Hypothesis
from asrlora.score.text import Normaliser
from asrlora.storage import atomic_folder

DEMO_BASE = Path(__file__).parents[1] / "demo" / "base"
BATCH_SECONDS = 160.0  # of padded audio in a batch of windows; no text depends on it
STYLE_SAMPLE = 64  # utterances; enough to see how a model writes


def open_model(
    model_id: str | None,
    adapter: Path | None,
    decoding: Decoding = Decoding(),
    in_4bit: bool | None = None,
    matmul_precision: str | None = None,
    terms: TermList | None = None,
) -> tuple[Any, Base]:
    """The model to use on this process's device, its adapter active, and its base.

    The base is loaded as it was when the adapter was trained. Raises UserError where that is not possible
    here, or where `in_4bit` or `matmul_precision` ask for something else.
    """
    base = open_base(model_id, adapter, decoding, in_4bit, matmul_precision)
    if terms is not None:
        base = key_terms.attach(base, terms)
    return (adapters.load(base, adapter) if adapter else base.model), base


def open_base(
    model_id: str | None,
    adapter: Path | None,
    decoding: Decoding = Decoding(),
    in_4bit: bool | None = None,
    matmul_precision: str | None = None,
) -> Base:
    """The base alone, as open_model loads it for an adapter."""
    runtimes.use_threads()
    model_id = chosen(model_id, adapter) or str(DEMO_BASE)
    trained = trained_on(adapter) if adapter else {}
    if in_4bit is None:
        in_4bit = trained.get("weights") == "nf4"
    runtimes.set_matmul_precision(matmul_precision or trained.get("matmul_precision", "highest"))
    try:
        base = registry.load_base(model_id, decoding, in_4bit)
    except No4BitError as error:
        if trained.get("weights") != "nf4":
            raise
        raise UserError(f"--adapter-dir {adapter} was trained on its base in 4 bits: {error}") from None
    base.model.to(runtimes.device())
    return base


def export(adapter: Path, output: Path, model_id: str | None, merge: bool) -> str:
    """Writes a model that needs no adapter (`merge`), or the adapter with its base named so that it is
    found from anywhere. Into a new folder; returns what was written, in words."""
    settings = adapter_settings(adapter)
    base_id, revision = split(chosen(model_id, adapter) or "")
    if output.exists():
        raise UserError(f"{output} exists; give a new folder")
    with atomic_folder(output) as aside:
        if merge:
            if trained_on(adapter).get("weights") == "nf4":
                raise UserError(
                    f"{adapter} was trained on its base in 4 bits, and merged into weights of another"
                    " precision it would be another model; leave --merge out"
                )
            model, base = open_model(model_id, adapter)
            difference = adapters.merge(model, base, aside)
            return f"{base.kind} with its adapter merged; logits within {difference:.0e} of the adapter's"
        for name in (adapters.WEIGHTS, BASE_FILE):
            if (adapter / name).exists():
                shutil.copy(adapter / name, aside)
        settings |= {"base_model_name_or_path": base_id, "revision": revision}
        (aside / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        return f"the adapter, for {base_id}"


def evaluate_manifest(
    model_id: str,
    adapter: Path | None,
    utterances: list[Utterance],
    output: Path,
    batch_seconds: float,
    decoding: Decoding = Decoding(),
    text_normaliser: str | None = None,
    metric: metrics.Metric = "wer",
    domain_words: frozenset[str] = frozenset(),
    in_4bit: bool | None = None,
    matmul_precision: str | None = None,
    terms: TermList | None = None,
) -> EvalScores | None:
    """Collective. Writes hypotheses.jsonl and scores.json into `output`; returns the scores, on rank 0."""
    normaliser = text.normaliser(text_normaliser, decoding.language)
    listed = keyword_recall.normalised([one.text for one in terms.terms] if terms else [], normaliser)
    runtime = runtimes.start()
    with runtime.watched():
        one = runtime.collectives.broadcast(pin(chosen(model_id, adapter) or model_id))  # as train.py does
        model, base = open_model(one, adapter, decoding, in_4bit, matmul_precision, terms)
        longform.check(base, {u.id: u.duration for u in utterances})
        data = cached(runtime, "shards", utterances)
        if runtime.is_main:
            for finding in recordings.check_sound("the manifest", data.samples, recordings.HARMLESS):
                console.print(f"note: {finding.message}")
        runtime.collectives.barrier()
        start = time.monotonic()
        with progress("evaluation", data.seconds, runtime.is_main) as advance:
            cuts = longform.cut_set(runtime, base, data)
            found = evaluate(runtime, model, base, data, batch_seconds, normaliser, advance, cuts)
        assert found is not None, "nothing asks this to stop"
        seconds = time.monotonic() - start
        runtime.close()
    if not runtime.is_main:
        return None
    pairs = {h.id: (h.reference, h.hypothesis) for h in found.hypotheses}
    return write_scores(
        output,
        found.hypotheses,
        domain_words,
        metric,
        **found.degenerate,
        **found.windows,
        **({"key_terms": keyword_recall.summary_of_terms(pairs, listed)} if listed else {}),
        base_commit=base.commit,
        left_out=data.rejected,
        audio_seconds=round(data.seconds, 2),
        seconds=round(seconds, 2),
        rtfx=round(data.seconds / seconds, 1),
        threads=runtime.threads.as_json(),
        fingerprint={
            **fingerprint(base, normaliser, metric, bool(cuts)),
            "adapter": adapters.digest(adapter) if adapter else None,
            "manifest": data.content,
        },
    )


def audit_model(config: RunConfig, found: Audit, data: Mapping[str, reader.Shards]) -> Audit:
    """Adds what the base model shows: labels it cannot write, and its style on a sample of domain."""
    normaliser = text.normaliser(config.text_normaliser, config.language)
    runtime = runtimes.start()
    model, base = open_model(config.base, None)
    training, _ = reader.for_training(data["train"], config.min_seconds, config.max_seconds)
    labels = label(base, training, config)
    every = -(-len(data["domain"].samples) // STYLE_SAMPLE)
    sample = data["domain"].subset(range(0, len(data["domain"].samples), every))
    with progress("what the base writes", sample.seconds) as advance:
        evaluated = evaluate(runtime, model, base, sample, config.eval_batch_seconds, normaliser, advance)
    assert evaluated is not None, "nothing asks this to stop"
    written = style(hypothesis.hypothesis_raw for hypothesis in evaluated.hypotheses)
    found = found.plus(labels.unlearnable)
    return found.plus(compare_styles(style(labels.texts.values()), written))


Write = Callable[[Collection[str], TermList | None], list[Hypothesis]]


def writer(
    model_id: str | None,
    adapter: Path | None,
    decoding: Decoding,
    utterances: list[Utterance],
    batch_seconds: float,
    normaliser: Normaliser,
    terms: TermList | None,
) -> Write:
    """Loads a model once. Gives what writes hypotheses of the utterances with such ids, with a list of terms
    or without. Raises UserError where the model cannot write `terms`."""
    runtime = runtimes.start()
    model, base = open_model(model_id, adapter, decoding, terms=terms)
    plain = replace(base, key_terms=None)
    longform.check(base, {u.id: u.duration for u in utterances})
    data = cached(runtime, "shards", utterances)

    def write(ids: Collection[str], terms: TermList | None) -> list[Hypothesis]:
        some = data.subset([n for n, sample in enumerate(data.samples) if sample.id in ids])
        drawn = key_terms.attach(plain, terms) if terms else plain
        label = f"boost {terms.boost:g}" if terms else "without terms"
        with progress(label, some.seconds) as advance:
            found = evaluate(runtime, model, drawn, some, batch_seconds, normaliser, advance)
        assert found is not None, "nothing asks this to stop"
        return found.hypotheses

    return write


def _read(path: Path) -> audio.Pcm:
    """A file by the audio path; notes about its faults go to stderr. Raises UserError."""
    try:
        pcm, source = audio.read_measured(path)
    except audio.AudioError as error:
        raise UserError(f"the audio file {path} {error}") from None
    for what, affected, how, fix in recordings.faults({str(path): source}):
        if affected and what not in recordings.HARMLESS:
            print(f"note: {path} is {how}; {fix}", file=sys.stderr, flush=True)
    return pcm


def transcribe_files(
    model_id: str | None,
    adapter: Path | None,
    paths: list[Path],
    decoding: Decoding = Decoding(),
    terms: TermList | None = None,
) -> Iterator[Transcript]:
    """Yields file by file; silence gives no segment, and so an empty text."""
    model, base = open_model(model_id, adapter, decoding, terms=terms)
    longform.check(base, {str(path): audio_length(path) for path in paths})
    for path in paths:
        pcm = _read(path)
        seconds = len(pcm) / audio.SAMPLE_RATE
        with progress(str(path), seconds, to=stderr) as advance:
            segments, counts = longform.transcribe(model, base, pcm, BATCH_SECONDS, advance)
        note = windows.describe(counts, base.max_seconds) if counts["windowed"] else ""
        yield Transcript(path, seconds, segments, note)
