"""The only audio path: decode, mix to mono, 16 kHz, RMS 0.075, 16-bit samples.

Shards, training, evaluation and transcription all call `read_audio`, so a model never hears a
recording in two ways. The result is 16-bit on purpose: FLAC shards keep it bit for bit, so what
`asrlora transcribe` hears is what training heard.

Shapes: T samples of one utterance at 16 kHz.
"""

import functools
import io
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
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


MEMORY_FILES = hasattr(os, "memfd_create")  # on Linux
FULL_SCALE = 32767 / 32768  # the largest sample a 16-bit file can hold


class AudioError(ValueError):
    """The audio cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Source:
    """What a recording was before the audio path evened it out."""

    level: float  # RMS, full scale 1.0
    clipped: float  # share of samples at full scale, in any channel
    rate: int  # Hz
    channels: int


def read_audio(source: Path | bytes, offset: float = 0.0, duration: float | None = None) -> Pcm:
    """Decodes a file, or the bytes of one, and puts it through the audio path.

    `offset` and `duration` are in seconds and select a segment. Returns int16 samples (T,).
    Raises AudioError where the file cannot be decoded or the segment is empty.
    """
    return read_measured(source, offset, duration)[0]


def read_measured(
    source: Path | bytes, offset: float = 0.0, duration: float | None = None
) -> tuple[Pcm, Source]:
    """Like `read_audio`, and tells what the recording was like."""
    try:
        opened = soundfile.SoundFile(io.BytesIO(source)) if isinstance(source, bytes) else open_sound(source)
        with opened as file:
            file.seek(round(offset * file.samplerate))
            frames = -1 if duration is None else round(duration * file.samplerate)
            channels = file.read(frames, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"cannot be decoded ({error})") from error
    wave = channels.mean(axis=1)
    pcm = normalise(wave, rate)
    clipped = float((np.abs(channels) >= FULL_SCALE).any(axis=1).mean())
    return pcm, Source(rms(wave), clipped, rate, channels.shape[1])


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

    if threading.current_thread() is not threading.main_thread():
        torch.set_num_threads(1)  # one of many of ours: they share the cores out among themselves
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
    """Lossless; the same samples give the same bytes with one version of libsndfile.

    Into a file in memory: for BytesIO, libsndfile would call Python for each block of samples, and threads
    wait for each other there.
    """
    with open(os.memfd_create("flac"), "w+b") if MEMORY_FILES else tempfile.TemporaryFile() as file:
        descriptor = file.fileno()
        kind: dict[str, Any] = {"format": "FLAC", "subtype": "PCM_16", "closefd": False}
        with soundfile.SoundFile(descriptor, "w", SAMPLE_RATE, 1, **kind) as sound:
            sound.write(pcm)
        file.seek(0)
        return file.read()


def writes_mp3() -> bool:
    """The libsndfile that soundfile brings does; a system's own may not."""
    return "MP3" in soundfile.available_formats()


def encode_mp3(pcm: Pcm) -> bytes:
    """About 3 kB a second, to listen to in any browser; never an input to a model."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, pcm, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE",
        compression_level=0.9,
    )  # fmt: skip
    return buffer.getvalue()


def decode_flac(data: bytes, frames: int) -> Pcm:
    """The inverse of `encode_flac`, sample by sample: no step of the audio path is repeated.

    By dr_flac, which takes half of libFLAC's time; this is nearly all that a loader does. Raises
    AudioError unless the data is mono, 16-bit FLAC of `frames` samples at 16 kHz, before it decodes.
    """
    import miniaudio

    try:
        head = miniaudio.flac_get_info(data)
        found = (head.nchannels, head.sample_width, head.sample_rate, head.num_frames)
        if found != (1, 2, SAMPLE_RATE, frames):
            raise AudioError(f"is not mono, 16-bit FLAC of {frames} samples at {SAMPLE_RATE} Hz")
        pcm = np.frombuffer(miniaudio.flac_read_s16(data).samples, np.int16)
    except miniaudio.DecodeError as error:
        raise AudioError(f"cannot be decoded ({error})") from error
    if len(pcm) != frames:  # dr_flac ends at the first broken block without a word
        raise AudioError(f"holds {len(pcm)} samples, not {frames}")
    return pcm
