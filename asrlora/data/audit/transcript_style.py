"""How transcripts are written: capitals, punctuation, digits, symbols. Needs no torch.

WER is scored after normalisation and does not depend on style; the training loss does. Labels in a style that
the base never writes spend the adapter's steps on teaching it that style.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from asrlora.data.audit.findings import Finding
from asrlora.score import characters
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
        """upper, lower or mixed."""
        return "upper" if self.capitals > 0.5 else "lower" if self.capitals < 0.005 else "mixed"


def style(texts: Iterable[str]) -> Style:
    """The style of a set of transcripts; empty ones have none."""
    letters, held, symbols = Counter[str](), Counter[str](), Counter[str]()
    count = 0
    for text in texts:
        written = Counter(text.strip())
        if not written:
            continue
        count += 1
        letters.update(written)
        kinds = {_kind(character) for character in written}
        held.update(kinds)
        if "symbols" in kinds:
            symbols.update(character for character in written if _kind(character) == "symbols")
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


_CASE = {"lower": "lower case", "upper": "CAPITALS", "mixed": "prose with capitals"}
_CASE_FLAG = {"lower": "lower", "upper": "upper", "mixed": "sentence"}


def compare_styles(labels: Style, model: Style) -> list[Finding]:
    """Where training labels and what the model writes differ. WER does not depend on style, so none stops a
    run: it is not worthless, only worse than it could be."""
    found: dict[str, str] = {}
    if not labels.texts or not model.texts:
        return []
    if labels.case != model.case:
        found["case"] = (
            f"the training texts are in {_CASE[labels.case]} and the model writes {_CASE[model.case]};"
            f" train on the model's own style with --label-case {_CASE_FLAG[model.case]}"
        )
    if abs(labels.punctuation - model.punctuation) > 0.5:
        fix = "full-stop" if model.punctuation > labels.punctuation else "strip"
        found["punctuation"] = (
            f"{labels.punctuation:.0%} of the training texts and {model.punctuation:.0%} of what the model"
            f" writes has punctuation; train on the model's own style with --label-punctuation {fix}"
        )
    shares = {"digits": (labels.digits, model.digits), "symbols": (labels.symbols, model.symbols)}
    for what, (ours, theirs) in shares.items():
        if max(ours, theirs) > 0.05 and min(ours, theirs) < max(ours, theirs) / 10:
            names = characters.names((labels if ours > theirs else model).seen)
            seen = f" ({names})" if what == "symbols" else ""
            found[what] = (
                f"{ours:.1%} of the training texts and {theirs:.1%} of what the model writes has"
                f" {what}{seen}; write the texts as the model does"
            )
    numbers = {"labels": asdict(labels), "model": asdict(model)}
    return [
        Finding("label style", False, message, {"what": what, **numbers}) for what, message in found.items()
    ]
