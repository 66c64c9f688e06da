"""Error rates by speaker and by duration, from scored lines alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from asrlora.score.metric import KEYS, Metric, tally
from asrlora.score.wer import Tally

BANDS = ((0, 5), (5, 10), (10, 15), (15, 20), (20, None))  # seconds, the upper end excluded
UNKNOWN = "unknown"  # lines of runs of 0.1.0 hold neither speaker nor duration


def by_speaker(lines: Iterable[Mapping[str, Any]], metric: Metric) -> dict[str, dict[str, Any]]:
    """Speaker to the metric (a fraction, by its name), errors, words or the like, and utterances; in order
    of the names."""
    return dict(sorted(_sums(((line.get("speaker") or UNKNOWN, line) for line in lines), metric).items()))


def by_duration(lines: Iterable[Mapping[str, Any]], metric: Metric) -> dict[str, dict[str, Any]]:
    """The same for each band of seconds that holds an utterance, such as "5-10 s", the short first."""
    found = _sums(((band(line.get("duration")), line) for line in lines), metric)
    names = [_name(low, high) for low, high in BANDS]
    return {name: found[name] for name in [*names, UNKNOWN] if name in found}


def band(seconds: float | None) -> str:
    """The name of the band that a duration is in."""
    if seconds is None:
        return UNKNOWN
    return next(_name(low, high) for low, high in BANDS if high is None or seconds < high)


def _name(low: int, high: int | None) -> str:
    return f"{low}+ s" if high is None else f"{low}-{high} s"


def _sums(placed: Iterable[tuple[str, Mapping[str, Any]]], metric: Metric) -> dict[str, dict[str, Any]]:
    sums: dict[str, Tally] = {}
    utterances: dict[str, int] = {}
    for name, line in placed:
        sums[name] = sums.get(name, Tally()) + tally(line, metric)
        utterances[name] = utterances.get(name, 0) + 1
    return {
        name: {
            metric: one.rate if one.length else None,  # None: no reference word
            "errors": one.errors,
            KEYS[metric][1]: one.length,
            "utterances": utterances[name],
        }
        for name, one in sums.items()
    }
