"""Accept, reject or inconclusive: paired bootstrap intervals against fixed criteria.

WER stands for the run's metric here: the criteria are the same numbers for CER and MER.

The rule: *accept* where the 95 % intervals of the domain's WER reduction and of every guardrail's
WER regression lie inside the criteria; *reject* where one of them lies wholly outside; else
*inconclusive*. Without a heldout manifest nothing shows that the model has not forgotten the rest, so a
run cannot be accepted.

A further criterion is a field of Criteria, a flag of the same name (config.py), and an entry in
`_judgements`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from asrlora.score import power
from asrlora.score.bootstrap import MIN_SPEAKERS, Comparison, Interval
from asrlora.score.metric import KEYS

Outcome = Literal["holds", "fails", "open"]
EXIT_CODES = {"accept": 0, "reject": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Criteria:
    """What a run must show, fractions; its settings of the same names."""

    min_domain_reduction: float = 0.01
    max_heldout_regression: float = 0.002

    @classmethod
    def of(cls, settings: object) -> "Criteria":
        """Those of a run. What a run of an earlier version did not state yet is at its default."""
        names = [one.name for one in fields(cls) if hasattr(settings, one.name)]
        return cls(**{name: getattr(settings, name) for name in names})


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
    is that of the whole domain, and its reason says where the part that is free of the choice disagrees.
    """
    guardrails = {**({"heldout": heldout} if heldout else {}), **(further or {})}
    found = _judgements(domain, guardrails, criteria)
    judgements = {name: judgement for name, (judgement, _) in found.items()}
    outcomes = [judgement.outcome for judgement in judgements.values()]
    reasons = [judgement.reason for judgement in judgements.values()]
    if not guardrails:
        reasons.append("no heldout manifest was given, so forgetting is not ruled out")
    verdict = _verdict(outcomes, guarded=bool(guardrails))
    if report:
        apart, _ = _reduction("held-out domain", report, criteria)
        if verdict == "accept" and apart.outcome != "holds":
            reasons.append(f"but on utterances that had no say in the choice of the step, {apart.reason}")
        judgements["domain_report"] = apart
    reasons += _not_by_speaker({"domain": domain, **guardrails})
    return {
        "verdict": verdict,
        "metric": domain.metric,
        "point": bool(guardrails) and all(point for _, point in found.values()),
        "reason": "; ".join(reasons),
        "domain": _gain(domain),
        "heldout": heldout and _loss(heldout),
        "guardrails": {name: _loss(comparison) for name, comparison in (further or {}).items()},
        "domain_chosen_on": chosen_on and _gain(chosen_on),
        "domain_report": report and _gain(report),
        "judgements": {name: asdict(judgement) for name, judgement in judgements.items()},
        "criteria": asdict(criteria),
    }


def learned(
    step: int, domain: Comparison, guardrails: Mapping[str, Comparison], criteria: Criteria = Criteria()
) -> tuple[dict[str, Any], str] | None:
    """What a step that lowers the domain's rate and breaks a guardrail has learned, and what that cost.

    As verdict.json holds it, and in a sentence: the reason for which the base stays. None for other steps.
    """
    limit = criteria.max_heldout_regression
    missed = {name: one.change - limit for name, one in guardrails.items() if one.change > limit}
    if not (domain.change < 0 and missed):
        return None
    costs = [
        f"{_moved(name, guardrails[name], 'regression ', 1)}; at most {100 * limit:.2f} passes, missed by"
        f" {100 * miss:.2f})"
        for name, miss in missed.items()
    ]
    reason = (
        f"no step that lowered domain {domain.metric.upper()} kept every guardrail, so the base stays (step"
        f" 0): step {step} took {_moved('domain', domain, '', -1)}), and {' and '.join(costs)}"
    )
    reason = "; ".join([reason, *_not_by_speaker({"domain": domain, **guardrails})])
    losses = {name: _loss(comparison) for name, comparison in guardrails.items()}
    judgements = _judgements(domain, guardrails, criteria)
    found = {
        "step": step,
        "domain": _gain(domain),
        "heldout": losses.pop("heldout", None),
        "guardrails": losses,
        "missed": missed,
        "judgements": {name: asdict(judgement) for name, (judgement, _) in judgements.items()},
    }
    return found, reason


def not_lowered(step: int, domain: Comparison) -> str:
    """Why the base stays where no step lowered the domain's rate: `step` is the best of them, compared on the
    utterances that choose."""
    return (
        f"no step lowered domain {domain.metric.upper()}, so the base stays (step 0): step {step} took"
        f" {_moved('domain', domain, '', -1)})"
    )


def sections(domain: Comparison | None, guardrails: Mapping[str, Comparison]) -> dict[str, Any]:
    """Comparisons with the base as JSON files hold them."""
    losses = {name: _loss(one) for name, one in guardrails.items()}
    return {"domain": domain and _gain(domain), "guardrails": losses}


def by_intervals(reduction: Interval, regressions: Collection[Interval], criteria: Criteria) -> str:
    """The verdict of a run that was judged already, under other criteria: from the intervals of its domain's
    reduction and its guardrails' regressions, fractions."""
    low, high = reduction
    outcomes = [_outcome((-high, -low), -criteria.min_domain_reduction)]
    outcomes += [_outcome(change, criteria.max_heldout_regression) for change in regressions]
    return _verdict(outcomes, guarded=bool(regressions))


