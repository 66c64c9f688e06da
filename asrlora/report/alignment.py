"""What changed between two evaluations of one set: confusions, and utterances word by word."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jiwer

from asrlora.record.run_dir import read_lines, step_folder
from asrlora.score.metric import Metric, tally, units

EXAMPLES = 5  # most improved and most regressed utterances shown of each set
CONFUSIONS = 8  # of each kind

Line = dict[str, Any]  # of eval/step-NNNNNN/*.jsonl
Kind = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Slot:
    """One place of an alignment: a word of the reference, or a gap where words were inserted (no word)."""

    reference: str
    before: tuple[Kind, str]
    after: tuple[Kind, str]


@dataclass(frozen=True)
class Confusion:
    """A word of references and what hypotheses have for it, "" where there is none, and how often."""

    reference: str
    hypothesis: str
    before: int
    after: int


@dataclass(frozen=True)
class Pair:
    """One set as the baseline and as another evaluation wrote it, by utterance id.

    Texts are cut into the metric's units, and `errors` and `length` count these; "words" here are units.
    """

    before: dict[str, Line]
    after: dict[str, Line]

    def most_improved(self) -> list[str]:
        """Ids of utterances with fewer errors than before."""
        return [i for change, i in self._changes() if change < 0][:EXAMPLES]

    def most_regressed(self) -> list[str]:
        """Ids of utterances with more errors than before."""
        by_change = sorted(self._changes(), key=lambda c: (-c[0], c[1]))
        return [i for change, i in by_change if change > 0][:EXAMPLES]

    def shown(self) -> list[str]:
        """Ids of the utterances that the report shows word by word."""
        return [*self.most_improved(), *self.most_regressed()]

    def _changes(self) -> list[tuple[int, str]]:
        """(errors more than before, id), the most improved first."""
        return sorted((self.after[i]["errors"] - line["errors"], i) for i, line in self.before.items())

    def slots(self, identity: str) -> list[Slot]:
        """Both hypotheses against the reference, which is the same for both."""
        reference = self.before[identity]["reference"].split()
        old, new = (align(side[identity]) for side in (self.before, self.after))
        found = []
        for place, word in enumerate([*reference, ""]):
            gap_before, gap_after = old.gaps[place], new.gaps[place]
            if gap_before or gap_after:
                found.append(Slot("", ("insert", gap_before), ("insert", gap_after)))
            if place < len(reference):
                found.append(Slot(word, old.words[place], new.words[place]))
        return found

    def confusions(self) -> dict[str, list[Confusion]]:
        """By kind, the most frequent on either side first."""
        before, after = (_confusions(side.values()) for side in (self.before, self.after))
        return {
            kind: sorted(
                (Confusion(*of, before[kind][of], after[kind][of]) for of in before[kind] | after[kind]),
                key=lambda c: (-max(c.before, c.after), -c.before - c.after, c.reference, c.hypothesis),
            )[:CONFUSIONS]
            for kind in before
        }


@dataclass(frozen=True)
class Alignment:
    """One hypothesis against the N words of its reference."""

    words: list[tuple[Kind, str]]  # N: equal or substitute with the hypothesis's word, delete with nothing
    gaps: list[str]  # N + 1: what was inserted before each word, and behind the last


def read_pair(run: Path, name: str, evaluation: Path, metric: Metric) -> Pair:
    """A set of a run by the base and in another evaluation, which is a folder below eval/."""
    old, new = (read_lines(folder / f"{name}.jsonl") for folder in (step_folder(run, 0), evaluation))
    return pair(old, new, metric)


def pair(before: Iterable[Line], after: Iterable[Line], metric: Metric) -> Pair:
    """Scored lines of the same utterances by two systems."""
    return Pair(*({line["id"]: _cut(line, metric) for line in lines} for lines in (before, after)))


def _cut(line: Line, metric: Metric) -> Line:
    """A scored line in the metric's units."""
    texts = {side: units(line[side], metric) for side in ("reference", "hypothesis")}
    counted = tally(line, metric)
    return {**line, **texts, "errors": counted.errors, "length": counted.length}


def align(line: Line) -> Alignment:
    """The hypothesis of a scored line against its reference, by jiwer."""
    reference, hypothesis = line["reference"].split(), line["hypothesis"].split()
    words: list[tuple[Kind, str]] = [("delete", "")] * len(reference)
    gaps = [""] * (len(reference) + 1)
    if not reference:
        return Alignment(words, [line["hypothesis"]])
    for chunk in jiwer.process_words(line["reference"], line["hypothesis"]).alignments[0]:
        found = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            gaps[chunk.ref_start_idx] = " ".join(found)
        elif chunk.type != "delete":
            words[chunk.ref_start_idx : chunk.ref_end_idx] = [(chunk.type, word) for word in found]
    return Alignment(words, gaps)


def _confusions(lines: Iterable[Line]) -> dict[str, Counter[tuple[str, str]]]:
    """How often (word of the reference, word of the hypothesis) were confused, by kind."""
    kinds = ("substitutions", "deletions", "insertions")
    counts: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in kinds}
    for line in lines:
        if not line["errors"]:
            continue
        found = align(line)
        for reference, (kind, hypothesis) in zip(line["reference"].split(), found.words, strict=True):
            if kind == "substitute":
                counts["substitutions"][reference, hypothesis] += 1
            elif kind == "delete":
                counts["deletions"][reference, ""] += 1
        for gap in found.gaps:
            counts["insertions"].update(("", hypothesis) for hypothesis in gap.split())
    return counts


def excerpt(run: Path, name: str, identity: str) -> Path:
    """Where the audio of an utterance is kept for the report; an id can be no file name, its hash can."""
    return run / "excerpts" / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.mp3"
