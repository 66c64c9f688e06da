"""Scored utterances: the lines of eval/step-NNNNNN/*.jsonl and hypotheses.jsonl, and what sums them up."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from asrlora.score import wer
from asrlora.score.metric import KEYS, Metric, tally, units
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
    characters: int  # of the reference
    mixed_errors: int
    mixed_units: int  # of the reference: words, but characters of scripts that put no spaces between words
    speaker: str | None
    duration: float  # seconds

    @property
    def counts(self) -> wer.Counts:
        """Words, by kind of error."""
        return wer.Counts(self.substitutions, self.deletions, self.insertions, self.words)

    def tally(self, metric: Metric) -> wer.Tally:
        """Errors and length in the metric's units."""
        return tally(vars(self), metric)

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Hypothesis":
        """From what `line` gave."""
        words = wer.Counts(*(line[name] for name in ("substitutions", "deletions", "insertions", "words")))
        return cls(**{"mixed_errors": words.tally.errors, "mixed_units": words.words, **line})

    def line(self) -> dict[str, Any]:
        """As a file holds it: mixed units only where they are not the words."""
        fields = asdict(self)
        if self.tally("mer") == self.counts.tally:
            del fields["mixed_errors"], fields["mixed_units"]
        return fields


def score(
    identity: str,
    reference_raw: str,
    hypothesis_raw: str,
    normaliser: Normaliser,
    speaker: str | None,
    duration: float,
) -> Hypothesis:
    """Normalises both texts by one normaliser, so that no hypothesis is scored by other rules than its
    reference, and counts words, characters and mixed units."""
    reference, hypothesis = normaliser(reference_raw), normaliser(hypothesis_raw)
    counts = wer.count(reference, hypothesis)
    characters, mixed = _tally(reference, hypothesis, "cer"), counts.tally
    if not (reference.isascii() and hypothesis.isascii()):
        mixed = _tally(reference, hypothesis, "mer")
    return Hypothesis(
        id=identity,
        reference=reference,
        hypothesis=hypothesis,
        reference_raw=reference_raw,
        hypothesis_raw=hypothesis_raw,
        **asdict(counts),
        character_errors=characters.errors,
        characters=characters.length,
        mixed_errors=mixed.errors,
        mixed_units=mixed.length,
        speaker=speaker,
        duration=duration,
    )


def _tally(reference: str, hypothesis: str, metric: Metric) -> wer.Tally:
    return wer.count(units(reference, metric), units(hypothesis, metric)).tally


def summary(hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """WER, CER and MER, fractions, their integer counts, and the number of utterances, as scores.json holds
    them."""
    counts = wer.total(h.counts for h in hypotheses)
    found: dict[str, Any] = {"wer": counts.wer, **asdict(counts)}
    for name in ("cer", "mer"):
        whole = sum((h.tally(name) for h in hypotheses), wer.Tally())
        errors, length = KEYS[name]
        found |= {name: whole.rate, errors: whole.errors, length: whole.length}
    return {**found, "utterances": len(hypotheses)}
