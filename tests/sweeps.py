"""Run directories as a sweep leaves them, with numbers made up by a rule: no training."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from asrlora.config import RunConfig
from asrlora.record import run_dir
from asrlora.record.judge import judge_run
from asrlora.record.schema import Scores

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
STEPS = (100, 200, 400)
BASELINE = {"domain": 0.30, "heldout": 0.05}
FINGERPRINT = {"base": "b" * 64, "text": {"name": "whisper-english"}, "domain manifest": "d" * 64,
               "heldout manifest": "h" * 64}  # fmt: skip


def write_sweep(folder: Path, count: int, utterances: int = 60) -> list[Path]:
    """`count` complete and judged runs over learning rates, steps, LoRA or DoRA, and seeds."""
    grid = itertools.product(range(1, count + 1), (False, True), STEPS, RATES)
    return [
        write_run(
            folder / f"{'dora' if dora else 'lora'}-{rate:g}-{steps}-s{seed}",
            {"learning_rate": rate, "max_steps": steps, "use_dora": dora, "seed": seed},
            utterances=utterances,
        )
        for seed, dora, steps, rate in itertools.islice(grid, count)
    ]


def write_run(
    folder: Path, settings: dict[str, Any], utterances: int = 60, state: str = "complete",
    until: float = 1.0, fingerprint: dict[str, Any] = FINGERPRINT, reason: str | None = None,
) -> Path:  # fmt: skip
    """A run that learns more at higher rates, and forgets more; `until` is the share of steps done."""
    config = RunConfig.model_validate(
        {
            "dataset_path": "train.jsonl",
            "manifest_path": "domain.jsonl",
            "output_dir": str(folder),
            **settings,
        }
    )
    rng = np.random.default_rng(abs(hash((config.seed, config.max_steps, config.learning_rate))) % 2**32)
    run = run_dir.RunDirectory.create(
        folder, command=f"uv run python asrlora/train.py --output-dir {folder}",
        config=config.model_dump(mode="json"), fingerprint=fingerprint, world_size=1, launch="one process",
        training={"set": "9 utterances kept", "content": "0" * 64}, best_step=0, wandb_id=None,
    )  # fmt: skip
    strength = 1 + math.log10(config.learning_rate / 1e-5) * math.sqrt(config.max_steps / 200)
    last = int(config.max_steps * until)
    for step in range(1, last + 1):
        loss = 0.5 + 2 * math.exp(-step * strength / 80) + rng.normal() * 0.05
        run.log({"step": step, "audio_seconds": 16.0, "loss": loss, "grad_norm": 1.0, "tokens": 300,
                 "epoch": 0, "learning_rate": config.learning_rate, "data_wait": 0.01})  # fmt: skip
    best = (0, BASELINE["domain"])
    for step in range(0, last + 1, config.max_steps // 4):
        progress = step / config.max_steps
        wers = {
            "domain": BASELINE["domain"] * math.exp(-0.45 * strength * progress),
            "heldout": BASELINE["heldout"] + 0.004 * (strength - 2.2) * progress,
        }
        sets = {name: _hypotheses(name, wer, utterances, rng if step else None) for name, wer in wers.items()}
        scores: dict[str, Any] = {"step": step, "fingerprint": fingerprint, "seconds": 1.0}
        for name, lines in sets.items():
            wrong, words = (sum(line[key] for line in lines) for key in ("substitutions", "words"))
            scores[name] = {"wer": wrong / words, "words": words, "utterances": utterances}
        run.write_evaluation(step, sets, Scores.model_validate(scores))
        if scores["domain"]["wer"] < best[1]:
            best = (step, scores["domain"]["wer"])
    run.update(best_step=best[0], stage_seconds={"training": 0.3 * last})
    if state == "complete":
        judge_run(folder)
        (folder / "report.html").write_text(f"<title>{folder.name}</title>")
    if state != "running":
        run.end(state, reason)
    return folder


def _hypotheses(name: str, wer: float, count: int, rng: np.random.Generator | None) -> list[dict[str, Any]]:
    """Substitutions alone, of ten words an utterance; without `rng` those of the one base."""
    draw = rng or np.random.default_rng(0)
    wrong = draw.binomial(10, min(1.0, wer), count)
    return [
        {"id": f"{name}-{i:04d}", "reference": "w " * 9 + "w", "hypothesis": "", "reference_raw": "",
         "hypothesis_raw": "", "substitutions": int(n), "deletions": 0, "insertions": 0, "words": 10}
        for i, n in enumerate(wrong)
    ]  # fmt: skip
