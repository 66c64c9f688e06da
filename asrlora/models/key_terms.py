"""Key terms: names and words of a list, to which decoding is drawn by a bonus on their pieces.

A trie holds the pieces of every term as the tokenizer writes it: as listed, in lower, title and upper case,
with and without a space in front. A piece at depth d adds boost x weight x (1 + ln d) nats (the bonus that
Moonshine publishes, with a boost of 2), from the beginning of a word on only. A term is completed
where the next token ends the word; a beginning that comes to nothing has its bonus taken back, so that
"Marquand" leaves "Mary" alone:

- In a search over beams the whole bonus of an unfinished term is taken back with the token that leaves it,
  as on the failure arcs of contextual biasing (Zhao et al., Interspeech 2019; icefall's ContextGraph).
- Greedy decoding cannot take a token back. It is done again with no term beginning there: see
  `unfinished`, and `transcribe` in seq2seq.py.

Imports no torch: lists are checked before a model is loaded. V is the size of the vocabulary.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asrlora.errors import UserError

if TYPE_CHECKING:
    from asrlora.models.family import Base

VERSION = 1  # of how a list changes decoding, for the fingerprint
BOOST = 2.0  # nats at depth 1
MAX_BOOST = 50.0
MAX_TERMS = 5_000
MAX_WEIGHT = 10.0
BOOST_LINE = "# boost:"  # in a list: what `asrlora terms tune` has chosen for it


@dataclass(frozen=True)
class Term:
    """One line of a list."""

    text: str
    weight: float
    line: int


@dataclass(frozen=True)
class TermList:
    """A list of terms as read, and how strongly they are preferred."""

    path: Path
    terms: tuple[Term, ...]
    boost: float

    def fingerprint(self) -> dict[str, Any]:
        """What decides hypotheses: neither the order of the lines nor their notes."""
        content = json.dumps(sorted((term.text, term.weight) for term in self.terms), ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return {"version": VERSION, "sha256": digest, "boost": self.boost}


def read(path: Path, boost: float | None = None) -> TermList:
    """Reads a list: a term a line; after a tab a weight; after another tab a note. Lines that begin with #
    are comments; `# boost: X` is the boost where none is given.

    Raises UserError that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--key-terms {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"--key-terms {path}: is not UTF-8 text") from None
    terms: dict[str, Term] = {}
    noted = None
    for number, line in enumerate(lines, 1):
        place = f"--key-terms {path}, line {number}"
        if line.startswith("#") or not line.strip():
            if line.startswith(BOOST_LINE):
                noted = _number(line.removeprefix(BOOST_LINE), f"{place}: the boost", 0.0, MAX_BOOST)
            continue
        term = _term(line, number, place)
        twin = terms.setdefault(term.text.casefold(), term)
        if twin is not term:
            raise UserError(
                f"{place}: {term.text!r} stands in line {twin.line} already; case makes no difference here"
            )
        if len(terms) > MAX_TERMS:
            raise UserError(f"{place}: more than {MAX_TERMS:,} terms; list the ones that matter")
    if not terms:
        raise UserError(f"--key-terms {path}: holds no term; write one a line")
    if boost is None:
        boost = BOOST if noted is None else noted
    return TermList(path, tuple(terms.values()), boost)


def check_boost(value: float, flag: str) -> float:
    """A boost of the command line. Raises UserError."""
    return _number(str(value), flag, 0.0, MAX_BOOST)


def chosen(path: Path | None, boost: float | None) -> TermList | None:
    """What --key-terms and --key-terms-boost ask for. Raises UserError."""
    if boost is not None:
        check_boost(boost, "--key-terms-boost")
    if path is None:
        if boost is not None:
            raise UserError("--key-terms-boost is of the list that --key-terms names; give both")
        return None
    return read(path, boost)


