"""Recall of domain words: of the times that one stands in a reference, how often it is recognised.

A WER shows little of the dozen names that a domain is about.

The words come from a list, or are found: the words of the domain's references that a general text
never uses. That text should be what the base was trained on, and is rarely at hand; whatever is taken
instead, a word that it misses by chance counts as a domain word. So recall compares two systems by
one list, and two lists cannot be compared.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer

from asrlora.errors import UserError
from asrlora.score.scoring import Hypothesis
from asrlora.score.text import Normaliser


@dataclass(frozen=True)
class Recall:
    """Of domain words, in the alignments of references and hypotheses."""

    hits: int
    occurrences: int  # in the references
    by_word: dict[str, tuple[int, int]] = field(repr=False)  # hits and occurrences of words that occur

    @property
    def recall(self) -> float | None:
        """A fraction; None where no reference holds a domain word."""
        return self.hits / self.occurrences if self.occurrences else None


def recall(pairs: Iterable[tuple[str, str]], words: frozenset[str]) -> Recall:
    """Of (reference, hypothesis) pairs as scored, that is normalised as the words are.

    Where several alignments have as few errors, jiwer's choice decides: it can move a hit by a word.
    """
    hits, occurrences = Counter[str](), Counter[str]()
    for reference, hypothesis in pairs:
        tokens = reference.split()
        if words.isdisjoint(tokens):
            continue
        occurrences.update(word for word in tokens if word in words)
        for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
            if chunk.type == "equal":
                right = tokens[chunk.ref_start_idx : chunk.ref_end_idx]
                hits.update(word for word in right if word in words)
    by_word = {word: (hits[word], occurrences[word]) for word in sorted(occurrences)}
    return Recall(hits.total(), occurrences.total(), by_word)


def summary(hypotheses: Iterable[Hypothesis], words: frozenset[str]) -> dict[str, Any]:
    """The entry of scores.json: hits, occurrences and their share; none without words."""
    if not words:
        return {}
    found = recall(((h.reference, h.hypothesis) for h in hypotheses), words)
    return {
        "domain_words": {
            "recall": found.recall,
            "hits": found.hits,
            "occurrences": found.occurrences,
            "words": len(words),
        }
    }


def read(path: Path, normaliser: Normaliser) -> frozenset[str]:
    """A list, one word a line, normalised as the references are. Raises UserError naming the line."""
    found = set()
    for number, line in enumerate(_read_text(path, "--domain-words").splitlines(), 1):
        words = normaliser(line).split()
        if line.strip() and len(words) != 1:
            raise UserError(
                f"--domain-words {path}, line {number}: {line.strip()!r} is {' '.join(words)!r} after"
                " normalisation, which is not one word; write one word a line"
            )
        found.update(words)
    if not found:
        raise UserError(f"--domain-words {path}: holds no word; write one word a line")
    return frozenset(found)


def find(domain: Iterable[str], general: Iterable[str], normaliser: Normaliser) -> frozenset[str]:
    """The words of the domain's texts that the general texts never use."""
    used, common = (
        {word for text in texts for word in normaliser(text).split()} for texts in (domain, general)
    )
    return frozenset(used - common)


def choose(
    listed: Path | None,
    general: Path | None,
    domain: Iterable[str],
    heldout: Iterable[str] | None,
    normaliser: Normaliser,
) -> frozenset[str]:
    """The list, else what the domain's texts have and the general text lacks, else what the heldout
    manifest's texts lack; nothing where there is none of these."""
    if listed:
        return read(listed, normaliser)
    texts = read_general(general) if general else heldout
    return frozenset() if texts is None else find(domain, texts, normaliser)


def read_general(path: Path) -> list[str]:
    """A plain text, line by line. Raises UserError."""
    lines = _read_text(path, "--general-text").splitlines()
    if not any(line.strip() for line in lines):
        raise UserError(f"--general-text {path}: holds no text")
    return lines


def _read_text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{flag} {path}: is not UTF-8 text") from None
