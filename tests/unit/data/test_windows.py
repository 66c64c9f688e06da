"""Cutting long recordings: whatever the probabilities, all speech is in some window, once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlora.data import windows
from asrlora.data.windows import FRAME, cut

SECOND = 16_000


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Probabilities in runs, as of speech and pauses, the samples of the recording, and a limit."""
    runs = draw(st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(1, 90)), max_size=30))
    probabilities = np.concatenate([np.full(n, p, np.float32) for p, n in runs] or [np.zeros(1, np.float32)])
    noise = np.random.default_rng(draw(st.integers(0, 9))).uniform(-0.2, 0.2, len(probabilities))
    samples = len(probabilities) * FRAME - draw(st.integers(0, FRAME - 1))
    limit = draw(st.integers(SECOND, 8 * SECOND))
    return np.clip(probabilities + noise, 0, 1).astype(np.float32), samples, limit


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_windows_hold_all_speech_in_order_and_within_the_limit(
    recording: tuple[np.ndarray, int, int],
) -> None:
    probabilities, samples, limit = recording
    found = cut(probabilities, samples, limit)
    held = np.zeros(samples, int)
    for start, end in found.spans:
        assert 0 <= start < end <= samples
        assert end - start <= limit
        held[start:end] += 1
    assert held.max(initial=0) <= 1
    assert found.spans == sorted(found.spans)
    for frame in np.flatnonzero(probabilities >= windows.THRESHOLD):
        assert held[frame * FRAME : (frame + 1) * FRAME].all(), "speech was left out"
    # what is left out between two windows is a pause
    for (_, end), (start, _) in itertools.pairwise(found.spans):
        gap = probabilities[-(-end // FRAME) : start // FRAME]
        assert (gap < windows.THRESHOLD).all()
    assert bool(found.spans) == bool((probabilities >= windows.THRESHOLD).any())


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_windows_are_no_more_than_twice_what_the_limit_asks(recording: tuple[np.ndarray, int, int]) -> None:
    """Two neighbours are longer than half of the limit together with the pause between them."""
    probabilities, samples, limit = recording
    spans = cut(probabilities, samples, limit).spans
    for (first, _), (_, last) in itertools.pairwise(spans):
        assert last - first > limit // 2 - FRAME


def frames(*runs: tuple[float, float]) -> np.ndarray:
    """(probability, seconds) in turn."""
    return np.concatenate([np.full(round(s * SECOND / FRAME), p, np.float32) for p, s in runs])


def seconds(found: windows.Windows) -> list[tuple[float, float]]:
    return [(round(start / SECOND, 1), round(end / SECOND, 1)) for start, end in found.spans]


def test_the_cut_is_in_the_longest_pause_of_the_second_half() -> None:
    """Not in the longest of all, which would leave a window of a word."""
    speech = frames((0.9, 1), (0.1, 2), (0.9, 5), (0.1, 1), (0.9, 2), (0.1, 0.5), (0.9, 3), (0.1, 1))
    found = cut(speech, len(speech) * FRAME, 12 * SECOND)
    assert seconds(found) == [(0.0, 8.4), (8.6, 14.9)]
    assert found.cuts_in_speech == 0


def test_speech_without_a_pause_is_cut_where_it_is_least_probable() -> None:
    speech = frames((0.9, 7), (0.6, 0.1), (0.9, 7.9))
    found = cut(speech, len(speech) * FRAME, 10 * SECOND)
    assert seconds(found) == [(0.0, 7.1), (7.1, 15.0)]
    assert found.cuts_in_speech == 1


def test_a_dip_shorter_than_a_pause_is_none() -> None:
    speech = frames((0.9, 3), (0.0, 0.128), (0.9, 3))
    assert cut(speech, len(speech) * FRAME, 10 * SECOND).spans == [(0, len(speech) * FRAME)]


@pytest.mark.parametrize("probability", [0.0, 0.49])
def test_nobody_speaks(probability: float) -> None:
    assert cut(frames((probability, 60)), 60 * SECOND, 10 * SECOND).spans == []


def test_two_words_an_hour_apart() -> None:
    speech = frames((0.1, 1), (0.9, 0.5), (0.0, 3600), (0.9, 0.5), (0.1, 1))
    found = cut(speech, len(speech) * FRAME, 30 * SECOND)
    assert seconds(found) == [(0.6, 1.9), (3601.1, 3602.4)]


def test_padding_never_makes_speech_that_fits_too_long() -> None:
    """3.9 s between pauses, with a limit of 4 s: whole, and not cut for the silence around it."""
    speech = frames((0.1, 2), (0.9, 3.9), (0.1, 2), (0.9, 3.9), (0.1, 2))
    found = cut(speech, len(speech) * FRAME, 4 * SECOND)
    assert len(found.spans) == 2
    assert found.cuts_in_speech == 0
    assert all(end - start <= 4 * SECOND for start, end in found.spans)


@pytest.mark.parametrize("level", [0, 6, -2000])
def test_digital_silence_at_the_ends_of_a_window_is_cut_off(level: int) -> None:
    """At any level: the audio path's mean is that of the whole recording."""
    pcm = np.full(2000, level, np.int16)
    pcm[800:1600:2] += 500
    pcm[:50] += 2  # dither
    assert windows.trim((100, 2000), pcm) == (800, 1599)
    assert windows.trim((0, 700), pcm) == (0, 700), "a window of nothing but silence stays"


def test_what_a_microphone_hears_in_a_pause_is_kept() -> None:
    pcm = np.random.default_rng(0).normal(0, 30, 4000).astype(np.int16)
    start, end = windows.trim((0, 4000), pcm)
    assert start < 5
    assert end > 3995
    step = np.repeat(np.array([0, 100], np.int16), 1000)
    assert windows.trim((0, 2000), step) == (0, 2000)
