"""report.html: one self-contained page per run, drawn from the run directory alone."""

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlora.record.diagnosis import next_command
from asrlora.record.rescue_record import RescueRecord
from asrlora.record.run_dir import read_log, read_rates, read_run, shown_evaluation, write_atomic
from asrlora.record.schema import SetVerdict, Verdict, read
from asrlora.report import alignment, figures
from asrlora.report.templates import render
from asrlora.score import breakdown, keyword_recall, selection
from asrlora.score.metric import KEYS, Metric
from asrlora.score.verdict import Judgement

EXCERPT_SECONDS = 30  # of an utterance that can be listened to; at 3 kB a second the page stays small
PARTS_SHOWN = 12  # speakers, and domain words
TITLES = {
    "domain": "Domain",
    selection.CHOSEN_ON: "Domain, part that chose the step",
    selection.REPORT: "Domain, part held out from choosing",
}


@dataclass(frozen=True)
class Row:
    """One set, or part of one, in points and per cent."""

    name: str
    title: str
    section: SetVerdict
    baseline: float  # of the metric, a fraction
    tuned: float
    length: int  # of the references, in the metric's units
    change: float  # points, tuned minus baseline
    ends: tuple[float, float]
    limit: float  # the change must be at most this
    judgement: Judgement | None  # None: shown, and not judged
    picture: str


def write_report(run: Path) -> Path:
    """Draws run.json, metrics.jsonl, eval/, excerpts/ and verdict.json into report.html; returns its path."""
    judged = read(run / "verdict.json", Verdict)
    identity = read_run(run)
    metric = judged.metric
    evaluation = shown_evaluation(run, judged)
    pairs = {name: alignment.read_pair(run, name, evaluation, metric) for name in judged.sets()}
    page = render(
        "report.html",
        run=identity,
        judged=judged,
        shown=judged.learned or judged,
        next_command=next_command(run, judged),
        metric=metric.upper(),
        units=KEYS[metric][1].replace("_", " "),
        rows=list(_rows(judged)),
        curves=_curves(run, judged),
        rescue=_rescue(run, judged),
        running={
            name: figures.running(name, pair.before, pair.after, metric.upper())
            for name, pair in pairs.items()
        },
        pairs=pairs,
        speakers={name: _breakdown(pair, breakdown.by_speaker, metric) for name, pair in pairs.items()},
        durations={name: _breakdown(pair, breakdown.by_duration, metric) for name, pair in pairs.items()},
        recall=_recall(run, alignment.read_pair(run, "domain", evaluation, "wer")),
        audio=lambda name, utterance: _embedded(alignment.excerpt(run, name, utterance)),
    )
    write_atomic(run / "report.html", page)
    return run / "report.html"


def shown(run: Path, judged: Verdict) -> dict[str, list[str]]:
    """Set -> ids of the utterances that the report shows word by word, and whose audio it can use."""
    evaluation = shown_evaluation(run, judged)
    return {name: alignment.read_pair(run, name, evaluation, judged.metric).shown() for name in judged.sets()}


def _rows(judged: Verdict) -> Iterator[Row]:
    metric, criteria, shown = judged.metric, judged.criteria, judged.learned or judged
    parts = {selection.CHOSEN_ON: judged.domain_chosen_on, selection.REPORT: judged.domain_report}
    for name, section in (shown.sets() | ({} if judged.learned else parts)).items():
        if section is None:
            continue
        limit = -criteria.min_domain_reduction if section.has_reduction else criteria.max_heldout_regression
        change, (low, high) = 100 * section.change, section.change_interval
        ends = (100 * low, 100 * high)
        yield Row(
            name=name,
            title=TITLES.get(name, f"Guardrail: {name}"),
            section=section,
            baseline=section.baseline(metric),
            tuned=section.tuned(metric),
            length=section.length(metric),
            change=change,
            ends=ends,
            limit=100 * limit,
            judgement=shown.judgements.get(name),
            picture=figures.interval(change, ends, 100 * limit),
        )


