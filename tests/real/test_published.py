"""Published recognisers and recordings of people, from the folder that ASRLORA_REAL names.

    ASRLORA_REAL=FOLDER make test-real

The folder holds moonshine-tiny/ and whisper-tiny.en/ as Transformers saves them, nonnative/ (speechocean762:
train.jsonl, domain.jsonl) and lj/ (LJ Speech: heldout.jsonl).
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from asrlora import cli
from asrlora.data.audio import SAMPLE_RATE, read_audio
from asrlora.data.manifest import Utterance, read_manifest
from asrlora.models import objective, registry
from asrlora.record.run_dir import read_lines

pytestmark = [pytest.mark.real, pytest.mark.needs("ASRLORA_REAL"), pytest.mark.timeout(1200)]

REAL = Path(os.environ.get("ASRLORA_REAL", "."))
SETS = {"domain": "nonnative/domain.jsonl", "heldout": "lj/heldout.jsonl"}
# WERs of 150 utterances in per cent, 2026-11-29, two CPU cores
RECORDED = {
    "moonshine-tiny": {"domain": 43.06, "heldout": 5.40},
    "whisper-tiny.en": {"domain": 38.83, "heldout": 4.68},
}
ACCELERATE = str(Path(sys.executable).parent / "accelerate")


@pytest.fixture(scope="module", params=list(RECORDED))
def model_id(request: pytest.FixtureRequest) -> str:
    return str(REAL / request.param)


def part(name: str, count: int, folder: Path) -> Path:
    """A manifest of so many utterances, drawn by a hash of their ids."""
    source = REAL / SETS.get(name, "nonnative/train.jsonl")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    for row in rows:
        row["audio"] = str((source.parent / row["audio"]).resolve())
    path = folder / f"{name}-{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return path


def evaluate(model_id: str, manifest: Path, output: Path, *flags: str) -> list[dict[str, Any]]:
    """What `asrlora eval` writes of each utterance."""
    command = ["eval", "--model-id", model_id, "--manifest-path", str(manifest), "--output-dir", str(output)]
    assert cli.main([*command, "--allow-outside", *flags]) == 0
    return read_lines(output / "hypotheses.jsonl")


@pytest.mark.parametrize("name", list(SETS))
def test_a_base_has_its_recorded_wer(model_id: str, name: str, tmp_path: Path) -> None:
    evaluate(model_id, part(name, 150, tmp_path), tmp_path / "eval")
    found = json.loads((tmp_path / "eval" / "scores.json").read_text())["wer"]
    assert 100 * found == pytest.approx(RECORDED[Path(model_id).name][name], abs=0.1)


def test_hypotheses_depend_on_no_batch_and_no_process(model_id: str, tmp_path: Path) -> None:
    few = part("domain", 12, tmp_path)
    budget = 24 if "moonshine" in model_id else 4 * 30  # Whisper computes on 30 s an utterance
    together = evaluate(model_id, few, tmp_path / "24", "--eval-batch-seconds", str(budget))
    assert evaluate(model_id, few, tmp_path / "1", "--eval-batch-seconds", "1") == together
    launcher = [ACCELERATE, "launch", "--config_file", "accelerate_configs/cpu.yaml", "asrlora/cli.py"]
    flags = ["--model-id", model_id, "--manifest-path", str(few), "--allow-outside"]
    subprocess.run([*launcher, "eval", *flags, "--output-dir", str(tmp_path / "two")], check=True)
    assert read_lines(tmp_path / "two" / "hypotheses.jsonl") == together


def training_flags(model_id: str, sets: Path, output: Path, *flags: str) -> list[str]:
    """Of 20 steps, five times through eight utterances."""
    named = {
        "model-id": model_id,
        "dataset-path": part("train", 8, sets),
        "manifest-path": part("domain", 8, sets),
        "safety-manifest-path": part("heldout", 4, sets),
        "output-dir": output,
        "learning-rate": 3e-4,
        "batch-size": 2,
        "gradient-accumulation-steps": 1,
        "max-steps": 20,
        "eval-interval": 20,
        "save-interval": 10,
        "label-case": "sentence",
        "label-punctuation": "full-stop",
        "wandb-mode": "disabled",
    }
    return [
        *(word for key, value in named.items() for word in (f"--{key}", str(value))),
        "--allow-outside",
        *flags,
    ]


# a run that is killed before step 15
KILLED = """
import os, sys
from asrlora import train
from asrlora.engine import step as steps
own = steps.train_step
steps.train_step = lambda *args: os._exit(9) if args[-1] == 15 else own(*args)
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module", params=["lora", "dora"])
def run(request: pytest.FixtureRequest, model_id: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps, and beside it one of the same settings that was killed and resumed.

    Each attempt is a process of its own: what several of them take of the heap adds up in one.
    """
    folder = tmp_path_factory.mktemp(request.param)
    kind = ["--use-dora"] if request.param == "dora" else []
    whole = training_flags(model_id, folder, folder / "whole", *kind)
    again = training_flags(model_id, folder, folder / "resumed", "--resume", "auto", *kind)
    train = [sys.executable, "asrlora/train.py"]
    subprocess.run([*train, *whole], check=True)
    assert subprocess.run([sys.executable, "-c", KILLED, *again]).returncode == 9
    subprocess.run([*train, *again], check=True)
    return folder


def adapter_of(run: Path, name: str) -> Path:
    """The adapter of step 20, whether it was the best or not, from its checkpoint."""
    folder = run / f"{name}-adapter"
    if not folder.exists():
        command = ["mix", str(run / name), "--average", "last:1", "--output-dir", str(folder)]
        assert cli.main(command) == 0
    return folder


def test_the_loss_falls_and_a_resumed_run_is_the_same_to_the_bit(run: Path) -> None:
    losses = [
        [row["loss"] for row in read_lines(run / name / "metrics.jsonl")] for name in ("whole", "resumed")
    ]
    assert len(losses[0]) == 20
    assert losses[0] == losses[1]
    assert sum(losses[0][-4:]) < 0.7 * sum(losses[0][:4])  # the same eight utterances
    saved = [adapter_of(run, name) / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_reloaded_merged_and_by_peft_the_adapter_writes_the_same(
    run: Path, model_id: str, tmp_path: Path
) -> None:
    """`asrlora eval` on the saved adapter and on the merged folder, PEFT on Transformers' model, and
    Transformers' pipeline."""
    sets, adapter = part("domain", 8, tmp_path), adapter_of(run, "whole")
    before, kept = (
        read_lines(run / "whole" / "eval" / f"step-0000{n}" / "domain.jsonl") for n in ("00", "20")
    )
    assert before != kept
    assert evaluate(model_id, sets, tmp_path / "saved", "--adapter-dir", str(adapter)) == kept
    assert cli.main(["export", str(adapter), str(tmp_path / "merged"), "--merge"]) == 0
    assert evaluate(str(tmp_path / "merged"), sets, tmp_path / "eval-merged") == kept
    texts = {line["id"]: line["hypothesis_raw"] for line in kept}
    utterances = read_manifest(sets, allow_outside=True)

    base = registry.load_base(model_id)
    plain = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(model_id, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, adapter).eval()
    assert {u.id: by_generate(adapted, base, u) for u in utterances} == texts

    written = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "merged"), device="cpu")
    greedy = {"num_beams": 1}  # five by default
    heard = {u.id: written(wave(u), generate_kwargs=greedy)["text"].strip() for u in utterances}
    assert heard == texts


def wave(utterance: Utterance) -> Any:
    """Samples (T,) from -1 to 1, by the one audio path."""
    return read_audio(utterance.audio) / 32768


@torch.inference_mode()
def by_generate(model: Any, base: Any, utterance: Utterance) -> str:
    """The text that Transformers' own greedy search writes of the utterance alone."""
    waves = torch.from_numpy(wave(utterance)).float()[None]
    features = objective.features(base, waves, torch.ones_like(waves, dtype=torch.bool))
    prompt = torch.tensor([base.decoder.prompt])
    limit = base.decoder.token_limit(base, waves.shape[1] / SAMPLE_RATE)
    ids = model.generate(
        **features, decoder_input_ids=prompt, max_new_tokens=limit, do_sample=False, num_beams=1
    )
    text: str = base.tokenizer.decode(ids[0], skip_special_tokens=True)
    return text.strip()
