"""What the runtime refuses to go on with."""

import pytest
import torch
from accelerate import Accelerator

from asrlora.engine.runtime import Runtime
from asrlora.errors import UserError


class Past(torch.nn.Module):
    """Computes past its second layer, as some attentions read a weight and not the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.unheard = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heard(x)


def one_step(model: torch.nn.Module) -> Runtime:
    runtime = Runtime(Accelerator(cpu=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    runtime.prepare(model, torch.optim.AdamW(trained, 1e-3))
    runtime.backward(model(torch.ones(2, 3)).sum(), last=True)
    runtime.update()
    return runtime


def test_an_adapter_that_the_model_computes_past_ends_the_run_at_the_first_step() -> None:
    with pytest.raises(UserError, match=r"2 tensors .* such as unheard.bias: .* --lora-targets"):
        one_step(Past())


def test_what_is_frozen_needs_no_gradient() -> None:
    model = Past()
    model.unheard.requires_grad_(False)
    assert one_step(model).unreached == set()


def test_moments_come_back_to_their_own_tensors() -> None:
    runtime = one_step(torch.nn.Sequential(*(torch.nn.Linear(3, n) for n in (3,) * 11)))
    adapter, moments = runtime.state()
    before = {name: runtime.optimizer.state[p]["exp_avg"].clone() for name, p in runtime.trained().items()}
    for parameter in runtime.trained().values():
        runtime.optimizer.state[parameter].clear()
    runtime.restore(adapter, moments, 1)
    for name, parameter in runtime.trained().items():
        assert torch.equal(runtime.optimizer.state[parameter]["exp_avg"], before[name])
        assert runtime.optimizer.state[parameter]["exp_avg"].any(), "nothing to compare"
