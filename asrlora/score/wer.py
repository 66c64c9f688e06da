"""Word and character error rates from integer counts.

Policy for the corners, where tools differ: an empty hypothesis deletes every reference word; an
empty reference has no words, and each hypothesis word is an insertion that counts in the total. A
set without a single reference word has no WER (NaN). The same holds for characters. A character is a
code point, and the spaces between words count, as in jiwer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class Counts:
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0  # of the reference

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """A fraction. Of sums, never a mean of WERs: long utterances count for what they are."""
        return self.errors / self.words if self.words else math.nan

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.words + other.words,
        )


def total(counts: Iterable[Counts]) -> Counts:
    return sum(counts, Counts())


def count(reference: str, hypothesis: str) -> Counts:
    """Counts of the alignment with fewest errors, of texts that are already normalised."""
    if not reference:
        return Counts(insertions=len(hypothesis.split()))
    out = jiwer.process_words(reference, hypothesis)
    return Counts(out.substitutions, out.deletions, out.insertions, len(reference.split()))


def count_characters(reference: str, hypothesis: str) -> tuple[int, int]:
    """(errors, characters of the reference) of texts that are already normalised."""
    if not reference:
        return len(hypothesis), 0
    out = jiwer.process_characters(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, len(reference)
