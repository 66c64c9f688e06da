"""Compares train, domain and heldout before any step is run. Needs no torch.

Three stages, each as early as it can be: `quick` reads manifests and audio headers only, `deep` wants decoded
audio, and `tokens` and `baseline` want the base model. docs/guide/audit.md lists what each finds and what of
it stops a run.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asrlora.config import RunConfig
from asrlora.data import plan
from asrlora.data.audit import leakage, recordings, texts
from asrlora.data.audit.findings import EXAMPLES, Audit, Finding, Item, label, of_set
from asrlora.data.audit.transcript_style import compare_styles, style
from asrlora.data.manifest import BadLine, trainable
from asrlora.data.shards.index import Sample
from asrlora.data.shards.reader import Shards
from asrlora.score import bootstrap, metric, power, selection
from asrlora.score.metric import Metric
from asrlora.score.scoring import Hypothesis
from asrlora.score.verdict import Criteria

FILTERS = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0)  # seconds; how many utterances each would keep is reported
MANY_EPOCHS = 20  # past this many an adapter learns the sentences by heart
# Of the running words. 24 points where an adapter forgot 1 to 2 points of WER, 9 where the demo's training
# texts are those of the domain alone, 2 where they are mixed.
SPEAKS_FOR_THE_DOMAIN = 0.05
DRIFT = 1.95  # Kolmogorov's distribution passes this once in 1,000
DRIFT_MATTERS = 0.1  # relative difference between a prefix and the rest


def quick(
    train: Sequence[Item],
    evaluation: Mapping[str, Sequence[Item]],
    config: RunConfig,
    cost: plan.Cost = plan.by_length,
) -> Audit:
    """What manifests and headers show. `evaluation` maps domain and heldout to their utterances."""
    sets = {name: list(items) for name, items in {"train": train, **evaluation}.items()}
    kept, _ = usable(train, config)
    described = {name: _describe(items) for name, items in sets.items()}
    epochs = _epochs(kept, config, cost)
    described["train"]["epochs"] = round(epochs, 2) if math.isfinite(epochs) else None
    findings = [
        *leakage.shared(sets),
        *leakage.same_place(sets),
        *_starvation(len(train), kept, epochs, config),
        *_forgetting(sets, config),
        *(found for name, items in sets.items() for found in recordings.check_durations(name, items)),
        *(found for name, items in sets.items() for found in texts.unusual_characters(name, items, config)),
        *(found for name, items in sets.items() for found in texts.stated(name, items, config)),
        *(found for name, items in sets.items() for found in texts.encoding(name, items)),
        *(found for name, items in sets.items() for found in texts.in_brackets(name, items, config)),
    ]
    criteria = Criteria.of(config)
    chosen = metric.choose(config.metric, config.language)
    for name, items in itertools.islice(sets.items(), 1, None):
        words = sum(len(item.text.split()) for item in items)
        length = sum(len(metric.units(item.text, chosen.name).split()) for item in items)
        margin = power.assumed_margin(length)
        described[name] |= {"words": words, "margin": margin if math.isfinite(margin) else None}
        assumed = f"assuming {power.ASSUMED_WER:.0%} {chosen.name.upper()}"
        findings += _effect(name, len(items), margin, chosen.name, assumed, criteria)
        findings += texts.spaces(name, items, chosen)
        findings += _heterogeneity(name, "length", [item.duration for item in items])
        findings += _heterogeneity(name, "speaking rate", [recordings.speaking_rate(item) for item in items])
    return Audit(described, findings)


def bad_lines(name: str, bad: Mapping[int, BadLine]) -> Iterator[Finding]:
    """Lines of a manifest that hold no utterance, by reason; a run would stop at the first."""
    for reason in sorted({line.reason for line in bad.values()}):
        lines = {number: line.message for number, line in sorted(bad.items()) if line.reason == reason}
        shown = [f"line {number}: {message}" for number, message in lines.items()][:EXAMPLES]
        more = [f"and {len(lines) - EXAMPLES:,} more"] if len(lines) > EXAMPLES else []
        kind = "audio" if reason.startswith("audio") else "manifest"
        message = f"{len(lines):,} lines cannot be used ({reason}): {'; '.join(shown + more)}"
        yield of_set(kind, name, reason, message, {"utterances": len(lines), "lines": lines}, stops=True)


def deep(found: Audit, sets: Mapping[str, Shards]) -> Audit:
    """Adds what only decoded audio shows. `sets` maps train, domain and heldout to their shards."""
    findings: list[Finding] = []
    first: dict[str, dict[str, Sample]] = {}  # set -> audio -> the sample of it with the least id
    for name, decoded in sets.items():
        samples = list(decoded.samples)  # an index makes each sample anew when asked for it
        known: dict[str, Sample] = {}
        for sample in samples:
            if sample.sha256 not in known or sample.id < known[sample.sha256].id:
                known[sample.sha256] = sample
        repeats = [s for s in samples if known[s.sha256].id != s.id]
        contradicting = sum(leakage.words(s.text) != leakage.words(known[s.sha256].text) for s in repeats)
        findings += leakage.repeated(name, {s.id for s in repeats}, contradicting)
        for before, theirs in first.items():
            shared = {s.id for s in samples if s.sha256 in theirs}
            findings += leakage.leak("audio", before, name, shared, len(samples))
        first[name] = known
        findings += recordings.check_sound(name, samples)
        for reason, count in sorted(decoded.rejected.items()):
            total = len(samples) + sum(decoded.rejected.values())
            message = f"{count:,} of {total:,} utterances are {reason} and left out"
            numbers = {"utterances": count, "share": count / total}
            findings.append(of_set("audio", name, reason, message, numbers))
        if name != "train":
            findings += _heterogeneity(name, "level", [s.level for s in samples])
    return found.plus(f for f in findings if not _known_better(f, found))


def tokens(refused: Mapping[str, str], of: int) -> list[Finding]:
    """`refused` says of some of `of` training utterances, by id, why the model cannot learn their text."""
    if not refused:
        return []
    first = min(refused)
    message = (
        f"{len(refused):,} of {of:,} training utterances cannot be learned, such as {first!r}, which"
        f" {refused[first]}; fix them or take them out, or try --label-case, --label-punctuation and"
        " --label-characters"
    )
    numbers = {"utterances": len(refused), "examples": dict(sorted(refused.items())[:EXAMPLES])}
    return [Finding("tokens", True, message, numbers)]


def baseline(
    found: Audit,
    labels: Iterable[str],
    scored: Mapping[str, Sequence[Hypothesis]],
    metric: Metric,
    criteria: Criteria = Criteria(),
    resample_by: str = "auto",
) -> Audit:
    """Adds what the baseline shows: measured effects in place of assumed ones, and the style.

    `labels` are the training texts as trained on; `scored` maps domain and heldout to their
    baselines. Errors vary by speaker where `resample_by` lets the verdict draw speakers.
    """
    findings = [finding for finding in found.findings if finding.kind != "detectable effect"]
    sets = dict(found.sets)
    for name, hypotheses in scored.items():
        speakers, _ = bootstrap.choose_speakers(name, {h.id: h.speaker for h in hypotheses}, resample_by)
        counts = [one.tally(metric) for one in hypotheses]
        named = None if speakers is None else [speakers[one.id] for one in hypotheses]
        margin = power.measured_margin(counts, named)
        sets[name] = {**sets[name], "margin": margin if math.isfinite(margin) else None}
        how = "measured on the baseline" + (f", {len(set(named)):,} speakers" if named else "")
        findings += _effect(name, len(hypotheses), margin, metric, how, criteria)
    findings += compare_styles(style(labels), style(one.hypothesis_raw for one in scored["domain"]))
    return Audit(sets, findings)


def _describe(items: Sequence[Item]) -> dict[str, Any]:
    seconds = [item.duration for item in items]
    return {
        "utterances": len(items),
        "hours": round(sum(seconds) / 3600, 4),
        "speakers": len({item.speaker for item in items if item.speaker}),
        "kept_by_max_seconds": {f"{limit:g}": sum(s <= limit for s in seconds) for limit in FILTERS},
    }


def usable(items: Sequence[Item], config: RunConfig) -> tuple[list[float], Counter[str]]:
    """Seconds of the utterances that can be trained on, and how many cannot for which reason."""
    seconds, characters = [item.duration for item in items], [len(item.text.strip()) for item in items]
    kept, rejected = trainable(seconds, characters, config.min_seconds, config.max_seconds)
    return list(itertools.compress(seconds, kept)), rejected


def _starvation(count: int, kept: Sequence[float], epochs: float, config: RunConfig) -> Iterator[Finding]:
    """Whether the filter of durations leaves enough of `count` utterances to train on."""
    limits = f"the filter {config.min_seconds:g} to {config.max_seconds:g} s"
    numbers = {"what": "steps", "kept": len(kept), "utterances": count, "epochs": epochs}
    if not math.isfinite(epochs):
        message = (
            f"{limits} keeps {len(kept):,} of {count:,} training utterances, fewer than one step"
            " needs; raise --max-seconds, or lower --batch-size, --batch-seconds or"
            " --gradient-accumulation-steps"
        )
        yield Finding("starvation", True, message, {**numbers, "epochs": None})
    elif epochs > MANY_EPOCHS:
        message = (
            f"{config.max_steps:,} steps make {epochs:,.0f} epochs of {len(kept):,} training utterances;"
            f" past some {MANY_EPOCHS} an adapter learns them by heart: find more speech or lower --max-steps"
        )
        yield Finding("starvation", False, message, numbers)
    share = 1 - len(kept) / count if count else 0.0
    if share > 0.1:
        message = (
            f"{limits} and the need of a text leave out {share:.1%} of the training utterances; cut long"
            " recordings into segments, or raise --max-seconds"
        )
        numbers = {"what": "filter", "kept": len(kept), "utterances": count}
        yield Finding("starvation", False, message, numbers)


def _forgetting(sets: Mapping[str, Sequence[Item]], config: RunConfig) -> Iterator[Finding]:
    """Whether the training texts are the domain's alone, so that the rest is likely to be forgotten."""
    if config.replay_path or "heldout" not in sets:
        return
    said = {
        name: Counter(word for item in items for word in leakage.words(item.text).split())
        for name, items in sets.items()
    }
    covered = {
        name: sum(n for word, n in counts.items() if word in said["train"]) / max(1, counts.total())
        for name, counts in said.items()
    }
    if covered["domain"] - covered["heldout"] > SPEAKS_FOR_THE_DOMAIN:
        message = (
            f"the training texts hold {covered['domain']:.0%} of the running words of domain and"
            f" {covered['heldout']:.0%} of those of heldout, and nothing is replayed, so the adapter is"
            " likely to forget: mix general speech in (--replay-path), or weaken the adapter at the end"
            " (--rescue auto)"
        )
        yield Finding("forgetting", False, message, {"sets": ["train"], "covered": covered})


