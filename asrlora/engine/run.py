"""What a run keeps while the loop goes on: evaluations, the best adapter, the record."""

import contextlib
import errno
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.console import console, progress, steps_bar
from asrlora.data import audio, manifest, windows
from asrlora.data.audit.checks import baseline
from asrlora.data.audit.findings import Audit
from asrlora.data.shards.index import Sample
from asrlora.data.shards.reader import Shards
from asrlora.engine import checkpoint, launcher, logs, longform
from asrlora.engine.checkpoint import Checkpoint
from asrlora.engine.evaluate import evaluate, fingerprint
from asrlora.engine.runtime import Runtime
from asrlora.engine.step import StepResult
from asrlora.engine.watchdog import Failure
from asrlora.errors import UserError
from asrlora.models import adapters
from asrlora.models.family import Base
from asrlora.record import diagnosis, run_dir, status
from asrlora.record.judge import judge_run
from asrlora.record.schema import Scores, SetScores, Verdict, read
from asrlora.report import alignment, page
from asrlora.score import bootstrap, degenerate, keyword_recall, metric, selection, text, verdict
from asrlora.score.scoring import Hypothesis, summary
from asrlora.sweep import pruning
from asrlora.tracking import sinks

HEARD = 8  # utterances of each set whose audio goes to W&B, the most changed ones


