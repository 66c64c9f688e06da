"""Decoding with one configuration, which the fingerprint holds."""

from typing import Any

import torch

from asrlora.models import objective
from asrlora.models.family import Base, Decoded, padded_samples

# nats. Batches of other shapes are summed in another order, which moves logits by some 1e-5
TIE = 1e-3


def fingerprint(base: Base) -> dict[str, Any]:
    """All that decides hypotheses: those made in two ways are never compared. In version 1 padding had an
    effect."""
    return {"version": 2, "dtype": "float32", **base.decoding, **_lowered(base)}


def matmul_precision() -> str:
    """Of fp32 products in this process: highest, or high where a GPU may round their factors to TF32."""
    return torch.get_float32_matmul_precision()


def _lowered(base: Base) -> dict[str, str]:
    """What is less precise than it could be; nothing by default."""
    weights = {"weights": "nf4"} if base.in_4bit else {}
    products = {} if matmul_precision() == "highest" else {"matmul_precision": matmul_precision()}
    return {**weights, **products}


@torch.inference_mode()
def transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[Decoded]:
    """Hypotheses for waves (B, T) that last `seconds`. `model` may carry an active adapter.

    Where rounding could have decided between two tokens, it is the rounding of the utterance alone:
    so a hypothesis depends on nothing but its utterance.
    """
    decoded = _transcribe(model, base, waves, mask, seconds)
    for row in [row for row, one in enumerate(decoded) if one.margin < TIE]:
        alone = slice(row, row + 1)
        length = padded_samples(seconds[row])
        (decoded[row],) = _transcribe(
            model, base, waves[alone, :length], mask[alone, :length], seconds[alone]
        )
    return decoded


def _transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[Decoded]:
    return base.family.transcribe(model, base, objective.features(base, waves, mask), seconds)
