"""What models are given of waves: for a whole batch at once, in fp32, on the device that the waves are on.

Transformers' feature extractors do the same by NumPy on the CPU, which would bring the waves of every step
there and back; test_features.py compares. The extractor says with which numbers. Its `dither` (0 in every
published model) is left out: it draws noise from an unseeded source.

Shapes: B utterances, T samples, M mel bins, F frames.
"""

import functools
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.models.parakeet.feature_extraction_parakeet import EPSILON, LOG_ZERO_GUARD_VALUE

_LEAST_POWER = 1e-10  # Whisper's floor, before the logarithm
_LEAST_VARIANCE = 1e-7  # wav2vec2's


def normalised(extractor: Any, waves: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Waves (B, T) as a raw-audio model wants them: with zero mean and unit variance where its
    extractor says do_normalize. That follows the audio path's RMS, over the audio without its padding."""
    if not extractor.do_normalize:
        return waves
    count = mask.sum(1, keepdim=True)
    centred = waves - (waves * mask).sum(1, keepdim=True) / count
    variance = (centred.square() * mask).sum(1, keepdim=True) / count
    normal = centred / (variance + _LEAST_VARIANCE).sqrt()
    return normal.masked_fill(~mask.bool(), extractor.padding_value)


def whisper_log_mel(extractor: Any, waves: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Waves (B, T) to (B, M, F) of exactly the model's window: what is behind the end is silence.

    Raises ValueError where the window does not hold all of the waves.
    """
    missing = extractor.n_samples - waves.shape[1]
    if missing < 0:
        raise ValueError(f"audio of more than {extractor.n_samples} samples would be cut")
    window, filters = _constants(extractor, extractor.n_fft, True, waves.device)
    padded = pad(waves * mask, (0, missing))
    spectrum = torch.stft(padded, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
    power = (spectrum[..., :-1].abs() ** 2).contiguous()  # the product is slow on a strided one
    log = (filters @ power).clamp(min=_LEAST_POWER).log10()
    log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0


def parakeet_log_mel(
    extractor: Any, waves: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves (B, T) to features (B, F, M), each bin with zero mean and unit variance over the utterance's
    own frames, and the mask (B, F) of these."""
    window, filters = _constants(extractor, extractor.win_length, False, waves.device)
    samples = mask.sum(1)
    if extractor.preemphasis is not None:
        waves = torch.cat([waves[:, :1], waves[:, 1:] - extractor.preemphasis * waves[:, :-1]], dim=1)
    spectrum = torch.stft(
        waves * mask,
        extractor.n_fft,
        extractor.hop_length,
        extractor.win_length,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).square().sum(-1)
    log = torch.log(filters @ power + LOG_ZERO_GUARD_VALUE).transpose(1, 2)
    frames = (samples + extractor.n_fft // 2 * 2 - extractor.n_fft) // extractor.hop_length
    valid = torch.arange(log.shape[1], device=log.device) < frames[:, None]
    inside = valid[..., None]
    mean = (log * inside).sum(1, keepdim=True) / frames[:, None, None]
    variance = ((log - mean).square() * inside).sum(1, keepdim=True) / (frames[:, None, None] - 1)
    return (log - mean) / (variance.sqrt() + EPSILON) * inside, valid


@functools.lru_cache(maxsize=8)
def _constants(
    extractor: Any, window: int, periodic: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hann window (window,) and mel filters (M, n_fft / 2 + 1), brought to a device once."""
    with torch.inference_mode(False):  # training uses them too, whoever asks first
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)
        if filters.shape[1] != 1 + extractor.n_fft // 2:  # Whisper's are transposed
            filters = filters.T
        return torch.hann_window(window, periodic=periodic).to(device), filters.contiguous().to(device)
