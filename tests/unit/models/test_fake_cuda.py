"""Every family on a CUDA device that is none: nothing on two devices, nothing that waits in a step."""

from pathlib import Path

import pytest
import torch

import fake_cuda
import tiny
from adapting import attach, tones
from asrlora.models import ctc, objective, registry
from asrlora.models.family import Base, Lengths


@pytest.fixture(params=tiny.KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    """As a machine with a GPU loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return registry.load_base(tiny.save(request.param, tmp_path))


def test_a_model_gets_the_attention_that_its_class_has(base: Base) -> None:
    """Asked for SDPA, WavLM did not load."""
    assert base.model.config._attn_implementation == ("eager" if base.kind == "wavlm" else "sdpa")


def ctc_loss(
    scores: torch.Tensor, labels: torch.Tensor, frames: list[int], tokens: list[int], **kwargs: object
) -> torch.Tensor:
    """torch's own has no fake kernel. With lengths as tensors it fetches them from the device."""
    assert all(isinstance(one, int) for one in (*frames, *tokens))
    assert scores.device == labels.device
    return scores.sum()


def test_a_training_step_neither_mixes_devices_nor_waits(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    waves, mask, labels = tones(base)
    lengths = Lengths(mask.sum(1).tolist(), (labels >= 0).sum(1).tolist())
    model = attach(base)
    objective.set_training(model)
    with fake_cuda.no_waits():
        objective.summed_loss(model, base, waves, mask, labels, lengths)
    monkeypatch.setattr(ctc, "ctc_loss", ctc_loss)
    with fake_cuda.mode(), fake_cuda.bf16_autocast():
        fake_cuda.move(model)
        on_device = fake_cuda.on_cuda(waves, mask.bool(), labels)
        objective.summed_loss(model, base, *on_device, lengths)  # brings constants there
        with fake_cuda.no_waits():
            loss = objective.summed_loss(model, base, *on_device, lengths)
    assert loss.device.type == "cuda"
    assert loss.dtype == torch.float32


def test_features_are_fp32_in_bf16_steps(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """As evaluation computes them; a bf16 product with the mel filters would be another input."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        base.family, "summed_loss", lambda model, base, inputs, *rest: seen.extend(inputs.values())
    )
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            objective.summed_loss(base.model, base, *tones(base))
    plain, under_autocast = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(one, other) for one, other in zip(plain, under_autocast, strict=True))
