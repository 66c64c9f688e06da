"""The only audio path: decode, take out a DC offset, mix to mono, 16 kHz, RMS 0.075, 16-bit samples.

Shards, training, evaluation and transcription all call `read_audio`, so a model never gets a recording in two
ways. The result is 16-bit on purpose: FLAC shards keep it bit for bit, so `asrlora transcribe` gives the
model the samples that it was trained on.

Shapes: T samples of one utterance at 16 kHz.
"""

import functools
import io
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from asrlora.data.decoding import decode
from asrlora.data.decoding.decode import Fault
from asrlora.data.decoding.filetypes import CUT
from asrlora.data.decoding.filetypes import AudioError as AudioError

SAMPLE_RATE = 16_000
TARGET_RMS = 0.075
PEAK = 0.999  # the gain stops here: a loud click keeps its shape and the utterance stays quieter
SILENCE_RMS = 1e-4  # -80 dBFS; below it there is nothing to amplify
DEAD = 0.01  # of the loudest channel's RMS (-40 dB); a channel below it is taken for a dead one
ROUNDING = 1e-3  # by which gain and mean of what is normalised already may differ from 1 and 0
OPPOSITE = -0.5  # correlation with the loudest channel; below it the mean of both loses most of the speech

# Every number above changes what a model is given, so all of them are part of the fingerprint.
FINGERPRINT = {
    "version": 2,
    "sample_rate": SAMPLE_RATE,
    "dc": "mean and linear trend of each channel taken out",
    "channels": "mean; without dead ones; the loudest where one is in opposite phase to it",
    "dead": DEAD,
    "opposite": OPPOSITE,
    "resampler": "torchaudio sinc_interp_hann 6",
    "rms": TARGET_RMS,
    "peak": PEAK,
    "silence_rms": SILENCE_RMS,
    "samples": "int16",
}

Pcm = npt.NDArray[np.int16]
Wave = npt.NDArray[np.float32]


_this_thread = threading.local()

MEMORY_FILES = hasattr(os, "memfd_create")  # on Linux
FULL_SCALE = 32767 / 32768  # the largest sample a 16-bit file can hold


@dataclass(frozen=True)
class Source:
    """What a recording was before the audio path evened it out, and what was done to it."""

    level: float  # RMS about the mean, full scale 1.0
    clipped: float  # share of samples at full scale, in any channel
    rate: int  # Hz
    channels: int
    dc: float  # the largest mean of a channel, full scale 1.0; it is taken out
    still: float  # seconds of the longest run of one and the same value in all channels: digital silence
    faults: int  # of decoding.Fault


def read_audio(source: Path | bytes, offset: float = 0.0, duration: float | None = None) -> Pcm:
    """Decodes a file, or the bytes of one, and puts it through the audio path.

    `offset` and `duration` are in seconds and select a segment. Returns int16 samples (T,).
    Raises AudioError where the file cannot be decoded, is cut off, or the segment is empty.
    """
    return read_measured(source, offset, duration)[0]


def read_measured(
    recording: Path | bytes, offset: float = 0.0, duration: float | None = None
) -> tuple[Pcm, Source]:
    """Like `read_audio`, and reports what the recording was like."""
    with decode.open_audio(recording) as opened:
        channels, rate = opened.read(offset, duration)
        expected = opened.seconds - offset if duration is None else min(duration, opened.seconds - offset)
        faults = opened.faults
    if len(channels) / rate < expected - decode.TOLERANCE:
        raise AudioError(
            f"is cut off or damaged: {len(channels) / rate:.2f} s decode of {expected:.2f} s{CUT}"
        )
    _check(channels)
    wave, mixed = mix(channels)
    faults |= mixed
    clipped = 0.0 if faults & Fault.FLOATING else float((np.abs(channels) >= FULL_SCALE).any(axis=1).mean())
    dc = float(np.abs(channels.mean(axis=0, dtype=np.float64)).max())
    still = _longest_run(channels) / rate
    source = Source(rms(wave), clipped, rate, channels.shape[1], dc, still, int(faults))
    return normalise(wave, rate), source


def read_stored(data: bytes) -> Pcm:
    """Like `read_audio`, for a file in a tar that asrlora did not write.

    Where the file is what the audio path makes (mono 16-bit FLAC at 16 kHz, without a DC offset, at a level
    at which the gain would be 1), it is taken as it is: the path would only round it again.
    """
    made = _made_by_audio_path(data)
    return read_audio(data) if made is None else made


def _made_by_audio_path(data: bytes) -> Pcm | None:
    import miniaudio

    if not data.startswith(b"fLaC"):
        return None
    try:
        head = miniaudio.flac_get_info(data)
        pcm = decode_flac(data, head.num_frames)
    except (AudioError, miniaudio.DecodeError):
        return None
    wave = to_float(pcm)
    unscaled = len(wave) > 0 and abs(_gain(wave) - 1) < ROUNDING and abs(float(wave.mean())) < ROUNDING
    return pcm if unscaled else None


