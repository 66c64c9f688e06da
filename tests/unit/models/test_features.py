"""Features computed in batches on the device, against Transformers' extractors on one utterance at a time."""

from typing import Any

import pytest
import torch
import transformers as hf

from asrlora.models import features

LENGTHS = [24_000, 16_001, 9_600, 400]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of four lengths, one of them a frame; padded to 2 s."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(32_000) < torch.tensor(LENGTHS)[:, None]
    waves = 0.075 * torch.randn(len(LENGTHS), 32_000, generator=generator) + 0.01
    return waves * mask, mask


def alone(extractor: Any, row: int) -> Any:
    waves, _ = batch()
    return extractor(waves[row, : LENGTHS[row]].numpy(), sampling_rate=16_000, return_tensors="pt")


def largest(difference: torch.Tensor, scale: torch.Tensor) -> float:
    return float(difference.abs().max() / scale.abs().max())


@pytest.mark.parametrize("bins", [80, 128])
def test_whispers_log_mels_are_its_extractors(bins: int) -> None:
    extractor = hf.WhisperFeatureExtractor(feature_size=bins)
    ours = features.whisper_log_mel(extractor, *batch())
    assert ours.shape == (len(LENGTHS), bins, 3000)
    for row in range(len(LENGTHS)):
        assert float((ours[row] - alone(extractor, row).input_features[0]).abs().max()) < 1e-5


def test_parakeets_log_mels_are_its_extractors() -> None:
    extractor = hf.ParakeetFeatureExtractor()
    waves, mask = batch()
    ours, valid = features.parakeet_log_mel(extractor, waves[:3], mask[:3])
    for row in range(3):
        own = alone(extractor, row)
        frames = int(own.attention_mask.sum())
        assert valid[row].sum() == frames
        theirs = own.input_features[0, :frames]
        assert largest(ours[row, :frames] - theirs, theirs) < 1e-5
        assert not ours[row, frames:].any()


@pytest.mark.parametrize("do_normalize", [True, False])
def test_waves_are_normalised_as_by_their_extractor(do_normalize: bool) -> None:
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    ours = features.normalised(extractor, *batch())
    for row, length in enumerate(LENGTHS):
        own = alone(extractor, row).input_values[0]
        assert largest(ours[row, :length] - own, own) < 1e-5
        assert not ours[row, length:].any()


def test_padding_may_hold_anything() -> None:
    waves, mask = batch()
    noisy = torch.where(mask, waves, torch.randn_like(waves))
    whisper, parakeet = hf.WhisperFeatureExtractor(chunk_length=2), hf.ParakeetFeatureExtractor()
    assert torch.equal(*(features.whisper_log_mel(whisper, w, mask) for w in (waves, noisy)))
    assert torch.equal(*(features.parakeet_log_mel(parakeet, w[:3], mask[:3])[0] for w in (waves, noisy)))
    raw = hf.Wav2Vec2FeatureExtractor()
    assert torch.equal(*(features.normalised(raw, w, mask) for w in (waves, noisy)))