class Run:
    """One run's evaluations, best adapter and record, as the loop sees them.

    Everything is called by all ranks; only rank 0 writes.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        base: Base,
        data: dict[str, Shards],
        cuts: Mapping[str, longform.Cuts],
    ) -> None:
        """`data` are the evaluation sets, and `cuts` the windows of their long utterances, by set."""
        self.config, self.runtime, self.base, self.data, self.cuts = config, runtime, base, data, cuts
        self.criteria = verdict.Criteria.of(config)
        self.normaliser = text.normaliser(config.text_normaliser, config.language)
        chosen = metric.choose(config.metric, config.language)
        self.metric, self.why_metric = chosen.name, str(chosen)
        self.domain_words: frozenset[str] = frozenset()  # only on rank 0
        self.record: run_dir.RunDirectory | None = None
        self.tracker = sinks.Tracker()
        self.progress: status.Progress | None = None
        self.to_terminal: Callable[[], None] = lambda: None  # of a rank whose output goes to a file
        self.initial = config.output_dir / "adapter_initial" if adapters.rewrites_base(config) else None
        self.checkpoints = config.output_dir / "checkpoints"
        self._best = config.output_dir / "adapter_best"
        self.nonfinite = 0  # steps in a row
        self.step_seconds = 0.0  # of the last step
        self.baseline: dict[str, float] = {}
        self.best_step, self.best_wer = 0, float("inf")
        self.stopped: str | None = None
        self.stages = dict.fromkeys(
            ("start and shards", "baseline", "adapter", "training", "evaluations", "checkpoints"), 0.0
        )
        self._mark = time.monotonic() - launcher.process_age()
        self._bar = contextlib.ExitStack()  # the training bar of a terminal; evaluations have their own
        self._show: Callable[[str], None] | None = None
        self._window: list[tuple[float, float]] = []  # (audio-seconds, moment) of the last steps

    def _spent(self, stage: str) -> None:
        """Books the time since the last call on `stage`, for the table of stages."""
        now = time.monotonic()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._mark
        self._mark = now

    def tell(self, message: str) -> None:
        if self.runtime.is_main:
            console.print(message)

    def open(self, found: Audit, training: Shards, left_out: Counter[str], texts: Sequence[str]) -> None:
        """`found` is the audit so far, and `texts` what the labels say; the baseline adds to the audit."""
        self.found, self.texts = found, texts
        self.fingerprint = {
            **fingerprint(self.base, self.normaliser, self.metric, any(self.cuts.values())),
            **{f"{name} manifest": data.content for name, data in self.data.items()},
        }
        described = manifest.describe(len(training.samples), left_out)
        self.tell(f"training set: {described}, {training.seconds / 3600:.2f} h")
        for finding in found.findings:
            self.tell(f"audit: {finding.kind}: {finding.message}")
        self.tell(self.why_metric)
        self.tell(self._held_out())
        for name, data in self.data.items():
            if data.rejected:
                self.tell(f"{name}: left out {dict(data.rejected)}")
            if cuts := self.cuts[name]:
                how = windows.describe(longform.count(cuts), self.base.max_seconds)
                self.tell(f"{name}: {len(cuts):,} of {len(data.samples):,} utterances are {how}")
        self.goes_on: bool = self.runtime.on_main(
            "opening the run directory", lambda: self._open(described, training)
        )
        if not self.runtime.is_main:
            path = self.config.output_dir / "logs" / f"rank-{self.runtime.rank}.log"
            self.to_terminal = logs.into_file(path)
        self.runtime.report_to(self)

    def _open(self, described: str, training: Shards) -> bool:
        """Only rank 0. Creates the record, or opens that of a run to resume; returns which."""
        folder = self.config.output_dir
        self.goes_on = self.config.resume == "auto" and (folder / "run.json").exists()
        same = {
            "fingerprint": self.fingerprint,
            "training": {"set": described, "content": training.content},
        }
        if self.goes_on:
            self.record = run_dir.RunDirectory.reopen(folder, **same)
            run_dir.check_resumable(self.config)  # again: nobody else can change it any more
            if self.record.identity.state == "running":
                self.tell(f"the attempt before this one {run_dir.LOST}")
        else:
            self.record = self._create(same)
        self.domain_words = self._choose_words()
        self.progress = status.Progress(folder)
        self.tracker = self._track(self.record)
        return self.goes_on

    def _track(self, kept: run_dir.RunDirectory) -> sinks.Tracker:
        """Only rank 0. Before anything is taken back, so that no step is sent twice."""
        sent = [line["step"] for line in run_dir.read_log(self.config.output_dir / "metrics.jsonl")]
        adapter = "dora" if self.config.use_dora else "lora"
        run = sinks.start(self.config, kept.identity, [self.base.kind, adapter])
        if run is not None:
            kept.update(wandb_id=run.id, wandb=sinks.place(self.config, run))
        board = self.runtime.tensorboard(self.config.output_dir) if self.config.tensorboard else None
        return sinks.Tracker(run, board, max(sent, default=-1))

    def _create(self, same: dict[str, Any]) -> run_dir.RunDirectory:
        created = run_dir.RunDirectory.create(
            self.config.output_dir,
            command=launcher.command_as_typed(),
            config=self.config.model_dump(mode="json"),
            world_size=self.runtime.world_size,
            launch=self.runtime.kind,
            threads=self.runtime.threads.as_json(),
            best_step=0,
            metric=self.metric,
            held_out=self._held_out(),
            **same,
            audit=self.found.as_json(),
        )
        run_dir.write_atomic(self.config.output_dir / "config.yaml", self.config.to_yaml())
        return created

    def _held_out(self) -> str:
        """Which domain utterances have no say in which step is best, in a sentence."""
        if selection.REPORT in self.data:
            count = len(self.data[selection.REPORT].samples)
            return f"held out from choosing the step: {count:,} utterances of {self.config.report_manifest}"
        ids = [sample.id for sample in self.data["domain"].samples]
        out = selection.held_out(ids) if self.config.report_manifest == "auto" else ()
        if out:
            return (
                f"held out from choosing the step: {len(out):,} of {len(ids):,} domain utterances, by a hash"
                " of their ids"
            )
        return (
            "held out from choosing the step: no domain utterance"
            f" (--report-manifest {self.config.report_manifest}, {len(ids):,} utterances), so the domain"
            f" {self.metric.upper()} of the best step is optimistic"
        )

    def _choose_words(self) -> frozenset[str]:
        """Domain words, as the run began with them: other words would make its recalls incomparable."""
        path = self.config.output_dir / "domain_words.txt"
        if self.goes_on and path.exists():
            return frozenset(path.read_text(encoding="utf-8").split())
        spoken = {name: [sample.text for sample in data.samples] for name, data in self.data.items()}
        chosen = keyword_recall.choose(
            self.config.domain_words, self.config.general_text,
            spoken["domain"], spoken.get("heldout") if self.metric == "wer" else None, self.normaliser,
        )  # fmt: skip
        run_dir.write_atomic(path, "".join(f"{word}\n" for word in sorted(chosen)))
        return chosen

    def load_checkpoint(self) -> Checkpoint | None:
        """Collective. The newest sound checkpoint; what was written after it is taken back.

        None where there is none: then all of the run is done again, the baseline excepted.
        """
        found = self.runtime.on_main("loading the checkpoint", self._load_checkpoint)
        if self.goes_on:
            self.tell(f"going on after step {found.state.step if found else 0}")
        return found

    def _load_checkpoint(self) -> Checkpoint | None:
        assert self.record is not None
        found = checkpoint.load_newest(self.checkpoints) if self.goes_on else None
        step = found.state.step if found else 0
        self.record.rewind(step)
        self.record.begin_attempt(
            step, command=launcher.command_as_typed(), world_size=self.runtime.world_size,
            launch=self.runtime.kind, threads=self.runtime.threads.as_json(),
        )  # fmt: skip
        return found

    def begin(self, model: Any, found: Checkpoint | None) -> int:
        """Collective. The adapter as the checkpoint has it, or as initialised; returns the step done.

        Step 0 is a candidate for the best adapter like any other: it changes nothing.
        """
        if found is not None:
            state = found.state
            updates = state.step if state.updates < 0 else state.updates  # older ones do not say
            self.runtime.restore(found.adapter, found.moments, updates)
            self.best_step, self.best_wer = state.best_step, state.best_wer
            self.nonfinite = state.nonfinite
        self.runtime.on_main("saving the adapter as initialised", lambda: self._begin(model, found))
        self._spent("adapter")
        return found.state.step if found else 0

    def _begin(self, model: Any, found: Checkpoint | None) -> None:
        """Only rank 0."""
        assert self.record is not None
        self.frozen = adapters.digest_frozen(model)
        if found is None:
            if self.initial is not None:
                adapters.save_initial(model, self.initial)
            self.record.update(trained_parameters=sum(p.numel() for p in self.runtime.trained().values()))
            self._save_best(model)
            adapters.check_saved(model, self.base, self._best, self.config.model_id)

    def save(self, step: int) -> None:
        """Collective. A checkpoint after optimizer step `step`, and the adapter if it is the best."""
        self._spent("training")
        adapter, moments = self.runtime.state()
        self.runtime.on_main("saving a checkpoint", lambda: self._save(step, adapter, moments))

    def _save(self, step: int, adapter: checkpoint.Tensors, moments: checkpoint.Tensors) -> None:
        """Only rank 0."""
        assert self.record is not None
        start = time.monotonic()
        state = checkpoint.State(step, self.best_step, self.best_wer, self.runtime.updates, self.nonfinite)
        checkpoint.save(self.checkpoints, Checkpoint(state, adapter, moments), self.config.keep_checkpoints)
        self._spent("checkpoints")
        # After the checkpoint: an adapter_best that is newer than it could not be accounted for.
        if self.best_step == step:
            self._save_best(self.runtime.bare_model())
            self._spent("adapter")
        self.record.update(best_step=self.best_step)
        self.runtime.reserve = 5 + 2 * (self.step_seconds + time.monotonic() - start)

    def evaluate(self, step: int, model: Any) -> bool:
        """Collective. Scores all sets; returns False where a rank was asked to stop meanwhile.

        Then nothing of it is kept, and the attempt that goes on begins with this evaluation. What an
        earlier attempt has finished is not done again.
        """
        self._spent("training" if step else "start and shards")
        self._bar.close()
        self._show = None
        path = run_dir.step_folder(self.config.output_dir, step) / "scores.json"
        known = self.runtime.on_main(
            "reading scores",
            lambda: read(path, Scores) if self.goes_on and path.exists() else None,
        )
        scores = known or self._score(step, model)
        if scores is None:
            return False
        label = self.metric.upper()
        wers = {name: scores.sets[name].rate(self.metric) for name in self.data}
        chosen_on = scores.sets.get(selection.CHOSEN_ON, scores.sets["domain"]).rate(self.metric)
        if step == 0:
            self.baseline, self.best_wer = wers, chosen_on
        guardrails = {name: wers[name] for name in self.config.guardrails}
        best = step > 0 and selection.is_better(
            chosen_on, self.best_wer, guardrails, self.baseline, self.criteria
        )
        if best:
            self.best_step, self.best_wer = step, chosen_on
        limit = self.config.wer_stop_threshold
        for name, value in {"domain": wers["domain"], **guardrails}.items():
            if limit is not None and value > limit * self.baseline[name]:
                self.stopped = (
                    f"stopped at step {step}: {name} {label} {value:.2%} passed {limit:g} times its"
                    f" baseline of {self.baseline[name]:.2%}"
                )
        compared = status.against_baseline(wers, self.baseline, self.config.max_heldout_regression)
        self.tell(
            f"step {step}: {label} {compared}"
            + f" ({scores.rtfx:,.0f} audio-s/s)"
            + (", best so far" if best else "")
        )
        for name in self.data:
            if strange := degenerate.told(scores.sets[name].as_json()):
                self.tell(f"{name}: of the hypotheses {strange}")
        if self.stopped is None:
            at = (step, self.config.max_steps, self.config.eval_interval)
            self.stopped = self.runtime.on_main(
                "asking whether to prune", lambda: pruning.reason(self.config.output_dir, *at)
            )
        if self.stopped:
            self.tell(self.stopped)
        if known is None:
            self.tracker.log(max(step, self.tracker.logged + 1), self._told(scores.sets))
        if self.progress is not None:
            self.progress.tell(
                stage="training", wers=wers, baseline=self.baseline, metric=self.metric,
                max_heldout_regression=self.config.max_heldout_regression,
            )  # fmt: skip
        self._spent("evaluations" if step else "baseline")
        return True

    def unexpected(self) -> UserError | None:
        """Why nothing is to be trained: the base is not the one that is known. The same on all ranks."""
        expected, tolerance = self.config.expect_baseline, self.config.baseline_tolerance
        wer = self.baseline["domain"]
        # rounded: 0.1178 is 0.001 from 0.1168, which floats deny
        if expected is None or round(abs(wer - expected), 9) <= tolerance:
            return None
        return UserError(
            f"--expect-baseline {expected:g}: the base has a domain {self.metric.upper()} of {wer:.2%} and"
            f" not of {expected:.2%}, to within {100 * tolerance:.2f} points, so nothing is trained; look for"
            f" another --model-id, manifest, normaliser or --language, or expect {wer:.4f}"
        )

    def _told(self, scores: Mapping[str, SetScores]) -> dict[str, float]:
        """What W&B gets of an evaluation: rates and changes with intervals, and the guardrail."""
        told = {}
        for name in self.data:
            one = scores[name]
            told[f"{self.metric}/{name}"] = one.rate(self.metric)
            for key, ends in (("interval", one.interval), ("change_interval", one.change_interval)):
                for end, value in zip(("low", "high"), ends or (), strict=False):
                    told[f"{self.metric}/{name}_{key}_{end}"] = value
        if "heldout" in self.baseline:
            limit = self.baseline["heldout"] + self.config.max_heldout_regression
            told[f"{self.metric}/guardrail"] = limit
        return told

    def _score(self, step: int, model: Any) -> Scores | None:
        """Collective. Evaluates all sets and writes hypotheses and scores; None where it was dropped."""
        results: dict[str, list[Hypothesis]] = {}
        strange: dict[str, dict[str, int]] = {}
        total = sum(data.seconds for data in self.data.values())
        start = time.monotonic()
        stage = f"evaluation at step {step}"
        with progress(stage, total, self.runtime.is_main) as show:

            def advance(seconds: float) -> None:
                show(seconds)
                if self.progress is not None:
                    self.progress.tell(stage=stage)

            for name, data in self.data.items():
                found = evaluate(
                    self.runtime, model, self.base, data, self.config.eval_batch_seconds,
                    self.normaliser, advance, self.cuts[name],
                )  # fmt: skip
                if found is None:
                    return None
                results[name], strange[name] = found.hypotheses, {**found.odd, **found.windows}
        seconds = time.monotonic() - start
        return self.runtime.on_main("scoring", lambda: self._count(step, results, strange, total, seconds))

    def _count(
        self, step: int, results: dict[str, list[Hypothesis]], strange: dict[str, dict[str, int]],
        total: float, seconds: float,
    ) -> Scores:  # fmt: skip
        """Only rank 0: scores.json, written; `total` seconds of audio took so many seconds."""
        assert self.record is not None
        scores: dict[str, Any] = {
            "step": step, "metric": self.metric, "fingerprint": self.fingerprint,
            "seconds": round(seconds, 2),
            "rtfx": round(total / seconds, 1),
        }  # fmt: skip
        for name, hypotheses in results.items():
            scores[name] = {**summary(hypotheses), **strange[name]}
        scores["domain"] |= keyword_recall.summary(results["domain"], self.domain_words)
        if self.config.report_manifest == "auto":
            halves = selection.halves({one.id: one for one in results["domain"]})
            scores |= {name: summary(list(half.values())) for name, half in halves.items()}
        for name, hypotheses in results.items():
            scores[name] |= self._intervals(step, name, hypotheses)
        lines = {name: [h.line() for h in found] for name, found in results.items()}
        written = Scores.model_validate(scores)
        self.record.write_evaluation(step, lines, written)
        if step == 0:
            self._audit_baseline(self.record, results)
        return written

    def _intervals(self, step: int, name: str, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
        """Only rank 0: 95 % intervals of the metric and, after step 0, of its change since then."""
        now = {h.id: h.tally(self.metric) for h in hypotheses}
        if step == 0:
            (drawn,) = bootstrap.resample([now])
            return {"interval": bootstrap.interval(drawn)}
        before = run_dir.read_counts(
            run_dir.step_folder(self.config.output_dir, 0) / f"{name}.jsonl", self.metric
        )
        old, new = bootstrap.resample([before, now])
        return {"interval": bootstrap.interval(new), "change_interval": bootstrap.interval(new - old)}

    def _audit_baseline(self, kept: run_dir.RunDirectory, results: dict[str, list[Hypothesis]]) -> None:
        """Only rank 0: what the base writes, and how its errors vary, complete the audit."""
        found = baseline(self.found, self.texts, results, self.metric, self.criteria)
        for finding in found.findings:
            if finding not in self.found.findings:
                self.tell(f"audit: {finding.kind}: {finding.message}")
        kept.update(audit=found.as_json())

    def _save_best(self, model: Any) -> None:
        """To reload it on a fresh base would read and hash all of the base: that is done at the first of
        them and when the run ends, and of those between each tensor is compared."""
        adapters.save(model, self._best, self.initial, self.base)
        adapters.check_written(model, self._best)

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
        entry: dict[str, Any] = {
            "step": step, "audio_seconds": round(audio_seconds, 3), "read": read, **values,
            "seconds": round(seconds, 4), "memory_gib": round(self.runtime.memory() / 2**30, 3),
        }  # fmt: skip
        rates = {f"{name}_per_second": entry[name] / seconds for name in ("tokens", "audio_seconds")}
        # first, so that a kill leaves no step in metrics.jsonl that W&B has not heard of
        self.tracker.log(step, {f"train/{name}": value for name, value in {**entry, **rates}.items()})
        self.record.log(entry)
        self._window = [*self._window[-49:], (audio_seconds, time.monotonic())]
        self._tell_progress(step, seconds, values)

    def _tell_progress(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """Only rank 0: the line of the terminal, or one in twenty where there is none, and progress.json."""
        assert self.progress is not None
        told: dict[str, Any] = {
            "stage": "training", "step": step, "max_steps": self.config.max_steps, "loss": values["loss"],
            "data_wait": values["data_wait"], "step_seconds": seconds,
        }  # fmt: skip
        if len(self._window) > 1:
            spent = max(self._window[-1][1] - self._window[0][1], 1e-9)
            told["rate"] = sum(a for a, _ in self._window[1:]) / spent
            told["seconds_left"] = (self.config.max_steps - step) * spent / (len(self._window) - 1)
        self.progress.tell(**told)
        line = status.line(self.progress.values)
        if console.is_terminal:
            if self._show is None:
                self._window = self._window[-1:]  # the evaluation before it is no step
                self._show = self._bar.enter_context(steps_bar(self.config.max_steps, step - 1))
            self._show(line)
        elif step % max(1, self.config.max_steps // 20) == 0:
            self.tell(line)

    def finish(self) -> None:
        """Collective. The verdict and the report."""
        self.runtime.on_main("the verdict and the report", self._finish)

    def _finish(self) -> None:
        """Only rank 0."""
        assert self.record is not None
        if adapters.digest_frozen(self.runtime.bare_model()) != self.frozen:
            raise RuntimeError("training has changed weights of the base, and not the adapter alone")
        adapters.check_reloads(self.runtime.bare_model(), self.base, self._best, self.config.model_id)
        judged = judge_run(self.config.output_dir)
        self._spent("verdict")
        stages = {name: round(seconds, 1) for name, seconds in self.stages.items()}
        self.record.update(stage_seconds=stages, diagnosis=diagnosis.of_run(self.config.output_dir))
        self.tell(f"verdict: {judged.verdict}. {judged.reason}")
        if self.config.report_audio:
            self._keep_excerpts(judged)
        self.tell(f"report: {page.write_report(self.config.output_dir)}")
        for name in self.data if self.tracker.run is not None else ():
            self._track_hypotheses(name, judged.best_step)
        adapter = self._best if self.config.wandb_artifact else None
        self._end_tracking(judged, adapter)
        self.record.end("complete", self.stopped)  # last: an attempt that goes on would stop here

    def _keep_excerpts(self, judged: Verdict) -> None:
        """The audio that the report plays: a report drawn again later has no shards at hand."""
        if not audio.writes_mp3():
            self.tell("the report is without audio: libsndfile cannot write MP3 here")
            return
        for name, ids in page.shown(self.config.output_dir, judged).items():
            data = self.data[name]
            number = {sample.id: number for number, sample in enumerate(data.samples)}
            for one in ids:
                pcm = data.read(number[one])[: page.EXCERPT_SECONDS * audio.SAMPLE_RATE]
                path = alignment.excerpt(self.config.output_dir, name, one)
                run_dir.write_atomic(path, audio.encode_mp3(pcm))

    def _track_hypotheses(self, name: str, best: int) -> None:
        old, new = (
            run_dir.read_lines(run_dir.step_folder(self.config.output_dir, step) / f"{name}.jsonl")
            for step in (0, best)
        )
        pairs, data = sinks.by_change(old, new, self.metric), self.data[name]
        numbers = {sample.id: number for number, sample in enumerate(data.samples)}
        heard = [line["id"] for _, line in pairs[:HEARD]]
        waves = {i: (data.read(numbers[i]), audio.SAMPLE_RATE) for i in heard}
        last = self.progress.values.get("step", 0) if self.progress else 0
        sinks.log_hypotheses(self.tracker, last, name, pairs, waves, self.metric)

    def _end_tracking(
        self, judged: Verdict | None = None, adapter: Path | None = None, failed: bool = False
    ) -> None:
        if self.record is None or self.progress is None:
            return
        self.progress.write()
        if not sinks.finish(self.tracker, judged, adapter, failed):
            self.record.update(wandb_unsent=True)
            self.tell(f"W&B did not take all; later: uv run asrlora track sync {self.config.output_dir}")

    def preempt(self, step: int) -> None:
        """The end of an attempt that was asked to stop; `asrlora/train.py --resume auto` goes on."""
        self._bar.close()
        if self.record is None:
            return
        reason = f"stopped at step {step} on request; go on with --resume auto"
        if gave_up := run_dir.gave_up():
            reason = f"{gave_up}; {reason}"
        self.record.end("preempted", reason)
        self.tell(reason)
        self._end_tracking(failed=True)

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

    def failed(self, failure: Failure, ours: bool) -> None:
        """Records why the run ends. From the main thread, or from the watchdog's."""
        self.to_terminal()
        if self.record is None:
            if ours and failure.rank == 0 and not self.runtime.is_main:  # which cannot do it any more
                run_dir.note_failure(self.config.output_dir, failure.reason)
        elif self.config.output_dir.exists():
            self.record.end("failed", failure.reason)
            self.record.update(diagnosis=diagnosis.of_run(self.config.output_dir))

    def end_tracking(self) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # the run directory may be what has failed
            self._end_tracking(failed=True)

    def refuse(self, error: UserError) -> None:
        """Collective. The end of a run in which all ranks have found the same mistake."""
        self._bar.close()
        self.to_terminal()
        if self.record is not None:
            self.record.end("failed", f"{type(error).__name__}: {error}")
            self.record.update(diagnosis=diagnosis.of_run(self.config.output_dir))
            self._end_tracking(failed=True)
