"""What the runtime refuses to go on with."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch._subclasses import FakeTensorMode

from asrlora.config import RunConfig
from asrlora.data import loader
from asrlora.data.loader import Batch, pack
from asrlora.engine import memory, step
from asrlora.engine import runtime as runtimes
from asrlora.engine.runtime import choose_gpu
from asrlora.engine.signals import StopRequest
from asrlora.engine.step import dropout_seed
from asrlora.engine.strategy import MOMENTS, OneProcess
from asrlora.engine.training_set import StepData
from asrlora.errors import UserError


class Past(torch.nn.Module):
    """Computes past its second layer, as some attentions read a weight and not the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def one_process() -> OneProcess:
    return runtimes.build(Accelerator(cpu=True)).strategy


def one_step(model: torch.nn.Module) -> OneProcess:
    strategy = one_process()
    trained = [p for p in model.parameters() if p.requires_grad]
    strategy.prepare(model, torch.optim.AdamW(trained, 1e-3))
    strategy.backward(model(torch.ones(2, 3)).sum(), last=True)
    strategy.update(0.0)
    return strategy


def test_an_adapter_that_the_model_computes_past_ends_the_run_at_the_first_step() -> None:
    with pytest.raises(UserError, match=r"2 tensors .* such as unused.bias: .* --lora-targets"):
        one_step(Past())


def test_matmul_precision_is_one_setting_and_compiling_does_not_lower_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accelerate allows TF32 for everything where it compiles, and torch lets cuDNN have it by default."""

    def allowed() -> set[bool]:
        return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    try:
        runtimes.set_matmul_precision("high")
        assert allowed() == {True}
        runtimes.set_matmul_precision("highest")
        assert allowed() == {False}
        torch.backends.cuda.matmul.allow_tf32 = True
        runtimes.start(compiled=True)
        assert allowed() == {False}
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_bf16_is_refused_where_the_gpu_would_imitate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes.check_bf16("bf16")  # no GPU: CPUs have it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    runtimes.check_bf16("no")
    with pytest.raises(UserError, match="--mixed-precision bf16: Tesla T4 has no bf16"):
        runtimes.check_bf16("bf16")


def test_what_is_frozen_needs_no_gradient() -> None:
    model = Past()
    model.unused.requires_grad_(False)
    assert one_step(model).arrivals.missing == set()


def test_moments_come_back_to_their_own_tensors() -> None:
    strategy = one_step(torch.nn.Sequential(*(torch.nn.Linear(3, n) for n in (3,) * 11)))
    adapter, moments = strategy.state()
    before = {name: strategy.optimizer.state[p]["exp_avg"].clone() for name, p in strategy.trained().items()}
    for parameter in strategy.trained().values():
        strategy.optimizer.state[parameter].clear()
    strategy.restore(adapter, moments, 1)
    for name, parameter in strategy.trained().items():
        assert torch.equal(strategy.optimizer.state[parameter]["exp_avg"], before[name])
        assert strategy.optimizer.state[parameter]["exp_avg"].any(), "nothing to compare"


def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def trained(model: torch.nn.Module) -> OneProcess:
    strategy = one_process()
    strategy.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))
    return strategy


def test_a_checkpoint_before_the_first_update_holds_moments_of_zero() -> None:
    """A stop may come before the first step, and the first steps may all be without a finite loss."""
    model = plain()
    strategy = trained(model)
    adapter, moments = strategy.state()
    assert {name: moment.tolist() for name, moment in moments.items()} == dict.fromkeys(MOMENTS, [0.0] * 4)
    strategy.restore(adapter, moments, strategy.updates)
    twin = trained(plain())
    for one in (strategy, twin):
        one.backward(one.model(torch.ones(2, 3)).sum(), last=True)
        one.update(0.0)
    assert torch.equal(strategy.model.weight, twin.model.weight)


def test_a_step_that_was_not_finite_is_no_update_after_a_resume_either() -> None:
    """AdamW corrects its moments by the number of updates: to count such a step changes the next one."""
    steps = [1.0, math.inf, 1.0]

    def one(strategy: OneProcess, factor: float) -> None:
        strategy.backward(strategy.model(torch.ones(2, 3)).sum() * factor, last=True)
        strategy.update(0.0)

    whole = trained(plain())
    for factor in steps:
        one(whole, factor)
    cut = trained(plain())
    for factor in steps[:2]:
        one(cut, factor)
    adapter, moments = cut.state()
    assert (cut.updates, cut.nonfinite) == (1, 1)
    resumed = trained(plain())
    resumed.restore(adapter, moments, cut.updates)
    one(resumed, steps[2])
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_step_returns_norms_and_sums_of_tensors_and_numbers() -> None:
    strategy = trained(plain())
    before = torch.linalg.vector_norm(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    strategy.backward(strategy.model(torch.ones(2, 3)).sum(), last=True)
    norm, adapter_norm, *sums = strategy.update(torch.tensor(0.5, dtype=torch.float64), True)
    assert norm == pytest.approx(4.0)  # a gradient of 2 for each of three weights and the bias
    assert adapter_norm == pytest.approx(float(before))
    assert sums == [0.5, 1.0]


def test_dropout_seeds_are_written_down_and_differ() -> None:
    """Another seed would be another run: the values are those of NumPy's SeedSequence."""
    assert dropout_seed(42, 1, 0) == 15658369528003122356
    seeds = {dropout_seed(s, t, m) for s in range(4) for t in range(10) for m in range(10)}
    assert len(seeds) == 400


