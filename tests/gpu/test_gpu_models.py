"""Every family on the device: its numbers beside the CPU's, its steps, its hypotheses. `make test-gpu`.

ASRLORA_TEST_DEVICE=cpu runs the same bodies without a GPU, but for those that need CUDA itself.
"""

from typing import Any

import numpy as np
import pytest
import torch

import parts
from adapting import config, tones
from asrlora.data import loader
from asrlora.data.loader import Batch, pack
from asrlora.engine import runtime as runtimes
from asrlora.engine import step
from asrlora.engine.training_set import StepData
from asrlora.models import adapters, decode, objective, registry
from asrlora.models.family import Base

pytestmark = pytest.mark.gpu
DEVICE = torch.device(parts.DEVICE)
KINDS = ["moonshine", "moonshine_streaming", "whisper", "wav2vec2", "hubert", "wavlm", "parakeet"]
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"},
}  # fmt: skip
# Kernels of other devices sum in another order: fp32 has 1e-7 to lose in each of some hundred sums. A product
# that is rounded to TF32 would be off by 1e-3.
FP32, BF16 = 1e-4, 5e-2


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    return folders[request.param]


def attached(base: Base, device: torch.device, **settings: Any) -> Any:
    torch.manual_seed(0)
    return adapters.attach(base, config(lora_r=4, lora_targets="all-linear", **settings)).to(device)


def loss_of(model: Any, base: Base, device: torch.device, bf16: bool = False) -> torch.Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return objective.summed_loss(model, base, *(tensor.to(device) for tensor in tones(base)))


def gradients(model: Any, base: Base, device: torch.device, bf16: bool) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients end to end, of an adapter whose B is not the zeros that it starts with."""
    objective.set_training(model)
    generator = torch.Generator().manual_seed(1)
    trained = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for _, parameter in trained:
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    loss = loss_of(model, base, device, bf16)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten().cpu().float() for _, p in trained])


@pytest.mark.parametrize("bf16", [False, True])
def test_losses_and_gradients_are_those_of_the_cpu_in_fp32(folder: str, bf16: bool) -> None:
    found = []
    for device, lower in ((torch.device("cpu"), False), (DEVICE, bf16)):
        base = registry.load_base(folder)
        found.append(gradients(attached(base, device), base, device, lower))
    (wanted, along), (loss, ours) = found
    tolerance = BF16 if bf16 else FP32
    assert loss == pytest.approx(wanted, rel=tolerance)
    assert (ours - along).norm() < 4 * tolerance * along.norm()


def learns(base: Base, bf16: bool, **settings: Any) -> bool:
    """Whether twenty steps bring the loss down by a tenth from its own start."""
    model = attached(base, DEVICE, **settings)
    objective.set_training(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    losses = []
    for _ in range(20):
        loss = loss_of(model, base, DEVICE, bf16)
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_learn(folder: str, recipe: str, bf16: bool) -> None:
    assert learns(registry.load_base(folder), bf16, **RECIPES[recipe])


@pytest.mark.needs("CUDA", "bitsandbytes")
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_on_a_base_in_4_bits_learn(folder: str, bf16: bool) -> None:
    assert learns(registry.load_base(folder, in_4bit=True), bf16)


@torch.inference_mode()
def test_hypotheses_are_the_same_between_batch_sizes(folder: str) -> None:
    base = registry.load_base(folder)
    base.model.to(DEVICE)
    rng = np.random.default_rng(0)
    pcms = [(2_000 * rng.standard_normal(n)).astype(np.int16) for n in (16_037, 24_000, 20_123, 8_001, 2_000)]
    seconds = [len(pcm) / 16_000 for pcm in pcms]

    def texts(rows: list[int]) -> dict[int, str]:
        waves, mask = (tensor.to(DEVICE) for tensor in loader.pad([pcms[row] for row in rows]))
        written = decode.transcribe(base.model, base, waves, mask, [seconds[row] for row in rows])
        return {row: one.text for row, one in zip(rows, written, strict=True)}

    alone = {row: texts([row])[row] for row in range(len(pcms))}
    for rows in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1]):
        assert texts(rows) == {row: alone[row] for row in rows}


def test_a_step_never_waits_for_the_device(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first microbatch to its update, which reads the norm of the gradients: in between torch raises
    where it would wait. The first step may wait, for libraries that are set up then."""
    base = registry.load_base(folder)
    runtime = runtimes.start()
    model = attached(base, DEVICE)
    runtime.strategy.prepare(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    )
    samples = [type("Sample", (), {"id": name}) for name in "ab"]
    labels = {name: base.label_ids(base, "hello") for name in "ab"}
    pcm, lengths = pack([np.full(16_000, 100, np.int16), np.full(12_000, -100, np.int16)])
    one = Batch(samples, pcm, lengths)  # type: ignore[arg-type]  # stand-ins with an id
    data = StepData(0, 2 * samples, [one, one])  # type: ignore[arg-type]  # the same
    settings, honest = config(learning_rate=1e-3, max_steps=3), runtime.strategy.update

    def forbid(waiting: bool) -> None:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if waiting else "default")

    def update(*values: Any) -> list[float]:
        forbid(False)
        return honest(*values)

    monkeypatch.setattr(runtime.strategy, "update", update)
    try:
        for number in (1, 2, 3):
            forbid(number > 1)
            assert step.train_step(runtime, base, data, labels, settings, number).applied
    finally:
        forbid(False)


@pytest.mark.needs("CUDA")
def test_a_compiled_step_has_the_same_loss(folder: str) -> None:
    base = registry.load_base(folder)
    model = attached(base, DEVICE)
    plain = float(loss_of(model, base, DEVICE))
    assert float(loss_of(torch.compile(model), base, DEVICE)) == pytest.approx(plain, rel=1e-3)
