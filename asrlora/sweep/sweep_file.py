"""The sweep file: trials from a grid or a list, in one phase or in several. Needs no torch.

A trial's id is a hash of its settings, and its run directory is named by it: sweeps and phases that share
an `output_dir` share their trials, and a trial that is there, complete, is not run again.
"""

import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from asrlora import allocation
from asrlora.config import RESUMABLE_SETTINGS, Count, RunConfig, read_yaml, validate
from asrlora.errors import UserError

ROOT = Path(__file__).parents[2]
Settings = dict[str, Any]
Values = Annotated[list[Any], Field(min_length=1)]


class _Section(pydantic.BaseModel):
    """Of the sweep file: unknown keys are mistakes."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Criteria(_Section):
    """What a trial must show to be accepted; fractions, not per cent. The trials' own settings of these
    names: a trial picks its best step by the sweep's guardrail, and its verdict is the sweep's."""

    min_domain_reduction: float = Field(0.01, ge=0)
    max_heldout_regression: float = Field(0.002, ge=0)


class Pruning(_Section):
    """When a trial ends early, with its verdict on the best step so far. Looked at after evaluations."""

    heldout_margin: float | None = Field(
        None, ge=0, description="heldout WER past the guardrail by so much (fraction)"
    )
    loss_factor: float | None = Field(None, gt=1, description="loss above so many times its lowest")
    halving: int | None = Field(
        None, ge=2, description="go on only among the best 1/N of the trials that came as far (ASHA)"
    )


class Phase(_Section):
    """Trials that are compared with each other: a grid, a list, or the product of both."""

    name: str = Field("grid", pattern=r"^[a-z0-9_-]+$")
    fixed: Settings = {}
    grid: dict[str, Values] = {}
    trials: list[Settings] = []


class Sweep(Phase):
    """The file. Without `phases` it is one phase by itself."""

    output_dir: Path = Field(description="run directories of the trials stand here, named by their ids")
    launch: Path | None = Field(None, description="accelerate config; without one, one process a trial")
    at_once: Count = Field(4, description="array tasks that may run at once")
    criteria: Criteria = Criteria()
    prune: Pruning = Pruning()
    parity: bool = Field(False, description="first of all evaluate the base twice; it must come out the same")
    phases: list[Phase] = []


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, and where its run directory is."""

    id: str
    settings: Settings  # as given: fixed ones, those of the winner before, and its own
    own: Settings  # what sets it apart within its phase
    folder: Path

    @property
    def label(self) -> str:
        """Its own settings, for people."""
        return " ".join(f"{name}={value}" for name, value in self.own.items()) or "as fixed"


def load(path: Path) -> Sweep:
    """Reads and checks a sweep file. Raises UserError that names the file, the key and what to do."""
    try:
        return Sweep.model_validate(read_yaml(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(Sweep.model_fields)
        remedy = f"; known keys: {known}" if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{path}: key {key}: {first['msg'].lower()}{remedy}") from None


def phases_of(sweep: Sweep) -> Sequence[Phase]:
    """The phases in their order; names are unique, since winners are reported by them."""
    if not sweep.phases:
        return [sweep]
    if sweep.grid or sweep.trials:
        raise UserError("a sweep file with phases has its grids and trials in them, not beside them")
    names = [phase.name for phase in sweep.phases]
    if len(set(names)) < len(names):
        raise UserError(f"phases: each needs a name of its own, not {', '.join(names)}")
    return sweep.phases


def trials_of(sweep: Sweep, phase: Phase, won: Mapping[str, Any] | None = None) -> list[Trial]:
    """The trials of a phase, each once, in the order of the file; `won`: what phases before have chosen."""
    base = {**sweep.fixed, **(won or {}), **phase.fixed}
    points = [
        dict(zip(phase.grid, values, strict=True)) for values in itertools.product(*phase.grid.values())
    ]
    found: dict[str, Trial] = {}
    for listed, point in itertools.product(phase.trials or [{}], points):
        own = {**listed, **point}
        settings = {**base, **own}
        if reserved := [name for name in ("output_dir", "resume") if name in settings]:
            raise UserError(
                f"{reserved[0]} is set by the sweep, for each trial; take it out of the sweep file"
            )
        if double := [name for name in Criteria.model_fields if name in settings]:
            raise UserError(
                f"{double[0]} is one of the sweep's criteria; write it there, for all trials alike"
            )
        settings |= sweep.criteria.model_dump(exclude_defaults=True)
        identity = trial_id(settings)
        found.setdefault(identity, Trial(identity, settings, own, sweep.output_dir / identity))
    return list(found.values())


def trial_id(settings: Settings) -> str:
    """The same for settings that mean the same: 1e-4 or 0.0001, a default given or left out."""
    config = validate(None, {**settings, "output_dir": "."})
    given = config.model_dump(mode="json", exclude_defaults=True, exclude={*RESUMABLE_SETTINGS, "output_dir"})
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:10]


def sizes(sweep: Sweep) -> dict[str, int]:
    """How many trials each phase has. A winner's settings change what they are, not how many."""
    return {phase.name: len(trials_of(sweep, phase)) for phase in phases_of(sweep)}


def command(sweep: Sweep, trial: Trial) -> list[str]:
    """The command of a trial, for subprocess; as it would be typed, see `typed`."""
    program = [str(Path(sys.executable))]
    if sweep.launch is not None:
        launcher = str(Path(sys.executable).parent / "accelerate")
        program = [launcher, "launch", "--config_file", str(sweep.launch)]
    return [*program, str(from_here(ROOT / "asrlora" / "train.py")), *flags(trial)]


def demand(sweep: Sweep) -> tuple[int, bool]:
    """The processes of a trial on this machine, and whether they compute on GPUs where there are some."""
    if sweep.launch is None:
        return 1, True
    if not sweep.launch.is_file():
        raise UserError(f"the sweep's key launch: there is no file {sweep.launch}; name an accelerate config")
    settings = read_yaml(sweep.launch)
    if settings.get("distributed_type") == "NO":
        return 1, not settings.get("use_cpu")
    count = int(settings.get("num_processes") or 1) // int(settings.get("num_machines") or 1)
    return max(1, count), not settings.get("use_cpu")


def check_jobs(sweep: Sweep, jobs: int) -> None:
    """Raises UserError unless `jobs` trials at once have GPUs enough, each its own."""
    jobs = min(jobs, max(sizes(sweep).values()))
    processes, use_gpus = demand(sweep)
    allocation.shares(jobs, processes, use_gpus)
    if jobs > 1 and use_gpus and sweep.launch is not None:
        named = read_yaml(sweep.launch).get("gpu_ids", "all")
        if named not in ("all", None):
            raise UserError(
                f"--jobs {jobs}: {sweep.launch} gives every trial the GPUs {named} (gpu_ids); write all"
                " there, and each gets its own"
            )


def flags(trial: Trial) -> list[str]:
    """The flags of a trial's run."""
    words: list[str] = []
    for name, value in {**trial.settings, "output_dir": trial.folder, "resume": "auto"}.items():
        flag = "--" + name.replace("_", "-")
        if RunConfig.model_fields[name].annotation is bool:
            words += [flag if value else "--no-" + flag[2:]]
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return words


def typed(words: Sequence[str]) -> str:
    """The command as a person types it, from the root of the clone."""
    program = Path(words[0]).name
    return shlex.join(["uv", "run", "accelerate" if program == "accelerate" else "python", *words[1:]])


def from_here(path: Path) -> Path:
    """The path relative to the working directory where it lies below: records can then be run elsewhere."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
