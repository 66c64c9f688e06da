"""Checkpoints are whole or not there, and a damaged one is never used."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import adapting
from asrlora.config import RunConfig
from asrlora.engine import checkpoint, recorder
from asrlora.engine import runtime as runtimes
from asrlora.engine.checkpoint import Checkpoint, State
from asrlora.engine.selection import Selection
from asrlora.errors import UserError
from asrlora.models import adapters, hub, registry
from conftest import BASE


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {f"layer.{i}.lora_A": torch.randn(4, 8, generator=generator) for i in range(3)}
    moments = {f"{name}/exp_avg": 0.1 * value for name, value in tensors.items()}
    return Checkpoint(State(step, best_step=step - 1, best_wer=0.25), tensors, moments)


def averaged(step: int) -> Checkpoint:
    """With --ema."""
    return replace(make(step), ema={name: 0.5 * tensor for name, tensor in make(step).adapter.items()})


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    assert (one.ema is None) == (other.ema is None)
    pairs = [(one.adapter, other.adapter), (one.moments, other.moments), (one.ema or {}, other.ema or {})]
    return one.state == other.state and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def test_what_is_saved_is_loaded_and_the_newest_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, make(step), keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000015", "step-000020"]
    assert same(checkpoint.load_newest(tmp_path), make(20))
    assert same(checkpoint.read(checkpoint.save(tmp_path, averaged(25), keep=2)), averaged(25))
    assert sorted(path.name for path in checkpoint.at(tmp_path, 20).iterdir()) == sorted(
        [checkpoint.ADAPTER, checkpoint.OPTIMIZER, checkpoint.STATE]
    )


@pytest.mark.parametrize("file", [checkpoint.ADAPTER, checkpoint.OPTIMIZER, checkpoint.EMA, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_one_is_told_and_the_one_before_it_is_taken(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = averaged if file == checkpoint.EMA else make
    for step in (5, 10):
        path = checkpoint.save(tmp_path, made(step), keep=2) / file
    data = bytearray(path.read_bytes())
    # one bit of the last tensor, or of the hash that state.json holds
    data[-5] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    assert same(checkpoint.load_newest(tmp_path), made(5))
    # without its mark it was never finished, which is nothing to warn of
    assert ("is damaged" in capsys.readouterr().out) == ((file, damage) != (checkpoint.STATE, "delete"))


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_full_disk_at_any_moment_leaves_the_one_before(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, make(5), keep=1)
    honest, calls = checkpoint.write_synced, []

    def fails(path: Path, data: bytes) -> None:
        calls.append(path)
        honest(path, data[: len(data) // 2] if len(calls) > call else data)
        if len(calls) > call:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_synced", fails)
        with pytest.raises(UserError, match=r"step 10 cannot be written .* \(No space left on device\)"):
            checkpoint.save(tmp_path, make(10), keep=1)
    assert same(checkpoint.load_newest(tmp_path), make(5))
    checkpoint.save(tmp_path, make(10), keep=1)
    assert same(checkpoint.load_newest(tmp_path), make(10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_the_step_that_a_run_went_on_from_is_never_unsaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that was dropped is made up for after the resume: same tensors, another best."""
    checkpoint.save(tmp_path, make(5), keep=1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: pytest.fail("deleted"))
    better = replace(make(5), state=State(5, best_step=5, best_wer=0.2))
    checkpoint.save(tmp_path, better, keep=1)
    assert same(checkpoint.load_newest(tmp_path), better)


def test_the_logs_are_on_the_disk_before_a_checkpoint_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss metrics.jsonl must reach as far as the checkpoint that the run resumes from."""
    runtime = runtimes.build(Accelerator(cpu=True))
    model = torch.nn.Linear(3, 1)
    runtime.strategy.prepare(model, torch.optim.AdamW(model.parameters()))
    config = RunConfig(dataset_path="t", manifest_path=Path("d"), output_dir=tmp_path)
    kept = recorder.Recorder(config, runtime)
    kept.record = SimpleNamespace(update=lambda **changes: None)  # type: ignore[assignment]  # a stand-in
    synced: list[str] = []

    def sync(path: Path) -> None:
        assert not list(tmp_path.glob("checkpoints/*/state.json"))
        synced.append(path.name)

    monkeypatch.setattr(recorder, "sync", sync)
    for name in recorder.LOGS:
        (tmp_path / name).write_text("{}\n")
    base: Any = None
    checkpoint.Checkpoints(config, runtime, base, Selection(config, "wer"), kept).save(3)
    assert synced == [*recorder.LOGS, tmp_path.name]
    assert [path.name for path in checkpoint.find(tmp_path / "checkpoints")] == ["step-000003"]


def test_an_average_is_the_mean_of_each_parameter() -> None:
    """Against float64 numpy; in any order, to the bit."""
    many = [make(step).adapter for step in (5, 10, 15)]
    found = checkpoint.average(many)
    for name, tensor in found.items():
        wanted = np.mean([one[name].numpy().astype(np.float64) for one in many], axis=0).astype(np.float32)
        assert np.array_equal(tensor.numpy(), wanted)
    assert all(torch.equal(tensor, checkpoint.average(many[::-1])[name]) for name, tensor in found.items())
    assert same(replace(make(5), adapter=checkpoint.average(many[:1])), make(5))
    with pytest.raises(ValueError, match="different adapters have no average"):
        checkpoint.average([many[0], {**many[1], "layer.0.lora_A": torch.zeros(4, 9)}])


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_parameters_of_a_run_become_an_adapter_of_the_untouched_base(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """What a run trains is written from its parameters alone, as the run itself writes it."""
    chosen = adapting.config(lora_targets="attention", **settings)
    base = registry.load_base(str(BASE))
    model = adapters.attach(base, chosen)
    adapters.save_initial(model, tmp_path / checkpoint.INITIAL)
    adapting.train_on_noise(model, base)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    initial = tmp_path / checkpoint.INITIAL if adapters.rewrites_base(chosen) else None
    adapters.save(model, tmp_path / "by_run", initial, base)
    fresh = registry.load_base(str(BASE))
    live = checkpoint.as_adapter(fresh, chosen, tensors, tmp_path, tmp_path / "adapter", {"steps": [3]})
    assert adapters.check_saved(live, fresh, tmp_path / "adapter") < 1e-4
    one, other = (load_file(tmp_path / name / adapters.WEIGHTS) for name in ("by_run", "adapter"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert hub.trained_on(tmp_path / "adapter")["made_from"] == {"steps": [3]}
    tensors.popitem()
    with pytest.raises(ValueError, match="not those of the adapter"):
        checkpoint.as_adapter(registry.load_base(str(BASE)), chosen, tensors, tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
