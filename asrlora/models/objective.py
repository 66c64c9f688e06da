"""What training asks of a model: label tokens, their summed loss, and training mode.

Shapes: B utterances, T samples at 16 kHz, L label tokens, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from asrlora.data.audit import checks
from asrlora.data.audit.findings import Finding
from asrlora.models.family import IGNORED, Base, Features, Lengths

LABEL_QUANTUM = 8  # label lengths are multiples of this, so that few shapes occur (see data/loader.py, `pad`)


def set_training(model: Any) -> None:
    """Training mode, except for BatchNorm: the statistics are part of the base, and an adapter that
    was trained beside drifting ones would not fit the base it is saved for."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def label(
    base: Base, texts: Mapping[str, str], seconds: Mapping[float, Iterable[float]]
) -> tuple[dict[str, list[int]], list[Finding]]:
    """Label tokens of all utterances that can be learned, by id, and a finding about the others.

    `seconds` are the durations of `texts`, in their order, at each speed that the audio may be played at:
    slowed down it must fit into the model, and sped up hold its text.
    """
    played = {speed: dict(zip(texts, durations, strict=True)) for speed, durations in seconds.items()}
    labels: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    for identity, text in texts.items():
        try:
            tokens = base.label_ids(base, text)
        except ValueError as error:
            refused[identity] = str(error)
            continue
        for speed, durations in played.items():
            try:
                base.check(base, durations[identity], tokens)
            except ValueError as error:
                at = "" if speed == 1 else f"at --augment-speed {speed:g} "
                refused[identity] = f"{at}{error}"
        if identity not in refused:
            labels[identity] = tokens
    return labels, checks.tokens(refused, len(texts))


def pad_labels(labels: list[list[int]]) -> torch.Tensor:
    """Token lists to (B, L), padded with IGNORED."""
    longest = -(-max(map(len, labels)) // LABEL_QUANTUM) * LABEL_QUANTUM
    padded = torch.full((len(labels), longest), IGNORED)
    for row, tokens in enumerate(labels):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    return padded


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    """The model's input for waves (B, T) and mask (B, T): fp32 in bf16 steps too, as in evaluation."""
    with torch.autocast(waves.device.type, enabled=False):
        return base.family.features(base, waves, mask)


def summed_loss(
    model: Any,
    base: Base,
    waves: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    lengths: Lengths | None = None,
) -> torch.Tensor:
    """Loss in nats, summed (not averaged) over the label tokens of the microbatch: waves (B, T), mask (B, T)
    and labels (B, L).

    The caller divides by the token count of the whole optimizer step: a mean of microbatch means
    would weigh a token by what else is in its microbatch, and change with the number of GPUs. Without
    `lengths` they are read off mask and labels, which on a GPU waits for the device.
    """
    if lengths is None:
        lengths = Lengths(mask.sum(1).tolist(), (labels != IGNORED).sum(1).tolist())
    return base.family.summed_loss(model, base, features(base, waves, mask), labels, lengths)


def logits(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The model's logits while the loss of labels (B, L) is computed: (B, F, V) of a CTC model,
    (B, P - 1 + L, V) of a decoder whose prompt has P tokens."""
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    try:
        summed_loss(model, base, waves, mask, labels)
    finally:
        hook.remove()
    return seen[0]
