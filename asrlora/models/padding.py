"""Models on which padding has no effect: an utterance's outputs are those of the utterance alone.

Transformers masks padding in attention, but in some of its models it has an effect all the same: in norms
whose statistics run over time, and in the last few frames, of which its masks count too many. Here the
statistics and masks are cut to the frames that the utterance alone would have. Only hooks and one
module of the same parameters are put into the loaded model, so training, evaluation and
transcription are one path, and what is saved is Transformers' own.

Shapes: B utterances, C channels, F frames, T samples.
"""

from collections.abc import Callable
from typing import Any

import torch


class MaskedGroupNorm(torch.nn.GroupNorm):
    """GroupNorm (Wu and He, 2018) over channels and time, with the statistics of the first `frames`
    (B,) of each utterance."""

    frames: torch.Tensor  # of the forward that runs: set before it by a hook

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, F) to (B, C, F), computed in fp32."""
        valid = up_to(self.frames, input.shape[2])[:, None, None]
        grouped = input.float().view(len(input), self.num_groups, -1, input.shape[2])
        count = self.frames.view(-1, 1, 1, 1) * grouped.shape[2]
        mean = (grouped * valid).sum((2, 3), keepdim=True) / count
        variance = (grouped - mean).mul_(valid).square().sum((2, 3), keepdim=True) / count
        weight, bias = (p.view(1, self.num_groups, -1, 1) for p in (self.weight, self.bias))
        scale = weight * (variance + self.eps).rsqrt()
        normal = torch.addcmul(bias - mean * scale, grouped, scale)  # in one pass: the input is large
        return normal.view_as(input).to(input.dtype)


def mask_norm(parent: torch.nn.Module, name: str) -> MaskedGroupNorm:
    """Replaces the GroupNorm `name` of `parent`; its parameters and their names stay."""
    norm = getattr(parent, name)
    masked = MaskedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    masked.weight, masked.bias = norm.weight, norm.bias
    setattr(parent, name, masked)
    return masked


def before_forward(module: torch.nn.Module, act: Callable[[dict[str, Any]], None]) -> None:
    """Has `act` see, and change, the keyword arguments of each forward of `module`."""

    def _hook(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        act(kwargs)
        return args, kwargs

    module.register_forward_pre_hook(_hook, with_kwargs=True)


def conv_frames(samples: torch.Tensor, *convolutions: torch.nn.Conv1d) -> torch.Tensor:
    """What convolutions without padding make of so many samples (B,): frames (B,), at least one."""
    for conv in convolutions:
        samples = (samples - conv.kernel_size[0]) // conv.stride[0] + 1
    return samples.clamp(min=1)


def up_to(counts: torch.Tensor, length: int) -> torch.Tensor:
    """Mask (B, length), true for the first `counts` (B,)."""
    return torch.arange(length, device=counts.device) < counts[:, None]
