"""What a run keeps while the loop goes on: evaluations, the best adapter, the record."""

import contextlib
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.console import Advance, console, progress
from asrlora.data import audio, manifest
from asrlora.data.audit import Audit
from asrlora.data.shards import Shards
from asrlora.engine import launcher
from asrlora.engine.evaluate import Hypothesis, evaluate
from asrlora.engine.runtime import Runtime
from asrlora.models import adapters, decode
from asrlora.models.families import Base
from asrlora.runs import record, report, tracking
from asrlora.score import text, verdict, wer


class Run:
    """One run's evaluations, best adapter and record, as the loop sees them.

    Everything is called by all ranks; only rank 0 writes.
    """

    def __init__(self, config: RunConfig, runtime: Runtime, base: Base, data: dict[str, Shards]) -> None:
        self.config, self.runtime, self.base, self.data = config, runtime, base, data
        self.record: record.RunRecord | None = None
        self.tracker: Any = None
        self.initial: Path | None = None
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

    def open(self, audit: Audit, training: Shards, left_out: Counter[str]) -> None:
        self.fingerprint = {
            "audio": audio.FINGERPRINT,
            "text": text.FINGERPRINT,
            "decode": {**decode.fingerprint(self.base), "batch_seconds": self.config.eval_batch_seconds},
            "base": self.base.sha256,
            **{f"{name} manifest": data.content for name, data in self.data.items()},
        }
        described = manifest.describe(len(training.samples), left_out)
        self.tell(f"training set: {described}, {training.seconds / 3600:.2f} h")
        for finding in audit.findings:
            self.tell(f"audit: {finding.message}")
        for name, data in self.data.items():
            if data.rejected:
                self.tell(f"{name}: left out {dict(data.rejected)}")
        if not self.runtime.is_main:
            return
        settings = self.config.model_dump(mode="json")
        self.record = record.RunRecord.create(
            self.config.output_dir,
            command=launcher.command_as_typed(),
            config=settings,
            fingerprint=self.fingerprint,
            world_size=self.runtime.world_size,
            launch=self.runtime.kind,
            data={"train": described, "train manifest": training.content, "audit": audit.as_json()},
            best_step=0,
        )
        record.write_whole(self.config.output_dir / "config.yaml", self.config.to_yaml())
        self.tracker = tracking.start(self.config.wandb_mode, self.config.output_dir, settings)
        if self.tracker is not None:
            self.record.update(wandb_id=self.tracker.id)

    def keep_initial(self, model: Any) -> None:
        """Step 0 is a candidate for the best adapter like any other: it changes nothing."""
        if self.record is None:
            return
        if adapters.rewrites_base(self.config):
            self.initial = self.config.output_dir / "adapter_initial"
            adapters.save_initial(model, self.initial)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.record.update(trained_parameters=trained)
        self._save_best(model)

    def evaluate(self, step: int, model: Any) -> None:
        """Scores all sets; keeps the adapter where it is the best inside the guardrail."""
        self._spent("training" if step else "start and shards")
        self._bar.close()
        self._advance = None
        results: dict[str, list[Hypothesis] | None] = {}
        total = sum(data.seconds for data in self.data.values())
        start = time.monotonic()
        with progress(f"evaluation at step {step}", total, self.runtime.is_main) as advance:
            for name, data in self.data.items():
                results[name] = evaluate(
                    self.runtime, model, self.base, data, self.config.eval_batch_seconds, advance
                )
        seconds = time.monotonic() - start
        # rank 0 decides, all ranks follow
        wers: dict[str, float] = self.runtime.from_main(
            {name: wer.total(h.counts for h in found or []).wer for name, found in results.items()}
        )
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
        self.tell(
            f"step {step}: "
            + ", ".join(f"{name} WER {value:.2%}" for name, value in wers.items())
            + f" ({total / seconds:,.0f} audio-s/s)"
            + (", best so far" if best else "")
        )
        if self.stopped:
            self.tell(self.stopped)
        self._spent("evaluations" if step else "baseline")
        if self.record is None:
            return
        scores: dict[str, Any] = {"step": step, "fingerprint": self.fingerprint, "seconds": round(seconds, 2)}
        lines = {name: [asdict(h) for h in found or []] for name, found in results.items()}
        for name, found in results.items():
            counts = wer.total(h.counts for h in found or [])
            scores[name] = {"wer": counts.wer, **asdict(counts), "utterances": len(found or [])}
        self.record.write_evaluation(step, lines, scores)
        tracking.log(self.tracker, step, {f"wer/{name}": value for name, value in wers.items()})
        if best:
            self._save_best(model)
            self.record.update(best_step=step)

    def _save_best(self, model: Any) -> None:
        folder = self.config.output_dir / "adapter_best"
        adapters.save(model, folder, self.initial)
        adapters.check_saved(model, self.base, folder, self.config.model_id)

    def log(self, step: int, audio_seconds: float, **values: float) -> None:
        if self.record is None:
            return
        self.record.log({"step": step, "audio_seconds": round(audio_seconds, 3), **values})
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
        self.record.update(stage_seconds=stages)
        self.record.end("complete", self.stopped)
        self.tell(f"verdict: {judged['verdict']}. {judged['reason']}")
        page = report.write_report(self.config.output_dir)
        self.tell(f"report: {page}")
        for name in self.data:
            path = record.step_folder(self.config.output_dir, judged["best_step"]) / f"{name}.jsonl"
            tracking.log_hypotheses(self.tracker, f"{name}/hypotheses", record.read_lines(path))
        tracking.finish(self.tracker, judged)

    def fail(self, error: BaseException) -> None:
        self._bar.close()
        if self.record is not None:
            self.record.end("failed", f"{type(error).__name__}: {error}")
            tracking.finish(self.tracker, None, failed=True)
