"""Parakeet: CTC models on log-mel features."""

import math
from dataclasses import replace

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.models import ctc
from asrlora.models.family import (
    Base,
    Features,
    Source,
    Targets,
    longest_that,
    padded_samples,
    refuse_longer,
)
from asrlora.models.features import parakeet_log_mel

summed_loss, transcribe = ctc.summed_loss, ctc.transcribe


def load(source: Source) -> Base:
    """Its positions are a table, which ends."""
    base = ctc.load(source)
    return replace(
        base,
        targets=Targets(("q_proj", "k_proj", "v_proj", "o_proj"), ("linear1", "linear2")),
        max_seconds=longest_that(
            lambda seconds: _frames(base, padded_samples(seconds)) <= _positions(base), ctc.MAX_SECONDS
        ),
        decoding=ctc.DECODING,
        check=_check,
        frames=_frames,
    )


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    """See Family."""
    mels, frames_of_audio = parakeet_log_mel(base.extractor, waves, mask)
    return {"input_features": mels, "attention_mask": frames_of_audio}


def _check(base: Base, seconds: float, labels: list[int]) -> None:
    padded = padded_samples(seconds)
    if _frames(base, padded) > _positions(base):
        refuse_longer(seconds, _positions(base) * padded / SAMPLE_RATE / _frames(base, padded))
    ctc.check(base, seconds, labels)


def _positions(base: Base) -> int:
    return int(base.model.config.encoder_config.max_position_embeddings)


def _frames(base: Base, samples: int) -> int:
    encoder, hop = base.model.config.encoder_config, int(base.extractor.hop_length)
    kernel = encoder.subsampling_conv_kernel_size
    halving = (kernel, encoder.subsampling_conv_stride, (kernel - 1) // 2 * 2)
    return ctc.conv_frames(samples // hop, [halving] * int(math.log2(encoder.subsampling_factor)))
