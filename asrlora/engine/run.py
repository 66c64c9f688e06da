"""The parts that a training run is made of, put together before the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asrlora.config import RunConfig
from asrlora.data import manifest, windows
from asrlora.data.audit.findings import Audit
from asrlora.data.shards.reader import Shards
from asrlora.engine import longform
from asrlora.engine.checkpoint import Checkpoints
from asrlora.engine.evaluate import Evaluator
from asrlora.engine.recorder import NullRecorder, Recorder
from asrlora.engine.runtime import Runtime
from asrlora.engine.selection import Selection, describe_held_out
from asrlora.engine.training_set import Labels, Training
from asrlora.models.family import Base
from asrlora.score import keyword_recall, metric
from asrlora.score.text import Normaliser
from asrlora.storage import write_atomic


@dataclass(frozen=True)
class Run:
    """A training run beside its model and its data."""

    recorder: Recorder
    selection: Selection
    evaluator: Evaluator
    checkpoints: Checkpoints


def create_or_resume(
    config: RunConfig,
    runtime: Runtime,
    base: Base,
    training: Training,
    sets: dict[str, Shards],
    labels: Labels,
    found: Audit,
) -> Run:
    """Collective. Opens the run directory; `sets` are the evaluation sets, `found` is the audit so far."""
    cuts = {name: longform.cut_set(runtime, base, data) for name, data in sets.items()}
    chosen = metric.choose(config.metric, config.language)
    recorder = (Recorder if runtime.is_main else NullRecorder)(config, runtime)
    selection = Selection(config, chosen.name)
    texts = list(labels.texts.values())
    evaluator = Evaluator(config, runtime, base, sets, cuts, selection, recorder, found, texts)
    described = manifest.describe(len(training.samples.samples), training.left_out)
    recorder.message(f"training set: {described}, {training.samples.seconds / 3600:.2f} h")
    for finding in found.findings:
        recorder.message(f"audit: {finding.kind}: {finding.message}")
    recorder.message(str(chosen))
    if base.commit is not None:
        recorder.message(f"base: {base.model.name_or_path} at commit {base.commit}")
    held_out = describe_held_out(config, sets, chosen.name)
    recorder.message(held_out)
    _describe_sets(recorder, base, sets, cuts)

    same = {
        "fingerprint": evaluator.fingerprint,
        "training": {"set": described, "content": training.samples.content},
    }
    resumed = runtime.collectives.on_main(
        "opening the run directory", lambda: _open(recorder, evaluator, same, held_out)
    )
    recorder.opened(resumed)
    if runtime.watch is not None:
        runtime.watch.reporter = recorder
    return Run(recorder, selection, evaluator, Checkpoints(config, runtime, base, selection, recorder))


def _open(recorder: Recorder, evaluator: Evaluator, same: dict[str, Any], held_out: str) -> bool:
    """Only rank 0. Creates or reopens the run directory; returns whether an earlier attempt began the run."""
    resumed = recorder.create_or_resume(
        same=same,
        tags=[evaluator.base.kind, "dora" if evaluator.config.use_dora else "lora"],
        metric=evaluator.selection.metric,
        base_commit=evaluator.base.commit,
        held_out=held_out,
        audit=evaluator.audit.as_json(),
    )
    evaluator.domain_words = _domain_words(evaluator, resumed)
    return resumed


def _describe_sets(
    recorder: Recorder, base: Base, sets: Mapping[str, Shards], cuts: Mapping[str, longform.Cuts]
) -> None:
    for name, data in sets.items():
        if data.rejected:
            recorder.message(f"{name}: left out {dict(data.rejected)}")
        if cuts[name]:
            how = windows.describe(longform.count(cuts[name]), base.max_seconds)
            recorder.message(f"{name}: {len(cuts[name]):,} of {len(data.samples):,} utterances are {how}")


def _domain_words(evaluator: Evaluator, resumed: bool) -> frozenset[str]:
    """The words whose recall is counted. A resumed run keeps those that it began with: with other words its
    recalls could not be compared."""
    config, metric_name = evaluator.config, evaluator.selection.metric
    path = config.output_dir / "domain_words.txt"
    if resumed and path.exists():
        return frozenset(path.read_text(encoding="utf-8").split())
    words = choose_domain_words(config, evaluator.sets, metric_name, evaluator.normaliser)
    write_atomic(path, keyword_recall.to_list(words))
    return words


def choose_domain_words(
    config: RunConfig, sets: Mapping[str, Shards], metric_name: str, normaliser: Normaliser
) -> frozenset[str]:
    """The words whose recall is counted, from evaluation sets and settings; found where words are counted."""
    texts = {name: [sample.text for sample in data.samples] for name, data in sets.items()}
    general = texts.get("heldout") if metric_name == "wer" else None
    listed, plain = config.domain_words, config.general_text
    return keyword_recall.choose(listed, plain, texts["domain"], general, normaliser, config.language)
