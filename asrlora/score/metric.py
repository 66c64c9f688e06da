"""What an error rate counts: words (WER), characters (CER), or a mix of both (MER).

`units` writes a text as one whose words are what the metric counts, so that whatever aligns words
(jiwer, MAPSSWE, the report) counts them:

- wer: words, parted by white space.
- cer: characters as readers see them, that is extended grapheme clusters (Unicode Annex 29), and the spaces
  between words. A space beside a character of a script that puts none between words is not counted.
- mer: mixed error rate, as for code-switching: each character of such a script, and each word of others
  (jiwer's "mer" is something else, the match error rate).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from asrlora.score.wer import Tally

Metric = Literal["wer", "cer", "mer"]
NAMES: tuple[Metric, ...] = ("wer", "cer", "mer")
# where scored lines and scores.json keep errors and length; those of words are apart (see `tally`)
KEYS: dict[Metric, tuple[str, str]] = {
    "wer": ("errors", "words"),
    "cer": ("character_errors", "characters"),
    "mer": ("mixed_errors", "mixed_units"),
}
# ISO 639 codes of languages that are written without spaces between words
WITHOUT_SPACES = frozenset(
    "zh zho chi cmn yue wuu hak gan hsn lzh ja jpn th tha lo lao km khm my mya bur bo bod tib dz dzo".split()
)
_SPACELESS = (
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}"
    r"\p{scx=Myanmar}\p{scx=Tibetan}\p{scx=Tai_Tham}\p{scx=Tai_Le}\p{scx=New_Tai_Lue}\p{scx=Javanese}]"
)
_IDLE_SPACE = regex.compile(rf"(?<={_SPACELESS}) | (?={_SPACELESS})")
_MIXED = regex.compile(rf"(?={_SPACELESS})\X|(?:(?!{_SPACELESS})\S)+")
_LETTER = regex.compile(r"[\p{L}\p{M}]")
_SPACELESS_LETTER = regex.compile(rf"(?=[\p{{L}}\p{{M}}]){_SPACELESS}")
_LATIN = regex.compile(r"\p{Latin}")
# full-width punctuation belongs to no script, and stands between letters of these
_DENSE = regex.compile(rf"{_SPACELESS}|[\uff01-\uff65]")


def join(texts: Sequence[str]) -> str:
    """Texts of successive parts of a recording to one, with a space between two unless their script has
    none there."""
    texts = [text for text in texts if text]
    joined = "".join(texts[:1])
    for before, after in itertools.pairwise(texts):
        dense = _DENSE.match(before[-1]) and _DENSE.match(after[0])
        joined += ("" if dense else " ") + after
    return joined


@dataclass(frozen=True)
class Chosen:
    """The metric of a run or an evaluation, and why it is this one."""

    name: Metric
    why: str

    def __str__(self) -> str:
        return f"metric: {self.name}, {self.why}"


def choose(asked: Metric | None, language: str) -> Chosen:
    """The metric that was asked for, else the one that the language's way of writing calls for."""
    if asked is not None:
        return Chosen(asked, f"by --metric {asked}")
    if language in WITHOUT_SPACES:
        return Chosen("cer", f"as --language {language} is written without spaces between words")
    return Chosen("wer", f"as --language {language} puts spaces between words")


def units(text: str, metric: Metric) -> str:
    """A normalised text as one whose words are the metric's units; a space that counts is written ␣."""
    if metric == "wer" or (metric == "mer" and text.isascii()):
        return text
    if metric == "mer":
        return " ".join(_MIXED.findall(text))
    characters = text if text.isascii() else regex.findall(r"\X", _IDLE_SPACE.sub("", text))
    return " ".join(c.replace(" ", "␣") for c in characters)


def tally(line: Mapping[str, Any], metric: Metric) -> Tally:
    """Errors and length of a scored line or of a set in scores.json; mixed units left out are words."""
    if metric == "wer" or (metric == "mer" and "mixed_units" not in line):
        return Tally(line["substitutions"] + line["deletions"] + line["insertions"], line["words"])
    errors, length = KEYS[metric]
    return Tally(line[errors], line[length])


def shares(texts: Iterable[str]) -> tuple[float, float]:
    """Of the letters: those of scripts that put no spaces between words, and the Latin ones."""
    spaceless = latin = letters = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        spaceless += 0 if text.isascii() else len(_SPACELESS_LETTER.findall(text))
        latin += len(_LATIN.findall(text))
    return spaceless / max(letters, 1), latin / max(letters, 1)
