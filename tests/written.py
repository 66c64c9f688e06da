"""Run directories written by hand, so that what must come out of them is known; and what a folder holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asrlora.record import run_dir
from asrlora.record.judge import judge_run
from asrlora.record.schema import Scores
from asrlora.score import text
from asrlora.score.scoring import score

WORDS = "a b c d e f g h i j"


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def heard(wrong: int) -> str:
    return " ".join(["wrong"] * wrong + WORDS.split()[wrong:])


def write_run(
    folder: Path, sets: dict[str, tuple[list[int], ...]], best_step: int = 2, **config: Any
) -> Path:
    """A run evaluated at steps 0, 2, 4, ...: of each set, wrong words of ten by utterance at each of them."""
    run = run_dir.RunDirectory.create(
        folder, command="uv run python asrlora/train.py", config={"max_steps": 2, **config},
        fingerprint={"base": "b"}, world_size=1, launch="one process",
        training={"set": "9 utterances kept", "content": "0"}, best_step=best_step, trained_parameters=10,
    )  # fmt: skip
    plain = text.normaliser("none", "en")
    for number in range(len(sets["domain"])):
        step = 2 * number
        lines = {
            name: [
                asdict(score(f"{name}-{i:04d}", WORDS, heard(n), plain, f"speaker-{i % 7}", 1.0 + i % 9))
                for i, n in enumerate(sides[number])
            ]
            for name, sides in sets.items()
        }
        wers = {name: {"wer": sum(sides[number]) / 10 / len(sides[number])} for name, sides in sets.items()}
        run.write_evaluation(step, lines, Scores(step=step, fingerprint={"base": "b"}, **wers))
    return folder


def judge(run: Path, resample_by: str | None = None) -> dict[str, Any]:
    """Judges a run; what verdict.json then holds."""
    judge_run(run, resample_by)
    return run_dir.read_json(run / "verdict.json")


def write_forgetful(folder: Path, best_step: int = 0, count: int = 300, **config: Any) -> Path:
    """A run that learns the domain and forgets: step 4 is the best by domain, and 2 and 4 break heldout.

    A further guardrail, `quiet`, stays as it is.
    """
    sets = {
        "domain": (*better(count), draws(0.05, count, 5), draws(0.2, count, 6)),
        "heldout": (*worse(count), draws(0.4, count, 7), [1] * count),
        "quiet": 4 * ([1] * count,),
    }
    return write_run(folder, sets, best_step, **{"max_steps": 6, **config})


def draws(rate: float, count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).binomial(10, rate, count).tolist()
    return found


def better(count: int = 300) -> tuple[list[int], list[int]]:
    return draws(0.3, count, 1), draws(0.1, count, 2)


def worse(count: int = 300) -> tuple[list[int], list[int]]:
    return draws(0.1, count, 3), draws(0.3, count, 4)


def same(count: int = 300) -> tuple[list[int], list[int]]:
    return [1] * count, [1] * count
