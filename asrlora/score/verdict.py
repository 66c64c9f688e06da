"""Accept, reject or inconclusive: paired bootstrap intervals against fixed criteria.

WER stands for the run's metric here: the criteria are the same numbers for CER and MER.

The rule: *accept* where the 95 % intervals of the domain's WER reduction and of every guardrail's
WER regression lie inside the criteria; *reject* where one of them lies wholly outside; else
*inconclusive*. Without a heldout manifest nothing shows that the model still hears the rest, so a
run cannot be accepted.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from asrlora.errors import UserError
from asrlora.score import mapsswe, power
from asrlora.score.metric import KEYS, Metric
from asrlora.score.wer import Tally

RESAMPLES = 10_000
BATCH = 250  # resamples drawn at a time, to bound memory: 10 MB for 5,000 utterances
SEED = 20_260_219
# A percentile interval of n normal units covers what a t of n - 1 degrees does within
# 1.96 sqrt((n - 1) / n): 93 % with 20 units, 90 % with 10, 75 % with 3, where 95 % is promised.
MIN_SPEAKERS = 20
Outcome = Literal["holds", "fails", "open"]
EXIT_CODES = {"accept": 0, "reject": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Criteria:
    min_domain_reduction: float = 0.01
    max_heldout_regression: float = 0.002


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances. Rates are fractions of one metric, intervals 95 %."""

    baseline: float
    baseline_interval: tuple[float, float]
    tuned: float
    tuned_interval: tuple[float, float]
    change: float  # tuned minus baseline: below 0 is better
    change_interval: tuple[float, float]
    utterances: int
    length: int  # of the references, in the metric's units
    improvement_probability: float  # share of the resamples in which tuned is better; a tie is half
    resampled: str  # "utterance" or "speaker"
    units: int  # how many of these there are
    mapsswe: mapsswe.Mapsswe | None  # None: no segments were given
    metric: Metric = "wer"
    words: tuple[Tally, Tally] | None = None  # of the same two systems, where the metric counts others


def compare(
    baseline: Mapping[str, Tally],
    tuned: Mapping[str, Tally],
    speakers: Mapping[str, str] | None = None,
    segments: Iterable[mapsswe.Segment] | None = None,
) -> Comparison:
    """Pairs two systems by utterance id and bootstraps over utterances (percentile, seeded).

    With `speakers`, by utterance id, whole speakers are drawn: what one of them says goes wrong
    together. Source of the method: Bisani and Ney, "Bootstrap estimates for confidence intervals in
    ASR performance evaluation", 2004. Raises UserError when the ids differ.
    """
    if baseline.keys() != tuned.keys():
        odd = sorted(baseline.keys() ^ tuned.keys())
        raise UserError(
            f"baseline and tuned hypotheses hold different utterances ({len(odd)}, such as {odd[0]!r});"
            " score both on the same manifest"
        )
    ids = sorted(baseline)  # sorted, so that the order of a file changes nothing
    rows = np.array([(baseline[i].errors, tuned[i].errors, baseline[i].length) for i in ids], np.float64)
    groups = None if speakers is None else [speakers[i] for i in ids]
    return compare_rows(rows, groups, segments)


def compare_rows(
    rows: np.ndarray,
    speakers: Sequence[str] | None = None,
    segments: Iterable[mapsswe.Segment] | None = None,
    draws: Iterable[np.ndarray] | None = None,
) -> Comparison:
    """`compare` on one row an utterance: errors before, errors after, length of the reference.

    `draws` are drawings() of as many units, where a caller has many systems to resample alike.
    """
    units = rows if speakers is None else _sums(speakers, rows)
    old, new, length = rows.sum(0)
    before, after = (old / length, new / length) if length else (math.nan, math.nan)
    intervals, better = _bootstrap(units, drawings(len(units), RESAMPLES) if draws is None else draws)
    return Comparison(
        float(before), intervals[0], float(after), intervals[1], float(after - before), intervals[2],
        len(rows), int(length), better,
        "utterance" if speakers is None else "speaker", len(units),
        None if segments is None else mapsswe.test(segments),
    )  # fmt: skip


def check_speakers(what: str, speakers: Mapping[str, str | None]) -> dict[str, str]:
    """The speakers of `what`, by utterance id. Raises UserError where they cannot be resampled."""
    known = {i: speaker for i, speaker in speakers.items() if speaker is not None}
    without = sorted(speakers.keys() - known.keys())
    if without:
        raise UserError(
            f"--resample-by speaker: {what} names no speaker of {len(without)} utterances, such as"
            f" {without[0]!r}; add the field speaker, or resample by utterance"
        )
    count = len(set(known.values()))
    if count < MIN_SPEAKERS:
        raise UserError(
            f"--resample-by speaker: {what} has {count} speakers, and an interval from fewer than"
            f" {MIN_SPEAKERS} is too narrow; resample by utterance"
        )
    return known


