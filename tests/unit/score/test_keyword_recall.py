from pathlib import Path

import pytest

from asrlora.errors import UserError
from asrlora.score import breakdown, keyword_recall, text

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
    domain = ["Press the valve!", "The WATER valve"]
    assert keyword_recall.choose(None, tmp_path / "general.txt", domain, ["valve"], ENGLISH) == {
        "press",
        "valve",
    }
    assert keyword_recall.choose(None, None, domain, ["a valve"], ENGLISH) == {"press", "the", "water"}
    assert keyword_recall.choose(None, None, domain, None, ENGLISH) == frozenset()


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
