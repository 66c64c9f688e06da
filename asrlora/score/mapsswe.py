"""MAPSSWE, the matched-pairs sentence-segment word error test, as NIST's sctk makes it.

Errors inside an utterance come in clumps, so neither words nor errors are independent. The test cuts
each utterance where both systems have been right for two words running; what lies between the cuts
is a segment, and the segments' differences in errors are taken as independent. Their mean over its
standard error is compared with the normal distribution.

Sources: Gillick and Cox, "Some statistical issues in the comparison of speech recognition
algorithms", ICASSP 1989; NIST sctk, src/sclite/mtchprs.c, whose rule for segments this is.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer

CORRECT_BETWEEN = 2  # words that both systems have right, between two segments: sctk's default
Segment = tuple[int, int]  # errors of the first and of the second system


@dataclass(frozen=True)
class Mapsswe:
    """`mean` is of the second system's errors minus the first's, a segment: below 0 is better."""

    segments: int
    mean: float
    z: float
    p_value: float  # two-sided


def segments(reference: str, first: str, second: str) -> list[Segment]:
    """The segments of one utterance in which at least one of two systems has an error.

    For other units than words, of texts that score/metric.py has cut into them.
    """
    words = reference.split()
    wrong = [_errors(words, hypothesis) for hypothesis in (first, second)]
    found: list[Segment] = []
    pending, correct = [0, 0], 0
    for position in range(2 * len(words) + 1):  # even: what is inserted before a word; odd: a word
        errors = [one[position] for one in wrong]
        if any(errors):
            pending, correct = [a + b for a, b in zip(pending, errors, strict=True)], 0
        elif position % 2:
            correct += 1
            if correct == CORRECT_BETWEEN and any(pending):
                found.append((pending[0], pending[1]))
                pending = [0, 0]
    return [*found, (pending[0], pending[1])] if any(pending) else found


def _errors(words: Sequence[str], hypothesis: str) -> list[int]:
    """Errors by place: insertions before the first word, at the first word, before the second, ..."""
    places = [0] * (2 * len(words) + 1)
    if not words:
        return [len(hypothesis.split())]
    for chunk in jiwer.process_words(" ".join(words), hypothesis).alignments[0]:
        if chunk.type == "insert":
            places[2 * chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for word in range(chunk.ref_start_idx, chunk.ref_end_idx):
                places[2 * word + 1] = 1
    return places


def test(found: Iterable[Segment]) -> Mapsswe:
    """The test over all utterances' segments.

    Where the differences do not vary there is no standard error. Then z is 0 and the p-value 1, as in
    sctk: nothing is shown.
    """
    differences = [second - first for first, second in found]
    count = len(differences)
    mean = statistics.fmean(differences) if count else 0.0
    spread = statistics.stdev(differences) if count > 1 else 0.0
    z = mean / (spread / math.sqrt(count)) if spread else 0.0
    return Mapsswe(count, mean, z, math.erfc(abs(z) / math.sqrt(2)))
