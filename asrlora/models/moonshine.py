"""Moonshine and Moonshine Streaming: raw audio in, a decoder that writes after a start token."""

import math
from dataclasses import replace
from typing import Any

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.models import padding, seq2seq
from asrlora.models.family import (
    Base,
    Decoder,
    Features,
    Source,
    Targets,
    longest_that,
    padded_samples,
    refuse_longer,
)
from asrlora.models.features import normalised
from asrlora.models.pretrained import load_pretrained

# Moonshine's authors cap at 6.5 tokens a second against endless repetition; characters need more
_TOKENS_PER_SECOND = {"subwords": 6.5, "characters": 30.0}
_EXTRA_TOKENS = 8
# seconds: Moonshine was trained on segments of 4 to 30 (Jeffries et al., 2024)
_TRAINED_ON = 30.0
_CHARACTERS = 256  # a vocabulary up to this size spells; a larger one holds subwords


summed_loss, transcribe = seq2seq.summed_loss, seq2seq.transcribe


def load(source: Source) -> Base:
    """Moonshine's first norm runs over time, and both models attend to up to two frames too many."""
    base = load_pretrained(source, seq2seq.AUTO_CLASS)
    mask_padding = _mask_streaming if base.kind == "moonshine_streaming" else _mask_plain
    mask_padding(base.model.get_encoder())
    return replace(
        base,
        targets=Targets(("q_proj", "k_proj", "v_proj", "o_proj"), ("fc1", "fc2")),
        max_seconds=longest_that(lambda seconds: _fits(base, seconds), _TRAINED_ON),
        decoding={
            **seq2seq.method(base),
            "tokens_per_second": _TOKENS_PER_SECOND,
            "extra_tokens": _EXTRA_TOKENS,
        },
        label_ids=seq2seq.label_ids,
        check=_check,
        decoder=Decoder([base.model.config.decoder_start_token_id], token_limit),
    )


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    """See Family."""
    return {"input_values": normalised(base.extractor, waves, mask), "attention_mask": mask}


def token_limit(base: Base, seconds: float) -> int:
    """The most tokens written for an utterance: a function of that utterance alone."""
    return min(_tokens(base, seconds), _positions(base) - 1)


def _mask_plain(encoder: Any) -> None:
    convolutions = (encoder.conv1, encoder.conv2, encoder.conv3)
    step = math.prod(conv.stride[0] for conv in convolutions)
    norm = padding.mask_norm(encoder, "groupnorm")

    def count(inputs: dict[str, Any]) -> None:
        samples = inputs["attention_mask"].sum(1)
        norm.frames = padding.conv_frames(samples, encoder.conv1)
        # The encoder takes every 384th sample of the mask, which would let in a frame that begins in the
        # audio and ends in the padding.
        inside = step * padding.conv_frames(samples, *convolutions)
        inputs["attention_mask"] = padding.up_to(inside, inputs["attention_mask"].shape[1])

    padding.before_forward(encoder, count)


def _mask_streaming(encoder: Any) -> None:
    embedder = encoder.embedder

    def cut(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        frames, _ = output
        # its convolutions are padded on the left, so each gives ceil(frames / stride)
        step = embedder.frame_len * embedder.conv1.stride[0] * embedder.conv2.stride[0]
        counts = -(-kwargs["padding_mask"].sum(1) // step)
        return frames, padding.up_to(counts, frames.shape[1])

    embedder.register_forward_hook(cut, with_kwargs=True)


def _check(base: Base, seconds: float, labels: list[int]) -> None:
    if base.kind == "moonshine_streaming":  # its frames have learned positions
        padded = padded_samples(seconds) / SAMPLE_RATE
        if _frames(base, padded) > _positions(base):
            refuse_longer(seconds, _positions(base) * padded / _frames(base, padded))
    seq2seq.refuse_more_labels(labels, _positions(base))


def _fits(base: Base, seconds: float) -> bool:
    """Whether encoder and decoder have positions for so much speech."""
    padded = padded_samples(seconds) / SAMPLE_RATE
    encoded = base.kind != "moonshine_streaming" or _frames(base, padded) <= _positions(base)
    return encoded and _tokens(base, seconds) < _positions(base)


def _frames(base: Base, seconds: float) -> int:
    return int(base.model._get_feat_extract_output_lengths(round(seconds * SAMPLE_RATE)))


def _positions(base: Base) -> int:
    return int(base.model.config.max_position_embeddings)


def _tokens(base: Base, seconds: float) -> int:
    kind = "characters" if base.model.config.vocab_size <= _CHARACTERS else "subwords"
    return math.ceil(seconds * _TOKENS_PER_SECOND[kind]) + _EXTRA_TOKENS
