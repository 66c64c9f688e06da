"""An adapter at part of its strength: weights on the line from the base's to the adapted ones.

At strength a, a layer of the base W and the adapted W' computes with W + a (W' - W). Source: WiSE-FT
(Wortsman et al., arXiv 2109.01903), and for speech recognition weight averaging against forgetting (arXiv
2210.15282). The result is an adapter of the same rank in PEFT's layout, so whatever loads adapters loads it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

from asrlora.errors import UserError


@dataclass(frozen=True)
class Trained:
    """A layer's adapter as it was trained: what any strength is computed from."""

    layer: Any
    up: torch.Tensor  # lora_B, (out, r)
    magnitude: torch.Tensor | None  # of DoRA, (out,)


def trained(model: Any) -> list[Trained]:
    """The layers of a loaded adapter at full strength, copied.

    Raises UserError where the adapter holds more than LoRA or DoRA of linear layers, such as biases or whole
    modules, which have no strength.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        if not isinstance(layer.get_base_layer(), torch.nn.Linear):
            raise UserError(f"the adapter's layer {name} is no linear layer; its strength cannot be changed")
    settings = model.peft_config["default"]
    if settings.bias != "none" or settings.modules_to_save:
        raise UserError(
            "the adapter holds biases or whole modules beside LoRA's factors; its strength cannot be changed"
        )
    return [
        Trained(
            layer,
            _up(layer).detach().clone(),
            _magnitude(layer).clone() if layer.use_dora["default"] else None,
        )
        for layer in layers.values()
    ]


@torch.no_grad()
def set_strength(layers: list[Trained], strength: float) -> None:
    """Gives the live adapter a strength from 0 (the base) over 1 (as trained) to 1.5."""
    for one in layers:
        if one.magnitude is None or strength == 1:
            _up(one.layer).copy_(one.up if strength == 1 else strength * one.up)
            if one.magnitude is not None:
                _magnitude(one.layer).copy_(one.magnitude)
        else:
            _set_dora(one, strength)


def _set_dora(one: Trained, strength: float) -> None:
    """DoRA's W' is m (W + sBA) / |W + sBA|, row by row. So W + a (W' - W) is d W + (a m / |W + sBA|) sBA with
    d = 1 - a + a m / |W + sBA|: again a DoRA of the same rank, with another B and other magnitudes.
    """
    assert one.magnitude is not None
    layer = one.layer
    base = dequantize_module_weight(layer.get_base_layer()).to(one.up.dtype)
    down, scaling = layer.lora_A["default"].weight, layer.scaling["default"]
    ratio = one.magnitude / torch.linalg.norm(base + scaling * one.up @ down, dim=1)
    row = 1 - strength + strength * ratio
    up = (strength * ratio / row)[:, None] * one.up
    _up(layer).copy_(up)
    _magnitude(layer).copy_(row * torch.linalg.norm(base + scaling * up @ down, dim=1))


def _up(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.lora_B["default"].weight
    return weight


def _magnitude(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.lora_magnitude_vector["default"].weight
    return weight.detach()
