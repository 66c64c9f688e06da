"""Adapters of one base, mixed into one by their weights, by PEFT's functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

from asrlora.errors import UserError
from asrlora.models import adapters
from asrlora.models.family import Base
from asrlora.models.hub import adapter_settings

MIXED = "default"  # the name under which PEFT saves an adapter into the folder itself
EXACT = 1e-5  # of the size of the terms; fp32 gives 1e-7
# what adapters that are mixed may have set; anything else could be lost in the mix
MAY_DIFFER = set(
    """alpha_pattern auto_mapping base_model_name_or_path exclude_modules inference_mode init_lora_weights
    layers_pattern layers_to_transform lora_alpha lora_dropout peft_type peft_version r rank_pattern revision
    runtime_config target_modules task_type use_dora use_rslora""".split()
)


@dataclass(frozen=True)
class Method:
    """How adapters are mixed; `name` is PEFT's combination_type."""

    name: str = "cat"
    rank: int | None = None  # of the methods that end in svd; default: the largest of the adapters
    density: float | None = None  # share of the values that ties, dare and magnitude_prune keep
    seed: int = 0  # of dare


def check_kinds(folders: Sequence[Path], method: str) -> None:
    """Raises UserError where one of the adapters is none that this method can mix."""
    for folder in folders:
        settings = adapter_settings(folder)
        plain = {field.name: field.default for field in fields(LoraConfig)}
        odd = [n for n, v in settings.items() if n not in MAY_DIFFER and v and v != plain.get(n)]
        if settings.get("peft_type") != "LORA" or odd:
            what = f"sets {', '.join(odd)}" if odd else f"is of type {settings.get('peft_type')}"
            raise UserError(f"{folder} {what}; only LoRA and DoRA adapters of linear layers are mixed")
        if settings.get("init_lora_weights") not in (True, False, None, "gaussian"):
            raise UserError(
                f"{folder} belongs to a base that its initialisation ({settings['init_lora_weights']}) has"
                " changed; convert it to a LoRA of the untouched base, as asrlora and PEFT do when they save"
            )
        if settings.get("use_dora") and method != "cat":
            raise UserError(
                f"{folder} is a DoRA adapter: --method {method} would lose its magnitudes; leave --method out"
            )


