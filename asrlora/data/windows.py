"""Cutting a long recording at silence into windows that a model takes at once. Needs no torch.

Pure functions of speech probabilities; models/vad.py makes those. Positions are samples at 16 kHz,
probabilities belong to frames of FRAME samples each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asrlora.data.audio import SAMPLE_RATE, SILENCE_RMS, Pcm

FRAME = 512  # samples that silero-vad gives one probability for
# faster-whisper's settings for batched transcription; the release is silero-vad's own
THRESHOLD, RELEASE = 0.5, 0.35  # speech begins at the first and ends below the second
MIN_SILENCE = 0.16  # seconds; a shorter dip is no pause
PAD = 0.4  # seconds kept on either side of speech, or half of the pause where that is less
SILENCE = round(SILENCE_RMS * 32767)  # 16-bit steps; what moves less is digital silence
EDGE = 160  # samples whose median is the level that such silence has

# Every number above decides what a model is given, so all of them are part of the fingerprint.
FINGERPRINT = {
    "version": 1,
    "threshold": THRESHOLD,
    "release": RELEASE,
    "min_silence": MIN_SILENCE,
    "pad": PAD,
    "trimmed": SILENCE,
}

Probabilities = npt.NDArray[np.floating[Any]]
Span = tuple[int, int]  # first sample, and the one behind the last


@dataclass(frozen=True)
class Windows:
    """Where a recording is cut."""

    spans: list[Span]  # in order, none overlapping; empty where nobody speaks
    cuts_in_speech: int = 0  # cuts that had to be made where there was no pause


def cut(probabilities: Probabilities, samples: int, limit: int) -> Windows:
    """Windows of at most `limit` samples that hold all speech of a recording of `samples`.

    A window ends in the longest pause that leaves it at least half of `limit`; what it leaves out
    are pauses, and never a part of one that is nearer than PAD to speech. Speech that goes on for
    longer than `limit` is cut where it is least probable.
    """
    speech = [(start * FRAME, min(end * FRAME, samples)) for start, end in _speech(probabilities)]
    pieces: list[Span] = []
    pauses: list[int] = []  # samples of the pause behind each piece; 0 behind a cut in speech
    cuts = 0
    for number, (start, end) in enumerate(speech):
        before = start - (speech[number - 1][1] if number else 0)
        following = number + 1 < len(speech)
        after = (speech[number + 1][0] if following else samples) - end
        padded = (
            start - _pad(before // 2 if number else before, end - start, limit),
            end + _pad(after // 2 if following else after, end - start, limit),
        )
        inside = _divide(padded, probabilities, limit)
        pieces += inside
        pauses += [0] * (len(inside) - 1) + [after]
        cuts += len(inside) - 1
    return Windows(_join(pieces, pauses, limit), cuts)


def trim(span: Span, pcm: Pcm) -> Span:
    """Without digital silence at either end, as clips are cut that models are trained on.

    Silence stands still, if not at zero: the audio path takes out the mean and trend of the whole recording.
    What a microphone records in a pause moves more, and stays.
    """
    start, end = span
    wave = pcm[start:end].astype(np.int32)
    first, last = (
        np.flatnonzero(np.abs(wave - np.median(edge)) > SILENCE) for edge in (wave[:EDGE], wave[-EDGE:])
    )
    if not (len(first) and len(last) and first[0] <= last[-1]):
        return span
    return start + int(first[0]), start + int(last[-1]) + 1


def describe(counts: Mapping[str, int], limit: float) -> str:
    """What was done to recordings, to follow "3 utterances are "; `counts` are engine/longform.count's."""
    parts = [
        f"longer than the {limit:g} s that the model takes at once, cut at silence into"
        f" {counts['windows']:,} windows"
    ]
    if counts["cuts_in_speech"]:
        parts.append(f"{counts['cuts_in_speech']:,} of the cuts are within speech, for want of a pause")
    if counts["without_speech"]:
        parts.append(f"no speech was found in {counts['without_speech']:,}, whose text is empty")
    return "; ".join(parts)


def _speech(probabilities: Probabilities) -> list[tuple[int, int]]:
    """Runs of frames that are speech, as silero-vad's own function finds them."""
    quiet_frames = -(-round(MIN_SILENCE * SAMPLE_RATE) // FRAME)
    spans = []
    start = quiet = None
    for number, probability in enumerate(probabilities.tolist()):
        if probability >= THRESHOLD:
            start, quiet = number if start is None else start, None
        elif start is not None and probability < RELEASE:
            quiet = number if quiet is None else quiet
            if number + 1 - quiet >= quiet_frames:
                spans.append((start, quiet))
                start = quiet = None
    if start is not None:
        spans.append((start, len(probabilities)))
    return spans


def _pad(available: int, speech: int, limit: int) -> int:
    """Samples of silence to keep on one side: no more than would make speech that fits too long."""
    room = (limit - speech) // 2 if speech <= limit else available
    return min(round(PAD * SAMPLE_RATE), available, room)


def _divide(span: Span, probabilities: Probabilities, limit: int) -> list[Span]:
    """Parts of at most `limit` samples, each but the last at least half of it."""
    parts = []
    start, end = span
    while end - start > limit:
        first, last = (start + limit // 2) // FRAME + 1, (start + limit) // FRAME
        # the last of equal ones: fewer cuts
        least = last - 1 - int(np.argmin(probabilities[first:last][::-1])) if first < last else 0
        middle = least * FRAME + FRAME // 2 if first < last else start + limit
        parts.append((start, middle))
        start = middle
    return [*parts, (start, end)]


def _join(pieces: Sequence[Span], pauses: Sequence[int], limit: int) -> list[Span]:
    windows = []
    first = 0
    while first < len(pieces):
        start = pieces[first][0]
        fitting = [n for n in range(first, len(pieces)) if pieces[n][1] - start <= limit]
        last = fitting[-1]
        if last < len(pieces) - 1:
            half = [n for n in fitting if pieces[n][1] - start >= limit // 2] or [last]
            last = max(half, key=lambda n: (pauses[n], n))
        windows.append((start, pieces[last][1]))
        first = last + 1
    return windows
