"""Hypotheses that are no transcript: nothing at all, or a decoder that ran away.

A decoder that has lost its place repeats itself, in words or in tokens until its limit ends it. The
errors count like all others; their number says whether a WER is made of mistakes or of breakdowns.
"""

import re
from collections.abc import Iterable

from asrlora.score.metric import units

# up to eight words, or characters where no spaces part words, four times in a row
_LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,7})(?: \1){3}(?!\S)")


def loops(text: str) -> bool:
    return _LOOP.search(units(text, "mer")) is not None


def count(hypotheses: Iterable[tuple[str, str, bool]]) -> dict[str, int]:
    """Of (reference, hypothesis, whether the limit of tokens ended it): how many are empty where words
    were said, and how many ran away: ended by the limit, or in a loop that the reference is not in."""
    found = {"empty": 0, "runaway": 0}
    for reference, hypothesis, unfinished in hypotheses:
        found["empty"] += bool(reference) and not hypothesis
        found["runaway"] += unfinished or (loops(hypothesis) and not loops(reference))
    return found


def told(found: dict[str, int]) -> str:
    """For the console; nothing where nothing is odd."""
    words = {"empty": "empty", "runaway": "ran away"}
    return ", ".join(f"{found[name]} {word}" for name, word in words.items() if found.get(name))
