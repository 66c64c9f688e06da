"""Accept, reject or inconclusive: paired bootstrap intervals against fixed criteria.

The rule: *accept* where the 95 % intervals of both the domain's WER reduction and the heldout's
WER regression lie inside the criteria; *reject* where one of them lies wholly outside; else
*inconclusive*. Without a heldout manifest nothing shows that the model still hears the rest, so a
run cannot be accepted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asrlora.errors import UserError
from asrlora.score import mapsswe
from asrlora.score.wer import Counts, total

RESAMPLES = 10_000
BATCH = 250  # resamples drawn at a time, to bound memory
SEED = 20_260_219
EXIT_CODES = {"accept": 0, "reject": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Criteria:
    min_domain_reduction: float = 0.01
    max_heldout_regression: float = 0.002


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances. WERs are fractions, intervals 95 %."""

    baseline_wer: float
    baseline_interval: tuple[float, float]
    tuned_wer: float
    tuned_interval: tuple[float, float]
    change: float  # tuned minus baseline: below 0 is better
    change_interval: tuple[float, float]
    utterances: int
    words: int
    improvement_probability: float  # share of the resamples in which tuned is better; a tie is half
    resampled: str  # "utterance" or "speaker"
    units: int  # how many of these there are
    mapsswe: mapsswe.Mapsswe | None  # None: no segments were given


def compare(
    baseline: Mapping[str, Counts],
    tuned: Mapping[str, Counts],
    speakers: Mapping[str, str] | None = None,
    segments: Iterable[mapsswe.Segment] | None = None,
    resamples: int = RESAMPLES,
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
    rows = np.array([(baseline[i].errors, tuned[i].errors, baseline[i].words) for i in ids], np.float64)
    units = rows if speakers is None else _sums([speakers[i] for i in ids], rows)
    before, after = total(baseline.values()).wer, total(tuned.values()).wer
    intervals, better = _bootstrap(units, resamples)
    return Comparison(
        before, intervals[0], after, intervals[1], after - before, intervals[2],
        len(ids), int(rows[:, 2].sum()), better,
        "utterance" if speakers is None else "speaker", len(units),
        None if segments is None else mapsswe.test(segments),
    )  # fmt: skip


def _sums(groups: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """One row a group, the sum of its rows."""
    names, numbers = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def _bootstrap(units: np.ndarray, resamples: int) -> tuple[list[tuple[float, float]], float]:
    """95 % intervals of the baseline's WER, of the tuned WER and of tuned minus baseline, and the
    probability of improvement. `units`: one row a unit: errors before and after, and words."""
    if len(units) < 2:  # one unit has no spread to resample; nothing can be proved with it
        return [(0.0, 1.0), (0.0, 1.0), (-1.0, 1.0)], 0.5

    from scipy import stats  # a second to import, and reading a run needs none of it

    def statistic(a: np.ndarray, b: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        n = np.maximum(w.sum(axis), 1)
        x, y = a.sum(axis) / n, b.sum(axis) / n
        return np.stack([x, y, y - x])

    result = stats.bootstrap(
        tuple(units.T), statistic, paired=True, vectorized=True, n_resamples=resamples,
        batch=BATCH, method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    interval, changes = result.confidence_interval, result.bootstrap_distribution[2]
    better = float(np.mean(changes < 0) + np.mean(changes == 0) / 2)
    return [(float(lo), float(hi)) for lo, hi in zip(interval.low, interval.high, strict=True)], better


def judge(domain: Comparison, heldout: Comparison | None, criteria: Criteria = Criteria()) -> dict[str, Any]:
    """The verdict with its reason, as verdict.json holds it (without best_step and fingerprint)."""
    need, limit = criteria.min_domain_reduction, criteria.max_heldout_regression
    reduction, regression = 0.0 - domain.change, heldout.change if heldout else None
    low, high = 0.0 - domain.change_interval[1], 0.0 - domain.change_interval[0]
    point = reduction >= need and regression is not None and regression <= limit
    reasons = [_reason("domain WER reduction", reduction, (low, high), "at least", need)]
    passed, failed = [low >= need], [high < need]
    if heldout is None:
        reasons.append("no heldout manifest was given, so forgetting is not ruled out")
        passed.append(False)
    else:
        interval = heldout.change_interval
        reasons.append(_reason("heldout WER regression", heldout.change, interval, "at most", limit))
        passed.append(interval[1] <= limit)
        failed.append(interval[0] > limit)
    verdict = "accept" if all(passed) else "reject" if any(failed) else "inconclusive"
    return {
        "verdict": verdict,
        "point": point,
        "reason": "; ".join(reasons),
        "domain": _section(domain, "reduction", reduction, (low, high)),
        "heldout": heldout and _section(heldout, "regression", heldout.change, heldout.change_interval),
        "criteria": asdict(criteria),
    }


def _section(
    comparison: Comparison, name: str, value: float, interval: tuple[float, float]
) -> dict[str, Any]:
    return {
        "baseline_wer": comparison.baseline_wer,
        "baseline_interval": list(comparison.baseline_interval),
        "tuned_wer": comparison.tuned_wer,
        "tuned_interval": list(comparison.tuned_interval),
        name: value,
        "interval": list(interval),
        "utterances": comparison.utterances,
        "words": comparison.words,
        "improvement_probability": comparison.improvement_probability,
        "resampled": {"by": comparison.resampled, "units": comparison.units},
        "mapsswe": comparison.mapsswe and asdict(comparison.mapsswe),
    }


def _reason(what: str, value: float, interval: Sequence[float], bound: str, criterion: float) -> str:
    """ "domain WER reduction 9.10 points (95 % interval 8.20 to 10.00): at least 1.00 holds" """
    inside = interval[0] >= criterion if bound == "at least" else interval[1] <= criterion
    outside = interval[1] < criterion if bound == "at least" else interval[0] > criterion
    holds = "holds" if inside else "fails" if outside else "is not settled"
    return (
        f"{what} {100 * value:.2f} points (95 % interval {100 * interval[0]:.2f} to"
        f" {100 * interval[1]:.2f}): {bound} {100 * criterion:.2f} {holds}"
    )


def within_guardrail(
    heldout_wer: float | None, baseline_wer: float | None, criteria: Criteria = Criteria()
) -> bool:
    """Whether a checkpoint may become the best adapter: heldout WER not past the limit."""
    if heldout_wer is None or baseline_wer is None:
        return True
    return heldout_wer - baseline_wer <= criteria.max_heldout_regression
