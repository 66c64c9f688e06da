"""Recall of domain words: of the times that one stands in a reference, how often it is recognised.

A WER shows little of the dozen names that a domain is about.

The words come from a list, or are found: the words of the domain's references that a general text never
uses and that are rare in the language (word_frequency.py). That text should be what the base was trained on,
and is rarely at hand; whatever is taken instead misses words by chance, and prose of another century lacks
"see" and "me". Recall compares two systems by one list, and two lists cannot be compared.
"""

import operator
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import jiwer

from asrlora.errors import UserError
from asrlora.score import bootstrap, word_frequency
from asrlora.score.scoring import Hypothesis
from asrlora.score.text import Normaliser
from asrlora.score.wer import Tally


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


SHORTEST = 4  # letters of a word that is proposed
MOST = 5_000  # proposals: as many as a list may hold
PUNCTUATION = string.punctuation + "“”‘’«»„…–—"
Phrase = tuple[str, ...]  # a term, normalised, word by word


@dataclass(frozen=True)
class TermCounts:
    """Terms of one or several words in pairs of reference and hypothesis."""

    occurrences: int = 0  # in the references
    hits: int = 0  # of these, recognised whole
    written: int = 0  # in the hypotheses
    other_errors: int = 0  # all errors but those at words of terms in the references
    other_words: int = 0  # of the references, in no term

    def __add__(self, other: "TermCounts") -> "TermCounts":
        return TermCounts(*map(operator.add, astuple(self), astuple(other)))

    @property
    def misses(self) -> int:
        """The errors of the listed terms."""
        return self.occurrences - self.hits

    @property
    def term_tally(self) -> Tally:
        """Errors of the listed terms, of the times that one was said."""
        return Tally(self.misses, self.occurrences)

    @property
    def other_tally(self) -> Tally:
        """Errors of other words. A term that nobody said is one."""
        return Tally(self.other_errors, self.other_words)

    @property
    def other_wer(self) -> float:
        """A fraction."""
        return self.other_tally.rate


def normalised(terms: Iterable[str], normaliser: Normaliser) -> frozenset[Phrase]:
    """Terms as references and hypotheses hold them. Raises UserError for one of which nothing is left."""
    found = {term: tuple(normaliser(term).split()) for term in terms}
    if lost := next((term for term, phrase in found.items() if not phrase), None):
        raise UserError(f"--key-terms: nothing is left of {lost!r} by the text normaliser; take it out")
    return frozenset(found.values())


def count_terms(reference: str, hypothesis: str, terms: frozenset[Phrase]) -> TermCounts:
    """Of one pair as scored. Of terms that overlap the first counts, and of these the longest."""
    said, written = _spans(reference.split(), terms), _spans(hypothesis.split(), terms)
    words = len(reference.split())
    if not words:
        return TermCounts(written=len(written), other_errors=len(hypothesis.split()))
    aligned = jiwer.process_words(reference, hypothesis)
    right: dict[int, int] = {}  # places of words that are right, in the reference and in the hypothesis
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            of_reference = range(chunk.ref_start_idx, chunk.ref_end_idx)
            right |= zip(of_reference, range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True)
    hits, wrong, within = 0, 0, 0
    for start, end in said:
        found = [right[place] for place in range(start, end) if place in right]
        within, wrong = within + end - start, wrong + end - start - len(found)
        hits += found == list(range(found[0], found[0] + end - start)) if found else 0
    errors = aligned.substitutions + aligned.deletions + aligned.insertions
    return TermCounts(len(said), hits, len(written), errors - wrong, words - within)


def _spans(words: Sequence[str], terms: frozenset[Phrase]) -> list[tuple[int, int]]:
    """First word and the one behind the last of each term."""
    lengths = sorted({len(term) for term in terms}, reverse=True)
    found, place = [], 0
    while place < len(words):
        fitting = (n for n in lengths if place + n <= len(words))
        length = next((n for n in fitting if tuple(words[place : place + n]) in terms), 0)
        if length:
            found.append((place, place + length))
        place += length or 1
    return found


def total(counts: Iterable[TermCounts]) -> TermCounts:
    """Their sum."""
    return sum(counts, TermCounts())


def best_boost(totals: Mapping[float, TermCounts], limit: float) -> float:
    """The boost with the fewest errors of listed terms, of those whose other words' WER is at most `limit`
    (a fraction) above that of 0, which is the plain decoding; 0 where none has fewer errors than that."""
    allowed = {b: one for b, one in totals.items() if one.other_wer <= totals[0.0].other_wer + limit}
    return min(allowed, key=lambda b: (allowed[b].misses, b > 0, allowed[b].other_errors, b))


