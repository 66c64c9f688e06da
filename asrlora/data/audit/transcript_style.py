"""How transcripts are written: capitals, punctuation, digits, symbols. Needs no torch.

WER is scored after normalisation and does not see style; the training loss does. Labels in a style
that the base never writes spend the adapter's steps on teaching it to shout.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from asrlora.score.characters import for_labels

Case = Literal["keep", "lower", "upper", "sentence"]
Punctuation = Literal["keep", "strip", "full-stop"]
Characters = Literal["keep", "plain"]

MARKS = '.,?!;:…"“”„«»()¿¡—–。、？！'
WITHIN_WORDS = "'’-‐"  # no punctuation: "don't", "half-past"
_MARK = f"[{re.escape(MARKS)}]"
_LOOSE_MARK = re.compile(rf"(?<!\w){_MARK}|{_MARK}(?!\w)")  # not the point of 3.5
_SENTENCE_START = re.compile(r"(^\W*|[.?!…]\W*\s)(\w)")
_ENDED = re.compile(r"[.?!…。？！][\"”»)]*$")


@dataclass(frozen=True)
class Style:
    """Shares between 0 and 1."""

    texts: int  # that are not empty; the others have no style
    capitals: float  # of the letters that have a case
    punctuation: float  # of the texts, holding at least one mark
    digits: float  # of the texts
    symbols: float  # of the texts
    seen: str  # the symbols themselves, the most frequent first

    @property
    def case(self) -> str:
        return "upper" if self.capitals > 0.5 else "lower" if self.capitals < 0.005 else "mixed"


def style(texts: Iterable[str]) -> Style:
    letters, held, symbols = Counter[str](), Counter[str](), Counter[str]()
    count = 0
    for text in texts:
        characters = Counter(text.strip())
        if not characters:
            continue
        count += 1
        letters.update(characters)
        kinds = {_kind(character) for character in characters}
        held.update(kinds)
        if "symbols" in kinds:
            symbols.update(character for character in characters if _kind(character) == "symbols")
    upper = sum(n for character, n in letters.items() if character.isupper())
    lower = sum(n for character, n in letters.items() if character.islower())
    shares = {kind: held[kind] / max(count, 1) for kind in ("punctuation", "digits", "symbols")}
    seen = "".join(sorted(symbols, key=lambda character: (-symbols[character], character)))
    return Style(count, upper / max(upper + lower, 1), **shares, seen=seen)


def _kind(character: str) -> str:
    if character in MARKS:
        return "punctuation"
    if character.isspace():
        return "other"
    if character.isdigit():
        return "digits"
    category = unicodedata.category(character)
    return "symbols" if category[0] in "SPC" and character not in WITHIN_WORDS else "other"


def restyle(
    text: str, case: Case = "keep", punctuation: Punctuation = "keep", characters: Characters = "keep"
) -> str:
    """A transcript as the labels shall be written.

    `sentence` is lower case with a capital at the start of each sentence and for the English "I";
    names stay small. `strip` leaves marks inside numbers and words; `full-stop` ends the text with
    one where no mark ends it; `plain` characters are those of `score.characters.for_labels`.
    """
    if characters == "plain":
        text = re.sub(" +", " ", for_labels(text)).strip(" ")
    if case == "lower":
        text = text.lower()
    elif case == "upper":
        text = text.upper()
    elif case == "sentence":
        text = _SENTENCE_START.sub(lambda start: start[1] + start[2].title(), text.lower())
        text = re.sub(r"\bi\b", "I", text)
    if punctuation == "strip":
        text = " ".join(_LOOSE_MARK.sub(" ", text).split())
    elif punctuation == "full-stop" and text.strip() and not _ENDED.search(text.rstrip()):
        text = text.rstrip().rstrip(",;:—–") + "."
    return text
