"""Training: parse, check, build, then the loop.

    uv run accelerate launch --config_file accelerate_configs/cpu.yaml asrlora/train.py FLAGS
    uv run python asrlora/train.py FLAGS     # the same on one process

Exit codes: 0 done, 2 a mistake of the user's, 75 stopped on request with a checkpoint saved.
What is slow to import is imported after the checks, so that a mistake is reported within two seconds.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from asrlora import allocation
from asrlora.config import RunConfig, parse_run
from asrlora.data import manifest, plan
from asrlora.data.audit import checks
from asrlora.data.audit.findings import Audit
from asrlora.data.shards import reader
from asrlora.engine import launcher
from asrlora.errors import PREEMPTED, USER_ERROR, UserError, exit_code, report
from asrlora.models import registry
from asrlora.models.hub import find_model, pin
from asrlora.record import run_dir
from asrlora.score import bootstrap, keyword_recall, selection, text
from asrlora.tracking import sinks

if TYPE_CHECKING:
    from asrlora.engine.run import Run
    from asrlora.engine.runtime import Runtime
    from asrlora.engine.training_set import Labels, Training
    from asrlora.models.family import Base


@dataclass(frozen=True)
class Inputs:
    """What the checks have read: train, replay, domain, guardrails and report part, as far as given."""

    sets: dict[str, list[manifest.Utterance] | reader.Shards]
    audit: Audit
    cost: plan.Cost
    base: str  # as models/hub.py names it, at a commit where it is on the hub


def main(argv: Sequence[str] | None = None) -> int:
    """One training run by the flags of `argv`; returns the exit code."""
    allocation.wait_passively()
    config = parse_run(argv)
    if config.resume == "auto":
        run_dir.check_resumable(config)
        if run_dir.is_complete(config.output_dir):
            print(f"{config.output_dir} holds this run, complete; nothing is left to do")
            return 0
    return train(config, check(config))


def check(config: RunConfig) -> Inputs:
    """Everything that can be found wrong without a model. Raises UserError."""
    if config.resume == "never" or not (config.output_dir / "run.json").exists():
        run_dir.check_free(config.output_dir)
    launcher.check_microbatches(config.gradient_accumulation_steps)
    sinks.check(config)
    source, replay = _read(config.dataset_path, config), None
    if config.replay_path:
        replay = _read(config.replay_path, config)
    held = {"domain": config.manifest_path, **config.guardrails}
    if isinstance(config.report_manifest, Path):
        held[selection.REPORT] = config.report_manifest
    evaluation = {name: manifest.read_manifest(path, config.allow_outside) for name, path in held.items()}
    _check_scores(config, evaluation)
    train = [
        item
        for items in (source, replay)
        if items is not None
        for item in (items.samples if isinstance(items, reader.Shards) else items)
    ]
    base = pin(run_dir.base_of_run(config.output_dir, config))
    costs = registry.cost_of(base)
    found = checks.quick(train, evaluation, config, costs).check()
    find_model(base)
    sets: dict[str, list[manifest.Utterance] | reader.Shards] = {"train": source, **evaluation}
    return Inputs(sets if replay is None else {**sets, "replay": replay}, found, costs, base)


def _check_scores(config: RunConfig, evaluation: dict[str, list[manifest.Utterance]]) -> None:
    normaliser = text.normaliser(config.text_normaliser, config.language)
    keyword_recall.choose(config.domain_words, config.general_text, [], None, normaliser, config.language)
    for name, utterances in evaluation.items():
        if config.resample_by == "speaker":
            bootstrap.check_speakers(f"the {name} manifest", {u.id: u.speaker for u in utterances})


def _read(place: Path | str, config: RunConfig) -> list[manifest.Utterance] | reader.Shards:
    if isinstance(place, Path) and not place.is_dir():
        return manifest.read_manifest(place, config.allow_outside)
    return reader.open_shards(place)


def train(config: RunConfig, inputs: Inputs) -> int:
    """Trains; returns the exit code. What is slow to import is imported from here on."""
    from asrlora.engine import runtime as runtimes

    runtimes.check_bf16(config.mixed_precision)
    runtime = runtimes.start(config.torch_compile, config.work_timeout)
    runtimes.set_matmul_precision(config.matmul_precision)
    with runtime.watched(config.heartbeat_timeout, config.work_timeout):
        base = runtime.collectives.broadcast(inputs.base)  # another machine's cache may hold an older commit
        return _train(config, replace(inputs, base=base), runtime)


def _train(config: RunConfig, inputs: Inputs, runtime: "Runtime") -> int:
    """Collective. The phases of a run, and its exit code."""
    from asrlora.engine import run as runs
    from asrlora.engine.finish import finish
    from asrlora.engine.step import check_finite, train_step
    from asrlora.engine.training_set import label, open_sets

    # 1. data and model
    strategy = runtime.strategy
    runtime.stop.listen(config.max_minutes)
    training, sets = open_sets(config, inputs.sets, runtime, inputs.cost)
    found = checks.deep(inputs.audit, {"train": training.samples, **sets}).check()
    base = registry.load_base(inputs.base, registry.Decoding.of(config), config.load_in_4bit)
    base.model.to(runtime.device)
    labels = label(base, training.samples, config)
    found = found.plus(labels.unlearnable).check()
    run = runs.create_or_resume(config, runtime, base, training, sets, labels, found)

    # 2. the baseline: the base before anything is attached to it
    checkpoint = run.checkpoints.load()
    if not run.evaluator.evaluate(0, base.model):
        return _preempt(run, runtime, 0)
    if unexpected := run.selection.unexpected_baseline():
        return _refuse(run, runtime, unexpected)

    # 3. the adapter
    _attach(config, run, runtime, base, training, labels, resumed=checkpoint is not None)
    done = run.checkpoints.restore_or_init(checkpoint)
    if done and config.evaluates_at(done):  # the attempt before this one may have dropped it
        if not run.evaluator.evaluate(done, strategy.bare_model()):
            return _preempt(run, runtime, done)
        run.checkpoints.save(done)

    # 4. the loop
    batches = training.read(config, done, runtime)
    for step in range(done + 1, config.max_steps + 1):
        if run.selection.stopped:
            break
        runtime.work.at = f"step {step}"
        start = time.perf_counter()
        data = next(batches)
        result = train_step(runtime, base, data, labels.tokens, config, step)
        seconds = time.perf_counter() - start
        if not result.applied:
            run.recorder.record_nonfinite(step, data, result)
            check_finite(result, strategy.nonfinite, step, config)
        run.recorder.log_step(step, data, result, seconds, inputs.cost)
        stop = result.stop
        if config.evaluates_at(step) and not stop:
            stop = not run.evaluator.evaluate(step, strategy.bare_model())
        if stop or config.saves_at(step):
            run.checkpoints.save(step)
        if stop:
            return _preempt(run, runtime, step)

    # 5. the verdict and the report
    if not finish(config, run, runtime):
        return _preempt(run, runtime, config.max_steps)
    runtime.close()
    return 0


def _attach(
    config: RunConfig,
    run: "Run",
    runtime: "Runtime",
    base: "Base",
    training: "Training",
    labels: "Labels",
    resumed: bool,
) -> None:
    """Collective. Attaches the adapter to the base and hands it to the strategy, with AdamW."""
    import torch

    from asrlora.engine import memory
    from asrlora.models import adapters

    torch.manual_seed(config.seed)
    model = adapters.attach(base, config, run.checkpoints.initial if resumed else None)
    if config.gradient_checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    if need := runtime.collectives.on_main(
        "measuring memory", lambda: memory.describe_need(config, model, base, training, labels)
    ):
        run.recorder.message(need)
    if config.torch_compile and runtime.device.type == "cpu":
        run.recorder.message("--torch-compile on a CPU: the first steps take minutes, and little is won")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count, everything = (sum(p.numel() for p in ps) for ps in (trained, model.parameters()))
    run.recorder.message(
        f"{runtime.strategy.name}, {runtime.world_size} processes, {count:,} of {everything:,} parameters"
        f" trained ({count / everything:.2%})"
    )
    run.recorder.message(f"threads: {runtime.threads.describe()}")
    optimizer = torch.optim.AdamW(trained, config.learning_rate, weight_decay=0.0)
    runtime.strategy.prepare(model, optimizer, config.ema)


def _preempt(run: "Run", runtime: "Runtime", step: int) -> int:
    """Collective. The end on request; returns the exit code that schedulers take for "run me again"."""
    run.recorder.preempted(step)
    runtime.close()
    return PREEMPTED


def _refuse(run: "Run", runtime: "Runtime", error: UserError) -> int:
    """Collective. The end where all ranks have found the same mistake: rank 0 reports it."""
    run.recorder.refused(error)
    runtime.close()
    if runtime.is_main:
        report(error)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(exit_code(main))
