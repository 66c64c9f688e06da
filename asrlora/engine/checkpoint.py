"""Checkpoints: all that a run needs to be resumed, on any number of processes, by DDP or ZeRO-2.

`checkpoints/step-NNNNNN/` holds `adapter.safetensors` (fp32, as it is trained), `optimizer.safetensors`
(AdamW's moments, end to end in the order of the adapter's names), with --ema `ema.safetensors` (the average,
as the adapter), and `state.json` (step, best so far, sha256 of the others). The folder is written aside,
synced and renamed, and `state.json` comes last of all: a folder without it is no checkpoint. Random numbers
need no place in it: dropout, augmentation and the plan are drawn from (seed, step), and the learning rate is
a function of the step.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.engine.recorder import Recorder
from asrlora.engine.runtime import Runtime
from asrlora.engine.selection import Selection
from asrlora.errors import UserError
from asrlora.models import adapters
from asrlora.models.family import Base
from asrlora.storage import sync, to_json, write_synced

Tensors = dict[str, torch.Tensor]

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"
EMA = "ema.safetensors"
INITIAL = "adapter_initial"  # the folder of the adapter as initialised, where that is kept
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what `read` raises


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
    """All that a run resumes from."""

    state: State
    adapter: Tensors  # fp32, by parameter name
    moments: Tensors  # fp32, "exp_avg" and "exp_avg_sq", each end to end in the order of the adapter's names
    ema: Tensors | None = None  # of a run with --ema, as the adapter

    @property
    def evaluated(self) -> Tensors:
        """The parameters whose scores are those of this step."""
        return self.adapter if self.ema is None else self.ema


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint below `folder` and deletes all but the `keep` newest.

    Raises UserError when the disk is full or the folder cannot be written to; what was there stays.
    """
    path = at(folder, checkpoint.state.step)
    aside = path.with_name(f".{path.name}.writing")
    files = {ADAPTER: serialise(checkpoint.adapter), OPTIMIZER: serialise(checkpoint.moments)}
    if checkpoint.ema is not None:
        files[EMA] = serialise(checkpoint.ema)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    state = to_json({**asdict(checkpoint.state), "sha256": hashes}, indent=1) + "\n"
    try:
        # One of this step is the one that the run was resumed from, and then it stays; or it is damaged.
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
            f" ({error.strerror or error}); correct that, and continue with --resume auto"
        ) from None
    return path


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint after optimizer step `step` is."""
    return folder / f"step-{step:06d}"


def find(folder: Path) -> list[Path]:
    """The checkpoints below `folder` that were finished, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{STATE}"))


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None where there is none. Warns of damaged ones, and skips them."""
    for path in reversed(find(folder)):
        try:
            return read(path)
        except DAMAGE as error:
            console.print(f"warning: {path} is damaged ({error}); the one before it is taken")
    return None


def read(path: Path) -> Checkpoint:
    """One checkpoint. Raises one of DAMAGE where it is not as it was written."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    hashes = state.pop("sha256")
    if _hashes(path) != hashes:
        raise ValueError("the sha256 of its tensors differs")
    ema = load_file(path / EMA) if EMA in hashes else None
    return Checkpoint(State(**state), load_file(path / ADAPTER), load_file(path / OPTIMIZER), ema)


def _hashes(path: Path) -> dict[str, str]:
    """sha256 of the files of tensors that are on the disk."""
    there = (name for name in (ADAPTER, OPTIMIZER, EMA) if (path / name).exists())
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in there}


def average(tensors: Sequence[Tensors]) -> Tensors:
    """The mean of each parameter over checkpoints of one run, fp32 by parameter name; summed in double
    precision, so that their order does not matter.

    Averaging of parameters: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging",
    1992; Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018.
    Raises ValueError unless all have the same names and shapes.
    """
    first, *others = ({name: tensor.shape for name, tensor in one.items()} for one in tensors)
    if any(shapes != first for shapes in others):
        raise ValueError("checkpoints of different adapters have no average")
    return {name: torch.stack([one[name].double() for one in tensors]).mean(0).float() for name in first}


def as_adapter(
    base: Base,
    config: RunConfig,
    tensors: Tensors,
    run: Path,
    folder: Path,
    made_from: dict[str, Any] | None = None,
) -> Any:
    """Writes parameters of a run's checkpoints, or what was made of them, as an adapter in PEFT's layout
    for the untouched base; returns the PeftModel that holds them, in eval mode.

    `base` is freshly loaded and gets the adapter in place; `config` is that of the run in `run`, `made_from`
    goes into base.json. Raises ValueError where the parameters are not those of such an adapter.
    """
    initial = run / INITIAL if adapters.rewrites_base(config) else None
    model = adapters.attach(base, config, initial)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if {n: p.shape for n, p in trained.items()} != {n: t.shape for n, t in tensors.items()}:
        raise ValueError(f"the parameters are not those of the adapter of {run}")
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[name])
    adapters.save(model, folder, initial, base, made_from)
    adapters.check_written(model, folder)
    return model.eval()


