"""Base models: loading, labels and loss. One family so far: Moonshine.

Shapes: B utterances, T samples at 16 kHz, L label tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from asrlora.data import audit
from asrlora.data.findings import Finding
from asrlora.errors import UserError
from asrlora.models.hub import find_model, hash_weights

LABEL_QUANTUM = 8  # label lengths are multiples of this, for the reason given at batches.pad
IGNORED = -100  # cross entropy's mark for padding

ATTENTION = {"moonshine": ("q_proj", "k_proj", "v_proj", "o_proj")}
FEED_FORWARD = {"moonshine": ("fc1", "fc2")}


@dataclass(frozen=True)
class Base:
    """A base model as loaded: fp32 weights, and what goes with them."""

    model: Any  # transformers.PreTrainedModel, or the PeftModel around it
    tokenizer: Any
    family: str
    folder: Path
    sha256: str  # of the weights


def load_base(model_id: str) -> Base:
    """Loads model and tokenizer, in fp32 whatever the file holds, in eval mode."""
    from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # asrlora's own lines say what is loaded
    folder = find_model(model_id)
    family = AutoConfig.from_pretrained(folder).model_type
    if family not in ATTENTION:
        raise UserError(
            f"--model-id {model_id}: models of type {family} are not supported; supported:"
            f" {', '.join(ATTENTION)}"
        )
    model = AutoModelForSpeechSeq2Seq.from_pretrained(
        folder,
        dtype=torch.float32,
        # on a CPU 38 % of a step went into the backward of SDPA's flash attention
        attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Base(model.eval(), tokenizer, family, folder, hash_weights(folder))


def label_ids(base: Base, text: str) -> list[int]:
    """The tokens a perfect decoder writes for `text`, end of sentence included."""
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    return [*tokens, base.model.config.eos_token_id]


def audit_labels(base: Base, texts: Mapping[str, str], labels: Mapping[str, list[int]]) -> list[Finding]:
    """What of the labels, by utterance id, this model cannot write."""

    def write(text: str) -> str:
        tokens = base.tokenizer(text, add_special_tokens=False).input_ids
        return str(base.tokenizer.decode(tokens, skip_special_tokens=True))

    return audit.tokens(texts, labels, base.model.config.max_position_embeddings, write)


def pad_labels(labels: list[list[int]]) -> torch.Tensor:
    """Token lists to (B, L), padded with IGNORED."""
    longest = -(-max(map(len, labels)) // LABEL_QUANTUM) * LABEL_QUANTUM
    padded = torch.full((len(labels), longest), IGNORED)
    for row, tokens in enumerate(labels):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    return padded


def logits(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Teacher-forced logits (B, L, V) for waves (B, T), mask (B, T) and labels (B, L).

    `model` is the base, the base with an adapter, or either in DDP's or DeepSpeed's wrapper.
    """
    config = base.model.config
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    previous = torch.cat([start, labels[:, :-1]], dim=1)
    previous = previous.masked_fill(previous == IGNORED, config.pad_token_id or 0)
    out = model(input_values=waves, attention_mask=mask, decoder_input_ids=previous, use_cache=False)
    return out.logits  # type: ignore[no-any-return]


def summed_loss(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy in nats, summed (not averaged) over the label tokens of the microbatch.

    The caller divides by the token count of the whole optimizer step: a mean of microbatch means
    would weigh a token by who shares its microbatch, and change with the number of GPUs.
    """
    scores = logits(model, base, waves, mask, labels).float()
    return cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
