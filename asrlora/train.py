"""The door of training: parse, check, build, then the loop.

    uv run accelerate launch --config_file accelerate_configs/cpu.yaml asrlora/train.py FLAGS
    uv run python asrlora/train.py FLAGS     # the same on one process

Exit codes: 0 done, 2 a mistake of the user's, 75 stopped on request with a checkpoint saved.
What is slow to import is imported after the checks, so that a mistake is told within two seconds.
"""

import importlib.util
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlora import allocation
from asrlora.config import RunConfig, parse_run
from asrlora.data import manifest, plan
from asrlora.data.audit import checks
from asrlora.data.audit.findings import Audit
from asrlora.data.audit.transcript_style import restyle
from asrlora.data.shards import reader
from asrlora.engine import launcher
from asrlora.errors import PREEMPTED, USER_ERROR, UserError, exit_code, report
from asrlora.models import registry
from asrlora.models.hub import find_model
from asrlora.record import run_dir
from asrlora.score import bootstrap, keyword_recall, selection, text
from asrlora.tracking import sinks

if TYPE_CHECKING:
    from asrlora.engine.run import Run
    from asrlora.engine.runtime import Runtime


@dataclass(frozen=True)
class Inputs:
    """What the checks have read: train, replay, domain, guardrails and report part, as far as given."""

    sets: dict[str, list[manifest.Utterance] | reader.Shards]
    audit: Audit
    cost: plan.Cost


def main(argv: Sequence[str] | None = None) -> int:
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
    sinks.check_environment(config.wandb_mode)
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
    costs = registry.cost_of(config.model_id)
    found = checks.quick(train, evaluation, config, costs).check()
    find_model(config.model_id)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: uv sync --extra tensorboard")
    sets: dict[str, list[manifest.Utterance] | reader.Shards] = {"train": source, **evaluation}
    return Inputs(sets if replay is None else {**sets, "replay": replay}, found, costs)


def _check_scores(config: RunConfig, evaluation: dict[str, list[manifest.Utterance]]) -> None:
    normaliser = text.normaliser(config.text_normaliser, config.language)
    keyword_recall.choose(config.domain_words, config.general_text, [], None, normaliser)
    for name, utterances in evaluation.items():
        if config.resample_by == "speaker":
            bootstrap.check_speakers(f"the {name} manifest", {u.id: u.speaker for u in utterances})


def _read(place: Path | str, config: RunConfig) -> list[manifest.Utterance] | reader.Shards:
    if isinstance(place, Path) and not place.is_dir():
        return manifest.read_manifest(place, config.allow_outside)
    return reader.open_shards(place)


def train(config: RunConfig, inputs: Inputs) -> int:
    from asrlora.engine import runtime as runtimes

    runtimes.check_bf16(config.mixed_precision)
    runtime = runtimes.start(config.torch_compile, config.work_timeout)
    runtimes.set_matmul_precision(config.matmul_precision)
    with runtime.watched(config.heartbeat_timeout, config.work_timeout):
        return _train(config, inputs, runtime)