def within_guardrail(heldout: float | None, baseline: float | None, criteria: Criteria = Criteria()) -> bool:
    """Whether a checkpoint may become the best adapter: the heldout rate not past the limit."""
    if heldout is None or baseline is None:
        return True
    return heldout - baseline <= criteria.max_heldout_regression


# --- the criteria

Judged = tuple[Judgement, bool]  # and whether the point estimate alone meets the criterion


def _outcome(change: Interval, limit: float) -> Outcome:
    """Of a criterion by which the metric's change must not be above `limit`."""
    low, high = change
    return "holds" if high <= limit else "fails" if low > limit else "open"


def _verdict(outcomes: Sequence[Outcome], guarded: bool) -> str:
    """Without a guardrail, nothing is accepted."""
    if guarded and set(outcomes) == {"holds"}:
        return "accept"
    return "reject" if "fails" in outcomes else "inconclusive"


def _judgements(
    domain: Comparison, guardrails: Mapping[str, Comparison], criteria: Criteria
) -> dict[str, Judged]:
    """Every criterion's, by the name under which verdict.json has it."""
    return {
        "domain": _reduction("domain", domain, criteria),
        **{name: _regression(name, comparison, criteria) for name, comparison in guardrails.items()},
    }


def _reduction(name: str, comparison: Comparison, criteria: Criteria) -> Judged:
    need = criteria.min_domain_reduction
    what = f"{name} {comparison.metric.upper()} reduction"
    return _against(-need, what, f"at least {100 * need:.2f}", comparison, sign=-1)


def _regression(name: str, comparison: Comparison, criteria: Criteria) -> Judged:
    limit = criteria.max_heldout_regression
    what = f"{name} {comparison.metric.upper()} regression"
    return _against(limit, what, f"at most {100 * limit:.2f}", comparison, sign=1)


def _against(limit: float, what: str, bound: str, comparison: Comparison, sign: int) -> Judged:
    """ "domain WER reduction 9.10 points (95 % interval 8.20 to 10.00): at least 1.00 holds"

    `limit` is the largest change of the metric that passes; `sign` -1 writes the change as a reduction.
    """
    change, (low, high) = comparison.change, comparison.change_interval
    outcome = _outcome((low, high), limit)
    said = "is not settled" if outcome == "open" else outcome
    value, between = _points(comparison, sign)
    reason = f"{what} {value} ({between}): {bound} {said}"
    needed = None
    if outcome == "open" and comparison.units > 1 and change != limit:
        # the end of the interval that reaches past the limit must come nearer to the change
        reach = high - change if change < limit else change - low
        needed = power.enough(comparison.utterances, reach, abs(change - limit))
    if needed:
        now, then = "", ""
        if comparison.resampled == "speaker":
            speakers = math.ceil(comparison.units * needed / comparison.utterances)
            now, then = f" of {comparison.units:,} speakers", f" of {speakers:,} speakers"
        reason += f" by {comparison.utterances:,} utterances{now}; about {needed:,} such ones{then} would"
    return Judgement(outcome, reason, (high - low) / 2, needed), change <= limit


def _not_by_speaker(sets: Mapping[str, Comparison]) -> list[str]:
    """One clause where sets name too few speakers to draw these; none where all do, or none was to."""
    found: dict[str, list[str]] = {}
    for name, one in sets.items():
        if one.too_few:
            found.setdefault(one.too_few, []).append(name)
    if not found:
        return []
    named = [f"{' and '.join(names)} name{'' if names[1:] else 's'} {few}" for few, names in found.items()]
    return [
        f"intervals draw utterances, not speakers, where a set names fewer than {MIN_SPEAKERS}:"
        f" {' and '.join(named)}"
    ]


def _points(comparison: Comparison, sign: int) -> tuple[str, str]:
    """ "9.10 points" and "95 % interval 8.20 to 10.00"; `sign` -1 makes a reduction of the change."""
    value, *ends = (
        100 * (0.0 + sign * number) for number in (comparison.change, *comparison.change_interval)
    )
    return f"{value:.2f} points", f"95 % interval {min(ends):.2f} to {max(ends):.2f}"


def _moved(name: str, comparison: Comparison, what: str, sign: int) -> str:
    """ "domain WER from 42.42 to 22.99 % (19.43 points, 95 % interval 18.05 to 20.82", left open"""
    rates = f"from {100 * comparison.baseline:.2f} to {100 * comparison.tuned:.2f} %"
    return f"{name} {comparison.metric.upper()} {rates} ({what}{', '.join(_points(comparison, sign))}"


# --- the sets, as verdict.json holds them


def _gain(comparison: Comparison) -> dict[str, Any]:
    low, high = comparison.change_interval
    # 0 is kept from becoming -0
    return _section(comparison, "reduction", 0.0 - comparison.change, (0.0 - high, 0.0 - low))


def _loss(comparison: Comparison) -> dict[str, Any]:
    return _section(comparison, "regression", comparison.change, comparison.change_interval)


def _section(comparison: Comparison, name: str, value: float, interval: Interval) -> dict[str, Any]:
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
        "resampled": {
            "by": comparison.resampled,
            "units": comparison.units,
            **({"too_few": comparison.too_few} if comparison.too_few else {}),
        },
        "mapsswe": comparison.mapsswe and asdict(comparison.mapsswe),
    }
