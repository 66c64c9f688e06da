"""What rank 0 keeps during a run: messages, metrics, progress, W&B and the record. Other ranks have a
recorder that keeps nothing, so that the loop need not ask which rank it is on.
"""

import contextlib
import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.console import Advance, console, progress, steps_bar
from asrlora.data.loader import padding
from asrlora.data.plan import Cost
from asrlora.engine import launcher, logs, memory
from asrlora.engine.runtime import Runtime
from asrlora.engine.selection import Selection
from asrlora.engine.step import StepResult, learning_rate
from asrlora.engine.training_set import StepData
from asrlora.engine.watchdog import Failure
from asrlora.errors import UserError
from asrlora.record import diagnosis, run_dir, status
from asrlora.record.schema import Scores, Verdict
from asrlora.storage import sync, write_atomic
from asrlora.tracking import sinks

LOGS = ("metrics.jsonl", "nonfinite.jsonl")
STAGES = ("start and shards", "baseline", "adapter", "training", "evaluations", "checkpoints")
RATE_STEPS = 50  # steps whose mean speed is shown


class ShownSteps:
    """The steps of the loop as a person follows them: a bar on a terminal, else a line for one in twenty."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self._bar = contextlib.ExitStack()  # evaluations have their own bar in between
        self._show: Callable[[str], None] | None = None
        # (audio-seconds, those with padding, moment) of the last steps
        self._window: list[tuple[float, float, float]] = []

    def close(self) -> None:
        """Takes the bar off the terminal, until the next step."""
        self._bar.close()
        self._show = None

    def step(self, entry: Mapping[str, Any], shown: status.Progress) -> None:
        """Shows a step from its line of metrics.jsonl, and puts it into progress.json."""
        step = entry["step"]
        audio = entry["audio_seconds"]
        of_step = audio, audio / (1 - entry["padding"]), time.monotonic()
        self._window = [*self._window[-(RATE_STEPS - 1) :], of_step]
        values: dict[str, Any] = {
            "stage": "training",
            "step": step,
            "max_steps": self.max_steps,
            "loss": entry["loss"],
            "data_wait": entry["data_wait"],
            "step_seconds": entry["seconds"],
        }
        if len(self._window) > 1:
            spent = max(self._window[-1][2] - self._window[0][2], 1e-9)
            audio, padded, _ = (sum(column) for column in zip(*self._window[1:], strict=True))
            values |= {"rate": audio / spent, "padded_rate": padded / spent}
            values["seconds_left"] = (self.max_steps - step) * spent / (len(self._window) - 1)
        shown.update(**values)
        line = status.line(shown.values)
        if console.is_terminal:
            if self._show is None:
                self._window = self._window[-1:]  # the evaluation before it is no step
                self._show = self._bar.enter_context(steps_bar(self.max_steps, step - 1))
            self._show(line)
        elif step % max(1, self.max_steps // 20) == 0:
            console.print(line)


class Recorder:
    """Rank 0's recorder."""

    record: run_dir.RunDirectory  # from `create_or_resume` on

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.folder = config.output_dir
        self.resumed = False  # whether an earlier attempt began this run
        self.tracker = sinks.Tracker()
        self.progress = status.Progress(self.folder)
        self.stages = dict.fromkeys(STAGES, 0.0)  # seconds
        self.step_seconds = 0.0  # of the last step
        self._booked = time.monotonic() - launcher.process_age()
        self._shown = ShownSteps(config.max_steps)

    def message(self, text: str) -> None:
        """Prints a line."""
        console.print(text)

    def book(self, stage: str) -> None:
        """Books the time since the last call on `stage`, for the table of stages."""
        now = time.monotonic()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._booked
        self._booked = now

    # --- opening

    def create_or_resume(
        self, same: dict[str, Any], audit: dict[str, Any], tags: list[str], **identity: Any
    ) -> bool:
        """Opens the run directory; returns whether it holds a run to resume.

        `same` must be what the run began with; `audit` and `identity` are noted when it begins; `tags` are
        for W&B.
        """
        resumed = self.config.resume == "auto" and (self.folder / "run.json").exists()
        if resumed:
            self.record = run_dir.RunDirectory.reopen(self.folder, **same)
            run_dir.check_resumable(self.config)  # again: now that it is locked
            if self.record.identity.state == "running":
                self.message(f"the attempt before this one {run_dir.LOST}")
        else:
            self.record = run_dir.RunDirectory.create(
                self.folder,
                command=launcher.command_as_typed(),
                config=self.config.model_dump(mode="json"),
                **_launch(self.runtime),
                best_step=0,
                **identity,
                **same,
                audit=audit,
            )
            write_atomic(self.folder / "config.yaml", self.config.to_yaml())
        # before anything is taken back, so that no step is sent twice
        self.tracker = sinks.start(self.config, self.record, tags)
        return resumed

    def opened(self, resumed: bool) -> None:
        """The run directory is open; `resumed` where an earlier attempt began the run."""
        self.resumed = resumed

    def begin_attempt(self, step: int) -> None:
        """Takes back what was written after optimizer step `step`, from which this attempt continues."""
        self.record.rewind(step)
        self.record.begin_attempt(step, command=launcher.command_as_typed(), **_launch(self.runtime))

    # --- the loop

    def close_bar(self) -> None:
        """Takes the training bar off the terminal, until the next step."""
        self._shown.close()

    @contextlib.contextmanager
    def evaluating(self, step: int, total: float) -> Iterator[Advance]:
        """Shows the progress of an evaluation of `total` audio-seconds; yields what takes finished ones."""
        stage = f"evaluation at step {step}"
        with progress(stage, total) as show:

            def advance(seconds: float) -> None:
                show(seconds)
                self.progress.update(stage=stage)

            yield advance

    def log_evaluation(
        self,
        step: int,
        scores: Scores,
        rates: Mapping[str, float],
        selection: Selection,
        new: bool,
    ) -> None:
        """Puts error rates into progress.json and, where they are `new`, sends them to W&B."""
        if new:
            values = _tracked(scores, rates, selection, self.config.max_heldout_regression)
            self.tracker.log_evaluation(step, values)
        self.progress.update(
            stage="training",
            wers=rates,
            baseline=selection.baseline,
            metric=selection.metric,
            max_heldout_regression=self.config.max_heldout_regression,
        )

    def log_step(self, step: int, data: StepData, result: StepResult, seconds: float, cost: Cost) -> None:
        """Notes a step that took so many seconds in metrics.jsonl, W&B and progress.json."""
        self.step_seconds = seconds
        audio_seconds = sum(sample.duration for sample in data.samples)
        ids = "\n".join(sample.id for sample in data.samples)
        entry: dict[str, Any] = {
            "step": step,
            "audio_seconds": round(audio_seconds, 3),
            # equal digests: equal utterances in equal order
            "read": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "adapter_norm": result.adapter_norm,
            "tokens": result.tokens,
            "epoch": data.epoch,
            "learning_rate": learning_rate(self.config, step),
            "data_wait": sum(batch.waited for batch in data.batches) / seconds,
            "padding": padding(data.batches, cost),
            "seconds": round(seconds, 4),
            "memory_gib": round(memory.peak_bytes(self.runtime.device) / 2**30, 3),
        }
        rates = {f"{name}_per_second": entry[name] / seconds for name in ("tokens", "audio_seconds")}
        # first, so that a kill leaves no step in metrics.jsonl that W&B does not have
        self.tracker.log(step, {f"train/{name}": value for name, value in {**entry, **rates}.items()})
        self.record.log(entry)
        self._shown.step(entry, self.progress)

    def record_nonfinite(self, step: int, data: StepData, result: StepResult) -> None:
        """Notes a step whose loss or gradient was not finite: no rank has applied it."""
        found = result.describe()
        self.message(f"step {step} was not applied: {found}; its utterances are in nonfinite.jsonl")
        entry = {"step": step, "told": found, "utterances": [sample.id for sample in data.samples]}
        self.record.log(entry, "nonfinite.jsonl")

    def sync_logs(self) -> None:
        """Puts the logs of steps on the disk. After a power loss they must reach as far as a checkpoint."""
        for path in (self.folder / name for name in LOGS):
            if path.exists():
                sync(path)
        sync(self.folder)

    # --- the end

    def preempted(self, step: int) -> None:
        """The end of an attempt that was asked to stop; `asrlora/train.py --resume auto` continues it."""
        self.close_bar()
        reason = f"stopped at step {step} on request; continue with --resume auto"
        if gave_up := run_dir.gave_up():
            reason = f"{gave_up}; {reason}"
        self.record.end("preempted", reason)
        self.message(reason)
        self.finish_tracking(failed=True)

    def refused(self, error: UserError) -> None:
        """The end of a run in which all ranks have found the same mistake."""
        self._end_failed(f"{type(error).__name__}: {error}")
        self.end_tracking()

    def explain(self, error: BaseException) -> BaseException:
        """A UserError where the run directory cannot be written any more; any other error as it is."""
        if isinstance(error, OSError) and (
            error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            or str(self.folder) in str(error.filename)
        ):
            return UserError(
                f"--output-dir {self.folder} cannot be written ({error}); correct that, and"
                " continue with --resume auto"
            )
        return error

    def failed(self, failure: Failure, ours: bool) -> None:
        """Records why the run ends; `ours`: this rank was the first to declare it. From any thread."""
        if self.folder.exists():
            self._end_failed(failure.reason)

    def _end_failed(self, reason: str) -> None:
        self.record.end("failed", reason)
        self.record.update(diagnosis=diagnosis.of_run(self.folder))

    def end_tracking(self) -> None:
        """Ends W&B's run and the bar of a run that has failed: what may take seconds, in the main thread."""
        self.close_bar()
        with contextlib.suppress(OSError):  # the run directory may be what has failed
            self.finish_tracking(failed=True)

    def finish_tracking(
        self, judged: Verdict | None = None, adapter: Path | None = None, failed: bool = False
    ) -> None:
        """Ends W&B's run, with the verdict and, as an artifact, the folder of an adapter."""
        self.progress.write()
        if not self.tracker.finish(judged, adapter, failed):
            self.record.update(wandb_unsent=True)
            self.message(f"W&B did not take all; later: uv run asrlora track sync {self.folder}")


