import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper_normalizer.english import EnglishTextNormalizer

from asrlora.score import brackets, text
from asrlora.score.scoring import score

WHISPER = EnglishTextNormalizer()
WORDS = st.sampled_from("the Twenty-one colours don't NASA 1462 um first, Bible. mr Smith's $5 music".split())
PAIRS = st.sampled_from(["()", "[]", "<>", "{}"])


def keeping(written: str) -> str:
    return text.normaliser("whisper-english-keep-brackets", "en")(written)


@settings(max_examples=100)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="()[]<>{}")))
def test_texts_without_brackets_are_whispers(written: str) -> None:
    assert keeping(written) == " ".join(WHISPER(written).split())


@settings(max_examples=100)
@given(st.lists(WORDS, min_size=2), st.lists(WORDS, min_size=2), st.lists(WORDS, min_size=2), PAIRS)
def test_words_in_brackets_are_kept(before: list[str], held: list[str], after: list[str], pair: str) -> None:
    """As Whisper's makes the text without brackets, and Whisper's own drops them, but for braces."""
    held = [*held, "was"]  # no tag
    a, b, c = map(" ".join, (before, held, after))
    written = f"{a}. {pair[0]}{b}{pair[1]} . {c}"
    assert keeping(written) == " ".join(WHISPER(f"{a}. {b}  . {c}").split())
    if pair != "{}":
        assert text.normaliser(None, "en")(written) == " ".join(WHISPER(f"{a}.  . {c}").split())


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("well [unk] yes", ["[unk]"]),
        ("well (()) yes", ["(())"]),
        ("well ((inaudible)) yes", ["((inaudible))"]),
        ("well <noise> {laughter} (Laughs) yes", ["<noise>", "{laughter}", "(Laughs)"]),
        ("well [background noise] <background_noise> [NOISE] [BLANK_AUDIO] [door:slam]",
         ["[background noise]", "<background_noise>", "[NOISE]", "[BLANK_AUDIO]", "[door:slam]"]),
        ("<s> well <b>yes</b> <sil1> </s>", ["<s>", "<b>", "</b>", "<sil1>", "</s>"]),
        ("HELLO [NOISE] [PORT] WORLD", ["[NOISE]"]),  # capitals mean nothing in capitals
        ("the agency (NASA) was (which is odd) new (twenty) [sixty] [he] [I]", []),
        ("the word(s) x < 5 and y > 3", []),
        ("a lone ( and ] stay", []),
    ],
)  # fmt: skip
def test_what_is_a_tag(written: str, tags: list[str]) -> None:
    assert [pair for pair, is_tag in brackets.pairs(written) if is_tag] == tags
    for tag in tags:
        assert keeping(f"so {written}") == keeping(f"so {written.replace(tag, ' ')}")


def test_no_bracket_is_left_to_whisper() -> None:
    """Nested, crossed and alone: whatever stands there, each word comes out."""
    draw = random.Random(1)
    for _ in range(500):
        pieces = [draw.choice(["port", "was", "it", *"()[]<>{}"]) for _ in range(draw.randrange(2, 12))]
        written = " ".join(pieces)
        said = brackets.without_tags(written)
        assert keeping(written) == " ".join(WHISPER("".join(c for c in said if c not in "()[]<>{}")).split())


def test_the_mended_utterance_of_lj_speech_has_no_error() -> None:
    reference = "But the first Bible actually dated (which also was printed at Maintz)"
    heard = "But the first Bible actually dated, which also was printed at Maintz."
    dropped, kept = (
        score("u", reference, heard, text.normaliser(name, "en"), None, 1.0)
        for name in ("whisper-english", "whisper-english-keep-brackets")
    )
    assert (dropped.counts.insertions, kept.counts.errors, kept.tally("wer").length) == (6, 0, 12)