def _term(line: str, number: int, place: str) -> Term:
    text, *rest = line.split("\t")
    text = " ".join(text.split())
    if not any(character.isalnum() for character in text):
        raise UserError(f"{place}: {text!r} is no term, since it has neither letter nor digit")
    if len(rest) > 2 or (len(rest) == 2 and not rest[1].startswith("#")):
        raise UserError(f"{place}: holds more than a term, a tab and a weight; notes begin with #")
    if not rest:
        return Term(text, 1.0, number)
    weight = _number(rest[0], f"{place}: the weight", 0.0, MAX_WEIGHT)
    if weight == 0:
        raise UserError(f"{place}: the weight must be above 0; take the term out")
    return Term(text, weight, number)


def _number(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{what} must be a number from {low:g} to {high:g}, not {text.strip()!r}")
    return value


class Written(NamedTuple):
    """A term that is being written."""

    node: int
    start: int  # the place of its first piece
    kept: float  # nats that stay when it goes no further: those of a term that it has completed


class State(NamedTuple):
    """What has been written, as far as it matters for what comes next."""

    paths: tuple[Written, ...]
    word_start: bool  # a letter would begin a word


class Step(NamedTuple):
    """What a token makes of a state."""

    state: State
    gain: float  # nats, negative where a bonus is taken back
    completed: list[int]  # the starts of terms that ended before this token


START = State((), True)


@dataclass
class Trie:
    """Terms in the pieces of one model. Node 0 is the root."""

    opens: np.ndarray  # (V,) bool: the token ends the word before it
    closes: np.ndarray  # (V,) bool: a letter after it begins a word
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    pulls: list[float] = field(default_factory=lambda: [0.0])  # nats of a node's own piece
    sums: list[float] = field(default_factory=lambda: [0.0])  # nats of all pieces up to a node
    ends: list[bool] = field(default_factory=lambda: [False])

    def add(self, pieces: Sequence[int], nats: float) -> None:
        """A spelling of a term. Where terms share a beginning, the larger bonus counts."""
        node = 0
        for depth, piece in enumerate(pieces, 1):
            if piece not in self.children[node]:
                self.children[node][piece] = len(self.children)
                self.children.append({})
                self.pulls.append(0.0)
                self.sums.append(0.0)
                self.ends.append(False)
            node = self.children[node][piece]
            self.pulls[node] = max(self.pulls[node], nats * (1 + math.log(depth)))
        self.ends[node] = True

    def finish(self) -> "Trie":
        """To be called after the last `add`. Sums up, and lays out the bonus of first pieces."""
        for node, children in enumerate(self.children):  # children come after their parent
            for child in children.values():
                self.sums[child] = self.sums[node] + self.pulls[child]
        self._first = {True: np.zeros(len(self.opens), np.float32)}
        for piece, node in self.children[0].items():
            self._first[True][piece] = self.sums[node]
        self._first[False] = np.where(self.opens, self._first[True], np.float32(0))
        return self

    def step(self, state: State, token: int, place: int = 0, blocked: Collection[int] = ()) -> Step:
        """`token` at `place`; no term begins at the blocked places."""
        opens = bool(self.opens[token])
        paths, left, completed = [], 0.0, []
        for node, start, kept in state.paths:
            if self.ends[node] and opens:
                kept = self.sums[node]
                completed.append(start)
            if token in self.children[node]:
                paths.append(Written(self.children[node][token], start, kept))
            else:
                left = max(left, kept)
        stays = 0.0 if paths else left  # of terms that overlap, one counts
        if (state.word_start or opens) and token in self.children[0] and place not in blocked:
            paths.append(Written(self.children[0][token], place, 0.0))
        after = State(tuple(paths), bool(self.closes[token]))
        return Step(after, stays + self._pending(after) - self._pending(state), completed)

    def last_gain(self, state: State) -> float:
        """The gain of ending here."""
        kept = (self.sums[node] if self.ends[node] else kept for node, _, kept in state.paths)
        return max(kept, default=0.0) - self._pending(state)

    def bonus(self, tokens: Sequence[int]) -> float:
        """Nats of the terms that are completed in a whole hypothesis."""
        state, total = START, 0.0
        for token in tokens:
            state, gain, _ = self.step(state, token)
            total += gain
        return total + self.last_gain(state)

    def _pending(self, state: State) -> float:
        return max((self.sums[path.node] for path in state.paths), default=0.0)

    def gains(self, state: State) -> np.ndarray:
        """(V,) float32: the gain of every token, for a search over beams."""
        first = self._first[state.word_start]
        if not state.paths:
            return first
        pending = self._pending(state)
        after_word = pending + self.last_gain(state)
        inside = max(path.kept for path in state.paths)
        row = np.where(self.opens, after_word, inside) + first
        continued: dict[int, float] = {}
        for path in state.paths:
            for token, child in self.children[path.node].items():
                continued[token] = max(self.sums[child], continued.get(token, float(first[token])))
        for token, nats in continued.items():
            row[token] = nats
        return (row - pending).astype(np.float32)

    def continuations(self, state: State) -> Iterator[int]:
        """The tokens that go on with a term."""
        for path in state.paths:
            yield from self.children[path.node]

    def preference(self, state: State, place: int, blocked: Collection[int]) -> np.ndarray:
        """(V,) float32: the bonus of every token at `place`, for greedy decoding."""
        first = self._first[state.word_start]
        row = np.zeros_like(first) if place in blocked else first
        if state.paths:
            row = row.copy()
        for path in state.paths:
            for token, child in self.children[path.node].items():
                row[token] = max(row[token], self.pulls[child])
        return row

    def unfinished(
        self, tokens: Sequence[int], swayed: Sequence[bool], blocked: Collection[int]
    ) -> int | None:
        """Where the first term begins that a greedy hypothesis owes to the bonus and does not complete.

        `swayed`: whether another token would have been chosen without the bonus, for each place.
        """
        state, finished, begun = START, set[int](), []
        for place, token in enumerate(tokens):
            state, _, completed = self.step(state, token, place, blocked)
            finished.update(*(range(start, place) for start in completed))
            begun.append([path.start for path in state.paths])
        finished.update(*(range(path.start, len(tokens)) for path in state.paths if self.ends[path.node]))
        wrong = (p for p in range(len(tokens)) if swayed[p] and p not in finished and begun[p])
        first = next(wrong, None)
        return None if first is None else min(begun[first])


def attach(base: "Base", terms: TermList) -> "Base":
    """The base with the terms in its own pieces. Raises UserError for a term that it cannot write."""
    pieces = _texts(base)
    trie = Trie(
        np.array([not _in_word(text[:1]) for text in pieces]),
        np.array([not _in_word(text[-1:]) for text in pieces]),
    )
    for term in terms.terms:
        try:
            spelled = list(_spellings(base, term.text, pieces))
        except ValueError as error:
            raise UserError(
                f"--key-terms {terms.path}, line {term.line}: {term.text!r} {error}, or take it out"
            ) from None
        for ids in spelled:
            trie.add(ids, terms.boost * term.weight)
    return replace(
        base, key_terms=trie.finish(), decoding={**base.decoding, "key_terms": terms.fingerprint()}
    )


def _spellings(base: "Base", text: str, pieces: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Raises ValueError where the term as listed cannot be written; other cases are left out then."""
    from asrlora.models.family import spell

    for form in dict.fromkeys((text, text.lower(), text.title(), text.upper())):
        for space in ("", " "):
            try:
                ids = spell(base, space + form)
            except ValueError:
                if form == text:
                    raise
                continue
            while ids and not pieces[ids[0]].strip():  # a space of its own begins any word
                ids = ids[1:]
            yield tuple(ids)


def _texts(base: "Base") -> list[str]:
    """What each token adds to a text, with the space in front of a word; a space for special ones."""
    tokenizer = base.tokenizer
    known, size = len(tokenizer), base.model.config.vocab_size
    names = tokenizer.convert_ids_to_tokens(list(range(known)))
    bodies = tokenizer.batch_decode([[token] for token in range(known)])
    special = set(tokenizer.all_special_tokens)
    texts = [
        " " if name in special else (" " if name[:1] in ("▁", "Ġ") else "") + (body.strip() or " ")
        for name, body in zip(names, bodies, strict=True)
    ]
    return [*texts, *[" "] * (size - known)]


def _in_word(character: str) -> bool:
    """Whether words hold it; parts of characters, of which byte-level pieces are made, are letters."""
    return character.isalnum() or character == "\N{REPLACEMENT CHARACTER}"
