"""Scored utterances: the lines of eval/step-NNNNNN/*.jsonl and hypotheses.jsonl, and what sums them up."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from asrlora.score import wer
from asrlora.score.text import Normaliser


@dataclass(frozen=True)
class Hypothesis:
    """One scored utterance. Lines written before a field existed lack it."""

    id: str
    reference: str
    hypothesis: str
    reference_raw: str
    hypothesis_raw: str
    substitutions: int
    deletions: int
    insertions: int
    words: int
    character_errors: int
    characters: int  # of the reference, spaces counted
    speaker: str | None
    duration: float  # seconds

    @property
    def counts(self) -> wer.Counts:
        return wer.Counts(self.substitutions, self.deletions, self.insertions, self.words)


def score(
    identity: str,
    reference_raw: str,
    hypothesis_raw: str,
    normaliser: Normaliser,
    speaker: str | None,
    duration: float,
) -> Hypothesis:
    """One normaliser for both texts: nobody can score a hypothesis by other rules than its reference."""
    reference, hypothesis = normaliser(reference_raw), normaliser(hypothesis_raw)
    counts = wer.count(reference, hypothesis)
    return Hypothesis(
        identity, reference, hypothesis, reference_raw, hypothesis_raw,
        counts.substitutions, counts.deletions, counts.insertions, counts.words,
        *wer.count_characters(reference, hypothesis), speaker, duration,
    )  # fmt: skip


def summary(hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """WER and CER, fractions, their integer counts, and the number of utterances, as scores.json holds
    them."""
    counts = wer.total(h.counts for h in hypotheses)
    errors = sum(h.character_errors for h in hypotheses)
    characters = sum(h.characters for h in hypotheses)
    return {
        "wer": counts.wer,
        **asdict(counts),
        "cer": errors / characters if characters else math.nan,
        "character_errors": errors,
        "characters": characters,
        "utterances": len(hypotheses),
    }
