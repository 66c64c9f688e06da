"""What a run keeps while the loop goes on: evaluations, the best adapter, the record."""

import contextlib
import errno
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from asrlora.config import RunConfig
from asrlora.console import Advance, console, progress
from asrlora.data import manifest
from asrlora.data.audit import baseline
from asrlora.data.findings import Audit
from asrlora.data.shards import Sample, Shards
from asrlora.engine import checkpoint, launcher
from asrlora.engine.checkpoint import Checkpoint
from asrlora.engine.evaluate import Hypothesis, evaluate, fingerprint, summary
from asrlora.engine.runtime import Runtime
from asrlora.engine.step import StepResult
from asrlora.errors import UserError
from asrlora.models import adapters
from asrlora.models.families import Base
from asrlora.runs import diagnosis, pruning, record, report, tracking
from asrlora.score import verdict


class Run:
    """One run's evaluations, best adapter and record, as the loop sees them.

    Everything is called by all ranks; only rank 0 writes.
    """

    def __init__(self, config: RunConfig, runtime: Runtime, base: Base, data: dict[str, Shards]) -> None:
        self.config, self.runtime, self.base, self.data = config, runtime, base, data
        self.record: record.RunRecord | None = None
        self.tracker: Any = None
        self.initial = config.output_dir / "adapter_initial" if adapters.rewrites_base(config) else None
        self.checkpoints = config.output_dir / "checkpoints"
        self.nonfinite = 0  # steps in a row
        self.step_seconds = 0.0  # of the last step
        self.baseline: dict[str, float] = {}
        self.best_step, self.best_wer = 0, float("inf")
        self.stopped: str | None = None
        self.stages = {"start and shards": 0.0, "baseline": 0.0, "training": 0.0, "evaluations": 0.0}
        self._mark = launcher.process_start()
        self._bar = contextlib.ExitStack()  # the training bar of a terminal; evaluations have their own
        self._advance: Advance | None = None
        self._window: list[tuple[float, float]] = []  # (audio-seconds, seconds) since the last line

    def _spent(self, stage: str) -> None:
        """Books the time since the last call on `stage`, for the table of stages."""
        now = time.time()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._mark
        self._mark = now

    def tell(self, message: str) -> None:
        if self.runtime.is_main:
            console.print(message)

    def open(self, found: Audit, training: Shards, left_out: Counter[str], texts: Sequence[str]) -> None:
        """`found` is the audit so far, and `texts` what the labels say; the baseline adds to the audit."""
        self.found, self.texts = found, texts
        self.fingerprint = {
            **fingerprint(self.base, self.config.eval_batch_seconds),
            **{f"{name} manifest": data.content for name, data in self.data.items()},
        }
        described = manifest.describe(len(training.samples), left_out)
        self.tell(f"training set: {described}, {training.seconds / 3600:.2f} h")
        for finding in found.findings:
            self.tell(f"audit: {finding.kind}: {finding.message}")
        for name, data in self.data.items():
            if data.rejected:
                self.tell(f"{name}: left out {dict(data.rejected)}")
        there = self.config.resume == "auto" and (self.config.output_dir / "run.json").exists()
        self.goes_on: bool = self.runtime.from_main(there)
        if self.runtime.is_main:
            same = {
                "fingerprint": self.fingerprint,
                "training": {"set": described, "content": training.content},
            }
            self.record = self._reopen(same) if self.goes_on else self._create(same)
            earlier = self.record.identity.get("wandb_id")
            settings = self.record.identity["config"]
            self.tracker = tracking.start(self.config.wandb_mode, self.config.output_dir, settings, earlier)
            if self.tracker is not None:
                self.record.update(wandb_id=self.tracker.id)
        self.runtime.watch_the_others(self._end_in_silence)

    def _create(self, same: dict[str, Any]) -> record.RunRecord:
        created = record.RunRecord.create(
            self.config.output_dir,
            command=launcher.command_as_typed(),
            config=self.config.model_dump(mode="json"),
            world_size=self.runtime.world_size,
            launch=self.runtime.kind,
            best_step=0,
            **same,
            audit=self.found.as_json(),
        )
        record.write_whole(self.config.output_dir / "config.yaml", self.config.to_yaml())
        return created

    def _reopen(self, same: dict[str, Any]) -> record.RunRecord:
        reopened = record.RunRecord.reopen(self.config.output_dir, **same)
        odd = self.config.differences(reopened.identity["config"])
        if odd:
            raise UserError(
                f"--resume auto: the run in {self.config.output_dir} was begun with other settings"
                f" ({'; '.join(odd)}); give the same, or start another run in a new --output-dir"
            )
        return reopened

    def load_checkpoint(self) -> Checkpoint | None:
        """Collective. The newest sound checkpoint; what was written after it is taken back.

        None where there is none: then all of the run is done again, the baseline excepted.
        """
        found = checkpoint.load_newest(self.checkpoints) if self.goes_on and self.runtime.is_main else None
        step = found.state.step if found else 0
        if self.record is not None:
            self.record.rewind(step)
            self.record.begin_attempt(
                step, command=launcher.command_as_typed(), world_size=self.runtime.world_size,
                launch=self.runtime.kind,
            )  # fmt: skip
        if self.goes_on:
            self.tell(f"going on after step {step}")
        return self.runtime.from_main(found)

    def begin(self, model: Any, found: Checkpoint | None) -> int:
        """Collective. The adapter as the checkpoint has it, or as initialised; returns the step done.

        Step 0 is a candidate for the best adapter like any other: it changes nothing.
        """
        if found is None:
            if self.record is not None:
                if self.initial is not None:
                    adapters.save_initial(model, self.initial)
                self.record.update(trained_parameters=sum(p.numel() for p in self.runtime.trained().values()))
                self._save_best(model)
            return 0
        self.runtime.restore(found.adapter, found.moments, found.state.step)
        self.best_step, self.best_wer = found.state.best_step, found.state.best_wer
        return found.state.step

    def save(self, step: int) -> None:
        """Collective. A checkpoint after optimizer step `step`, and the adapter if it is the best."""
        adapter, moments = self.runtime.state()
        if self.record is None:
            return
        start = time.monotonic()
        state = checkpoint.State(step, self.best_step, self.best_wer)
        checkpoint.save(self.checkpoints, Checkpoint(state, adapter, moments), self.config.keep_checkpoints)
        # After the checkpoint: an adapter_best that is newer than it could not be accounted for.
        if self.best_step == step:
            self._save_best(self.runtime.bare_model())
        self.record.update(best_step=self.best_step)
        self.runtime.reserve = 5 + 2 * (self.step_seconds + time.monotonic() - start)

    def evaluate(self, step: int, model: Any) -> bool:
        """Collective. Scores all sets; returns False where a rank was asked to stop meanwhile.

        Then nothing of it is kept, and the attempt that goes on begins with this evaluation. What an
        earlier attempt has finished is not done again.
        """
        self._spent("training" if step else "start and shards")
        self._bar.close()
        self._advance = None
        path = record.step_folder(self.config.output_dir, step) / "scores.json"
        scores = record.read_json(path) if self.goes_on and self.runtime.is_main and path.exists() else None
        scores = self.runtime.from_main(scores) or self._score(step, model)
        if scores is None:
            return False
        wers = {name: scores[name]["wer"] for name in self.data}
        if step == 0:
            self.baseline, self.best_wer = wers, wers["domain"]
        best = (
            step > 0
            and wers["domain"] < self.best_wer
            and verdict.within_guardrail(wers.get("heldout"), self.baseline.get("heldout"))
        )
        if best:
            self.best_step, self.best_wer = step, wers["domain"]
        limit = self.config.wer_stop_threshold
        for name, value in wers.items():
            if limit is not None and value > limit * self.baseline[name]:
                self.stopped = (
                    f"stopped at step {step}: {name} WER {value:.2%} passed {limit:g} times its"
                    f" baseline of {self.baseline[name]:.2%}"
                )
        rate = sum(data.seconds for data in self.data.values()) / max(scores["seconds"], 0.01)
        self.tell(
            f"step {step}: "
            + ", ".join(f"{name} WER {value:.2%}" for name, value in wers.items())
            + f" ({rate:,.0f} audio-s/s)"
            + (", best so far" if best else "")
        )
        if self.stopped is None:
            at = (step, self.config.max_steps, self.config.eval_interval)
            early = pruning.reason(self.config.output_dir, *at) if self.runtime.is_main else None
            self.stopped = self.runtime.from_main(early)
        if self.stopped:
            self.tell(self.stopped)
        tracking.log(self.tracker, step, {f"wer/{name}": value for name, value in wers.items()})
        self._spent("evaluations" if step else "baseline")
        return True

    def _score(self, step: int, model: Any) -> dict[str, Any] | None:
        """Collective. Evaluates all sets and writes hypotheses and scores; None where it was dropped."""
        results: dict[str, list[Hypothesis]] = {}
        total = sum(data.seconds for data in self.data.values())
        start = time.monotonic()
        with progress(f"evaluation at step {step}", total, self.runtime.is_main) as advance:
            for name, data in self.data.items():
                found = evaluate(
                    self.runtime, model, self.base, data, self.config.eval_batch_seconds, advance
                )
                if found is None:
                    return None
                results[name] = found
        scores: dict[str, Any] = {
            "step": step, "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - start, 2),
        }  # fmt: skip
        for name, hypotheses in results.items():
            scores[name] = summary(hypotheses)
        if self.record is not None:
            lines = {name: [asdict(h) for h in found] for name, found in results.items()}
            self.record.write_evaluation(step, lines, scores)
            if step == 0:
                self._audit_baseline(self.record, results)
        # rank 0 has counted, all ranks follow
        return self.runtime.from_main(scores)

    def _audit_baseline(self, kept: record.RunRecord, results: dict[str, list[Hypothesis]]) -> None:
        """Only rank 0: what the base writes, and how its errors vary, complete the audit."""
        found = baseline(self.found, self.texts, results)
        for finding in found.findings:
            if finding not in self.found.findings:
                self.tell(f"audit: {finding.kind}: {finding.message}")
        kept.update(audit=found.as_json())

    def _save_best(self, model: Any) -> None:
        folder = self.config.output_dir / "adapter_best"
        adapters.save(model, folder, self.initial)
        adapters.check_saved(model, self.base, folder, self.config.model_id)

    def skip(self, step: int, result: StepResult, samples: Sequence[Sample]) -> None:
        """Notes a step whose loss or gradient was not finite: no rank has applied it.

        Raises FloatingPointError, on all ranks alike, after too many of them in a row.
        """
        self.nonfinite = 0 if result.applied else self.nonfinite + 1
        if result.applied:
            return
        told = f"loss {result.loss}, gradient norm {result.grad_norm}"
        self.tell(f"step {step} was not applied: {told}; its utterances stand in nonfinite.jsonl")
        if self.record is not None:
            entry = {"step": step, "told": told, "utterances": [s.id for s in samples]}
            self.record.log(entry, "nonfinite.jsonl")
        if self.nonfinite >= self.config.max_nonfinite_steps:
            raise FloatingPointError(
                f"{self.nonfinite} steps in a row were not finite, the last one step {step} ({told});"
                " their utterances stand in nonfinite.jsonl"
            )

    def log(self, step: int, samples: Sequence[Sample], seconds: float, **values: float) -> None:
        """Notes a step that took so many seconds; `values` go to metrics.jsonl and W&B as they are."""
        self.step_seconds = seconds
        if self.record is None:
            return
        audio_seconds = sum(sample.duration for sample in samples)
        # equal digests: equal utterances in equal order
        read = hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest()[:16]
        self.record.log({"step": step, "audio_seconds": round(audio_seconds, 3), "read": read, **values})
        tracking.log(self.tracker, step, {f"train/{k}": v for k, v in values.items()})
        self._window.append((audio_seconds, time.monotonic()))
        if self._advance is None:
            left_to_do = self.config.eval_interval - (step - 1) % self.config.eval_interval
            bar = progress(f"training from step {step}", audio_seconds * left_to_do, console.is_terminal)
            self._advance = self._bar.enter_context(bar)
        self._advance(audio_seconds)
        if step % max(1, self.config.max_steps // 20) == 0 and len(self._window) > 1:
            spent = self._window[-1][1] - self._window[0][1]
            rate = sum(a for a, _ in self._window[1:]) / max(spent, 1e-9)
            left = (self.config.max_steps - step) * spent / (len(self._window) - 1)
            self.tell(
                f"step {step} of {self.config.max_steps}: loss {values['loss']:.4f} nats per token,"
                f" {rate:,.0f} audio-s/s, {left:.0f} s of training left"
            )
            self._window.clear()

    def finish(self) -> None:
        if self.record is None:
            return
        judged = record.judge_run(self.config.output_dir)
        self._spent("verdict")
        stages = {name: round(seconds, 1) for name, seconds in self.stages.items()}
        self.record.update(stage_seconds=stages, diagnosis=diagnosis.of_run(self.config.output_dir))
        self.tell(f"verdict: {judged['verdict']}. {judged['reason']}")
        page = report.write_report(self.config.output_dir)
        self.tell(f"report: {page}")
        for name in self.data:
            path = record.step_folder(self.config.output_dir, judged["best_step"]) / f"{name}.jsonl"
            tracking.log_hypotheses(self.tracker, f"{name}/hypotheses", record.read_lines(path))
        tracking.finish(self.tracker, judged)
        self.record.end("complete", self.stopped)  # last: an attempt that goes on would stop here

    def preempt(self, step: int) -> None:
        """The end of an attempt that was asked to stop; `asrlora/train.py --resume auto` goes on."""
        self._bar.close()
        if self.record is None:
            return
        reason = f"stopped at step {step} on request; go on with --resume auto"
        if gave_up := record.gave_up():
            reason = f"{gave_up}; {reason}"
        self.record.end("preempted", reason)
        self.tell(reason)
        tracking.finish(self.tracker, None, failed=True)

    def _end_in_silence(self, reason: str) -> None:
        print(f"asrlora: error: {reason}; the run ends", file=sys.stderr, flush=True)
        if self.record is not None:
            self.record.end("failed", reason)

    def explain(self, error: BaseException) -> BaseException:
        """A UserError where the run directory cannot be written any more; any other error as it is."""
        folder = str(self.config.output_dir)
        if isinstance(error, OSError) and (
            error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or folder in str(error.filename)
        ):
            return UserError(
                f"--output-dir {folder} cannot be written ({error}); mend that, and give --resume auto"
            )
        return error

    def fail(self, error: BaseException) -> None:
        self._bar.close()
        if self.record is not None:
            with contextlib.suppress(OSError):  # the directory may be what has failed
                if self.config.output_dir.exists():
                    self.record.end("failed", f"{type(error).__name__}: {error}")
                    self.record.update(diagnosis=diagnosis.of_run(self.config.output_dir))
            tracking.finish(self.tracker, None, failed=True)
