"""Degenerate hypotheses: empty ones, and those of a decoder that ran away.

A decoder that ran away repeats words, or writes tokens until its limit ends it. The errors count like all
others; the number of such hypotheses shows whether a WER is made of single mistakes or of these.
"""

import re
from collections.abc import Iterable

from asrlora.score.metric import units

_LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,7})(?: \1){3}(?!\S)")


def loops(text: str) -> bool:
    """Whether up to eight words (or characters, where no spaces part words) stand four times in a row."""
    return _LOOP.search(units(text, "mer")) is not None


def count(hypotheses: Iterable[tuple[str, str, bool]]) -> dict[str, int]:
    """Of (reference, hypothesis, whether the limit of tokens ended it): how many are empty where the
    reference is not, and how many ran away: ended by the limit, or in a loop that the reference is not in."""
    found = {"empty": 0, "runaway": 0}
    for reference, hypothesis, unfinished in hypotheses:
        found["empty"] += bool(reference) and not hypothesis
        found["runaway"] += unfinished or (loops(hypothesis) and not loops(reference))
    return found


def describe(found: dict[str, int]) -> str:
    """For the console, such as "2 empty, 1 ran away"; empty where there are none."""
    words = {"empty": "empty", "runaway": "ran away"}
    return ", ".join(f"{found[name]} {word}" for name, word in words.items() if found.get(name))
