"""What is said of memory before the first step, on models of every family."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import tiny
from adapting import attach
from asrlora.config import parse_run
from asrlora.data.plan import by_length
from asrlora.engine import memory
from asrlora.models import registry
from asrlora.models.family import Base

TOKENS = [5, 6, 7, 8]


@pytest.fixture(params=["moonshine", "whisper", "wav2vec2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return registry.load_base(tiny.save(request.param, tmp_path))


def test_a_microbatch_keeps_as_much_more_for_each_utterance(base: Base) -> None:
    """So two measurements say what any number of utterances needs."""
    model = attach(base)
    one, two, five = (memory.kept_bytes(model, base, 1.5, TOKENS, rows) for rows in (1, 2, 5))
    assert five == pytest.approx(one + 4 * (two - one), rel=0.02)


def test_measuring_changes_neither_gradients_nor_random_numbers(base: Base) -> None:
    model = attach(base)
    before = torch.random.get_rng_state()
    memory.kept_bytes(model, base, 1.5, TOKENS, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("free", "fits"), [(2**40, True), (2**20, False)])
def test_it_is_said_what_fits(base: Base, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    said = memory.describe_need(config(), attach(base), base, training(), labels())
    assert "8 utterances as long as the longest (1.5 s)" in said
    assert said.endswith("such utterances") == fits
    assert ("it will not fit: lower --batch-size (now 8)" in said) == (not fits)


def test_nothing_is_said_of_what_checkpointing_computes_again(base: Base) -> None:
    asked = config("--gradient-checkpointing")
    assert not memory.describe_need(asked, attach(base), base, training(), labels())


def test_attention_keeps_no_matrix_of_frames(tmp_path: Path) -> None:
    """Eager attention took 14.6 GiB for whisper-tiny.en at batch 8, and 12.4 GiB for 16 utterances of 16 s in
    Moonshine tiny: frames, squared, by heads and layers."""
    base = registry.load_base(tiny.save("whisper", tmp_path))
    eager = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(base.folder, attn_implementation="eager")
    kept = [memory.kept_bytes(model, base, 1.5, TOKENS, 1) for model in (base.model, eager)]
    assert kept[0] < kept[1]


def config(*flags: str) -> Any:
    needed = [f"--{name}=x" for name in ("model-id", "dataset-path", "manifest-path", "output-dir")]
    return parse_run([*needed, "--batch-size=8", *flags])


def training() -> Any:
    samples = [SimpleNamespace(id=str(seconds), duration=seconds) for seconds in (0.5, 1.5, 1.0)]
    return SimpleNamespace(samples=SimpleNamespace(samples=samples), cost=by_length)


def labels() -> Any:
    return SimpleNamespace(tokens={"0.5": TOKENS, "1.5": TOKENS, "1.0": TOKENS})
