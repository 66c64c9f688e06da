"""Checkpoints: all that a run needs to go on, on any number of processes, by DDP or ZeRO-2.

`checkpoints/step-NNNNNN/` holds `adapter.safetensors` (fp32, as it is trained), `optimizer.safetensors`
(AdamW's moments, end to end in the order of the adapter's names) and `state.json` (step, best so far,
sha256 of the two others). The folder is written aside, synced and renamed, and `state.json` comes last of
all: a folder without it is no checkpoint. Random numbers need no place in it: dropout, augmentation and
the plan are drawn from (seed, step), and the learning rate is a function of the step.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from asrlora.console import console
from asrlora.errors import UserError
from asrlora.storage import sync, to_json, write_synced

Tensors = dict[str, torch.Tensor]

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """The part of a checkpoint that is no tensor."""

    step: int  # the last optimizer step that is in it; the cursor into the plan
    best_step: int
    best_wer: float  # fraction, on the domain
    updates: int = -1  # that AdamW has made: not the steps that were not finite; -1: as many as steps
    nonfinite: int = 0  # steps in a row up to this one whose loss or gradient was not finite


@dataclass(frozen=True)
class Checkpoint:
    state: State
    adapter: Tensors  # fp32, by parameter name
    moments: Tensors  # fp32, "exp_avg" and "exp_avg_sq", each end to end in the order of the adapter's names


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint below `folder` and deletes all but the `keep` newest.

    Raises UserError when the disk is full or the folder cannot be written to; what was there stays.
    """
    path = folder / f"step-{checkpoint.state.step:06d}"
    aside = path.with_name(f".{path.name}.writing")
    files = {ADAPTER: serialise(checkpoint.adapter), OPTIMIZER: serialise(checkpoint.moments)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    state = to_json({**asdict(checkpoint.state), "sha256": hashes}, indent=1) + "\n"
    try:
        # One of this step is the one that the run went on from, and then it stays; or it is damaged.
        if not (path / STATE).exists() or _hashes(path) != hashes:
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            folder.mkdir(exist_ok=True)  # not its parents: a run directory that has vanished stays so
            aside.mkdir()
            for name, data in files.items():
                write_synced(aside / name, data)
            aside.rename(path)
        write_synced(path / f".{STATE}", state.encode())
        (path / f".{STATE}").rename(path / STATE)
        for changed in (path, folder):
            sync(changed)
        for old in find(folder)[:-keep]:
            # its mark goes first: a deletion that is cut short must not leave half a checkpoint
            (old / STATE).unlink()
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {checkpoint.state.step} cannot be written to {folder}"
            f" ({error.strerror or error}); mend that and go on with --resume auto"
        ) from None
    return path


def find(folder: Path) -> list[Path]:
    """The checkpoints below `folder` that were finished, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{STATE}"))


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None where there is none. A damaged one is told and passed by."""
    for path in reversed(find(folder)):
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            console.print(f"warning: {path} is damaged ({error}); the one before it is taken")
    return None


def _load(path: Path) -> Checkpoint:
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    hashes = state.pop("sha256")
    if _hashes(path) != hashes:
        raise ValueError("the sha256 of its tensors differs")
    return Checkpoint(State(**state), load_file(path / ADAPTER), load_file(path / OPTIMIZER))


def _hashes(path: Path) -> dict[str, str]:
    """sha256 of the files of tensors that are on the disk."""
    there = (name for name in (ADAPTER, OPTIMIZER) if (path / name).exists())
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in there}
