"""The demo's corpus: spoken by espeak-ng, the same bytes for the same seed.

*General* speech (training of the base, half of the adapter's training set, heldout) has other
voices, words and sound than *domain* speech (the other half, and the domain manifest).
"""

import dataclasses
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile

from asrlora import allocation
from asrlora.demo import grammar
from asrlora.demo.speech import SAMPLE_RATE, Speaker, Voice
from asrlora.storage import write_atomic

VERSION = 1  # of the recipe: raise it when the same seed would give other bytes
CHUNK = 250  # utterances that one fresh process speaks; see Speaker for why it is fixed


@dataclass(frozen=True)
class Style:
    """How a set of utterances sounds."""

    voices: tuple[str, ...]
    words_per_minute: tuple[int, int]
    snr_db: tuple[float, float]  # of the added noise
    telephone: float  # share of utterances in telephone band (300 to 3,400 Hz, 8 kHz files)
    sentence: Callable[[Random], str]


def _voices(accents: str, variants: str) -> tuple[str, ...]:
    return tuple(f"{accent}+{variant}" for accent in accents.split() for variant in variants.split())


# The base was trained on clear speech; the demo's general speech is noisier and of more speeds, so that
# general training data has something to teach.
PRETRAINING = Style(
    voices=_voices("en-us en en-gb-x-rp", "m1 m3 m4 m7 f1 f4 linda"),
    words_per_minute=(145, 190),
    snr_db=(20.0, 45.0),
    telephone=0.0,
    sentence=grammar.pretraining_sentence,
)
GENERAL = dataclasses.replace(
    PRETRAINING, words_per_minute=(140, 200), snr_db=(11.0, 40.0), sentence=grammar.general_sentence
)
DOMAIN = Style(
    voices=_voices("en-gb-x-gbclan", "m2 m5 Annie") + _voices("en-us-nyc", "m5"),
    words_per_minute=(135, 200),
    snr_db=(18.0, 40.0),
    telephone=0.03,
    sentence=grammar.domain_sentence,
)


@dataclass(frozen=True)
class Line:
    """One utterance, before it is spoken. Everything about it is drawn from (seed, set, number)."""

    id: str
    text: str
    voice: Voice
    snr_db: float
    telephone: bool
    noise_seed: int


def draw_lines(name: str, count: int, style: Style, heldback: bool, seed: int) -> list[Line]:
    """`count` utterances with sentences that are all different, from one side of the split."""
    random = Random(f"{VERSION}/{seed}/{name}")
    lines: list[Line] = []
    seen: set[str] = set()
    while len(lines) < count:
        text = style.sentence(random)
        if text in seen or grammar.is_heldback(text) != heldback:
            continue
        seen.add(text)
        voice = Voice(
            random.choice(style.voices),
            random.randint(*style.words_per_minute),
            random.randint(35, 65),
            random.randint(35, 65),
        )
        lines.append(
            Line(
                f"{name}-{len(lines):05d}",
                text,
                voice,
                random.uniform(*style.snr_db),
                random.random() < style.telephone,
                random.getrandbits(32),
            )
        )
    return lines


def speak(lines: list[Line], folder: Path) -> list[float]:
    """Writes `folder`/ID.flac for each line; returns the durations in seconds.

    The caller gives each fresh process the same lines in the same order (see Speaker).
    """
    speaker = Speaker()
    durations = []
    for line in lines:
        wave, rate = _add_sound(speaker.say(line.text, line.voice), line)
        soundfile.write(folder / f"{line.id}.flac", wave, rate, subtype="PCM_16")
        durations.append(round(len(wave) / rate, 4))
    return durations


def _add_sound(wave: np.ndarray[Any, Any], line: Line) -> tuple[np.ndarray[Any, Any], int]:
    """Noise whose power falls with frequency, and the telephone's band."""
    rng = np.random.default_rng(line.noise_seed)
    spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 50.0)), len(wave))
    wanted = np.sqrt(np.mean(wave**2)) / 10 ** (line.snr_db / 20)
    wave = wave + noise * (wanted / np.sqrt(np.mean(noise**2)))
    rate = SAMPLE_RATE
    if line.telephone:
        spectrum = np.fft.rfft(wave)
        spectrum[(frequency < 300) | (frequency > 3400)] = 0
        rate, samples = 8_000, len(wave) * 8_000 // SAMPLE_RATE
        # cutting the spectrum resamples: 8 kHz keeps what lies below 4 kHz
        wave = np.fft.irfft(spectrum[: samples // 2 + 1], samples) * (samples / len(wave))
    return np.clip(wave * 0.5, -1.0, 1.0), rate


def write_set(lines: list[Line], folder: Path, workers: int | None = None) -> Iterator[dict[str, Any]]:
    """Speaks all lines on `workers` processes (default: one a CPU); yields manifest records in order.

    `audio` in a record is relative to the folder above `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [lines[i : i + CHUNK] for i in range(0, len(lines), CHUNK)]
    # a fresh process for each chunk; unlike a Pool, an executor gives up where a script has no guard
    # `if __name__ == "__main__"` and each new process would run the script again
    context = multiprocessing.get_context("spawn")
    workers = workers or allocation.of_process().worker_threads
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        spoken = pool.map(functools.partial(speak, folder=folder), chunks)
        for chunk, durations in zip(chunks, spoken, strict=True):
            for line, duration in zip(chunk, durations, strict=True):
                yield {
                    "id": line.id,
                    "audio": f"{folder.name}/{line.id}.flac",
                    "text": line.text,
                    "duration": duration,
                    "speaker": line.voice.name,
                }


def write_manifest(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes the records of `write_set` as a manifest."""
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
