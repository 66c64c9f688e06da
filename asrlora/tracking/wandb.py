"""Weights & Biases: the only module that knows it. Everything sent is also in the run directory."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.errors import UserError, first_line
from asrlora.record.run_dir import RunDirectory, read_run, redacted
from asrlora.record.schema import RunRecord, Verdict, WandbPlace
from asrlora.score.metric import KEYS, Metric, tally

PROJECT = "asrlora"
TABLE_ROWS = 200  # utterances in a W&B table, the most changed ones; all of them are in the run directory
INIT_TIMEOUT = 10  # seconds for a server to answer at the start; then the run is an offline one
FINISH_TIMEOUT = 30  # seconds to send what is left at the end; the rest stays on disk, for `track sync`
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
MODES = {  # by WANDB_MODE, which has two names for two of them
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


def start(config: RunConfig, identity: RunRecord, tags: Sequence[str]) -> Any:
    """W&B's run for the run that `identity`, its run.json, describes; None where switched off.

    Where neither --wandb-mode nor the environment says how: online where logged in. A server that does not
    answer within INIT_TIMEOUT makes an offline run of it. A run directory is one W&B run, in the project
    where it began, which every attempt continues, whatever the environment says by then.
    """
    mode = chosen_mode(config.wandb_mode)
    if mode == "disabled":
        return None
    with _without(*IDENTITY, *PLACE) as ignored:
        run = _start(config, identity, tags, mode)
    reasons = {
        IDENTITY: f"each run directory is a W&B run of its own; this one is {run.id}",
        PLACE: f"W&B's files are in {config.output_dir}, for `track sync`",
    }
    for names, reason in reasons.items():
        if named := ", ".join(f"{name}={ignored[name]}" for name in names if name in ignored):
            _say(f"{named} not followed: {reason}")
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
    before, earlier = identity.wandb, _earlier_id(config.output_dir, identity)
    project, entity = (before.project, before.entity) if before else (None, None)
    if before is None and identity.wandb_id:  # of a version that did not keep its project
        project = PROJECT
    typed = " ".join(sys.argv)
    settings: dict[str, Any] = {
        "project": project or environment.get("WANDB_PROJECT") or PROJECT,
        "entity": entity or environment.get("WANDB_ENTITY") or None,
        "name": environment.get("WANDB_NAME") or config.output_dir.resolve().name,
        "dir": config.output_dir,
        "group": environment.get("WANDB_RUN_GROUP") or environment.get("ASRLORA_SWEEP"),
        "job_type": environment.get("WANDB_JOB_TYPE") or environment.get("ASRLORA_PHASE", "train"),
        "tags": [*tags, *filter(None, environment.get("WANDB_TAGS", "").split(","))],
        "id": earlier,
        "resume": "allow" if earlier else None,
        "config": _settings(identity),
        "settings": wandb.Settings(
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            x_disable_meta=redacted(typed) != typed,  # W&B notes the arguments of the process as they are
        ),
    }
    if (mode or ("online" if _logged_in() else "offline")) == "online":
        try:
            return wandb.init(mode="online", **settings)
        except wandb.errors.Error as error:
            wandb.teardown()  # else the id is taken
            _say(f"no answer ({first_line(error)}); logging offline")
    return wandb.init(mode="offline", **settings)


def _settings(identity: RunRecord) -> dict[str, Any]:
    """What W&B shows as the configuration of a run."""
    return {
        **identity.config.as_json(),
        "fingerprint": identity.fingerprint,
        "git_commit": identity.git_commit,
        "command": identity.command,
        "world_size": identity.world_size,
        "launch": identity.launch,
        "slurm": {name: os.environ[name] for name in SLURM if name in os.environ},
    }


def _logged_in() -> bool:
    """Whether there is a key; asks no server, which may be down."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.errors.Error as error:
        _say(f"{first_line(error)}; logging offline")
        return False


