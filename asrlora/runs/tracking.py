"""Weights & Biases: the only module that knows it. Everything sent is also in the run directory."""

import os
from pathlib import Path
from typing import Any, Literal

HYPOTHESES_SHOWN = 200  # in the W&B table; all of them are in the run directory


def start(
    mode: Literal["online", "offline", "disabled"] | None,
    folder: Path,
    config: dict[str, Any],
    earlier: str | None = None,
) -> Any:
    """Starts a run, or returns None when switched off. Without a mode: online where logged in.

    `earlier` is the id of the W&B run of an attempt before this one, to be gone on with.
    """
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if mode is None:
        mode = "online" if wandb.login(prompt=False) else "offline"
    return wandb.init(
        project="asrlora", name=folder.resolve().name, dir=folder, config=config, mode=mode,
        settings=wandb.Settings(console="off"), id=earlier, resume="allow" if earlier else None,
    )  # fmt: skip


def log(run: Any, step: int, values: dict[str, Any]) -> None:
    if run is not None:
        run.log(values, step=step)


def log_hypotheses(run: Any, name: str, hypotheses: list[dict[str, Any]]) -> None:
    """The table `name`: the first hypotheses in order of id, with their error counts."""
    if run is None:
        return
    import wandb

    columns: list[str | int] = [
        "id",
        "reference",
        "hypothesis",
        "substitutions",
        "deletions",
        "insertions",
        "words",
    ]
    rows = [[h[str(column)] for column in columns] for h in hypotheses[:HYPOTHESES_SHOWN]]
    run.log({name: wandb.Table(columns=columns, data=rows)})


def finish(run: Any, judged: dict[str, Any] | None, failed: bool = False) -> None:
    if run is None:
        return
    if judged is not None:
        run.summary["verdict"] = judged["verdict"]
        run.summary["best_step"] = judged["best_step"]
        for name in ("domain", "heldout"):
            for key in ("baseline_wer", "tuned_wer"):
                if judged[name] is not None:
                    run.summary[f"{name}/{key}"] = judged[name][key]
    run.finish(exit_code=1 if failed else 0)
