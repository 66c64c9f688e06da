"""What Moonshine and Whisper share: a decoder that goes on from a prompt, token by token.

Moonshine's prompt is its start token; Whisper's also names language and task. The loss does not
count the prompt. Shapes as in family.py; P tokens of prompt.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, GenerationMixin

from asrlora.models.family import IGNORED, Base, Features, tokens


def label_ids(base: Base, text: str) -> list[int]:
    """The tokens that a perfect decoder writes after the prompt, end of sentence included."""
    return [*tokens(base, text), base.model.config.eos_token_id]


def refuse_more_labels(labels: list[int], limit: int) -> None:
    if len(labels) > limit:
        raise ValueError(
            f"has a text of {len(labels)} tokens, and this model writes at most {limit}; shorten it or lower"
            " --max-seconds"
        )


def logits(
    model: Any, base: Base, features: Features, prompt: list[int], labels: torch.Tensor
) -> torch.Tensor:
    """Teacher-forced logits (B, L, V) of labels (B, L)."""
    start = torch.tensor(prompt, device=labels.device).expand(len(labels), -1)
    previous = torch.cat([start, labels[:, :-1]], dim=1)
    previous = previous.masked_fill(previous == IGNORED, base.model.config.pad_token_id or 0)
    scores: torch.Tensor = model(**features, decoder_input_ids=previous, use_cache=False).logits
    return scores[:, len(prompt) - 1 :]


def loss(base: Base, scores: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of scores (B, L, V)."""
    return cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def transcribe(
    model: Any, base: Base, features: Features, prompt: list[int], limits: list[int], **suppressed: Any
) -> list[str]:
    """Greedy hypotheses of at most `limits` tokens each.

    The limits belong to utterances, not to the batch, so an utterance's text does not depend on who
    shares its batch. `suppressed` are GenerationConfig's lists of tokens that are never written.
    """
    config = base.model.config
    # the plain loop: Whisper's own generate adds long-form audio and temperatures to it
    written = GenerationMixin.generate(
        getattr(model, "get_base_model", lambda: model)(),  # adapters are in the base's own layers
        **features,
        decoder_input_ids=torch.tensor(prompt, device=base.model.device).expand(len(limits), -1),
        generation_config=GenerationConfig(
            do_sample=False, num_beams=1, max_length=len(prompt) + max(limits), **suppressed,
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id,
        ),
    )  # fmt: skip
    cut = [row[len(prompt) :][:limit] for row, limit in zip(written.tolist(), limits, strict=True)]
    texts: list[str] = base.tokenizer.batch_decode(cut, skip_special_tokens=True)
    return [text.strip() for text in texts]