def mix(
    base: Base,
    folders: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    method: Method = Method(),
    made_from: dict[str, Any] | None = None,
) -> tuple[Any, float]:
    """Writes one adapter that changes each weight of the base by the weighted sum of what the adapters in
    `folders` change it by, exactly ("cat") or as near as the method comes.

    `base` is freshly loaded, and check_kinds has taken the folders. Returns the PeftModel with the mix, and
    how far the mix is from the weighted sum: the 2-norm of the difference over that of all its terms, which
    may cancel. Raises UserError where adapters do not fit, and RuntimeError where "cat" is not exact.
    """
    names = [f"source{number}" for number in range(len(folders))]
    model: Any = None
    for name, folder in zip(names, folders, strict=True):
        model = adapters.load(base, folder, name, beside=model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    _check_layers(layers, method, [model.peft_config[name].r for name in names])
    # the mix is made with the settings of the first: with rsLoRA's scale it would be too large by sqrt(rank)
    first = model.peft_config[names[0]]
    first.use_rslora, first.use_dora = False, any(model.peft_config[name].use_dora for name in names)
    torch.manual_seed(method.seed)
    how = {"svd_rank": method.rank, "svd_full_matrices": False, "density": method.density}
    model.add_weighted_adapter(names, list(weights), MIXED, method.name, **how)
    model.set_adapter(MIXED)
    with torch.no_grad():
        difference = _finish(layers.values(), names, weights)
    if method.name == "cat" and not difference <= EXACT:
        raise RuntimeError(f"the mix is not the weighted sum of its adapters: {difference:.1e} of it differs")
    for name in names:
        model.delete_adapter(name)
    adapters.save(model, output, None, base, made_from)
    return model.eval(), difference


def _finish(layers: Iterable[Any], names: Sequence[str], weights: Sequence[float]) -> float:
    """Puts DoRA's magnitudes right; returns how far the mix is from the weighted sum."""
    apart = size = 0.0
    for layer in layers:
        if MIXED in layer.lora_magnitude_vector:
            _mix_magnitudes(layer, names, weights)
        mixed = _change(layer, MIXED)
        for name, weight in zip(names, weights, strict=True):
            if name in layer.lora_A:
                term = weight * _change(layer, name)
                mixed -= term
                size += float(term.square().sum())
        apart += float(mixed.square().sum())
    return (apart / size) ** 0.5 if size else float(apart > 0)


def _check_layers(layers: Mapping[str, Any], method: Method, ranks: Sequence[int]) -> None:
    """Raises UserError for layers that are not linear, and for ranks that do not go with the method."""
    by_svd = method.name.endswith("svd")
    if method.name != "cat" and not by_svd and len(set(ranks)) > 1:
        raise UserError(
            f"--method {method.name} mixes adapters of one rank, and these have {', '.join(map(str, ranks))};"
            " take cat, or a method that ends in svd"
        )
    rank = method.rank or max(ranks)
    for name, layer in layers.items():
        if not layer.lora_A or next(iter(layer.lora_A.values())).weight.dim() != 2:
            raise UserError(f"the adapters change {name}; only adapters of linear layers are mixed")
        if by_svd and rank > (most := min(layer.in_features, layer.out_features)):
            raise UserError(f"--rank {rank}: the smallest side of {name} is {most}; give that or less")


def _change(layer: Any, name: str) -> torch.Tensor:
    """By how much an adapter changes the weight (out, in) of a layer."""
    change = _low_rank(layer, name)
    if name not in layer.lora_magnitude_vector:
        return change
    weight = _weight(layer)
    return _gains(layer, name) * (weight + change) - weight


def _gains(layer: Any, name: str) -> torch.Tensor:
    """The factors (out, 1) by which DoRA lengthens the rows of the changed weight; 1 for LoRA.

    Liu et al., "DoRA: Weight-decomposed low-rank adaptation", 2024, equation 5.
    """
    changed = _weight(layer) + _low_rank(layer, name)
    if name not in layer.lora_magnitude_vector:
        return torch.ones_like(changed[:, :1])
    gains: torch.Tensor = layer.lora_magnitude_vector[name].weight / changed.norm(dim=1)
    return gains[:, None]


def _low_rank(layer: Any, name: str) -> torch.Tensor:
    """scale x B x A, (out, in)."""
    product: torch.Tensor = layer.lora_B[name].weight @ layer.lora_A[name].weight
    return float(layer.scaling[name]) * product


def _weight(layer: Any) -> torch.Tensor:
    """The base's, (out, in), in fp32."""
    weight: torch.Tensor = dequantize_module_weight(layer.get_base_layer())
    return weight.float()


def _mix_magnitudes(layer: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Makes the concatenation of DoRA adapters, which PEFT leaves without its magnitudes, exact.

    Adapter i makes G_i (W + D_i) of the weight W, with a diagonal G_i, which is 1 for LoRA. The mix
    W + sum w_i (G_i (W + D_i) - W) is H (W + sum w_i G_i/H D_i), H = 1 + sum w_i (G_i - 1): again a DoRA
    adapter, of the same A, B with scaled rows, and the magnitudes H |W + ...|.
    """
    there = [(name, weight) for name, weight in zip(names, weights, strict=True) if name in layer.lora_A]
    total = torch.ones_like(_weight(layer)[:, :1])
    for name, weight in there:
        total += weight * (_gains(layer, name) - 1)
    start = 0
    for name, _ in there:
        stop = start + layer.lora_B[name].weight.shape[1]
        layer.lora_B[MIXED].weight[:, start:stop] *= _gains(layer, name) / total
        start = stop
    norms = (_weight(layer) + _low_rank(layer, MIXED)).norm(dim=1)
    layer.lora_magnitude_vector[MIXED].weight.copy_(total[:, 0] * norms)
