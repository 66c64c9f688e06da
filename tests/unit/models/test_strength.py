"""Adapters at part of their strength, against weights interpolated by hand and PEFT's own merge."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapting import config, noise, train_on_noise
from asrlora.errors import UserError
from asrlora.models import adapters, objective, registry, strength
from conftest import BASE

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def trained_adapter(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    base = registry.load_base(str(BASE))
    settings = config(**KINDS[kind])
    model = adapters.attach(base, settings)
    initial = folder / "initial" if adapters.rewrites_base(settings) else None
    if initial:
        adapters.save_initial(model, initial)
    train_on_noise(model, base)
    adapters.save(model, folder / "adapter", initial, base)
    return folder / "adapter"


def weights(adapter: Path | None) -> dict[str, torch.Tensor]:
    """Of the base, with the adapter merged by PEFT."""
    base = registry.load_base(str(BASE))
    model = adapters.load(base, adapter).merge_and_unload() if adapter else base.model
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("at", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_is_a_point_on_the_line_from_the_base_to_the_adapted_model(
    kind: str, at: float, tmp_path: Path
) -> None:
    adapter = trained_adapter(kind, tmp_path)
    before, after = weights(None), weights(adapter)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 10
    base = registry.load_base(str(BASE))
    model = adapters.load(base, adapter)
    layers = strength.trained(model)
    strength.set_strength(layers, 0.6)  # what was set before does not matter
    strength.set_strength(layers, at)
    adapters.save(model, tmp_path / "scaled", None, base, {"strength": at})
    scaled = weights(tmp_path / "scaled")
    for name in before:
        wanted = before[name] + at * (after[name] - before[name])
        assert torch.allclose(scaled[name], wanted, atol=2e-6 * float(wanted.abs().max())), name


def test_strength_nought_is_the_base_and_one_the_adapter_to_the_bit(tmp_path: Path) -> None:
    adapter = trained_adapter("dora", tmp_path)
    base = registry.load_base(str(BASE))
    with torch.inference_mode():
        untouched = objective.logits(base.model, base, *noise())
    model = adapters.load(base, adapter)
    layers = strength.trained(model)
    with torch.inference_mode():
        full = objective.logits(model, base, *noise())
        strength.set_strength(layers, 0.0)
        none = objective.logits(model, base, *noise())
        strength.set_strength(layers, 1.0)
        again = objective.logits(model, base, *noise())
    assert torch.equal(full, again)
    assert torch.allclose(none, untouched, atol=1e-5 * untouched.abs().max())
    assert (full - untouched).abs().max() > 0.05 * untouched.abs().max()


def test_an_adapter_with_more_than_factors_has_no_strength(tmp_path: Path) -> None:
    base = registry.load_base(str(BASE))
    model = adapters.load(base, trained_adapter("lora", tmp_path))
    model.peft_config["default"].bias = "lora_only"
    with pytest.raises(UserError, match="its strength cannot be changed"):
        strength.trained(model)
