"""Words and tags in brackets: (which was printed), [unk], <noise>, {laughter}, (()).

Whisper's normalisers drop what stands in (), [] and <>, whether it was spoken or not, and keep what stands
in {}. A *tag* says what was heard instead of words. By this rule, a bracket holds a tag where

1. no letter or digit stands in it: (()), [*]; or
2. each of its words is one of TAG_WORDS, in any case: [unk], (laughter), <background_noise>; or
3. it is <> or {} and holds one token: <sil>, {lipsmack}, </s>; or
4. it is [] and holds one token with a sign in it, or one in capitals in a text that is not: [door:slam],
   [NOISE] in prose.

All else are words: (which was printed), (NASA), [sic] apart.
"""

import re

TAG_WORDS = frozenset(
    """unk unknown unclear inaudible unintelligible indiscernible noise noises background foreground static
    laugh laughs laughing laughter chuckle chuckles chuckling giggle giggles giggling cough coughs coughing
    sneeze sneezes sneezing sniff sniffs sniffing sigh sighs sighing breath breaths breathing inhale inhales
    exhale exhales gasp gasps lipsmack smack crying sobbing groans yawn yawns whistling humming silence sil
    sp spn nsn pause crosstalk overlap overlapping applause clapping cheering music singing phone ringing beep
    clicks bleep redacted censored garbage foreign sic""".split()
)
HAS_BRACKET = re.compile(r"[\[\]<>(){}]")  # any text without one is left as it is, at once
# innermost pairs, of double round brackets both; what Whisper takes for a pair may end with another kind
_PAIR = re.compile(r"\(\([^()]*\)\)|\([^()]*\)|\[[^\[\]]*\]|<[^<>]*>|\{[^{}]*\}")
_BRACKETS = str.maketrans(dict.fromkeys("[]<>(){}", " "))


def pairs(text: str) -> list[tuple[str, bool]]:
    """What stands in brackets, with these, in order; and whether it is a tag."""
    lower = _has_lower(text)
    return [(found, _is_tag(found, lower)) for found in _PAIR.findall(text)]


def without_tags(text: str) -> str:
    """The text with a space for each tag; one without tags is returned as it is."""
    lower = _has_lower(text)
    return _PAIR.sub(lambda found: " " if _is_tag(found[0], lower) else found[0], text)


def keep_words(text: str) -> str:
    """Without tags, and with a space for every bracket; a text without brackets is returned as it is."""
    return without_tags(text).translate(_BRACKETS) if HAS_BRACKET.search(text) else text


def _has_lower(text: str) -> bool:
    """Whether words outside brackets have lower-case letters, so that capitals mean something."""
    return any(map(str.islower, _PAIR.sub("", text)))


def _is_tag(pair: str, in_lower_case: bool) -> bool:
    held = pair.strip("[]<>(){} \t")
    words = re.findall(r"[^\W_]+", held)
    if all(word.lower() in TAG_WORDS for word in words):
        return True
    if pair[0] == "(" or len(held.split()) > 1:
        return False
    capitals = in_lower_case and held.isupper() and len(held) > 1
    return pair[0] in "<{" or capitals or re.search(r"[_:/]", held) is not None