@dataclass
class Checkpoints:
    """A run's checkpoints and its best adapter; only rank 0 writes them."""

    config: RunConfig
    runtime: Runtime
    base: Base
    selection: Selection
    recorder: Recorder
    frozen: str = ""  # digest of the weights that no step may change; on rank 0

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.config.output_dir / "checkpoints"

    @property
    def best(self) -> Path:
        """Where the best adapter is."""
        return self.config.output_dir / "adapter_best"

    @property
    def initial(self) -> Path | None:
        """Where the adapter as initialised is, for initialisations that rewrite the base."""
        return self.config.output_dir / INITIAL if adapters.rewrites_base(self.config) else None

    def load(self) -> Checkpoint | None:
        """Collective. The newest sound checkpoint; what was written after it is taken back.

        None where there is none: then all of the run is done again, the baseline excepted.
        """
        found = self.runtime.collectives.on_main("loading the checkpoint", self._load)
        if self.recorder.resumed:
            self.recorder.message(f"resuming after step {found.state.step if found else 0}")
        return found

    def _load(self) -> Checkpoint | None:
        """Only rank 0."""
        found = load_newest(self.folder) if self.recorder.resumed else None
        self.recorder.begin_attempt(found.state.step if found else 0)
        return found

    def restore_or_init(self, found: Checkpoint | None) -> int:
        """Collective. The adapter as the checkpoint has it, or as initialised; returns the step done."""
        if found is not None:
            state, strategy = found.state, self.runtime.strategy
            updates = state.step if state.updates < 0 else state.updates  # older ones do not say
            strategy.restore(found.adapter, found.moments, updates, state.nonfinite)
            if strategy.ema:
                strategy.ema.restore(found.evaluated)
            self.selection.best_step, self.selection.best_wer = state.best_step, state.best_wer
        self.runtime.collectives.on_main(
            "saving the adapter as initialised", lambda: self._keep_initial(resumed=found is not None)
        )
        self.recorder.book("adapter")
        return found.state.step if found else 0

    def _keep_initial(self, resumed: bool) -> None:
        """Only rank 0. Step 0's adapter is the best so far, and is checked as every saved one is."""
        strategy = self.runtime.strategy
        model = strategy.bare_model()
        self.frozen = adapters.digest_frozen(model)
        if resumed:
            return
        if self.initial is not None:
            adapters.save_initial(model, self.initial)
        count = sum(parameter.numel() for parameter in strategy.trained().values())
        self.recorder.record.update(trained_parameters=count)
        self._save_best(model)
        adapters.check_saved(model, self.base, self.best)

    def save(self, step: int) -> None:
        """Collective. A checkpoint after optimizer step `step`, and the adapter if it is the best."""
        self.recorder.book("training")
        adapter, moments = self.runtime.strategy.state()
        self.runtime.collectives.on_main("saving a checkpoint", lambda: self._save(step, adapter, moments))

    def _save(self, step: int, adapter: Tensors, moments: Tensors) -> None:
        """Only rank 0."""
        start, strategy, best_step = time.monotonic(), self.runtime.strategy, self.selection.best_step
        state = State(step, best_step, self.selection.best_wer, strategy.updates, strategy.nonfinite)
        self.recorder.sync_logs()
        average = strategy.ema.state() if strategy.ema else None
        save(self.folder, Checkpoint(state, adapter, moments, average), self.config.checkpoints_kept)
        self.recorder.book("checkpoints")
        # After the checkpoint: an adapter_best that is newer than it could not be accounted for.
        if best_step == step:
            self._save_best(strategy.bare_model())
            self.recorder.book("adapter")
        self.recorder.record.update(best_step=best_step)
        self.runtime.stop.reserve = 5 + 2 * (self.recorder.step_seconds + time.monotonic() - start)

    def _save_best(self, model: Any) -> None:
        """Reloading it on a fresh base would read and hash all of the base: that is done at the first of them
        and when the run ends, and of those between each tensor is compared."""
        with self.runtime.strategy.evaluated():
            adapters.save(model, self.best, self.initial, self.base)
            adapters.check_written(model, self.best)

    def check_best(self) -> None:
        """Only rank 0. Raises RuntimeError where the base has changed or the best adapter does not reload."""
        model = self.runtime.strategy.bare_model()
        if adapters.digest_frozen(model) != self.frozen:
            raise RuntimeError("training has changed weights of the base, and not the adapter alone")
        adapters.check_reloads(model, self.base, self.best)
