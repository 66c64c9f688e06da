"""Invisible characters taken out, and characters that look alike made the same.

Two texts that look alike on a page should score alike: `for_scoring` makes them so, for reference and
hypothesis, before any normaliser. `for_labels` is what training labels may take of it: it leaves what a
script's own spelling needs. `replaced` says what it would change.

Unicode's own tables decide where there are some: Default_Ignorable_Code_Point for what is invisible, NFC for
decomposed letters, the tags of compatibility decompositions for other widths, fonts and joining forms. NFKC
as a whole would go too far: it makes x² to x2 and ½ to 1⁄2, which look different and are read otherwise.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

VERSION = "1"  # a change of what `for_scoring` returns is a change of scores

_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cc}\uFFF9-\uFFFB]")
_BLANK = "\u2800"  # Braille's: by Unicode a symbol
_MARKS = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u2035\u02b9\u02bb\u02bc\u02bd\u00b4\u05f3\ua78c",
    '"': "\u201c\u201d\u201e\u201f\u2033\u2036\u05f4\u301d\u301e\u301f",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u05be",
    "~": "\u301c",
    "..": "\u2025",
    "...": "\u2026",
}
_PLAIN_MARK = {mark: plain for plain, marks in _MARKS.items() for mark in marks}
_SAME_LOOK = tuple(
    f"<{tag}>"
    for tag in ("wide", "narrow", "small", "font", "vertical", "isolated", "initial", "medial", "final")
)
# of those that Unicode tags <compat>: ligatures, digraphs, long s, Roman numerals, Kangxi and CJK radicals
_COMPAT = regex.compile(
    r"[\u0132\u0133\u013F\u0140\u0149\u017F\u01C4-\u01CC\u01F1-\u01F3\u2160-\u217F\u2E9F\u2EF3\u2F00-\u2FD5"
    r"\uFB00-\uFB17]"
)

# letters that are drawn like Latin ones
_LIKE_LATIN = {
    "Cyrillic": dict(
        zip("АВЕЅІЈКМНОРСТУХԚԜаеѕіјорсухһԁԛԝӏ", "ABESIJKMHOPCTYXQWaesijopcyxhdqwl", strict=True)
    ),
    "Greek": dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧον", "ABEZHIKMNOPTYXov", strict=True)),
}
_WORD = regex.compile(r"[\p{L}\p{M}\u200C\u200D]+")
_LATIN = regex.compile(r"\p{Latin}")
_SCRIPTS = {script: regex.compile(rf"\p{{{script}}}") for script in _LIKE_LATIN}

# Sequences that are drawn like one letter, and are typed for it: Thai and Lao vowels, and what the Malayalam
# chillus and the Bengali khanda ta were written as before they had code points of their own
_SEQUENCES = {
    "\u0e40\u0e40": "\u0e41",
    "\u0ec0\u0ec0": "\u0ec1",
    "\u0e4d\u0e32": "\u0e33",
    "\u0ecd\u0eb2": "\u0eb3",
    **{f"\u0e4d{tone}\u0e32": f"{tone}\u0e33" for tone in "\u0e48\u0e49\u0e4a\u0e4b"},
    **{f"\u0ecd{tone}\u0eb2": f"{tone}\u0eb3" for tone in "\u0ec8\u0ec9\u0eca\u0ecb"},
    **{f"{letter}\u0d4d\u200d": chillu for letter, chillu in zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True)},
    "ত\u09cd\u200d": "ৎ",
}
_SEQUENCE = regex.compile("|".join(_SEQUENCES))

# What belongs to a script's spelling, so that labels keep it: joiners of Arabic and Indic scripts and
# Mongolian selectors, the zero width space that parts words in South East Asia, Hebrew's own marks
_SPELLING = r"""
    (?<=[\p{Arabic}\p{Syriac}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}\p{Tamil}
        \p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}\p{Myanmar}])[\u200C\u200D\u180B-\u180F]
    | (?<=[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}])\u200B
    | (?<=\p{Hebrew})[\u05F3\u05F4\u05BE]"""
# and in Chinese, Japanese and Korean: ideographic space, full-width and curly punctuation
_WIDE_MARKS = rf"[\u3000\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF60{''.join(_PLAIN_MARK)}]"
_KEPT = regex.compile(f"({_SPELLING})", regex.X)
_KEPT_EAST_ASIAN = regex.compile(f"({_SPELLING} | {_WIDE_MARKS})", regex.X)
_EAST_ASIAN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}]")


def for_scoring(text: str) -> str:
    """`text` without what cannot be seen, its look-alikes in one form, composed (NFC).

    Visible ASCII never changes, and doing it twice changes nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    return _composed("".join(map(_plain, _joined(text))))


