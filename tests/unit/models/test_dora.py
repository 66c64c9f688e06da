"""Our DoRA trains as PEFT's does; PEFT's own forward is the oracle."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.variants import DoraLinearVariant

from asrlora.models import dora


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 40)
        self.second = torch.nn.Linear(40, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x)))


def adapted(dropout: float, rslora: bool) -> torch.nn.Module:
    """A model whose adapter has left its initialisation, magnitudes too."""
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["first", "second"], use_dora=True,
        use_rslora=rslora,
    )  # fmt: skip
    model = get_peft_model(Two(), settings)
    for name, weight in model.named_parameters():
        if "lora" in name:
            factor = 1 + 0.3 * torch.rand_like(weight) if "magnitude" in name else 1
            weight.data = weight.data * factor if "magnitude" in name else torch.randn_like(weight) / 4
    return model


def trained(model: torch.nn.Module, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(5, 7, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model.train()(x)
    output.float().square().sum().backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_and_gradients_are_those_of_peft(dropout: float, rslora: bool, bf16: bool) -> None:
    theirs = adapted(dropout, rslora)
    ours = deepcopy(theirs)
    dora.replace(ours)
    (expected, gradients), (found, ours_gradients) = trained(theirs, bf16), trained(ours, bf16)
    # bf16 keeps 8 bits, and PEFT rounds the low-rank product to them before the norm
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if bf16 else {"rtol": 1e-5, "atol": 1e-5}
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, **tolerance)
    assert {name.split(".")[-2] for name in gradients if "magnitude" not in name} == {"default"}
    assert gradients.keys() == ours_gradients.keys()
    for name, gradient in gradients.items():
        apart = (gradient - ours_gradients[name]).norm() / gradient.norm()
        assert apart < (3e-2 if bf16 else 1e-5), name


def test_evaluation_is_pefts_own() -> None:
    theirs = adapted(0.3, False)
    ours = deepcopy(theirs)
    dora.replace(ours)
    x = torch.randn(3, 24)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_norms_are_those_of_the_sum() -> None:
    torch.manual_seed(0)
    weight, down, up = torch.randn(40, 24), torch.randn(4, 24), torch.randn(40, 4)
    expected = torch.linalg.norm((weight + 0.7 * up @ down).double(), dim=1)
    torch.testing.assert_close(dora.row_norms(weight, down, up, 0.7).double(), expected, rtol=1e-6, atol=0)
    nothing = dora.row_norms(0 * weight, 0 * down, 0 * up, 0.7)
    assert torch.equal(nothing, torch.zeros(40))


def test_layers_of_another_kind_keep_pefts_way() -> None:
    model = adapted(0.0, False)
    layer = model.base_model.model.first
    layer.base_layer.__class__ = type("Quantised", (torch.nn.Linear,), {})
    dora.replace(model)
    kept, replaced = (one.lora_variant["default"] for one in (layer, model.base_model.model.second))
    assert type(kept) is DoraLinearVariant
    assert type(replaced) is not DoraLinearVariant