def resample_alone() -> None:
    """Initializer of a pool whose threads share the cores among themselves: each resamples on one core.

    torch then has one thread everywhere, until the pool's owner sets the number again.
    """
    _this_thread.is_worker = True


def mix(channels: "decode.Samples") -> tuple[Wave, Fault]:
    """Channels (T, C) to one wave (T,), without a constant or drifting offset; and their faults.

    The mean of the channels that are live. Where one of them is in opposite phase to the loudest, the mean
    would cancel the speech, and the loudest is taken alone.
    """
    centred = _level(channels)
    if centred.shape[1] == 1:
        return centred[:, 0], Fault(0)
    levels = np.sqrt(np.mean(np.square(centred, dtype=np.float64), axis=0))
    loudest = int(levels.argmax())
    live = levels > DEAD * levels[loudest]
    faults = Fault(0) if live.all() or not live.any() else Fault.DEAD
    with np.errstate(invalid="ignore", divide="ignore"):
        products = np.mean(centred * centred[:, [loudest]], axis=0, dtype=np.float64)
        alike = products / (levels * levels[loudest])
    if (alike[live] <= OPPOSITE).any():
        return centred[:, loudest], faults | Fault.OPPOSITE
    return centred[:, live].mean(axis=1) if live.any() else centred[:, 0], faults


def _level(channels: "decode.Samples") -> "decode.Samples":
    """Takes each channel's mean and linear trend out.

    With 0.02 of full scale added, the demo's base has 124 % WER for 8; without the mean 8 again, but 71 where
    the offset drifts from 0 to 0.04, unless the trend goes too. Filters that forget faster lose speech.
    """
    time = np.linspace(-1.0, 1.0, len(channels), dtype=np.float32)
    square = max(float(time @ time), 1e-9)
    level = np.empty_like(channels)
    for number, channel in enumerate(channels.T):
        mean, slope = channel.mean(dtype=np.float64), float(time @ channel) / square
        level[:, number] = channel - (np.float32(mean) + np.float32(slope) * time)
    return level


def _check(samples: "npt.NDArray[np.float32]") -> None:
    if len(samples) == 0:
        raise AudioError("holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError("holds NaN or infinite samples")


def _longest_run(channels: "decode.Samples") -> int:
    """Samples of the longest stretch in which no channel changes."""
    same = np.zeros(len(channels) + 1, np.int8)
    same[1:-1] = 1
    for channel in channels.T:
        same[1:-1] &= channel[1:] == channel[:-1]
    starts, ends = np.flatnonzero(np.diff(same)).reshape(-1, 2).T
    return int((ends - starts).max(initial=0)) + 1


def normalise(wave: Wave, rate: int) -> Pcm:
    """Resamples to 16 kHz and scales to RMS 0.075, or less where the peak would clip.

    Silence is passed on unscaled, for the callers to reject. Raises AudioError on empty audio and
    on NaN or infinite samples.
    """
    _check(wave)
    if rate != SAMPLE_RATE:
        wave = _resample(wave, rate)
    if (gain := _gain(wave)) > 0:
        wave = wave * gain
    return np.round(np.clip(wave, -1.0, 1.0) * 32767).astype(np.int16)


def _gain(wave: Wave) -> float:
    """What brings the wave to RMS 0.075, or its peak to PEAK where that is less; 0 for silence."""
    level = rms(wave)
    return min(TARGET_RMS / level, PEAK / float(np.abs(wave).max())) if level >= SILENCE_RMS else 0.0


def _resample(wave: Wave, rate: int) -> Wave:
    """Zeros up to a whole second change no sample (the filter has zeros behind the end anyway) and
    leave few distinct shapes: oneDNN prepares a kernel for each new one, ten times the work itself."""
    import torch

    if getattr(_this_thread, "is_worker", False):
        torch.set_num_threads(1)
    padded = np.pad(wave, (0, -len(wave) % rate))
    resampled: Wave = _resampler(rate)(torch.from_numpy(padded)).numpy()
    return resampled[: -(-len(wave) * SAMPLE_RATE // rate)]


@functools.lru_cache(maxsize=16)
def _resampler(rate: int) -> Callable[..., Any]:
    import torchaudio.transforms  # slow to import, and 16 kHz input never needs it

    # The kernel grows with both terms of the ratio: 2.8 GB for 44,099 to 16,000 Hz. So unusual rates are
    # rounded to a millionth; usual ones are exact.
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(1_000)
    resample: Callable[..., Any] = torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)
    return resample


def rms(wave: Wave) -> float:
    """Root mean square of a wave (T,), full scale 1.0."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def is_silent(pcm: Pcm) -> bool:
    """Whether there is nothing to amplify: below -80 dBFS."""
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
    quality: dict[str, Any] = {"bitrate_mode": "VARIABLE", "compression_level": 0.9}
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", **quality)
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
    if len(pcm) != frames:  # dr_flac ends at the first broken block and reports nothing
        raise AudioError(f"holds {len(pcm)} samples, not {frames}")
    return pcm