class NullRecorder(Recorder):
    """The recorder of every other rank: keeps nothing. What the rank prints goes to a file of its own."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self.config, self.runtime, self.folder = config, runtime, config.output_dir
        self.resumed = False
        self._to_terminal: Callable[[], None] = lambda: None

    def _nothing(self, *args: Any, **named: Any) -> None:
        """Rank 0 does it."""

    message = book = close_bar = log_evaluation = log_step = record_nonfinite = _nothing
    preempted = end_tracking = _nothing

    @contextlib.contextmanager
    def evaluating(self, step: int, total: float) -> Iterator[Advance]:
        """Shows nothing."""
        yield lambda seconds: None

    def opened(self, resumed: bool) -> None:
        """From here on what this process prints goes to logs/rank-N.log."""
        self.resumed = resumed
        self._to_terminal = logs.into_file(self.folder / "logs" / f"rank-{self.runtime.rank}.log")

    def refused(self, error: UserError) -> None:
        """Gives the terminal back, for what the launcher prints; rank 0 records the error."""
        self._to_terminal()

    def failed(self, failure: Failure, ours: bool) -> None:
        """Gives the terminal back; records a failure of rank 0, which cannot do so any more."""
        self._to_terminal()
        if ours and failure.rank == 0:
            run_dir.note_failure(self.folder, failure.reason)


def _launch(runtime: Runtime) -> dict[str, Any]:
    """How a run's processes came up, for its record."""
    return {
        "world_size": runtime.world_size,
        "launch": runtime.strategy.name,
        "threads": runtime.threads.as_json(),
    }


def _tracked(
    scores: Scores, rates: Mapping[str, float], selection: Selection, max_regression: float
) -> dict[str, float]:
    """What W&B gets of an evaluation: rates and changes with intervals, and the guardrail."""
    metric, values = selection.metric, dict[str, float]()
    for name in rates:
        one = scores.sets[name]
        values[f"{metric}/{name}"] = one.rate(metric)
        for key, ends in (("interval", one.interval), ("change_interval", one.change_interval)):
            for end, value in zip(("low", "high"), ends or (), strict=False):
                values[f"{metric}/{name}_{key}_{end}"] = value
    if "heldout" in selection.baseline:
        values[f"{metric}/guardrail"] = selection.baseline["heldout"] + max_regression
    return values
