"""DoRA's training step with fewer products than PEFT's own: the same function and gradients but for rounding.

DoRA (Liu et al., arXiv 2402.09353) divides each row of W + s B A by its norm, a constant to the gradient
(section 4.3), and multiplies it by a trained magnitude. PEFT forms B A for the norm in every forward pass and
takes six elementwise steps on the outputs. Here ||W + s B A||^2 is ||W||^2 + 2 s <W A', B> + s^2 <B A A', B>
by row, which forms nothing of W's size but its squares, and the outputs take two steps.

Shapes: I inputs, O outputs, R rank.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch.nn.functional import linear


def replace(model: Any) -> None:
    """Has the DoRA layers of `model` train this way; those over a base in 4 bits keep PEFT's.

    Evaluation keeps PEFT's too, which stores the norms from one batch to the next.
    """
    for layer in model.modules():
        if type(layer) is Linear and type(layer.get_base_layer()) is torch.nn.Linear:
            for adapter, variant in layer.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    layer.lora_variant[adapter] = _Dora()


class _Dora(DoraLinearVariant):  # type: ignore[misc]  # PEFT has no types
    @staticmethod
    def forward(
        module: Linear, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """x (..., I) and what the base makes of it, `result` (..., O), to the layer's output (..., O)."""
        if not module.training:
            output: torch.Tensor = DoraLinearVariant.forward(module, active_adapter, x, result, **kwargs)
            return output
        base, scale = module.get_base_layer(), module.scaling[active_adapter]
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        norms = row_norms(base.weight, down.weight, up.weight, scale)
        gain = module.lora_magnitude_vector[active_adapter].weight / norms
        dropout = module.lora_dropout[active_adapter]
        dropped = dropout(x)
        low_rank = up(down(dropped))
        if isinstance(dropout, torch.nn.Identity):
            inner = torch.add(result, low_rank, alpha=scale)
            if base.bias is None:
                return torch.mul(inner, gain)
            return torch.addcmul((1 - gain) * base.bias, inner, gain)
        # with dropout PEFT's definition takes W a second time, on what is left of x
        changed = torch.addcmul(result, linear(dropped, base.weight), gain - 1)
        return torch.addcmul(changed, low_rank, gain * scale)


def row_norms(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """Norms (O,) of the rows of weight (O, I) + scale * up (O, R) @ down (R, I); fp32, no gradient."""
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        weight, down, up = weight.float(), down.float(), up.float()
        crossed = ((weight @ down.T) * up).sum(1)
        own = ((up @ (down @ down.T)) * up).sum(1)
        return (weight.square().sum(1) + 2 * scale * crossed + scale**2 * own).clamp_min(0).sqrt()