def _epochs(seconds: Sequence[float], config: RunConfig, cost: plan.Cost = plan.by_length) -> float:
    """How often the planned steps go through the set; infinity where it does not make one step.

    A microbatch of --batch-seconds holds no more than that of speech, or one longer utterance, so a
    set with enough for a step needs no planning to know it.
    """
    microbatches = config.gradient_accumulation_steps
    if config.batch_seconds is None:
        needed = microbatches * (config.batch_size or 1)
        return config.max_steps * needed / len(seconds) if len(seconds) >= needed else math.inf
    costs = cost(np.asarray(seconds, np.float64)).tolist()
    steps = sum(min(one, config.batch_seconds) for one in costs) / config.batch_seconds / microbatches
    if steps < 1:
        settings = {"seed": config.seed, "microbatches_per_step": microbatches, **config.microbatch}
        steps = len(plan.plan_epoch(seconds, epoch=0, cost=cost, **settings))
    return config.max_steps / steps if steps else math.inf


def _effect(
    name: str, utterances: int, margin: float, metric: Metric, how: str, criteria: Criteria
) -> Iterator[Finding]:
    """Whether the set is large enough to show a change as small as the criterion."""
    of_domain = name in ("domain", selection.REPORT)
    needed = criteria.min_domain_reduction if of_domain else criteria.max_heldout_regression
    if margin > needed:
        enough = power.enough(utterances, margin, needed)
        message = (
            f"the {utterances:,} utterances of {label(name)} cannot tell a {metric.upper()} change below"
            f" {_points(margin)} points from none ({how}); the criterion is {_points(needed)} points"
            + (f", for which about {enough:,} would be enough" if enough else "")
        )
        numbers = {"sets": [name], "margin": margin if math.isfinite(margin) else None, "criterion": needed}
        numbers |= {"utterances": utterances, "enough": enough}
        yield Finding("detectable effect", False, message, numbers)