def _sums(groups: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """One row a group, the sum of its rows."""
    names, numbers = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def drawings(units: int, resamples: int) -> Iterator[np.ndarray]:
    """Resamples in batches: (resamples of the batch, units), how often each unit was drawn. Seeded.

    They depend on nothing else, so systems with equally many units are resampled alike.
    """
    rng = np.random.default_rng(SEED)
    for done in range(0, resamples, BATCH):
        count = min(BATCH, resamples - done)
        drawn = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units)
        yield times.reshape(count, units).astype(np.float64)


def _bootstrap(units: np.ndarray, draws: Iterable[np.ndarray]) -> tuple[list[tuple[float, float]], float]:
    """95 % percentile intervals of the baseline's rate, of the tuned rate and of tuned minus baseline, and
    the probability of improvement. `units`: one row a unit: errors before and after, and length.

    The sums of all resamples of a batch are one matrix product. The same figures, but for rounding, as
    scipy.stats.bootstrap's with this seed and batch.
    """
    if len(units) < 2:  # one unit has no spread to resample; nothing can be proved with it
        return [(0.0, 1.0), (0.0, 1.0), (-1.0, 1.0)], 0.5
    old, new, length = np.concatenate([times @ units for times in draws]).T
    before, after = old / np.maximum(length, 1), new / np.maximum(length, 1)
    changes = after - before
    better = float(np.mean(changes < 0) + np.mean(changes == 0) / 2)
    intervals = [np.percentile(values, (2.5, 97.5)).tolist() for values in (before, after, changes)]
    if (units[:, 0] == units[:, 1]).all():
        # Where none of n changed, up to 3 in n may (the rule of three: Hanley and Lippman-Hand, "If nothing
        # goes wrong, is everything all right?", 1983), here by one error each. No interval has no width.
        reach = 3 / max(units[:, 2].sum(), 1)
        intervals[2] = [-reach, reach]
    return [(low, high) for low, high in intervals], better


@dataclass(frozen=True)
class Judgement:
    """One criterion against one interval."""

    outcome: Outcome
    reason: str  # one sentence
    detectable: float  # the smallest change of the metric that these utterances tell from none, a fraction
    enough: int | None  # utterances like these that would settle an open one, were the change as measured


def judge(
    domain: Comparison,
    heldout: Comparison | None,
    criteria: Criteria = Criteria(),
    *,
    further: Mapping[str, Comparison] | None = None,
    chosen_on: Comparison | None = None,
    report: Comparison | None = None,
) -> dict[str, Any]:
    """The verdict with its reason, as verdict.json holds it (without best_step and fingerprint).

    `further` holds guardrails beside heldout, by name, each with the same limit. `report` is the part of
    the domain, or the set, that had no say in which step is best, and `chosen_on` what had: the verdict
    is that of the whole domain, and its reason tells where the part that is free of the choice disagrees.
    """
    guardrails = {**({"heldout": heldout} if heldout else {}), **(further or {})}
    reduction = _reduction("domain", domain, criteria)
    judgements = {
        "domain": reduction,
        **{name: _regression(name, comparison, criteria) for name, comparison in guardrails.items()},
    }
    outcomes = [judgement.outcome for judgement in judgements.values()]
    reasons = [judgement.reason for judgement in judgements.values()]
    if not guardrails:
        reasons.append("no heldout manifest was given, so forgetting is not ruled out")
    accept = bool(guardrails) and set(outcomes) == {"holds"}
    verdict = "accept" if accept else "reject" if "fails" in outcomes else "inconclusive"
    if report:
        apart = _reduction("held-out domain", report, criteria)
        if accept and apart.outcome != "holds":
            reasons.append(f"but on utterances that had no say in the choice of the step, {apart.reason}")
        judgements["domain_report"] = apart
    return {
        "verdict": verdict,
        "metric": domain.metric,
        "point": bool(guardrails)
        and 0.0 - domain.change >= criteria.min_domain_reduction
        and all(one.change <= criteria.max_heldout_regression for one in guardrails.values()),
        "reason": "; ".join(reasons),
        "domain": _gain(domain),
        "heldout": heldout and _loss(heldout),
        "guardrails": {name: _loss(comparison) for name, comparison in (further or {}).items()},
        "domain_chosen_on": chosen_on and _gain(chosen_on),
        "domain_report": report and _gain(report),
        "judgements": {name: asdict(judgement) for name, judgement in judgements.items()},
        "criteria": asdict(criteria),
    }


