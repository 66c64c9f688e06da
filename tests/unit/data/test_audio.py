import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlora.data import audio


def tone(seconds: float = 1.0, rate: int = 16_000, level: float = 0.2, hertz: float = 440.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize("level", [0.001, 0.05, 0.9])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_any_level_and_rate_comes_out_at_the_same_rms(level: float, rate: int) -> None:
    pcm = audio.read_audio(wav(tone(rate=rate, level=level), rate))
    assert audio.rms(audio.to_float(pcm)) == pytest.approx(0.075, rel=1e-3)
    assert len(pcm) == pytest.approx(16_000, abs=2)


def test_resampling_keeps_the_pitch() -> None:
    pcm = audio.read_audio(wav(tone(rate=22_050), 22_050))
    spectrum = np.abs(np.fft.rfft(audio.to_float(pcm)))
    assert np.argmax(spectrum) * 16_000 / len(pcm) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_resampling_is_torchaudios_own(rate: int) -> None:
    """The oracle: torchaudio on the wave as it is, without our padding to whole seconds."""
    wave = np.random.default_rng(0).normal(0, 0.02, int(1.3 * rate)).astype(np.float32)
    plain = torchaudio.functional.resample(torch.from_numpy(wave), rate, 16_000).numpy()
    expected = audio.normalise(plain, 16_000).astype(np.int32)
    assert np.abs(audio.normalise(wave, rate).astype(np.int32) - expected).max() <= 1


def test_stereo_is_mixed_to_its_mean() -> None:
    left, right = tone(), tone(hertz=1000)
    stereo = audio.read_audio(wav(np.stack([left, right], 1), 16_000))
    mono = audio.read_audio(wav((left + right) / 2, 16_000))
    assert np.abs(stereo.astype(np.int32) - mono).max() <= 1


def test_a_loud_click_limits_the_gain_instead_of_clipping() -> None:
    wave = tone(level=0.001)
    wave[500] = 0.5
    pcm = audio.normalise(wave, 16_000)
    assert np.abs(pcm).max() == pytest.approx(0.999 * 32767, abs=1)
    ratio = pcm.astype(np.float64)[1000:2000] / 32767 / np.where(wave == 0, 1, wave)[1000:2000]
    assert np.median(ratio) == pytest.approx(0.999 / 0.5, rel=0.05)  # one gain for all samples


def test_silence_is_not_amplified() -> None:
    assert audio.is_silent(audio.normalise(np.full(1600, 1e-6, np.float32), 16_000))
    assert not audio.is_silent(audio.normalise(tone(level=0.001), 16_000))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad: float) -> None:
    wave = tone()
    wave[3] = bad
    with pytest.raises(audio.AudioError, match="NaN"):
        audio.normalise(wave, 16_000)


def test_garbage_and_emptiness_are_refused(tmp_path: Path) -> None:
    with pytest.raises(audio.AudioError, match="is text, not audio"):
        audio.read_audio(b"this is no audio")
    with pytest.raises(audio.AudioError, match="no samples"):
        audio.read_audio(wav(np.zeros(0, np.float32), 16_000))


def test_a_segment_is_the_same_as_the_cut_file() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    part = audio.read_audio(wav(wave, 16_000), offset=0.5, duration=1.0)
    assert np.array_equal(part, audio.read_audio(wav(wave[8_000:24_000], 16_000)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=5000))
def test_flac_keeps_every_sample(samples: list[int]) -> None:
    pcm = np.array(samples, dtype=np.int16)
    data = audio.encode_flac(pcm)
    assert np.array_equal(audio.decode_flac(data, len(pcm)), pcm)
    assert audio.encode_flac(pcm) == data