def _heterogeneity(name: str, what: str, values: Sequence[float]) -> Iterator[Finding]:
    """Whether a prefix of the set is like the whole.

    The running sum of the ranks about their mean, scaled, is a Brownian bridge where the order is
    chance (Billingsley, Convergence of Probability Measures, 1968, section 24), and the largest
    excursion of that follows Kolmogorov's distribution. Ranks, so that one outlier decides nothing.
    """
    if len(values) < 2 * EXAMPLES:
        return
    x = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    if len(counts) == 1:
        return
    walk = np.abs(np.cumsum(ranks - ranks.mean())[:-1]) / (ranks.std() * math.sqrt(len(x)))
    cut = int(walk.argmax()) + 1
    prefix, rest, whole = float(x[:cut].mean()), float(x[cut:].mean()), float(x.mean())
    statistic = float(walk.max())
    if statistic > DRIFT and abs(prefix - rest) > DRIFT_MATTERS * whole:
        message = (
            f"the {what} in {label(name)} depends on the order: the first {cut / len(x):.0%} average"
            f" {prefix / rest:.0%} of the rest, so that a part of it misleads; draw it again with"
            " `manifest import --samples`, which shuffles"
        )
        numbers = {"what": what, "sets": [name], "statistic": statistic}
        numbers |= {"cut": cut, "prefix": prefix, "rest": rest}
        yield Finding("heterogeneity", False, message, numbers)


def _known_better(finding: Finding, found: Audit) -> bool:
    """Equal audio in copies of a file, against overlaps in one file: the larger count is reported."""
    same = [known for known in found.findings if known.about == finding.about]
    return any(known.numbers.get("utterances", 0) > finding.numbers.get("utterances", 0) for known in same)


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "any number of"