@dataclass(frozen=True)
class Proposal:
    """A word that might be listed, as the references write it."""

    text: str
    wrong: int
    said: int


def propose(hypotheses: Sequence[Hypothesis], normaliser: Normaliser) -> list[Proposal]:
    """Words that are wrong at least half of the times that they are said, most often wrong first.

    Short words and numbers are left out: a bonus on them reaches far into other words.
    """
    words = frozenset(word for h in hypotheses for word in h.reference.split())
    found = recall(((h.reference, h.hypothesis) for h in hypotheses), words)
    wrong = {
        word: (said - hits, said)
        for word, (hits, said) in found.by_word.items()
        if said >= 2 * hits and len(word) >= SHORTEST and word.isalpha()
    }
    written: dict[str, Counter[str]] = {word: Counter() for word in wrong}
    told = (h.reference_raw for h in hypotheses if not wrong.keys().isdisjoint(h.reference.split()))
    for raw in (raw for text in told for raw in text.split()):
        bare = raw.strip(PUNCTUATION)
        if (word := normaliser(bare)) in written:
            written[word][bare] += 1
    texts = {word: forms.most_common(1)[0][0] for word, forms in written.items() if forms}
    proposals = [Proposal(text, *wrong[word]) for word, text in texts.items()]
    return sorted(proposals, key=lambda one: (-one.wrong, one.text))[:MOST]


def summary_of_terms(pairs: Mapping[str, tuple[str, str]], terms: frozenset[Phrase]) -> dict[str, Any]:
    """The entry key_terms of scores.json: recall, precision and the WER of other words.

    `pairs` of reference and hypothesis by utterance, which are resampled for the intervals.
    """
    each = {i: count_terms(*pair, terms) for i, pair in pairs.items()}
    whole = total(each.values())
    missed = {i: one.term_tally for i, one in each.items()}
    wrong = {i: Tally(one.written - one.hits, one.written) for i, one in each.items()}
    entry: dict[str, Any] = {}
    for name, tallies in (("recall", missed), ("precision", wrong)):
        of = sum(tallies.values(), Tally())
        low, high = bootstrap.interval(bootstrap.resample([tallies])[0]) if of.length else (0.0, 0.0)
        entry[name] = 1 - of.rate if of.length else None
        entry[f"{name}_interval"] = (1 - high, 1 - low) if of.length else None
    for name in ("hits", "occurrences", "written", "other_wer", "other_errors", "other_words"):
        entry[name] = getattr(whole, name)
    return {**entry, "terms": len(terms)}


def describe(entry: Mapping[str, Any]) -> str:
    """What `summary_of_terms` gives, in words."""
    parts = []
    for name, of, what in (("recall", "occurrences", "said"), ("precision", "written", "written")):
        if entry[name] is None:
            parts.append(f"none was {what}")
            continue
        low, high = entry[f"{name}_interval"]
        ends = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
        parts.append(f"{name} {entry[name]:.2%} ({ends}; {entry['hits']} of {entry[of]} {what})")
    errors = f"{entry['other_errors']} errors in {entry['other_words']} words"
    return f"{', '.join(parts)}; other words' WER {entry['other_wer']:.2%} ({errors})"


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


def to_list(words: Iterable[str]) -> str:
    """As `read` reads them, and a run directory's domain_words.txt holds them."""
    return "".join(f"{word}\n" for word in sorted(words))


def find(
    domain: Iterable[str], general: Iterable[str], normaliser: Normaliser, language: str
) -> frozenset[str]:
    """The words of the domain's texts that the general texts never use, and the language seldom. Numbers in
    digits are left out: how often a language uses them is in no list."""
    used, *usual = (
        {word for text in texts for word in normaliser(text).split()}
        for texts in (domain, general, word_frequency.common(language))
    )
    rare = used.difference(*usual)
    return frozenset(word for word in rare if any(map(str.isalpha, word)) and word.lower() not in usual[1])


def choose(
    listed: Path | None,
    general: Path | None,
    domain: Iterable[str],
    heldout: Iterable[str] | None,
    normaliser: Normaliser,
    language: str,
) -> frozenset[str]:
    """The list, else what `find` finds with the general text, else with the heldout manifest's texts; nothing
    where there is none of these."""
    if listed:
        return read(listed, normaliser)
    texts = read_general(general) if general else heldout
    return frozenset() if texts is None else find(domain, texts, normaliser, language)


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
