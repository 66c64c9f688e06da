"""Greedy decoding with one fixed configuration."""

from typing import Any

import torch

from asrlora.models.family import Base


def fingerprint(base: Base) -> dict[str, Any]:
    """Hypotheses made in two ways are never compared."""
    return {"version": 1, "dtype": "float32", **base.family.decoding(base), **_quantised(base)}


def _quantised(base: Base) -> dict[str, Any]:
    return {"weights": "nf4"} if base.in_4bit else {}


@torch.inference_mode()
def transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[str]:
    """Hypotheses of waves (B, T), as the model writes them. `model` may carry an active adapter."""
    return base.family.transcribe(model, base, waves, mask, seconds)