class WandbSink:
    """A W&B run of ours, as sinks.Tracker calls it.

    An error of W&B's own is reported once, and the run continues without it.
    """

    takes_hypotheses = True

    def __init__(self, run: Any, logged: int = -1) -> None:
        """`logged`: steps up to here were sent by an earlier attempt, since W&B's steps only go up."""
        self.run, self.logged = run, logged
        self.lost = False  # W&B has failed us

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """Around calls of W&B."""
        try:
            yield
        except Exception as error:
            if not self.lost:
                _say(f"{first_line(error)}; the run goes on without it")
            self.lost = True

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends what an earlier attempt has not sent."""
        if step > self.logged and not self.lost:
            with self._survived():
                self.run.log(dict(values), step=step)

    def log_hypotheses(
        self,
        step: int,
        name: str,
        pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
        audio: Mapping[str, tuple[Any, int]],
        metric: Metric,
    ) -> None:
        """A table of both hypotheses side by side, and some audio.

        The audio is beside the table: in it W&B would not keep it offline.
        """
        import wandb

        columns: list[str | int] = [
            *("id", "reference", "before", "after", "errors before", "errors after"),
            KEYS[metric][1],
        ]
        rows, examples = [], []
        for old, new in pairs[:TABLE_ROWS]:
            before, after = tally(old, metric), tally(new, metric)
            texts = [new["id"], new["reference"], old["hypothesis"], new["hypothesis"]]
            rows.append([*texts, before.errors, after.errors, after.length])
        for old, new in pairs:
            if new["id"] in audio:
                caption = f"{new['id']}: {old['hypothesis']} → {new['hypothesis']}"
                examples.append(wandb.Audio(*audio[new["id"]], caption=caption))
        table = wandb.Table(columns=columns, data=rows)
        with self._survived():
            self.run.log({f"{name}/hypotheses": table, f"{name}/audio": examples}, step=step)

    def finish(
        self, judged: Verdict | None = None, adapter: Path | None = None, failed: bool = False
    ) -> bool:
        """Sends the verdict's numbers and the adapter as an artifact; False where not all got there."""
        import wandb

        with self._survived():
            if judged is not None:
                self.run.summary.update(summary(judged))
            if adapter is not None:
                artifact = wandb.Artifact(f"adapter-{self.run.id}", type="adapter")
                artifact.add_dir(str(adapter))
                self.run.log_artifact(artifact)
        with self._survived():  # W&B keeps the last step to itself until then
            self.run.finish(exit_code=1 if failed else 0)
        return not self.lost


def summary(judged: Verdict) -> dict[str, Any]:
    """Verdict, rates and changes with intervals for W&B's summary; `learned/` of a step that was not kept."""
    metric = judged.metric
    found: dict[str, Any] = {
        "verdict": judged.verdict,
        "reason": judged.reason,
        "best_step": judged.best_step,
        "metric": metric,
    }
    sets = judged.sets()
    if judged.rescue:
        found["strength"] = judged.rescue.strength
    if judged.learned:
        found["learned_step"] = judged.learned.step
        sets |= {f"learned/{name}": one for name, one in judged.learned.sets().items()}
    for name, one in sets.items():
        change = "reduction" if one.has_reduction else "regression"
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
    names = ("learning_rate", "max_steps", "lora_r", "use_dora", "seed")
    rates = (f"domain/tuned_{metric}", f"heldout/tuned_{metric}")
    column = panels.ParallelCoordinatesPlotColumn
    columns = [column(panels.Config(name), log=name == "learning_rate") for name in names]
    columns += [column(panels.SummaryMetric(name), inverted=True) for name in rates]
    plots = [
        panels.ParallelCoordinatesPlot(columns=columns, title=f"settings against both {metric.upper()}s"),
        panels.ScatterPlot(
            x=panels.SummaryMetric("domain/reduction"),
            y=panels.SummaryMetric("heldout/regression"),
            title="what is won, and at what cost",
        ),
    ]
    logged = ("train/loss", f"{metric}/domain", f"{metric}/heldout")
    curves = [panels.LinePlot(x="Step", y=[name], title=name) for name in logged]
    sections = [
        workspaces.Section("Sweep", is_open=True, panels=plots),
        workspaces.Section("Curves", is_open=True, panels=curves),
    ]
    chosen = workspaces.RunsetSettings(filters=f"Metric('group') == '{group}'" if group else "")
    title = f"asrlora {group}" if group else "asrlora"
    return workspaces.Workspace(entity, project, title, sections=sections, runset_settings=chosen)
