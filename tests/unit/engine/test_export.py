"""`asrlora export`, on the demo's base: what it writes recognises what the adapter did."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import MoonshineForConditionalGeneration

from adapting import config, train_on_noise
from asrlora import cli
from asrlora.data import loader
from asrlora.data.audio import read_audio
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache
from asrlora.engine import inference
from asrlora.engine import runtime as runtimes
from asrlora.engine.evaluate import evaluate
from asrlora.errors import UserError
from asrlora.models import adapters, decode, hub, objective, registry, seq2seq
from asrlora.models.family import Base
from asrlora.record.run_dir import read_lines
from asrlora.score import text
from conftest import BASE, Speech

NORMALISER = text.normaliser(None, "en")
Trained = tuple[torch.nn.Module, Base, Path]  # the live model, and where its adapter is saved


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    base = registry.load_base(str(BASE))
    model = adapters.attach(base, config(use_dora=True, lora_targets="attention"))
    train_on_noise(model, base)
    folder = tmp_path_factory.mktemp("run") / "adapter_best"
    adapters.save(model, folder, None)
    return model.eval(), base, folder


@pytest.fixture(scope="module")
def adapter(trained: Trained) -> Path:
    return trained[2]


@pytest.fixture(scope="module")
def merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "merged"
    assert cli.main(["export", str(adapter), str(folder), "--merge"]) == 0
    settings = json.loads((folder / "config.json").read_text())
    assert settings["dtype"] == "float32"  # the base's file is bf16, which would round the adapter away
    return folder


def test_merged_active_and_saved_adapter_write_the_same(
    trained: Trained, merged: Path, speech: Speech, tmp_path: Path
) -> None:
    """By `asrlora eval`; red when an adapter is dropped on any of the three ways, for the base writes
    something else."""
    model, base, adapter = trained
    few = speech.heldout.with_name("eight.jsonl")
    few.write_text("".join(speech.heldout.read_text().splitlines(keepends=True)[:8]))
    ways = {"saved": [str(BASE), "--adapter-dir", str(adapter)], "merged": [str(merged)], "base": [str(BASE)]}
    written = {}
    for name, words in ways.items():
        output = tmp_path / name
        flags = ["--manifest-path", str(few), "--output-dir", str(output)]
        assert cli.main(["eval", "--model-id", *words, *flags]) == 0
        written[name] = read_lines(output / "hypotheses.jsonl")
    active = evaluate(runtimes.start(), model, base, cache.cached(read_manifest(few)), 4.0, NORMALISER)
    assert active is not None
    assert written["saved"] == written["merged"] == [h.line() for h in active.hypotheses]
    assert written["saved"] != written["base"]


@torch.inference_mode()
def test_plain_transformers_gives_the_merged_model_the_logits_of_the_active_adapter(
    trained: Trained, merged: Path, speech: Speech
) -> None:
    """Unpadded, which is what our padded batches stand for."""
    model, base, _ = trained
    plain = MoonshineForConditionalGeneration.from_pretrained(merged, attn_implementation="eager").eval()
    pcms = [read_audio(u.audio) for u in read_manifest(speech.heldout)[:3]]
    labels = objective.pad_labels([base.label_ids(base, "the merged model")] * 3)
    ours = objective.logits(model, base, *loader.pad(pcms), labels)
    for row, pcm in enumerate(pcms):
        wave = torch.from_numpy(pcm / 32768).float()[None]
        features = {"input_values": wave, "attention_mask": torch.ones_like(wave, dtype=torch.long)}
        alone = seq2seq.logits(plain, base, features, labels[:1])
        count = int((labels[0] >= 0).sum())
        assert float((ours[row, :count] - alone[0, :count]).abs().max() / alone.abs().max()) < 1e-5


def test_an_exported_adapter_names_its_base_from_anywhere(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["export", str(adapter), str(tmp_path / "adapter")]) == 0
    monkeypatch.chdir(tmp_path)
    _, base = inference.open_model(None, Path("adapter"))
    assert base.folder == BASE
    assert adapters.digest(tmp_path / "adapter") is not None


def test_a_relative_base_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with --model-id ../demo/base, used elsewhere; the digest is the same wherever the base lies."""
    monkeypatch.chdir(BASE.parent)
    digests = set()
    for name, model_id in (("one", BASE.name), ("two", f"../{BASE.parent.name}/{BASE.name}")):
        torch.manual_seed(0)
        model = adapters.attach(registry.load_base(model_id), config(lora_targets="attention"))
        adapters.save(model, tmp_path / name, None)
        digests.add(adapters.digest(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    assert hub.base_of(Path("two")) == str(BASE)
    assert len(digests) == 1
    settings = json.loads(Path("one/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(BASE)
    # a base beside the adapter, as earlier versions recorded it
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.json").write_text("{}")
    Path("one/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "../home"}))
    monkeypatch.chdir("/")
    assert hub.base_of(tmp_path / "one") == str(tmp_path / "home")


@pytest.mark.parametrize("command", ["transcribe", "export"])
@pytest.mark.parametrize("base", ["/moved/base", "../moved/base", "moved/base"])
def test_a_base_that_is_not_found_is_named_with_its_adapter(
    base: str, command: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)  # it is looked at before the model is
    words = {
        "transcribe": ["transcribe", str(tmp_path / "a.wav"), "--adapter-dir", str(folder)],
        "export": ["export", str(folder), str(tmp_path / "out")],
    }[command]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert f"--adapter-dir {folder}: its base is recorded as {base}," in told
    assert str((folder / base).resolve()) in told
    assert "--model-id" in told
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_4_bit_base_is_followed_or_refused_by_name(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised = tmp_path / "quantised"
    shutil.copytree(adapter, quantised)
    (quantised / "base.json").write_text(json.dumps({"weights": "nf4"}))
    assert cli.main(["export", str(quantised), str(tmp_path / "out"), "--merge"]) == 2
    assert f"{quantised} was trained on its base in 4 bits, and merged" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"quantised was trained on its base in 4 bits: .* needs a GPU"):
            inference.open_model(None, quantised)
    with pytest.raises(UserError, match=r"weights in nf4, and that of .* is float32"):
        inference.open_model(None, quantised, in_4bit=False)
    assert cli.main(["export", str(quantised), str(tmp_path / "copy")]) == 0
    assert hub.trained_on(tmp_path / "copy") == {"weights": "nf4"}


def test_an_adapters_precision_is_followed_or_refused_by_name(adapter: Path, tmp_path: Path) -> None:
    lowered = tmp_path / "lowered"
    shutil.copytree(adapter, lowered)
    (lowered / "base.json").write_text(json.dumps({"matmul_precision": "high"}))
    try:
        _, base = inference.open_model(None, lowered)
        assert decode.fingerprint(base)["matmul_precision"] == "high"
        with pytest.raises(UserError, match=r"matrix products in high, and that of .* is highest"):
            inference.open_model(None, lowered, matmul_precision="highest")
    finally:
        runtimes.set_matmul_precision("highest")
    _, base = inference.open_model(None, adapter)
    assert "matmul_precision" not in decode.fingerprint(base)


def test_what_cannot_be_exported_is_told(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err
    assert cli.main(["export", str(adapter), str(tmp_path)]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
