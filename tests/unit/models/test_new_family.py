"""A new family is one module and one line in the registry: this module, and the line in `toy` below."""

import json
import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_outputs import CausalLMOutput

from adapting import SECONDS, TEXTS, attach, tones, train_on_tones
from asrlora import cli
from asrlora.models import adapters, ctc, decode, objective, registry
from asrlora.models.family import Base, Features, Source, Targets
from conftest import Speech

# --- the family

WINDOW = 800  # samples in a frame: 50 ms

summed_loss, transcribe = ctc.summed_loss, ctc.transcribe


def load(source: Source) -> Base:
    return replace(
        ctc.load(source),
        targets=Targets(feed_forward=("inner",)),
        max_seconds=20.0,
        decoding=ctc.DECODING,
        check=ctc.check,
        frames=lambda base, samples: samples // WINDOW,
    )


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    return {"input_values": waves}


# --- a model for it, as Transformers would have it


class ToyConfig(hf.PretrainedConfig):  # type: ignore[misc]  # Transformers has no types
    model_type = "toy_ctc"


class ToyForCTC(hf.PreTrainedModel):  # type: ignore[misc]
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.inner = torch.nn.Linear(WINDOW // 2 + 1, 64)
        self.lm_head = torch.nn.Linear(64, config.vocab_size)
        self.post_init()

    def forward(self, input_values: torch.Tensor) -> CausalLMOutput:
        frames = input_values.unfold(1, WINDOW, WINDOW)  # (B, F, WINDOW)
        power = torch.fft.rfft(frames).abs()
        return CausalLMOutput(logits=self.lm_head(torch.relu(self.inner(power))))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(registry.FAMILIES, "toy_ctc", registry.Entry(__name__))  # the line
    hf.AutoConfig.register("toy_ctc", ToyConfig, exist_ok=True)
    hf.AutoModelForCTC.register(ToyConfig, ToyForCTC, exist_ok=True)
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_lowercase]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    folder = tmp_path / "toy"
    torch.manual_seed(0)
    for part in (
        ToyForCTC(ToyConfig(vocab_size=len(words), pad_token_id=0)),
        hf.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        hf.Wav2Vec2FeatureExtractor(do_normalize=False),
    ):
        part.save_pretrained(folder)
    return str(folder)


def test_a_new_family_is_trained_saved_and_transcribed(toy: str, tmp_path: Path) -> None:
    base = registry.load_base(toy)
    assert registry.cost_of(toy)([1.0, 2.0]) == [1.0, 2.0]  # type: ignore[arg-type, comparison-overlap]
    assert decode.fingerprint(base)["method"] == "ctc greedy"
    labels, refused = objective.label(base, {"a": "be", "b": "be " * 30}, {1.0: [1.0, 1.0]})
    assert (list(labels), len(refused)) == (["a"], 1)
    model: Any = attach(base, lora_r=16, lora_alpha=64)
    losses = train_on_tones(model, base, 300, 3e-2, enough=math.log(2))
    assert losses[-1] < math.log(2)
    waves, mask, _ = tones(base)
    assert [one.text for one in decode.transcribe(model, base, waves, mask, SECONDS)] == TEXTS
    adapters.save(model, tmp_path / "adapter", None, base)
    assert adapters.check_saved(model, base, tmp_path / "adapter") < 1e-4


def test_a_new_family_is_evaluated_by_the_command(toy: str, speech: Speech, tmp_path: Path) -> None:
    words = ["--model-id", toy, "--manifest-path", str(speech.heldout), "--output-dir", str(tmp_path / "out")]
    assert cli.main(["eval", *words]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["fingerprint"]["decode"]["method"] == "ctc greedy"
    assert scores["wer"] > 0
