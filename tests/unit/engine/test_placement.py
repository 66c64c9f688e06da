"""Where models and audio are placed. Another device that every build of torch has is "meta"."""

from pathlib import Path

import pytest
import torch

from adapting import config
from asrlora.engine import inference
from asrlora.engine import runtime as runtimes
from asrlora.models import adapters, registry
from conftest import BASE


def test_a_process_computes_on_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtimes.device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert runtimes.device() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert runtimes.device() == torch.device("cuda", 0)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_model_opened_for_use_is_on_the_device(
    with_adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asrlora transcribe` opens it, which computed on the CPU of a machine with a GPU."""
    adapter = None
    if with_adapter:
        adapter = tmp_path / "adapter"
        adapters.save(adapters.attach(registry.load_base(str(BASE)), config()), adapter, None)
    monkeypatch.setattr(runtimes, "device", lambda: torch.device("meta"))
    model, _ = inference.open_model(str(BASE), adapter)
    assert {p.device.type for p in model.parameters()} == {"meta"}
