"""The only audio path: decode, mix to mono, 16 kHz, RMS 0.075, 16-bit samples.

Shards, training, evaluation and transcription all call `read_audio`, so a model never hears a
recording in two ways. The result is 16-bit on purpose: FLAC shards keep it bit for bit, so what
`asrlora transcribe` hears is what training heard.

Shapes: T samples of one utterance at 16 kHz.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from asrlora.data.fence import open_sound

SAMPLE_RATE = 16_000
TARGET_RMS = 0.075
PEAK = 0.999  # the gain stops here: a loud click keeps its shape and the utterance stays quieter
SILENCE_RMS = 1e-4  # -80 dBFS; below it there is nothing to amplify

# Every number above changes what a model hears, so all of them are part of the fingerprint.
FINGERPRINT = {
    "version": 1,
    "sample_rate": SAMPLE_RATE,
    "channels": "mean",
    "resampler": "torchaudio sinc_interp_hann 6",
    "rms": TARGET_RMS,
    "peak": PEAK,
    "silence_rms": SILENCE_RMS,
    "samples": "int16",
}

Pcm = npt.NDArray[np.int16]
Wave = npt.NDArray[np.float32]


class AudioError(ValueError):
    """The audio cannot be used; the message says why in a few words."""


def read_audio(source: Path | bytes, offset: float = 0.0, duration: float | None = None) -> Pcm:
    """Decodes a file, or the bytes of one, and puts it through the audio path.

    `offset` and `duration` are in seconds and select a segment. Returns int16 samples (T,).
    Raises AudioError where the file cannot be decoded or the segment is empty.
    """
    try:
        opened = soundfile.SoundFile(io.BytesIO(source)) if isinstance(source, bytes) else open_sound(source)
        with opened as file:
            file.seek(round(offset * file.samplerate))
            frames = -1 if duration is None else round(duration * file.samplerate)
            wave = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"cannot be decoded ({error})") from error
    return normalise(wave, rate)


def normalise(wave: Wave, rate: int) -> Pcm:
    """Resamples to 16 kHz and scales to RMS 0.075, or less where the peak would clip.

    Silence is passed on unscaled, for the callers to reject. Raises AudioError on empty audio and
    on NaN or infinite samples.
    """
    if len(wave) == 0:
        raise AudioError("holds no samples")
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    if rate != SAMPLE_RATE:
        wave = _resample(wave, rate)
    level = rms(wave)
    if level >= SILENCE_RMS:
        wave = wave * min(TARGET_RMS / level, PEAK / float(np.abs(wave).max()))
    return np.round(np.clip(wave, -1.0, 1.0) * 32767).astype(np.int16)


def _resample(wave: Wave, rate: int) -> Wave:
    """Zeros up to a whole second change no sample (the filter sees zeros behind the end anyway) and
    leave few distinct shapes: oneDNN prepares a kernel for each new one, ten times the work itself."""
    import torch

    padded = np.pad(wave, (0, -len(wave) % rate))
    resampled: Wave = _resampler(rate)(torch.from_numpy(padded)).numpy()
    return resampled[: -(-len(wave) * SAMPLE_RATE // rate)]


@functools.lru_cache(maxsize=16)
def _resampler(rate: int) -> Callable[..., Any]:
    import torchaudio.transforms  # slow to import, and 16 kHz input never needs it

    resample: Callable[..., Any] = torchaudio.transforms.Resample(rate, SAMPLE_RATE)
    return resample


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def is_silent(pcm: Pcm) -> bool:
    return rms(to_float(pcm)) < SILENCE_RMS


def to_float(pcm: Pcm) -> Wave:
    """int16 (T,) to float32 (T,) in [-1, 1)."""
    return pcm.astype(np.float32) / 32768.0


def encode_flac(pcm: Pcm) -> bytes:
    """Lossless; the same samples give the same bytes with one version of libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> Pcm:
    """The inverse of `encode_flac`, sample by sample: no step of the audio path is repeated."""
    pcm, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    return np.asarray(pcm, dtype=np.int16)
