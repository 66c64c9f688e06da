"""Greedy decoding with one fixed configuration."""

import math
from typing import Any

import torch
from transformers import GenerationConfig

from asrlora.models.families import Base

# Moonshine's authors cap at 6.5 tokens a second against endless repetition; characters need more
_TOKENS_PER_SECOND = {"subwords": 6.5, "characters": 30.0}
_EXTRA_TOKENS = 8

# Part of the fingerprint: hypotheses made in two ways are never compared.
FINGERPRINT = {
    "version": 1,
    "method": "greedy",
    "dtype": "float32",
    "tokens_per_second": _TOKENS_PER_SECOND,
    "extra_tokens": _EXTRA_TOKENS,
}
_CHARACTERS = 256  # a vocabulary up to this size spells; a larger one holds subwords


def token_limit(base: Base, seconds: float) -> int:
    """The most tokens written for an utterance: a function of that utterance alone."""
    kind = "characters" if base.model.config.vocab_size <= _CHARACTERS else "subwords"
    limit = math.ceil(seconds * _TOKENS_PER_SECOND[kind]) + _EXTRA_TOKENS
    return min(limit, int(base.model.config.max_position_embeddings) - 1)


@torch.inference_mode()
def transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[str]:
    """Hypotheses of waves (B, T), as the model writes them. `model` may carry an active adapter."""
    config = base.model.config
    limits = [token_limit(base, s) for s in seconds]
    tokens = model.generate(
        input_values=waves,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=max(limits),
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id,
        ),
    )  # fmt: skip
    # column 0 is the start token; an utterance's own limit applies whoever shares its batch
    cut = [row[1 : 1 + limit] for row, limit in zip(tokens.tolist(), limits, strict=True)]
    texts: list[str] = base.tokenizer.batch_decode(cut, skip_special_tokens=True)
    return [text.strip() for text in texts]
