"""Weights & Biases: the only module that knows it. Everything sent is also in the run directory."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.errors import UserError
from asrlora.record.run_dir import RunDirectory, read_run, redacted
from asrlora.record.schema import RunRecord, Verdict, WandbPlace
from asrlora.score.metric import KEYS, Metric, tally

PROJECT = "asrlora"
SHOWN = 200  # utterances in a W&B table, the most changed ones; all of them are in the run directory
PATIENCE = 10  # seconds for a server to answer at the start; then the run is an offline one
FAREWELL = 30  # seconds to send what is left at the end; the rest stays on disk, for `track sync`
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# Variables that W&B itself would follow and a run does not: job scripts export them once for many runs, and
# two of one id would be one run in W&B.
IDENTITY = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")
PLACE = ("WANDB_DIR",)


@dataclass
class Tracker:
    """Where the numbers go beside metrics.jsonl. Only rank 0 has one; either part may be missing."""

    run: Any = None  # W&B's
    board: Any = None  # TensorBoard's, with log(values, step) and finish()
    logged: int = -1  # steps up to here were sent by an earlier attempt: W&B's steps only go up
    lost: bool = False  # W&B has failed us

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self.run is not None and step > self.logged and not self.lost:
            with self.outlived():
                self.run.log(dict(values), step=step)
        if self.board is not None:
            self.board.log({key: value for key, value in values.items() if not isinstance(value, str)}, step)

    @contextlib.contextmanager
    def outlived(self) -> Iterator[None]:
        """Around calls of W&B: an error of its own is told once, and the run goes on without it."""
        try:
            yield
        except Exception as error:
            if not self.lost:
                _say(f"{_first_line(error)}; the run goes on without it")
            self.lost = True


def start(config: RunConfig, identity: RunRecord, tags: Sequence[str]) -> Any:
    """W&B's run for the run that `identity`, its run.json, describes; None where switched off.

    Where neither --wandb-mode nor the environment says how: online where logged in. A server that does not
    answer within PATIENCE makes an offline run of it. A run directory is one W&B run, in the project
    where it began, which every attempt continues, whatever the environment says by then.
    """
    mode = chosen_mode(config.wandb_mode)
    if mode == "disabled":
        return None
    with _without(*IDENTITY, *PLACE) as ignored:
        run = _start(config, identity, tags, mode)
    if ignored.keys() & set(IDENTITY):
        _say(
            f"{_named(ignored, IDENTITY)} not followed: each run directory is a W&B run of its own; this one"
            f" is {run.id}"
        )
    if ignored.keys() & set(PLACE):
        _say(
            f"{_named(ignored, PLACE)} not followed: W&B's files are in {config.output_dir}, for `track sync`"
        )
    return run


def chosen_mode(flag: str | None) -> str | None:
    """--wandb-mode, else what WANDB_DISABLED or WANDB_MODE say; None where nothing does.

    Raises UserError where the environment asks for what no run does.
    """
    if flag is not None:
        return flag
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    asked = os.environ.get("WANDB_MODE", "")
    if asked and asked not in MODES:
        raise UserError(
            f"WANDB_MODE={asked}: a run is online, offline or disabled; set one of these, or give"
            " --wandb-mode"
        )
    return MODES.get(asked)


def check_environment(flag: str | None) -> None:
    """Raises UserError where the environment asks for what no run does, before anything slow starts."""
    if chosen_mode(flag) != "disabled" and os.environ.get("WANDB_SWEEP_ID"):
        raise UserError(
            "WANDB_SWEEP_ID is set, as by `wandb agent`, which gives a run its id and settings; asrlora has"
            " sweeps of its own (`asrlora sweep`): unset it, or give --wandb-mode disabled"
        )


@contextlib.contextmanager
def _without(*names: str) -> Iterator[dict[str, str]]:
    """Takes variables out of the environment, which W&B reads by itself; yields those that were set."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield {name: value for name, value in taken.items() if value}
    finally:
        os.environ.update(taken)


