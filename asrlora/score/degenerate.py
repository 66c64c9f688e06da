"""Degenerate hypotheses: empty ones, and those of a decoder that ran away.

A decoder that ran away repeats words, or writes tokens until its limit ends it. The errors count like all
others; the number of such hypotheses shows whether a WER is made of single mistakes or of these.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from asrlora.score.metric import units
from asrlora.score.scoring import Hypothesis

SHOWN = 80  # characters of an example

_LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,7})(?: \1){3}(?!\S)")


def loops(text: str) -> bool:
    """Whether up to eight words (or characters, where no spaces part words) stand four times in a row."""
    return _LOOP.search(units(text, "mer")) is not None


def ran_away(reference: str, hypothesis: str, unfinished: bool) -> bool:
    """Whether the limit of tokens ended the hypothesis, or it is in a loop that the reference is not in."""
    return unfinished or (loops(hypothesis) and not loops(reference))


def count(hypotheses: Iterable[Hypothesis], unfinished: Collection[str] = ()) -> dict[str, Any]:
    """How many hypotheses are empty where the reference is not, how many ran away, the word errors of these,
    and the worst of them. `unfinished` are the ids of those that the limit of tokens ended."""
    written = list(hypotheses)
    away = [one for one in written if ran_away(one.reference, one.hypothesis, one.id in unfinished)]
    worst = max(away, key=lambda one: one.counts.tally.errors, default=None)
    return {
        "empty": sum(bool(one.reference) and not one.hypothesis for one in written),
        "runaway": len(away),
        "runaway_errors": sum(one.counts.tally.errors for one in away),
        "runaway_example": worst and f"{worst.id}: {_end_of(worst.hypothesis_raw)}",
    }


def _end_of(text: str) -> str:
    """Of a long text its end, where it repeats itself."""
    return text if len(text) <= SHOWN else f"… {text[-SHOWN:].strip()}"


def add(found: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of two parts of a set together, with the example of one of them."""
    return {
        key: value or found.get(key) if key.endswith("example") else value + found.get(key, 0)
        for key, value in more.items()
    }


def describe(found: Mapping[str, Any]) -> str:
    """For the console, such as "2 empty, 1 ran away (23 of 366 word errors; a-12: go go go go)"; empty where
    there are none. `found` are a set's scores."""
    parts = [f"{found['empty']} empty"] if found.get("empty") else []
    if found.get("runaway"):
        errors = sum(found.get(kind, 0) for kind in ("substitutions", "deletions", "insertions"))
        parts.append(
            f"{found['runaway']} ran away ({found.get('runaway_errors', 0)} of {errors} word errors;"
            f" {found.get('runaway_example')})"
        )
    return ", ".join(parts)