def _curves(run: Path, judged: Verdict) -> list[str]:
    """Learning curves: the error rate of every set, with the chosen step and the guardrails' limits, and
    the loss."""
    rates, metric = read_rates(run, judged.metric), judged.metric
    found = []
    for name, section in judged.sets().items():
        limit = section.baseline(metric) + judged.criteria.max_heldout_regression
        points = [(step, rates[step][name]) for step in rates if name in rates[step]]
        shown = None if name == "domain" else limit
        found.append(figures.curve(name, points, judged.shown_step, shown, metric.upper()))
    metrics = read_log(run / "metrics.jsonl")
    losses = [(entry["step"], entry["loss"]) for entry in metrics if "loss" in entry]
    return [*found, figures.loss(losses)] if losses else found


def _rescue(run: Path, judged: Verdict) -> str | None:
    """What a rescue tried, as HTML; None where there was none."""
    path = run / "rescue.json"
    if not path.exists():
        return None
    found, criteria, metric = read(path, RescueRecord), judged.criteria, judged.metric.upper()
    limits = {"domain": -criteria.min_domain_reduction}
    if found.tried:
        limits |= dict.fromkeys(found.tried[0].guardrails, criteria.max_heldout_regression)
    pictures = []
    for name, limit in limits.items() if found.tried else ():
        sections = [(one, one.domain if name == "domain" else one.guardrails[name]) for one in found.tried]
        points = [
            (one.strength, bool(one.averaged), section.change, section.change_interval)
            for one, section in sections
            if section is not None
        ]
        pictures.append(figures.strengths(name, points, limit, metric))
    return render("rescue.html", found=found, figures=pictures, names=list(limits), metric=metric)


@dataclass(frozen=True)
class Part:
    """A speaker, a band of durations or a domain word, before and after: shares, or None for none."""

    name: str
    before: float | None
    after: float | None
    count: int  # of utterances, or of times that a word was said


def _breakdown(
    pair: alignment.Pair, by: Callable[[Iterable[alignment.Line], Metric], dict[str, Any]], metric: Metric
) -> list[Part]:
    """Error rates; of speakers only those with most errors, before or after."""
    old, new = (by(side.values(), metric) for side in (pair.before, pair.after))
    names = list(old)
    if len(names) > PARTS_SHOWN:
        names = sorted(names, key=lambda n: (-max(old[n]["errors"], new[n]["errors"]), n))[:PARTS_SHOWN]
    return [Part(name, old[name][metric], new[name][metric], old[name]["utterances"]) for name in names]


def _recall(run: Path, pair: alignment.Pair) -> tuple[Part, list[Part], list[str]] | None:
    """Recall of all domain words together, and of those that were said most; what there is to say of all,
    before and after, precision and intervals too. None without any."""
    path = run / "domain_words.txt"
    listed = frozenset(path.read_text(encoding="utf-8").split()) if path.exists() else frozenset()
    old, new = (
        keyword_recall.recall(((line["reference"], line["hypothesis"]) for line in side.values()), listed)
        for side in (pair.before, pair.after)
    )
    if not old.occurrences:
        return None
    said = sorted(old.by_word, key=lambda word: (-old.by_word[word][1], word))[:PARTS_SHOWN]
    each = []
    for word in said:
        (before, count), (after, _) = old.by_word[word], new.by_word[word]
        each.append(Part(word, before / count, after / count, count))
    terms = frozenset((word,) for word in listed)
    described = []
    for side in (pair.before, pair.after):
        texts = {i: (line["reference"], line["hypothesis"]) for i, line in side.items()}
        described.append(keyword_recall.describe(keyword_recall.summary_of_terms(texts, terms)))
    return Part(f"all {len(listed):,} words", old.recall, new.recall, old.occurrences), each, described


def _embedded(excerpt: Path) -> str | None:
    """The audio as a data: URI, so that the page is one file; None where it was not kept."""
    if not excerpt.is_file():
        return None
    return f"data:audio/mpeg;base64,{base64.b64encode(excerpt.read_bytes()).decode()}"
