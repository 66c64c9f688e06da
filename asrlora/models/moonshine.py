"""Moonshine and Moonshine Streaming: raw audio in, a decoder that writes after a start token."""

import math
from typing import Any

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.models import padding, seq2seq
from asrlora.models.family import (
    Base,
    Features,
    Targets,
    Written,
    longest_that,
    padded_samples,
    refuse_longer,
)
from asrlora.models.features import normalised

MODEL_CLASS = "AutoModelForSpeechSeq2Seq"

label_ids, loss = seq2seq.label_ids, seq2seq.loss

# Moonshine's authors cap at 6.5 tokens a second against endless repetition; characters need more
_TOKENS_PER_SECOND = {"subwords": 6.5, "characters": 30.0}
_EXTRA_TOKENS = 8
# seconds: Moonshine was trained on segments of 4 to 30 (Jeffries et al., 2024)
_LONGEST = 30.0
_CHARACTERS = 256  # a vocabulary up to this size spells; a larger one holds subwords


def targets(kind: str) -> Targets:
    return Targets(("q_proj", "k_proj", "v_proj", "o_proj"), ("fc1", "fc2"))


def ignore_padding(model: Any, kind: str) -> None:
    """Moonshine's first norm runs over time, and both models attend to up to two frames too many."""
    encoder = model.get_encoder()
    if kind == "moonshine_streaming":
        embedder = encoder.embedder

        def cut(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            frames, _ = output
            # its convolutions are padded on the left, so each gives ceil(frames / stride)
            step = embedder.frame_len * embedder.conv1.stride[0] * embedder.conv2.stride[0]
            counts = -(-kwargs["padding_mask"].sum(1) // step)
            return frames, padding.up_to(counts, frames.shape[1])

        embedder.register_forward_hook(cut, with_kwargs=True)
        return
    convolutions = (encoder.conv1, encoder.conv2, encoder.conv3)
    step = math.prod(conv.stride[0] for conv in convolutions)
    norm = padding.mask_norm(encoder, "groupnorm")

    def count(inputs: dict[str, Any]) -> None:
        samples = inputs["attention_mask"].sum(1)
        norm.frames = padding.conv_frames(samples, encoder.conv1)
        # of the mask the encoder takes every 384th sample, by which a frame that begins in the audio and
        # ends in the padding would be heard
        heard = step * padding.conv_frames(samples, *convolutions)
        inputs["attention_mask"] = padding.up_to(heard, inputs["attention_mask"].shape[1])

    padding.before(encoder, count)


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    return {"input_values": normalised(base.extractor, waves, mask), "attention_mask": mask}


def check(base: Base, seconds: float, labels: list[int]) -> None:
    config = base.model.config
    if base.kind == "moonshine_streaming":  # its frames have learned positions
        longest = padded_samples(seconds) / SAMPLE_RATE
        if frames(base, longest) > config.max_position_embeddings:
            refuse_longer(seconds, config.max_position_embeddings * longest / frames(base, longest))
    seq2seq.refuse_more_labels(labels, config.max_position_embeddings)


def longest(base: Base) -> float:
    """What its authors trained on, or what its decoder can write at `_TOKENS_PER_SECOND`."""
    most = int(base.model.config.max_position_embeddings)

    def fits(seconds: float) -> bool:
        padded = padded_samples(seconds) / SAMPLE_RATE
        heard = base.kind != "moonshine_streaming" or frames(base, padded) <= most
        return heard and _tokens(base, seconds) < most

    return longest_that(fits, _LONGEST)


def frames(base: Base, seconds: float) -> int:
    return int(base.model._get_feat_extract_output_lengths(round(seconds * SAMPLE_RATE)))


def logits(model: Any, base: Base, features: Features, labels: torch.Tensor) -> torch.Tensor:
    return seq2seq.logits(model, base, features, _prompt(base), labels)


def transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[Written]:
    limits = [token_limit(base, s) for s in seconds]
    return seq2seq.transcribe(model, base, features(base, waves, mask), _prompt(base), limits)


def token_limit(base: Base, seconds: float) -> int:
    """The most tokens written for an utterance: a function of that utterance alone."""
    return min(_tokens(base, seconds), int(base.model.config.max_position_embeddings) - 1)


def _tokens(base: Base, seconds: float) -> int:
    kind = "characters" if base.model.config.vocab_size <= _CHARACTERS else "subwords"
    return math.ceil(seconds * _TOKENS_PER_SECOND[kind]) + _EXTRA_TOKENS


def decoding(base: Base) -> dict[str, Any]:
    return {**seq2seq.method(base), "tokens_per_second": _TOKENS_PER_SECOND, "extra_tokens": _EXTRA_TOKENS}


def _prompt(base: Base) -> list[int]:
    return [base.model.config.decoder_start_token_id]