@pytest.mark.parametrize(("local", "there"), [("0", 0), ("2", 2)])
def test_a_process_without_a_gpu_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, local: str, there: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError, match=f"local rank {local} has no GPU of its own: {there} can be seen"):
        choose_gpu()


def test_a_step_does_not_wait_for_the_gpu_between_microbatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake device raises DataDependentOutputException where a number is read from it."""
    scaled: list[torch.Tensor] = []

    class OnGpu(OneProcess):
        def backward(self, loss: torch.Tensor, last: bool) -> None:
            scaled.append(loss)

        def update(self, *values: float | torch.Tensor) -> list[float]:
            assert isinstance(values[0], torch.Tensor)
            assert values[0].device.type == "cuda"
            return [1.0, 1.0, 6.0, 0.0]

    monkeypatch.setattr(step, "to_device", lambda tensor, device: tensor.to(device))
    monkeypatch.setattr(step.objective, "summed_loss", lambda *a: torch.empty((), device="cuda"))
    monkeypatch.setattr(loader, "to_device", step.to_device)
    monkeypatch.setattr(step.objective, "pad_labels", lambda labels: torch.zeros(1, 8))
    sample: Any = SimpleNamespace(id="u")
    batch = Batch([sample], *pack([np.zeros(8000, np.int16)]))
    data = StepData(0, [sample], [batch, batch])
    config = RunConfig(dataset_path="t", manifest_path=Path("d"), output_dir=Path("o"))
    runtime = runtimes.build(Accelerator(cpu=True))
    runtime.device = torch.device("cuda")
    runtime.strategy = OnGpu(runtime.strategy.accelerator, runtime.collectives)
    runtime.strategy.model = plain()
    runtime.strategy.optimizer = torch.optim.AdamW(plain().parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = step.train_step(runtime, None, data, {"u": [1, 2, 3]}, config, 1)  # type: ignore[arg-type]
    assert result.loss == 2.0
    assert [loss.device.type for loss in scaled] == ["cuda", "cuda"]


def test_the_end_of_the_time_is_seen_before_it_comes() -> None:
    """With one more step and a save to go."""
    stop = StopRequest(deadline=time.monotonic() + 1000)
    for reserve, expected in ((10.0, False), (990.0, False), (1001.0, True)):
        stop.reserve = reserve
        assert stop.requested == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_full_memory_names_the_utterances_and_what_would_help(error: RuntimeError) -> None:
    samples: Any = [SimpleNamespace(id=f"u{i}", duration=0.25 + i) for i in range(7)]
    batch = Batch(samples, *pack([np.zeros(round(16_000 * s.duration), np.int16) for s in samples]))
    config = RunConfig(dataset_path="t", manifest_path=Path("d"), output_dir=Path("o"), batch_size=7)
    with pytest.raises(UserError) as told, memory.explained(batch, "x", memory.training_remedy(config)):
        raise error
    assert "7 utterances of 22.8 s of audio, padded to 45.5 s ('u0', 'u1'" in str(told.value)
    assert "and 2 more; the longest is 'u6' of 6.2 s): lower --batch-size (now 7), or" in str(told.value)
    assert str(error).splitlines()[0] in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(RuntimeError, match="another"), memory.explained(batch, "x", ""):
        raise RuntimeError("another error")
    seconds = RunConfig(dataset_path="t", manifest_path=Path("d"), output_dir=Path("o"), batch_seconds=45)
    assert "lower --batch-seconds (now 45)" in memory.training_remedy(seconds)
    one = seconds.model_copy(update={"batch_seconds": None, "gradient_checkpointing": True})
    assert "lower --max-seconds (now 20), in a new --output-dir" in memory.training_remedy(one)
