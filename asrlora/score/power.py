"""What a manifest can prove: the smallest WER change that a paired 95 % interval distinguishes from none.

Two systems on the same utterances, n of them with w_i words and e_i errors. The interval of the
difference is 1.96 standard errors to each side (Bisani and Ney 2004 reach the same by bootstrap),
and the variance of a sum over utterances is the sum of the squared residuals e_i - WER * w_i, since
words of one utterance go wrong together (Gillick and Cox 1989 therefore pair segments, not words).

Before a second system exists, the difference is assumed to vary as much as the baseline itself: that
is exact where the two systems' errors are correlated by 1/2. In this project's demo, before and after
training, it was 15 to 32 % too wide, so these figures are on the safe side.
"""

import math
from collections.abc import Sequence

from asrlora.score.wer import Tally

Z = 1.96  # standard errors to each side of a 95 % interval
ASSUMED_WER = 0.10
# A paired difference varies this many times as much as with words that go wrong independently:
# 1.8 to 2.4 in the demo's runs, on both sets.
CLUMPING = 2.0


def assumed_margin(length: int, rate: float = ASSUMED_WER) -> float:
    """Half the interval's width, as a fraction, from the number of words (or characters, where the metric
    counts them) and a guessed error rate alone."""
    return Z * math.sqrt(CLUMPING * rate * (1 - rate) / length) if length else math.inf


def measured_margin(counts: Sequence[Tally], speakers: Sequence[str] | None = None) -> float:
    """Half the interval's width, as a fraction, from the baseline's counts, one an utterance. With the
    `speakers` of these, their residuals are summed by speaker: what one says goes wrong together.

    A baseline with hardly any errors does not show how they vary: one more error is added, so that a
    perfect baseline does not seem to prove everything.
    """
    whole = sum(counts, Tally())
    if speakers is not None:
        by_speaker: dict[str, Tally] = {}
        for speaker, one in zip(speakers, counts, strict=True):
            by_speaker[speaker] = by_speaker.get(speaker, Tally()) + one
        counts = list(by_speaker.values())
    if not whole.length or len(counts) < 2:
        return math.inf
    squares = sum((one.errors - whole.rate * one.length) ** 2 for one in counts)
    unseen = 1.0  # the square of that one error
    return Z * math.sqrt((squares + unseen) * len(counts) / (len(counts) - 1)) / whole.length


def enough(utterances: int, margin: float, criterion: float) -> int | None:
    """How many utterances like these make the margin as small as the criterion; None: unknown."""
    return math.ceil(utterances * (margin / criterion) ** 2) if math.isfinite(margin) else None


def guardrail(name: str, utterances: int, interval: tuple[float, float], limit: float) -> str:
    """What a guardrail of so many utterances can show, from the 95 % interval of a step's paired difference,
    in words that a user acts on; empty where it can show a change as small as `limit` (fractions)."""
    margin = (interval[1] - interval[0]) / 2
    needed = enough(utterances, margin, limit) if limit else None
    if margin <= limit or needed is None:
        return ""
    return (
        f"{name}: by this step's paired differences, its {utterances:,} utterances show changes from"
        f" {100 * margin:.2f} points on, and the limit is {100 * limit:.2f}: an accept by intervals needs a"
        f" rate {100 * (margin - limit):.2f} points below the base's, or, for one like the base's, about"
        f" {needed:,} such utterances"
    )
