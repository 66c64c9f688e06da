"""Which words a language uses often, by the word counts of subtitles that pyspellchecker carries.

Subtitles have pronouns and answers as speech has them. Names are rare in these lists, and numbers written in
digits are not in them. wordfreq has more languages, but takes 71 MB for 7 and is no longer kept.
"""

import functools

# Its Persian list counts no running words: the 100 words used most are 10 % of it, and 40 to 70 % of others.
LANGUAGES = frozenset("ar de en es eu fr it lv nl pt ru".split())
COMMON = 20  # times in a million words: "bread" is just common in English, "castle" just rare


@functools.cache
def common(language: str) -> frozenset[str]:
    """The words that a language uses COMMON times in a million or more, in lower case; none where there is no
    list of it. `language` is a code such as "en"."""
    if language not in LANGUAGES:
        return frozenset()
    from spellchecker import SpellChecker

    counts = SpellChecker(language=language).word_frequency
    least = COMMON * counts.total_words / 1e6
    return frozenset(word for word, count in counts.items() if count >= least)