def for_labels(text: str) -> str:
    """As `for_scoring`, but for what the spelling of a script needs."""
    if text.isascii() and text.isprintable():
        return text
    return _composed("".join(new for _, new in _parts(_joined(text))))


def replaced(text: str) -> tuple[set[str], set[str]]:
    """What `for_labels` takes out or changes: (characters that cannot be seen, look-alikes)."""
    if for_labels(text) == text:
        return set(), set()
    composed = _joined(text)
    decomposed = {c for c in Counter(text) - Counter(composed) if not c.isascii()}
    parts = _parts(composed)
    plain = "".join(new for _, new in parts)
    foreign = (Counter(_joined(plain)) - Counter(_composed(plain))).keys()
    changed = {old for old, new in parts if old != new}
    unseen = {old for old, new in parts if old != new and not new.strip()}
    # of a letter and its mark, the mark is what was found
    return unseen, (changed - unseen) | foreign | ({c for c in decomposed if not c.isalpha()} or decomposed)


def undo_mojibake(text: str) -> str | None:
    """What `text` was before UTF-8 was read as Windows-1252 ("donâ€™t" is "don’t"); None: it was not."""
    if text.isascii():
        return None
    try:
        right = text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return None
    return right if right != text else None


def name(character: str) -> str:
    """ "U+200B ZERO WIDTH SPACE" """
    fallback = "PRIVATE USE" if unicodedata.category(character) == "Co" else "CONTROL CHARACTER"
    return f"U+{ord(character):04X} {unicodedata.name(character, fallback)}"


def names(characters: Sequence[str], most: int = 5) -> str:
    """ "é (U+00E9 LATIN SMALL LETTER E WITH ACUTE), U+200B ZERO WIDTH SPACE and 3 more" """
    shown = [
        c if "!" <= c <= "~" else f"{c} ({name(c)})" if _is_seen(c) else name(c) for c in characters[:most]
    ]
    more = f" and {len(characters) - most:,} more" if len(characters) > most else ""
    return ", ".join(shown) + more


def _is_seen(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and _plain(character).strip() != ""


def _parts(text: str) -> list[tuple[str, str]]:
    """The characters of `text`, each with what labels get for it."""
    kept = _KEPT_EAST_ASIAN if _EAST_ASIAN.search(text) else _KEPT
    found = []
    for number, part in enumerate(kept.split(text)):
        found += [(c, c if number % 2 else _plain(c)) for c in part]
    return found


@functools.lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """What a character looks like, in one form; nothing for what cannot be seen."""
    if character in _PLAIN_MARK:
        return _PLAIN_MARK[character]
    if character.isspace() or character == _BLANK:
        return " "
    if "\x80" <= character <= "\x9f":  # what Windows-1252 becomes where it is read as Latin-1, as HTML has it
        return "".join(map(_plain, character.encode("latin-1").decode("cp1252", "ignore")))
    if _INVISIBLE.match(character):
        return ""
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    if tag in _SAME_LOOK or (tag == "<compat>" and _COMPAT.match(character)):
        looks = "".join(chr(int(code, 16)) for code in codes.split())
        if not looks.startswith(" "):  # a mark shown on a space is two things
            return "".join(map(_plain, looks))
    return character


def _joined(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    joined: str = _SEQUENCE.sub(lambda found: _SEQUENCES[found[0]], text)
    return joined


def _composed(text: str) -> str:
    text = _joined(text)
    if not any(script.search(text) for script in _SCRIPTS.values()):
        return text
    return unicodedata.normalize("NFC", _WORD.sub(lambda word: _one_script(word[0]), text))


def _one_script(word: str) -> str:
    """A word of Latin and of Cyrillic or Greek letters in one script, where the others only look like it.

    "сat" with a Cyrillic с becomes "cat". Where each script's letters could be the other's, the script with
    more letters counts, and Latin where they are even; where neither could ("kΩ"), the word is meant so.
    """
    latin = _LATIN.findall(word)
    letters = {script: pattern.findall(word) for script, pattern in _SCRIPTS.items() if pattern.search(word)}
    if not latin or len(letters) != 1:
        return word
    ((script, others),) = letters.items()
    like_latin = _LIKE_LATIN[script]
    like_other = {letter: other for other, letter in like_latin.items()}
    to_latin, to_other = all(c in like_latin for c in others), all(c in like_other for c in latin)
    if to_latin and not (to_other and len(others) > len(latin)):
        return "".join(like_latin.get(c, c) for c in word)
    return "".join(like_other.get(c, c) for c in word) if to_other else word
