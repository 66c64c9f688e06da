"""Recordings longer than a model takes at once: cut at silence, decoded by windows, joined again.

A window is put through the audio path's level once more, so that a model is given what it would be
given of the same segment in a manifest: RMS 0.075 of its own, whatever is loud elsewhere in the
recording.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from asrlora.data import audio, loader, plan, windows
from asrlora.data.audio import SAMPLE_RATE, Pcm
from asrlora.data.shards.index import Sample
from asrlora.data.shards.reader import Shards
from asrlora.data.windows import Windows
from asrlora.engine.runtime import Runtime
from asrlora.errors import UserError
from asrlora.models import decode, vad
from asrlora.models.family import Base, Decoded
from asrlora.record.transcripts import Segment
from asrlora.score import metric

Cuts = Mapping[int, Windows]  # by number in a set: how each utterance is cut that is too long


def check(base: Base, seconds: Mapping[str, float]) -> None:
    """Raises UserError where an utterance is too long for the model and cannot be cut here."""
    limit = base.max_seconds
    long = {name: duration for name, duration in seconds.items() if _is_long(duration, limit)}
    if long and not vad.available():
        name, duration = next(iter(long.items()))
        raise UserError(
            f"{name!r} lasts {duration:.2f} s, longer than the {limit:g} s that this model takes at once"
            + (f" ({len(long)} such recordings)" if len(long) > 1 else "")
            + "; install silero-vad, by which long recordings are cut at silence (pip install silero-vad),"
            " or split them into segments (offset and duration in a manifest)"
        )


def cut_set(runtime: Runtime, base: Base, data: Shards) -> dict[int, Windows]:
    """Collective. How the utterances of a set are cut that are longer than the model takes at once.

    Each rank looks for speech in a share of them.
    """
    limit = base.max_seconds
    durations = data.durations.tolist()
    long = [number for number, seconds in enumerate(durations) if _is_long(seconds, limit)]
    if not long:
        return {}
    check(base, {data.samples[number].id: durations[number] for number in long})
    found = []
    for number in plan.share(long, runtime.rank, runtime.world_size):
        with runtime.work.on("cutting a long recording"):
            found.append((number, cut(base, data.read(number))))
    return dict(runtime.collectives.all_gather(found))


def cut(base: Base, pcm: Pcm) -> Windows:
    """A recording's windows, each no longer than the model takes at once."""
    limit = int(base.max_seconds * SAMPLE_RATE)
    found = windows.cut(vad.speech_probabilities(pcm), len(pcm), limit)
    return replace(found, spans=[windows.trim(span, pcm) for span in found.spans])


def fingerprint(base: Base, used: bool) -> dict[str, Any]:
    """What decides the windows, for the part `decode` of the fingerprint; nothing where none are used."""
    if not used:
        return {}
    return {"windows": {**windows.FINGERPRINT, "seconds": base.max_seconds, "vad": vad.fingerprint()}}


def count(cuts: Cuts) -> dict[str, int]:
    """What is reported of a set, for scores.json: utterances that were cut, and into what."""
    return {
        "windowed": len(cuts),
        "windows": sum(len(one.spans) for one in cuts.values()),
        "cuts_in_speech": sum(one.cuts_in_speech for one in cuts.values()),
        "without_speech": sum(not one.spans for one in cuts.values()),
    }


@dataclass(frozen=True)
class Parts:
    """A set as it is decoded: utterances, and windows of those that are cut. Read like Shards."""

    data: Shards
    cuts: Cuts

    @cached_property
    def _parts(self) -> list[tuple[int, windows.Span | None]]:
        """The number of an utterance in `data`, and which samples of it; None: all."""
        return [
            (number, span)
            for number in range(len(self.data.samples))
            for span in (self.cuts[number].spans if number in self.cuts else [None])
        ]

    @cached_property
    def samples(self) -> list[Sample]:
        """A window has the id of its utterance and a duration of its own."""
        return [
            self.data.samples[number]
            if span is None
            else replace(self.data.samples[number], duration=(span[1] - span[0]) / SAMPLE_RATE)
            for number, span in self._parts
        ]

    def read(self, number: int) -> Pcm:
        """int16 samples (T,) at 16 kHz."""
        of, span = self._parts[number]
        return self.data.read(of) if span is None else window(self.data.read(of), span)

    def join(self, written: Sequence[tuple[int, Decoded]]) -> list[tuple[str, Decoded]]:
        """(part, hypothesis) of all parts, in any order, to (id, hypothesis) of the utterances.

        Raises RuntimeError where a window is missing or there twice.
        """
        whole = [(self.samples[n].id, one) for n, one in written if self._parts[n][1] is None]
        pieces: dict[int, list[tuple[int, Decoded]]] = {number: [] for number in self.cuts}
        for number, one in written:
            of, span = self._parts[number]
            if span is not None:
                pieces[of].append((span[0], one))
        for of, found in pieces.items():
            found.sort(key=lambda item: item[0])
            identity = self.data.samples[of].id
            if [start for start, _ in found] != [start for start, _ in self.cuts[of].spans]:
                raise RuntimeError(f"windows of {identity!r} are missing or were decoded twice")
            text = metric.join([one.text for _, one in found])
            margin = min((one.margin for _, one in found), default=float("inf"))
            whole.append((identity, Decoded(text, margin, any(one.unfinished for _, one in found))))
        return whole


def window(pcm: Pcm, span: windows.Span) -> Pcm:
    """Part of a recording, put through what the audio path does to a segment: offset, then level."""
    wave, _ = audio.mix(audio.to_float(pcm[slice(*span)])[:, None])
    return audio.normalise(wave, SAMPLE_RATE)


def transcribe(
    model: Any,
    base: Base,
    pcm: Pcm,
    batch_seconds: float,
    progress: Callable[[float], None] = lambda seconds: None,
) -> tuple[list[Segment], dict[str, int]]:
    """What is said in a recording of any length, in the order of time, and the counts of its windows.

    int16 (T,) at 16 kHz. One segment where the model takes it at once; none without speech.
    `progress` gets the audio-seconds of each finished batch.
    """
    whole = [(0, len(pcm))]
    cuts: dict[int, Windows] = {}
    if _is_long(len(pcm) / SAMPLE_RATE, base.max_seconds):
        cuts = {0: cut(base, pcm)}
    spans = cuts[0].spans if cuts else [] if audio.is_silent(pcm) else whole
    pcms = [window(pcm, span) for span in spans] if cuts else [pcm] * len(spans)
    seconds = [len(one) / SAMPLE_RATE for one in pcms]
    device = next(model.parameters()).device
    texts = [""] * len(spans)
    ids = [f"{start:012d}" for start, _ in spans]
    for batch in plan.plan_evaluation(ids, seconds, batch_seconds, base.cost):
        waves, mask = loader.pad([pcms[number] for number in batch])
        lengths = [seconds[number] for number in batch]
        written = decode.transcribe(model, base, waves.to(device), mask.to(device), lengths)
        for number, one in zip(batch, written, strict=True):
            texts[number] = one.text
        progress(sum(lengths))
    times = [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in spans]
    return [Segment(*time, text) for time, text in zip(times, texts, strict=True)], count(cuts)


def _is_long(seconds: float, limit: float) -> bool:
    return round(seconds * SAMPLE_RATE) > int(limit * SAMPLE_RATE)
