"""What a report draws, against what it was drawn from."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlora.report import alignment, figures
from asrlora.score import power, wer
from asrlora.score.wer import Tally

sentences = st.lists(st.sampled_from("a b c d".split()), max_size=9).map(" ".join)


def line(identity: str, reference: str, hypothesis: str) -> alignment.Line:
    counts = wer.count(reference, hypothesis)
    return {
        "id": identity, "reference": reference, "hypothesis": hypothesis, "words": counts.words,
        "substitutions": counts.substitutions, "deletions": counts.deletions, "insertions": counts.insertions,
    }  # fmt: skip


def pair(*texts: tuple[str, str, str]) -> alignment.Pair:
    before = [line(f"u{i}", said, old) for i, (said, old, _) in enumerate(texts)]
    after = [line(f"u{i}", said, new) for i, (said, _, new) in enumerate(texts)]
    return alignment.pair(before, after, "wer")


@given(sentences, sentences, sentences)
def test_an_alignment_holds_every_word_of_all_three(said: str, old: str, new: str) -> None:
    one = pair((said, old, new))
    slots = one.slots("u0")
    assert " ".join(slot.reference for slot in slots if slot.reference) == said
    for side, text, lines in (("before", old, one.before), ("after", new, one.after)):
        shown = [getattr(slot, side) for slot in slots]
        assert " ".join(heard for _, heard in shown if heard) == text
        kinds = Counter[str]()
        for kind, heard in shown:
            kinds[kind] += len(heard.split()) if kind == "insert" else 1
        counts = [lines["u0"][key] for key in ("substitutions", "deletions", "insertions")]
        assert [kinds[kind] for kind in ("substitute", "delete", "insert")] == counts
    assert all(slot.reference == slot.after[1] for slot in slots if slot.after[0] == "equal")


def test_confusions_are_counted_on_both_sides() -> None:
    one = pair(("a b c", "a x c", "a b c"), ("a b c", "a x c d", "a b"), ("b", "b", "y"))
    found = one.confusions()
    assert found["substitutions"] == [
        alignment.Confusion("b", "x", 2, 0),
        alignment.Confusion("b", "y", 0, 1),
    ]
    assert found["deletions"] == [alignment.Confusion("c", "", 0, 1)]
    assert found["insertions"] == [alignment.Confusion("", "d", 1, 0)]


def test_the_most_changed_utterances_come_first() -> None:
    one = pair(("a b c", "x x x", "a b c"), ("a b", "x b", "a b"), ("a", "a", "a"), ("a b", "a b", "x y"))
    assert (one.most_improved(), one.most_regressed()) == (["u0", "u1"], ["u3"])


def test_a_running_wer_ends_in_the_whole_sets() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(1, 30, 500)
    wrong = rng.binomial(words, 0.2)
    lines: list[alignment.Line] = [
        {"errors": int(e), "length": int(w)} for e, w in zip(wrong, words, strict=True)
    ]
    for count in (500, 77):
        n, shares, margins = figures._running(lines[:count])
        assert (n[0], n[-1]) == (figures.MIN_UTTERANCES, count)
        assert shares[-1] == pytest.approx(100 * wrong[:count].sum() / words[:count].sum())
        # score/power.py counts one error more, which a set without errors would need
        counts = [Tally(int(e), int(w)) for e, w in zip(wrong[:count], words[:count], strict=True)]
        assert margins[-1] == pytest.approx(100 * power.measured_margin(counts), rel=0.01)
    assert figures._running(lines[:1])[2] == [0.0]
