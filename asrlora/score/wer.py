"""Error rates from integer counts.

Policy for cases in which tools differ: an empty hypothesis deletes every reference word; an
empty reference has no words, and each hypothesis word is an insertion that counts in the total. A
set without a single reference word has no WER (NaN). The same holds for characters and other units.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import jiwer


@dataclass(frozen=True)
class Tally:
    """Errors in so many units of the references: words, characters, or what else a metric counts."""

    errors: int = 0
    length: int = 0

    @property
    def rate(self) -> float:
        """A fraction. Of sums, never a mean of rates: long utterances count for what they are."""
        return self.errors / self.length if self.length else math.nan

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.errors + other.errors, self.length + other.length)


@dataclass(frozen=True)
class Counts:
    """Of words, by kind of error."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0  # of the reference

    @property
    def errors(self) -> int:
        """Of all kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """A fraction."""
        return self.tally.rate

    @property
    def tally(self) -> Tally:
        """The errors of all kinds."""
        return Tally(self.errors, self.words)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, astuple(self), astuple(other)))


def total(counts: Iterable[Counts]) -> Counts:
    """Their sum."""
    return sum(counts, Counts())


def count(reference: str, hypothesis: str) -> Counts:
    """Counts of the alignment with fewest errors, of texts that are already normalised.

    For other units than words, of texts that score/metric.py has cut into them.
    """
    if not reference:
        return Counts(insertions=len(hypothesis.split()))
    out = jiwer.process_words(reference, hypothesis)
    return Counts(out.substitutions, out.deletions, out.insertions, len(reference.split()))
