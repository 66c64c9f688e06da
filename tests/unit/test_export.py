"""`asrlora export`, on the demo's base: what it writes hears what the adapter heard."""

import json
from pathlib import Path

import pytest
import torch

from asrlora import cli
from asrlora.data.manifest import read_manifest
from asrlora.engine import offline
from asrlora.models import adapters, families
from conftest import BASE, Speech
from test_adapters import config, train


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    base = families.load_base(str(BASE))
    model = adapters.attach(base, config(use_dora=True, lora_targets="attention"))
    train(model, base)
    folder = tmp_path_factory.mktemp("run") / "adapter_best"
    adapters.save(model, folder, None)
    return folder


def test_a_merged_model_scores_as_the_adapter_does(adapter: Path, speech: Speech, tmp_path: Path) -> None:
    assert cli.main(["export", str(adapter), str(tmp_path / "merged"), "--merge"]) == 0
    some = read_manifest(speech.heldout)[:8]
    hypotheses = []
    for model_id, folder in ((str(BASE), adapter), (str(tmp_path / "merged"), None), (str(BASE), None)):
        output = tmp_path / f"eval-{len(hypotheses)}"
        offline.evaluate_manifest(model_id, folder, some, output, 160.0)
        hypotheses.append((output / "hypotheses.jsonl").read_text())
    assert hypotheses[0] == hypotheses[1] != hypotheses[2]
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert settings["dtype"] == "float32"  # the base's file is bf16, which would round the adapter away


def test_an_exported_adapter_names_its_base_from_anywhere(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["export", str(adapter), str(tmp_path / "adapter")]) == 0
    monkeypatch.chdir(tmp_path)
    _, base = offline.open_model(None, Path("adapter"))
    assert base.folder == BASE
    assert adapters.digest(tmp_path / "adapter") is not None


def test_what_cannot_be_exported_is_told(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err
    assert cli.main(["export", str(adapter), str(tmp_path)]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
