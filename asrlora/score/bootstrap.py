"""Bootstrap intervals of error rates, and of the difference of two systems on the same utterances.

Source of the method: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP 2004. Percentile intervals, seeded. scipy.stats.bootstrap gives the same figures
(test_score.py), but scipy is no dependency, and its resamples are not shared by many systems.

What one speaker says goes wrong together, so whole speakers are drawn where there are enough of them: Liu and
Peng, "Statistical Testing on ASR Performance via Blockwise Bootstrap", Interspeech 2020.

Shapes: N units, that is utterances or speakers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrlora.errors import UserError
from asrlora.score import mapsswe
from asrlora.score.metric import Metric
from asrlora.score.wer import Tally

RESAMPLES = 10_000
BATCH = 250  # resamples drawn at a time, to bound memory: 10 MB for 5,000 utterances
SEED = 20_260_219
# A percentile interval of n normal units covers what a t of n - 1 degrees does within
# 1.96 sqrt((n - 1) / n): 93 % with 20 units, 90 % with 10, 75 % with 3, where 95 % is promised.
MIN_SPEAKERS = 20
Interval = tuple[float, float]  # 95 %, low and high


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances. Rates are fractions of one metric, intervals 95 %."""

    baseline: float
    baseline_interval: Interval
    tuned: float
    tuned_interval: Interval
    change: float  # tuned minus baseline: below 0 is better
    change_interval: Interval
    utterances: int
    length: int  # of the references, in the metric's units
    improvement_probability: float  # share of the resamples in which tuned is better; a tie is half
    resampled: str  # "utterance" or "speaker"
    units: int  # how many of these there are
    mapsswe: mapsswe.Mapsswe | None  # None: no segments were given
    metric: Metric = "wer"
    words: tuple[Tally, Tally] | None = None  # of the same two systems, where the metric counts others
    too_few: str = ""  # such as "9 speakers": what the set names where "auto" could not draw speakers


def compare(
    baseline: Mapping[str, Tally],
    tuned: Mapping[str, Tally],
    speakers: Mapping[str, str] | None = None,
    segments: Iterable[mapsswe.Segment] | None = None,
) -> Comparison:
    """Pairs two systems by utterance id and resamples utterances.

    With `speakers`, by utterance id, whole speakers are drawn: what one of them says goes wrong
    together. Raises UserError when the ids differ.
    """
    if baseline.keys() != tuned.keys():
        differing = sorted(baseline.keys() ^ tuned.keys())
        raise UserError(
            f"baseline and tuned hypotheses hold different utterances ({len(differing)}, such as"
            f" {differing[0]!r}); score both on the same manifest"
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
    intervals, better = _resampled(units, drawings(len(units)) if draws is None else draws)
    return Comparison(
        baseline=float(before),
        baseline_interval=intervals[0],
        tuned=float(after),
        tuned_interval=intervals[1],
        change=float(after - before),
        change_interval=intervals[2],
        utterances=len(rows),
        length=int(length),
        improvement_probability=better,
        resampled="utterance" if speakers is None else "speaker",
        units=len(units),
        mapsswe=None if segments is None else mapsswe.test(segments),
    )


def choose_speakers(
    what: str, speakers: Mapping[str, str | None], by: str
) -> tuple[dict[str, str] | None, str]:
    """The speakers to draw, by utterance id, or None to draw utterances; and what `what` names where `by` is
    "auto" and that is too few to draw speakers. Raises UserError where `by` is "speaker" and cannot be."""
    if by == "utterance":
        return None, ""
    if by == "speaker":
        return check_speakers(what, speakers), ""
    known = {i: speaker for i, speaker in speakers.items() if speaker is not None}
    count, without = len(set(known.values())), len(speakers) - len(known)
    if without or count < MIN_SPEAKERS:
        named = f"{count:,} speaker{'s' if count > 1 else ''}" if count else "no speaker"
        return None, f"no speaker of {without:,} utterances" if count and without else named
    return known, ""


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


def drawings(units: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Resamples in batches, float64 (resamples of the batch, N): how often each unit was drawn. Seeded.

    They depend on nothing else, so systems with equally many units are resampled alike.
    """
    rng = np.random.default_rng(SEED)
    for done in range(0, resamples, BATCH):
        count = min(BATCH, resamples - done)
        drawn = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units)
        yield times.reshape(count, units).astype(np.float64)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of a system's resampled rates, or of the difference of two."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def resample(systems: Sequence[Mapping[str, Tally]], speakers: Mapping[str, str] | None = None) -> np.ndarray:
    """Error rates of all systems in each resample of the utterances, or of `speakers` by utterance id:
    (systems, RESAMPLES).

    The resamples are those of `compare`, drawn once for all: a pair's interval is the one that it gives,
    at the price of one comparison instead of one for each pair.
    Raises UserError where the systems were scored on different utterances.
    """
    ids = sorted(systems[0])
    for system in systems:
        if system.keys() != systems[0].keys():
            raise UserError(
                "runs of one fingerprint hold different utterances, such as"
                f" {sorted(system.keys() ^ systems[0].keys())[0]!r}; a file of hypotheses is damaged"
            )
    rows = [[*(float(system[i].errors) for system in systems), float(systems[0][i].length)] for i in ids]
    units = np.array(rows)  # (N, systems and the length)
    if speakers is not None:
        units = _sums([speakers[i] for i in ids], units)
    errors, lengths = units[:, :-1], units[:, -1]
    rates = [(times @ errors).T / np.maximum(times @ lengths, 1) for times in drawings(len(units))]
    return np.concatenate(rates, axis=1)


def _sums(groups: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """One row a group, the sum of its rows."""
    names, numbers = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def _resampled(units: np.ndarray, draws: Iterable[np.ndarray]) -> tuple[list[Interval], float]:
    """Intervals of the baseline's rate, of the tuned rate and of tuned minus baseline, and the probability
    of improvement. `units` (N, 3): errors before and after, and length.

    The sums of all resamples of a batch are one matrix product.
    """
    if len(units) < 2:  # one unit has no spread to resample; nothing can be proved with it
        return [(0.0, 1.0), (0.0, 1.0), (-1.0, 1.0)], 0.5
    old, new, length = np.concatenate([times @ units for times in draws]).T
    before, after = old / np.maximum(length, 1), new / np.maximum(length, 1)
    changes = after - before
    better = float(np.mean(changes < 0) + np.mean(changes == 0) / 2)
    intervals = [interval(values) for values in (before, after, changes)]
    if (units[:, 0] == units[:, 1]).all():
        # Where none of n changed, up to 3 in n may (the rule of three: Hanley and Lippman-Hand, "If nothing
        # goes wrong, is everything all right?", 1983), here by one error each. No interval has no width.
        reach = 3 / max(float(units[:, 2].sum()), 1)
        intervals[2] = (-reach, reach)
    return intervals, better
