from pathlib import Path

import pytest

from asrlora.errors import UserError
from asrlora.score import breakdown, keyword_recall, text, word_frequency
from asrlora.score.scoring import Hypothesis, score

ENGLISH = text.normaliser(None, "en")


def test_recall_counts_what_the_alignment_has_right() -> None:
    pairs = [
        ("press the valve then the sump", "press the valve then a sump"),
        ("valve valve", "valve"),
        ("the sump", "sump the"),  # there, and in the wrong place: one of the two is right
        ("the gasket", "the basket"),
        ("no such word", "valve sump"),  # written and not said: no matter of recall
        ("valve", ""),
    ]
    found = keyword_recall.recall(pairs, frozenset({"valve", "sump", "gasket", "flange"}))
    assert found.by_word["valve"] == (2, 4)
    assert found.by_word["sump"][1] == 2
    assert found.by_word["gasket"] == (0, 1)
    assert "flange" not in found.by_word
    assert found.occurrences == 7
    assert found.recall == found.hits / 7


def test_recall_of_words_that_nobody_says_is_none() -> None:
    assert keyword_recall.recall([("a b", "a b")], frozenset({"c"})).recall is None


def test_a_list_is_normalised_as_the_references_are(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("Valve\n\n  COLOUR \nvalve\n")
    assert keyword_recall.read(tmp_path / "w.txt", ENGLISH) == {"valve", "color"}


@pytest.mark.parametrize(
    ("content", "told"),
    [("valve\nbrake pad\n", "line 2: 'brake pad'"), ("(um)\n", "line 1"), ("\n", "no word")],
)
def test_a_faulty_list_is_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "w.txt").write_text(content)
    with pytest.raises(UserError, match=f"--domain-words .*{told}"):
        keyword_recall.read(tmp_path / "w.txt", ENGLISH)