def rate(section: Mapping[str, Any], which: str, metric: Metric) -> float:
    """The metric of a section of verdict.json, NaN where it is null; `which` is baseline or tuned."""
    value = section[f"{which}_{metric}"]
    return math.nan if value is None else float(value)


def metric_of(record: Mapping[str, Any]) -> Metric:
    """The metric of a verdict.json, run.json or scores.json; those of earlier versions are by WER."""
    found: Metric = record.get("metric", "wer")
    return found


def sections(judged: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What verdict.json tells of each set that was judged: domain, heldout and the guardrails beside it."""
    found = {name: judged[name] for name in ("domain", "heldout")} | judged.get("guardrails", {})
    return {name: section for name, section in found.items() if section}


def _reduction(name: str, comparison: Comparison, criteria: Criteria) -> Judgement:
    need = criteria.min_domain_reduction
    what = f"{name} {comparison.metric.upper()} reduction"
    return _against(-need, what, f"at least {100 * need:.2f}", comparison, sign=-1)


def _regression(name: str, comparison: Comparison, criteria: Criteria) -> Judgement:
    limit = criteria.max_heldout_regression
    what = f"{name} {comparison.metric.upper()} regression"
    return _against(limit, what, f"at most {100 * limit:.2f}", comparison, sign=1)


def _against(limit: float, what: str, bound: str, comparison: Comparison, sign: int) -> Judgement:
    """ "domain WER reduction 9.10 points (95 % interval 8.20 to 10.00): at least 1.00 holds"

    `limit` is the largest change of the metric that passes; `sign` -1 has the change told as a reduction.
    """
    change, (low, high) = comparison.change, comparison.change_interval
    outcome: Outcome = "holds" if high <= limit else "fails" if low > limit else "open"
    value, *ends = (100 * (0.0 + sign * number) for number in (change, low, high))
    told = "is not settled" if outcome == "open" else outcome
    reason = f"{what} {value:.2f} points (95 % interval {min(ends):.2f} to {max(ends):.2f}): {bound} {told}"
    needed = None
    if outcome == "open" and comparison.units > 1 and change != limit:
        # the end of the interval that reaches past the limit must come nearer to the change
        reach = high - change if change < limit else change - low
        needed = power.enough(comparison.utterances, reach, abs(change - limit))
    if needed:
        reason += f" by {comparison.utterances:,} utterances; about {needed:,} such ones would"
    return Judgement(outcome, reason, (high - low) / 2, needed)


def _gain(comparison: Comparison) -> dict[str, Any]:
    interval = _turned(comparison.change_interval)
    return _section(comparison, "reduction", 0.0 - comparison.change, interval)


def _loss(comparison: Comparison) -> dict[str, Any]:
    return _section(comparison, "regression", comparison.change, comparison.change_interval)


def _turned(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval of the change as one of the reduction; 0 is kept from becoming -0."""
    return 0.0 - interval[1], 0.0 - interval[0]


def _section(
    comparison: Comparison, name: str, value: float, interval: tuple[float, float]
) -> dict[str, Any]:
    metric = comparison.metric
    words: dict[str, Any] = {}
    if comparison.words is not None:
        before, after = comparison.words
        words = {"baseline_wer": before.rate, "tuned_wer": after.rate, "words": before.length}
    return {
        f"baseline_{metric}": comparison.baseline,
        "baseline_interval": list(comparison.baseline_interval),
        f"tuned_{metric}": comparison.tuned,
        "tuned_interval": list(comparison.tuned_interval),
        name: value,
        "interval": list(interval),
        "utterances": comparison.utterances,
        KEYS[metric][1]: comparison.length,
        **words,
        "improvement_probability": comparison.improvement_probability,
        "resampled": {"by": comparison.resampled, "units": comparison.units},
        "mapsswe": comparison.mapsswe and asdict(comparison.mapsswe),
    }


def within_guardrail(heldout: float | None, baseline: float | None, criteria: Criteria = Criteria()) -> bool:
    """Whether a checkpoint may become the best adapter: the heldout rate not past the limit."""
    if heldout is None or baseline is None:
        return True
    return heldout - baseline <= criteria.max_heldout_regression