def _named(variables: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={variables[name]}" for name in names if name in variables)


def _say(message: str) -> None:
    print(f"W&B: {redacted(message)}", file=sys.stderr, flush=True)


def _earlier_id(folder: Path, identity: RunRecord) -> str | None:
    """The id of this directory's W&B run; none for a copy of a directory that is still there."""
    earlier = identity.wandb_id
    original = Path(identity.wandb.folder if identity.wandb else folder)
    if earlier and original != folder.resolve() and (original / "run.json").exists():
        with contextlib.suppress(UserError):
            if read_run(original).wandb_id == earlier:
                _say(
                    f"{folder} is a copy of {original}, whose run {earlier} it must not share; it gets its"
                    " own"
                )
                return None
    return earlier


def place(config: RunConfig, run: Any) -> WandbPlace:
    """What run.json holds beside the id of a W&B run, so that later attempts find it."""
    folder = str(config.output_dir.resolve())
    return WandbPlace(project=run.project, entity=run.entity or None, folder=folder)


def _start(config: RunConfig, identity: RunRecord, tags: Sequence[str], mode: str | None) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    environment = os.environ
    before = identity.wandb
    project, entity = (before.project, before.entity) if before else (None, None)
    if before is None and identity.wandb_id:  # of a version that did not keep its project
        project = PROJECT
    mode = mode or ("online" if _logged_in() else "offline")
    earlier = _earlier_id(config.output_dir, identity)
    named = [tag for tag in environment.get("WANDB_TAGS", "").split(",") if tag]
    settings: dict[str, Any] = {
        "project": project or environment.get("WANDB_PROJECT") or PROJECT,
        "entity": entity or environment.get("WANDB_ENTITY") or None,
        "name": environment.get("WANDB_NAME") or config.output_dir.resolve().name,
        "dir": config.output_dir,
        "group": environment.get("WANDB_RUN_GROUP") or environment.get("ASRLORA_SWEEP"),
        "job_type": environment.get("WANDB_JOB_TYPE") or environment.get("ASRLORA_PHASE", "train"),
        "tags": [*tags, *named],
        "id": earlier,
        "resume": "allow" if earlier else None,
        "config": {
            **identity.config.as_json(),
            "fingerprint": identity.fingerprint,
            "git_commit": identity.git_commit,
            "command": identity.command,
            "world_size": identity.world_size,
            "launch": identity.launch,
            "slurm": {name: os.environ[name] for name in SLURM if name in os.environ},
        },
        "settings": wandb.Settings(
            console="off", init_timeout=PATIENCE, finish_timeout=FAREWELL, finish_timeout_raises=True,
            # W&B notes the arguments of the process as they are
            x_disable_meta=redacted(" ".join(sys.argv)) != " ".join(sys.argv),
        ),
    }  # fmt: skip
    if mode == "online":
        try:
            return wandb.init(mode="online", **settings)
        except wandb.errors.Error as error:
            wandb.teardown()  # else the id is taken
            _say(f"no answer ({_first_line(error)}); logging offline")
    return wandb.init(mode="offline", **settings)


def _logged_in() -> bool:
    """Whether there is a key; asks no server, which may be down."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.errors.Error as error:
        _say(f"{_first_line(error)}; logging offline")
        return False


def _first_line(error: Exception) -> str:
    return redacted((str(error).splitlines() or [type(error).__name__])[0])


def by_change(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], metric: Metric = "wer"
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Scored lines of the same utterances, those first whose errors changed most."""
    old = {line["id"]: line for line in before}
    pairs = [(old[line["id"]], line) for line in after]

    def change(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> int:
        return tally(pair[1], metric).errors - tally(pair[0], metric).errors

    return sorted(pairs, key=lambda pair: (-abs(change(pair)), pair[1]["id"]))


def log_hypotheses(
    tracker: Tracker,
    step: int,
    name: str,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    audio: Mapping[str, tuple[Any, int]],
    metric: Metric = "wer",
) -> None:
    """A table of baseline and best step side by side, as `by_change` gives them, and a few to hear.

    `audio` holds waves and sample rates by utterance id; in a table W&B would not keep them offline.
    """
    if tracker.run is None:
        return
    import wandb

    columns: list[str | int] = [
        "id", "reference", "before", "after", "errors before", "errors after", KEYS[metric][1],
    ]  # fmt: skip
    rows = [
        [new["id"], new["reference"], old["hypothesis"], new["hypothesis"], tally(old, metric).errors,
         tally(new, metric).errors, tally(new, metric).length]
        for old, new in pairs[:SHOWN]
    ]  # fmt: skip
    heard = [
        wandb.Audio(*audio[new["id"]], caption=f"{new['id']}: {old['hypothesis']} → {new['hypothesis']}")
        for old, new in pairs
        if new["id"] in audio
    ]
    values = {f"{name}/hypotheses": wandb.Table(columns=columns, data=rows), f"{name}/audio": heard}
    with tracker.outlived():
        tracker.run.log(values, step=max(step, tracker.logged + 1))


def finish(
    tracker: Tracker,
    judged: Verdict | None = None,
    adapter: Path | None = None,
    failed: bool = False,
) -> bool:
    """Ends the run; returns False where not all of it reached the server.

    `judged` is verdict.json; `adapter`, a folder, is sent as an artifact.
    """
    if tracker.board is not None:
        tracker.board.finish()
    if tracker.run is None:
        return True
    import wandb

    with tracker.outlived():
        if judged is not None:
            tracker.run.summary.update(_summary(judged))
        if adapter is not None:
            artifact = wandb.Artifact(f"adapter-{tracker.run.id}", type="adapter")
            artifact.add_dir(str(adapter))
            tracker.run.log_artifact(artifact)
    with tracker.outlived():  # W&B keeps the last step to itself until then
        tracker.run.finish(exit_code=1 if failed else 0)
    return not tracker.lost


def _summary(judged: Verdict) -> dict[str, Any]:
    metric = judged.metric
    found: dict[str, Any] = {
        "verdict": judged.verdict, "reason": judged.reason, "best_step": judged.best_step, "metric": metric,
    }  # fmt: skip
    for name, one in judged.sets().items():
        change = "regression" if one.reduction is None else "reduction"
        for rate in (metric, "wer"):
            found |= {f"{name}/baseline_{rate}": one.baseline(rate), f"{name}/tuned_{rate}": one.tuned(rate)}
        found[f"{name}/{change}"] = getattr(one, change)
        found[f"{name}/{change}_low"], found[f"{name}/{change}_high"] = one.interval
    return found


def sync(runs: Sequence[Path], dry_run: bool = False) -> int:
    """Sends what no server has, by W&B's own command; returns its exit code.

    That command appends the attempts of one run to each other in the order of their starts. It sends a run to
    the project and under the id that it was logged with, whatever the environment says by now; WANDB_ENTITY
    says whose project it is.
    """
    paths = [str(path) for run in runs for path in unsent(run)]
    if not paths:
        return 0
    words = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", "--no-skip-online"]
    with _without(*IDENTITY, *PLACE, "WANDB_MODE", "WANDB_DISABLED", "WANDB_SWEEP_ID", "WANDB_PROJECT"):
        code = subprocess.run([*words, *(["--dry-run"] if dry_run else []), *paths]).returncode
    for run in runs:
        if code == 0 and not dry_run and read_run(run).wandb_unsent:
            kept = RunDirectory.reopen(run)
            kept.update(wandb_unsent=False)
            kept.lock.close()
    return code


def unsent(run: Path) -> list[Path]:
    """W&B's folders of a run that no server has: offline ones, and online ones that were cut off."""
    cut_off = read_run(run).wandb_unsent
    kinds = ["offline-run-*", *(["run-*"] if cut_off else [])]
    found = [path for kind in kinds for path in sorted((run / "wandb").glob(kind)) if path.is_dir()]
    return [path.resolve() for path in found if not list(path.glob("*.synced"))]


def workspace(entity: str, project: str, group: str | None, metric: Metric = "wer") -> Any:
    """A W&B workspace that compares a sweep; its `save` writes it there.

    Raises UserError where the library for it is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError:
        raise UserError(
            "asrlora track workspace needs W&B's library wandb-workspaces: uv sync --extra workspaces"
        ) from None
    settings = ("learning_rate", "max_steps", "lora_r", "use_dora", "seed")
    rates = (f"domain/tuned_{metric}", f"heldout/tuned_{metric}")
    columns = [
        *(
            panels.ParallelCoordinatesPlotColumn(panels.Config(name), log=name == "learning_rate")
            for name in settings
        ),
        *(panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(name), inverted=True) for name in rates),
    ]
    change = panels.SummaryMetric("domain/reduction"), panels.SummaryMetric("heldout/regression")
    sections = [
        workspaces.Section("Sweep", is_open=True, panels=[
            panels.ParallelCoordinatesPlot(columns=columns, title=f"settings against both {metric.upper()}s"),
            panels.ScatterPlot(x=change[0], y=change[1], title="what is won, and at what cost"),
        ]),
        workspaces.Section("Curves", is_open=True, panels=[
            panels.LinePlot(x="Step", y=[name], title=name)
            for name in ("train/loss", f"{metric}/domain", f"{metric}/heldout")
        ]),
    ]  # fmt: skip
    chosen = workspaces.RunsetSettings(filters=f"Metric('group') == '{group}'" if group else "")
    name = f"asrlora {group}" if group else "asrlora"
    return workspaces.Workspace(entity, project, name, sections=sections, runset_settings=chosen)