def _train(config: RunConfig, inputs: Inputs, runtime: "Runtime") -> int:
    """Collective. The phases of a run, and its exit code."""
    import torch

    from asrlora.data.loader import padding, read_batches
    from asrlora.engine import longform
    from asrlora.engine.run import Run
    from asrlora.engine.step import learning_rate, train_step
    from asrlora.engine.training_set import augmentation, open_sets
    from asrlora.models import adapters, objective

    # 1. processes, data, model
    runtime.stop_on_signals(config.max_minutes)
    training, evaluation = open_sets(config, inputs.sets, runtime, inputs.cost)
    samples = training.samples.samples
    found = checks.deep(inputs.audit, {"train": training.samples, **evaluation}).check()
    base = registry.load_base(config.model_id, config.language, config.load_in_4bit, config.num_beams)
    base.model.to(runtime.device)
    cuts = {name: longform.cut_set(runtime, base, held) for name, held in evaluation.items()}
    texts = {
        s.id: restyle(s.text, config.label_case, config.label_punctuation, config.label_characters)
        for s in samples
    }
    labels, unlearnable = objective.label(base, texts, augmentation(config).extremes(training.samples))
    found = found.plus(unlearnable).check()
    run = Run(config, runtime, base, evaluation, cuts)

    # 2. the baseline: the base before anything is attached to it
    run.open(found, training.samples, training.left_out, list(texts.values()))
    checkpoint = run.load_checkpoint()
    if not run.evaluate(0, base.model):
        return _stop(run, 0)
    unexpected = run.unexpected()
    if unexpected:
        return _refuse(run, unexpected)

    # 3. the adapter
    torch.manual_seed(config.seed)
    model = adapters.attach(base, config, run.initial if checkpoint else None)
    if config.gradient_checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.torch_compile and runtime.device.type == "cpu":
        run.tell("--torch-compile on a CPU: the first steps take minutes, and little is won")
    trained = [p for p in model.parameters() if p.requires_grad]
    run.tell(f"{runtime.kind}, {runtime.world_size} processes, {_count(model, trained)}")
    run.tell(f"threads: {runtime.threads.describe()}")
    runtime.prepare(model, torch.optim.AdamW(trained, config.learning_rate, weight_decay=0.0))
    done = run.begin(model, checkpoint)
    if done and config.evaluates_at(done):  # the attempt before this one may have dropped it
        if not run.evaluate(done, runtime.bare_model()):
            return _stop(run, done)
        run.save(done)

    # 4. the loop
    planned, ahead = itertools.tee(itertools.islice(training.steps(config), done, None))
    mine = (
        (epoch, batch)
        for epoch, microbatches in ahead
        for batch in plan.share(microbatches, runtime.rank, runtime.world_size)
    )
    read = read_batches(
        training.samples, mine, augmentation(config).apply, runtime.threads.loader_threads,
        pin=runtime.device.type == "cuda",
    )  # fmt: skip
    batches = runtime.work.each("reading a batch", read)
    for step, (epoch, microbatches) in enumerate(planned, done + 1):
        if run.stopped:
            break
        runtime.work.at = f"step {step}"
        used = [samples[i] for batch in microbatches for i in batch]
        tokens = sum(len(labels[s.id]) for s in used)
        start = time.perf_counter()
        share = list(itertools.islice(batches, len(microbatches) // runtime.world_size))
        result = train_step(runtime, base, share, labels, tokens, config, step)
        spent = time.perf_counter() - start
        run.skip(step, result, used)
        run.log(
            step, used, spent, loss=result.loss, grad_norm=result.grad_norm,
            adapter_norm=result.adapter_norm, tokens=tokens, epoch=epoch,
            learning_rate=learning_rate(config, step),
            data_wait=sum(batch.waited for batch in share) / spent, padding=padding(share, inputs.cost),
        )  # fmt: skip
        stop = result.stop
        if config.evaluates_at(step) and not stop:
            stop = not run.evaluate(step, runtime.bare_model())
        if stop or config.saves_at(step):
            run.save(step)
        if stop:
            return _stop(run, step)

    # 5. the verdict
    run.finish()
    runtime.close()
    return 0


def _stop(run: "Run", step: int) -> int:
    """Collective. The end on request; returns the exit code that schedulers take for "run me again"."""
    run.preempt(step)
    run.runtime.close()
    return PREEMPTED


def _refuse(run: "Run", error: UserError) -> int:
    """Collective. The end where all ranks have found the same mistake: one of them tells it."""
    run.refuse(error)
    run.runtime.close()
    if run.runtime.is_main:
        report(error)
    return USER_ERROR


def _count(model: Any, trained: list[Any]) -> str:
    count, everything = (sum(p.numel() for p in ps) for ps in (trained, model.parameters()))
    return f"{count:,} of {everything:,} parameters trained ({count / everything:.2%})"


if __name__ == "__main__":
    sys.exit(exit_code(main))