def test_words_are_found_by_what_a_general_text_lacks(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("The pressure\nof the water.\n")
    domain = ["Press the valve 21!", "The WATER valve"]

    def chosen(general: Path | None, heldout: list[str] | None, language: str = "sw") -> frozenset[str]:
        """By the text alone, as there are no counts of Swahili."""
        return keyword_recall.choose(None, general, domain, heldout, ENGLISH, language)

    assert chosen(tmp_path / "general.txt", ["valve"]) == {"press", "valve"}
    assert chosen(None, ["a valve"]) == {"press", "the", "water"}
    assert chosen(None, None) == frozenset()
    assert chosen(None, ["water"], "en") == {"valve"}  # the language uses "press" and "the" often


def test_common_words_are_no_domain_words() -> None:
    """Whatever the general text lacks, and as the normaliser writes them: "don't" is "do not" there."""
    said = "She said: don't see me, yes, the COLOUR of 42 gloves at the lighthouse of Dora"
    as_written = text.normaliser("none", "en")
    assert "She" not in keyword_recall.find([said], ["of"], as_written, "en")
    assert keyword_recall.find([said], ["of"], ENGLISH, "en") == {"gloves", "lighthouse", "dora"}
    german = keyword_recall.find(["Das Boot legt am Kai an"], ["am"], text.normaliser(None, "de"), "de")
    assert german == {"boot", "kai"}


def test_counts_of_words_are_of_running_speech() -> None:
    """Each list has what anybody says and lacks what hardly anybody does."""
    pairs = {"en": "she windlass", "de": "nicht spinnaker", "fr": "nous trinquette", "nl": "niet spinnaker"}
    for language, both in pairs.items():
        usual, rare = both.split()
        assert usual in word_frequency.common(language)
        assert rare not in word_frequency.common(language)
    for language in word_frequency.LANGUAGES:
        assert 1_000 < len(word_frequency.common(language)) < 6_000, language
    assert word_frequency.common("fa") == word_frequency.common("xx") == frozenset()


def line(speaker: str | None, duration: float | None, errors: int, said: int) -> dict[str, object]:
    return {
        "substitutions": errors, "deletions": 0, "insertions": 0, "words": said,
        "speaker": speaker, "duration": duration,
    }  # fmt: skip


def test_a_breakdown_is_of_sums_and_leaves_nobody_out() -> None:
    lines = [line("b", 4.99, 1, 10), line("b", 5.0, 0, 30), line("a", 20.0, 2, 2), line(None, None, 1, 0)]
    speakers = breakdown.by_speaker(lines, "wer")
    assert list(speakers) == ["a", "b", "unknown"]
    assert speakers["b"] == {"wer": 1 / 40, "errors": 1, "words": 40, "utterances": 2}
    assert speakers["unknown"]["wer"] is None
    assert list(breakdown.by_duration(lines, "wer")) == ["0-5 s", "5-10 s", "20+ s", "unknown"]
    del lines[0]["speaker"], lines[0]["duration"]  # a line of 0.1.0
    assert breakdown.by_speaker(lines, "wer")["unknown"]["errors"] == 2


@pytest.mark.parametrize(("seconds", "band"), [(0, "0-5 s"), (9.9, "5-10 s"), (15, "15-20 s"), (99, "20+ s")])
def test_bands(seconds: float, band: str) -> None:
    assert breakdown.band(seconds) == band


# --- key terms


TERMS = frozenset({("new", "york"), ("new",), ("bodoni",), ("york", "minster")})
COUNTED = [
    # reference, hypothesis, occurrences, hits, written, other errors, other words
    ("in new york today", "in new york today", 1, 1, 1, 0, 2),
    ("in new york today", "in newark today", 1, 0, 0, 0, 2),
    ("in new york today", "in new or york today", 1, 0, 1, 1, 2),  # both words are right, but apart
    ("a new york minster", "a new york minster", 1, 1, 1, 0, 2),  # the first that begins
    ("by bodoni", "by body", 1, 0, 0, 0, 1),
    ("by body", "by bodoni", 0, 0, 1, 1, 2),  # a term that nobody said is an error of another word
    ("by", "by bodoni", 0, 0, 1, 1, 1),
    ("", "bodoni wrote", 0, 0, 1, 2, 0),
    ("bodoni", "", 1, 0, 0, 0, 0),
]


@pytest.mark.parametrize("case", COUNTED)
def test_terms_are_counted_whole_and_other_words_apart(
    case: tuple[str, str, int, int, int, int, int],
) -> None:
    reference, hypothesis, *expected = case
    found = keyword_recall.count_terms(reference, hypothesis, TERMS)
    assert [
        found.occurrences, found.hits, found.written, found.other_errors, found.other_words
    ] == expected  # fmt: skip


def scored(*pairs: tuple[str, str]) -> list[Hypothesis]:
    return [score(str(n), *pair, ENGLISH, None, 1.0) for n, pair in enumerate(pairs)]


def test_the_summary_of_terms_has_intervals_around_its_rates() -> None:
    pairs = [("by Bodoni", "by Bodoni"), ("by Bodoni", "by body"), ("a word", "a bodoni")] * 20
    texts = {h.id: (h.reference, h.hypothesis) for h in scored(*pairs)}
    entry = keyword_recall.summary_of_terms(texts, frozenset({("bodoni",)}))
    assert (entry["recall"], entry["precision"]) == (0.5, 0.5)
    for name in ("recall", "precision"):
        low, high = entry[f"{name}_interval"]
        assert 0.3 < low < 0.5 < high < 0.7
    assert (entry["other_errors"], entry["other_words"]) == (20, 80)
    nothing = keyword_recall.summary_of_terms({"0": ("a", "a")}, frozenset({("bodoni",)}))
    assert (nothing["recall"], nothing["precision"], nothing["recall_interval"]) == (None, None, None)
    assert "none was said, none was written" in keyword_recall.describe(nothing)


def test_terms_of_which_normalising_leaves_nothing_are_refused() -> None:
    assert keyword_recall.normalised(["New York", "COLOUR"], ENGLISH) == {("new", "york"), ("color",)}
    with pytest.raises(UserError, match="nothing is left of 'um'"):
        keyword_recall.normalised(["um"], ENGLISH)


def test_words_that_are_mostly_right_are_not_proposed() -> None:
    hypotheses = scored(
        ("Marquand, and Bodoni.", "mark and bodoni"),
        ("So Marquand's printer", "so marquands printer"),
        ("Marquand wrote to Subiaco", "mark one wrote to subject"),
        ("Bodoni wrote", "body wrote"),
        ("Bodoni wrote", "bodoni rode"),
        ("the sea 1234", "a see 12"),
    )
    found = [(one.text, one.wrong, one.said) for one in keyword_recall.propose(hypotheses, ENGLISH)]
    assert found == [("Marquand", 3, 3), ("Subiaco", 1, 1)], "Bodoni is right in two of three"


def test_the_boost_is_the_best_within_the_limit() -> None:
    def counts(hits: int, others: int) -> keyword_recall.TermCounts:
        return keyword_recall.TermCounts(20, hits, hits, others, 1000)

    plain = {0.0: counts(10, 50)}
    assert keyword_recall.best_boost({**plain, 1.0: counts(14, 52), 2.0: counts(18, 54)}, 0.003) == 1.0
    assert keyword_recall.best_boost({**plain, 1.0: counts(14, 52), 2.0: counts(18, 53)}, 0.003) == 2.0
    assert keyword_recall.best_boost({**plain, 1.0: counts(14, 52), 2.0: counts(14, 51)}, 0.003) == 2.0
    assert keyword_recall.best_boost({**plain, 1.0: counts(10, 40)}, 0.003) == 0.0
