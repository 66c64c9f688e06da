"""Segments and statistic as NIST's sctk has them."""

import math
import random

import pytest
from scipy import stats

from asrlora.score import mapsswe


def test_the_example_that_comes_with_sctk() -> None:
    """src/sclite/testdata/file1.sgml and file2.sgml; the figures are base_sc_stats/test1b.stats.mapsswe:
    3 segments, 7 and 9 errors, mean -0.667 of the first's minus the second's, Z -2.000.

    "(ha-)" is a fragment, right in both.
    """
    reference = "yeah how do we handle how do we ha address that"
    word = "yeah but we have not and we ha that's right"
    mono = "yeah but we have not had we ha that s a"
    found = [*mapsswe.segments("", "", "s"), *mapsswe.segments(reference, word, mono)]
    assert found == [(0, 1), (5, 5), (2, 3)]
    tested = mapsswe.test(found)
    assert tested.segments == 3
    assert tested.mean == pytest.approx(0.667, abs=5e-4)
    assert tested.z == pytest.approx(2.0, abs=5e-4)
    assert tested.p_value == pytest.approx(2 * stats.norm.sf(2.0))


def corrupt(rng: random.Random, words: list[str], rate: float) -> str:
    kept = []
    for word in words:
        drawn = rng.random()
        if drawn >= rate / 3:
            kept.append(rng.choice("klmnop") if drawn < 2 * rate / 3 else word)
        if drawn >= rate / 3 and rng.random() < rate / 4:
            kept.append(rng.choice("qrstuv"))
    return " ".join(kept)


@pytest.mark.parametrize(
    ("seed", "utterances", "segments", "mean", "z"),
    [(1, 200, 358, 0.098, 1.310), (2, 200, 368, 0.155, 2.121), (3, 1000, 1954, 0.236, 7.560)],
)
def test_random_pairs_give_what_sctk_gives(
    seed: int, utterances: int, segments: int, mean: float, z: float
) -> None:
    """The figures are those of `sc_stats -p -t mapsswe -v`, sctk 2.4.12, fed with the same alignments."""
    rng = random.Random(seed)
    found = []
    for _ in range(utterances):
        words = [rng.choice("abcdefghij") for _ in range(rng.randint(1, 18))]
        found += mapsswe.segments(" ".join(words), corrupt(rng, words, 0.3), corrupt(rng, words, 0.25))
    tested = mapsswe.test(found)
    assert tested.segments == segments
    assert -tested.mean == pytest.approx(mean, abs=5e-4)  # sctk subtracts the second from the first
    assert -tested.z == pytest.approx(z, abs=5e-4)


def test_two_words_right_in_both_part_two_segments() -> None:
    reference = "a b c d e f"
    assert mapsswe.segments(reference, "x b c y e f", reference) == [(1, 0), (1, 0)]
    assert mapsswe.segments(reference, "x b y d e f", reference) == [(2, 0)]  # only one word between
    assert mapsswe.segments(reference, "x b c d e f", "a b c y e f") == [(1, 0), (0, 1)]
    assert mapsswe.segments(reference, "x b x c d e f", reference) == [(2, 0)]  # an insertion between
    assert mapsswe.segments(reference, reference, reference + " g") == [(0, 1)]
    assert mapsswe.segments(reference, reference, reference) == []


def test_no_spread_shows_nothing() -> None:
    for found in ([], [(1, 0)], [(1, 0), (1, 0)]):
        assert (mapsswe.test(found).z, mapsswe.test(found).p_value) == (0.0, 1.0)
    assert math.isfinite(mapsswe.test([]).mean)
