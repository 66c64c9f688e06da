"""Whole runs on the device: train, stop, resume, evaluate, transcribe; several ranks; kills. `make test-gpu`.

ASRLORA_TEST_DEVICE=cpu runs the same bodies without a GPU, on gloo's ranks where there are several.
"""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import parts
from asrlora import cli, train
from asrlora.data import loader
from asrlora.errors import exit_code
from asrlora.models import objective
from asrlora.record import run_dir
from conftest import Speech
from kill_resume import before_step, start, to_itself, wait

pytestmark = pytest.mark.gpu
KINDS = ["moonshine", "whisper", "wav2vec2"]
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"},
    "qlora": {"load_in_4bit": True},
}  # fmt: skip
RECIPE_PARAMETERS = [
    pytest.param(name, marks=pytest.mark.needs("CUDA", "bitsandbytes")) if name == "qlora" else name
    for name in RECIPES
]
SETTINGS: dict[str, Any] = {
    "max_steps": 6, "eval_interval": 3, "save_interval": 2, "learning_rate": 3e-3, "batch_size": 2,
    "gradient_accumulation_steps": 2, "lora_targets": "all-linear", "lora_dropout": 0.0, "resume": "auto",
}  # fmt: skip
LETTERS = "abdehilnort"


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    """32 training utterances, 8 of the domain and 8 heldout ones: a pitch for each letter."""
    speech, rng = Speech.of(tmp_path_factory.mktemp("tones")), np.random.default_rng(0)
    for path, count in ((speech.train, 32), (speech.domain, 8), (speech.heldout, 8)):
        lines = []
        for number in range(count):
            text = "".join(rng.choice(list(LETTERS), rng.integers(5, 11)))
            hertz = np.repeat([300 + 250 * LETTERS.index(letter) for letter in text], 2_000)
            wave = 0.1 * np.sin(2 * np.pi * np.cumsum(hertz) / 16_000)
            file = path.with_name(f"{path.stem}-{number}.wav")
            soundfile.write(file, wave + 0.001 * rng.standard_normal(len(wave)), 16_000)
            lines.append(json.dumps({"id": file.stem, "audio": file.name, "text": text}) + "\n")
        path.write_text("".join(lines))
    return speech


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in run_dir.read_lines(run / "metrics.jsonl")]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("recipe", RECIPE_PARAMETERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stops_resumes_and_is_used(
    kind: str, recipe: str, precision: str, folders: dict[str, str], tones: Speech, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, settings = tmp_path / "run", {**SETTINGS, **RECIPES[recipe]}
    flags = tones.flags(run, model_id=folders[kind], mixed_precision=precision, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "read_batches", loader.read_batches)  # to have it back afterwards
        before_step(4, partial(to_itself, signal.SIGTERM), 0)
        assert train.main(flags) == 75
    assert train.main(flags) == 0
    attempts = run_dir.read_json(run / "run.json")["attempts"]
    assert [one["from_step"] for one in attempts] == [0, 4]
    assert len(losses(run)) == 6
    judged = run_dir.read_json(run / "verdict.json")

    words = ["--model-id", folders[kind], "--adapter-dir", str(run / "adapter_best")]
    output = tmp_path / "eval"
    manifest = ["--manifest-path", str(tones.domain), "--output-dir", str(output)]
    assert cli.main(["eval", *words, *manifest]) == 0
    assert run_dir.read_json(output / "scores.json")["wer"] == judged["domain"]["tuned_wer"]
    ours = run_dir.read_hypotheses(output / "hypotheses.jsonl")
    assert ours == run_dir.read_hypotheses(run_dir.step_folder(run, judged["best_step"]) / "domain.jsonl")

    capsys.readouterr()
    file = next(tones.domain.parent.glob("domain*-0.wav"))
    assert cli.main(["transcribe", str(file), *words]) == 0
    written = {line["id"]: line["hypothesis_raw"] for line in run_dir.read_lines(output / "hypotheses.jsonl")}
    assert capsys.readouterr().out.rstrip("\n").endswith(written[file.stem])


def run_ranks(world: int, flags: list[str], log: Path, **more: Any) -> None:
    assert wait(start(world, flags, log, **more), 300) == [0] * world, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def one(tones: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device, with the model that ships."""
    folder = tmp_path_factory.mktemp("one")
    run_ranks(1, tones.flags(folder / "run", **SETTINGS), folder / "log")
    return folder / "run"


@pytest.mark.parametrize(
    ("world", "zero2"),
    [
        (1, True),
        pytest.param(2, False, marks=pytest.mark.needs("two GPUs")),
        pytest.param(2, True, marks=pytest.mark.needs("two GPUs")),
    ],
    ids=["ZeRO-2 on one", "DDP on two", "ZeRO-2 on two"],
)
def test_other_ways_train_what_one_device_trains(
    world: int, zero2: bool, one: Path, tones: Speech, tmp_path: Path
) -> None:
    """Ranks add gradients in another order; a mean of means would be off by 1e-2."""
    run = tmp_path / "run"
    run_ranks(world, tones.flags(run, **SETTINGS), tmp_path / "log", zero2=zero2)
    identity = run_dir.read_json(run / "run.json")
    assert (identity["world_size"], identity["launch"]) == (world, "ZeRO-2" if zero2 else "DDP")
    assert losses(run) == pytest.approx(losses(one), rel=1e-3, abs=1e-4)
    last = "checkpoints/step-000006/adapter.safetensors"
    ours, theirs = load_file(run / last), load_file(one / last)
    for key in theirs:
        assert (ours[key] - theirs[key]).norm() < 1e-2 * theirs[key].norm(), key
    first = "eval/step-000000/domain.jsonl"
    assert run_dir.read_hypotheses(run / first) == run_dir.read_hypotheses(one / first)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.needs("two GPUs"))])
def test_a_killed_run_resumes_and_ends_alike(world: int, one: Path, tones: Speech, tmp_path: Path) -> None:
    flags = tones.flags(tmp_path / "run", **SETTINGS)
    ranks = start(
        world, flags, tmp_path / "log", change=partial(before_step, 4, partial(to_itself, signal.SIGKILL))
    )
    codes = wait(ranks, 120)
    for rank in ranks:  # as the launcher does
        rank.kill()
    assert codes[-1] == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    run_ranks(world, flags, tmp_path / "log")
    attempts = run_dir.read_json(tmp_path / "run" / "run.json")["attempts"]
    assert attempts[1]["from_step"] in (2, 3), "where it was saved last"
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-3, abs=1e-4)


def test_memory_that_is_out_is_a_message_that_says_what_helps(
    tones: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if parts.DEVICE == "cuda":
        free, _ = torch.cuda.mem_get_info()
        monkeypatch.setattr(objective, "summed_loss", hungry(objective.summed_loss, free))
    else:

        def out(*args: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(objective, "summed_loss", out)
    flags = tones.flags(tmp_path / "run", **{**SETTINGS, "batch_size": None, "batch_seconds": 4})
    assert exit_code(lambda: train.main(flags)) == 2
    told = capsys.readouterr().err
    assert "memory" in told
    assert "--batch-seconds" in told
    assert "train_manifest_expanded-" in told, "which utterances"
    assert "Traceback" not in told


def hungry(honest: Any, size: int) -> Any:
    """`honest`, where something else has taken the memory of the GPU."""

    def loss(*args: Any) -> Any:
        held = torch.empty(size - (64 << 20), dtype=torch.uint8, device="cuda")
        more = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        return honest(*args) + 0 * (held[0] + more[0])

    return loss
