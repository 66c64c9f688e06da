"""The door of training: parse, check, build, then the loop.

    uv run accelerate launch --config_file accelerate_configs/cpu.yaml asrlora/train.py FLAGS
    uv run python asrlora/train.py FLAGS     # the same on one process

Exit codes: 0 done, 2 a mistake of the user's. What is slow to import is imported after the checks,
so that a mistake is told within two seconds.
"""

import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlora.config import RunConfig, parse_run
from asrlora.console import console, progress
from asrlora.data import audit, manifest, plan, shards
from asrlora.data.augment import Augment
from asrlora.errors import UserError, exit_code
from asrlora.models.hub import find_model
from asrlora.runs import record

if TYPE_CHECKING:
    from asrlora.engine.runtime import Runtime
    from asrlora.models.families import Base


Source = list[manifest.Utterance] | shards.Shards  # a manifest's utterances, or a folder of shards


@dataclass(frozen=True)
class Inputs:
    """What the checks have read."""

    train: Source
    replay: Source | None
    evaluation: dict[str, list[manifest.Utterance]]  # domain, and heldout where given
    audit: audit.Audit


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_run(argv)
        inputs = check(config)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            return 2  # every rank has found the same mistake; rank 0 tells it
        raise
    return train(config, inputs)


def check(config: RunConfig) -> Inputs:
    """Everything that can be found wrong without a model. Raises UserError."""
    record.check_free(config.output_dir)
    source = _read(config.dataset_path)
    replay = _read(config.replay_path) if config.replay_path else None
    evaluation = {"domain": manifest.read_manifest(config.manifest_path)}
    if config.safety_manifest_path:
        evaluation["heldout"] = manifest.read_manifest(config.safety_manifest_path)
    found = audit.audit(
        [item for items in (source, replay) if isinstance(items, list) for item in items],
        evaluation,
        min_seconds=config.min_seconds,
        max_seconds=config.max_seconds,
        utterances_per_step=0
        if isinstance(source, shards.Shards)
        else config.gradient_accumulation_steps * (config.batch_size or 1),
    )
    if found.stops:
        raise UserError("; ".join(finding.message for finding in found.stops))
    find_model(config.model_id)
    return Inputs(source, replay, evaluation, found)


def _read(place: Path | str) -> Source:
    if isinstance(place, Path) and not place.is_dir():
        return manifest.read_manifest(place)
    return shards.open_shards(place)


def train(config: RunConfig, inputs: Inputs) -> int:
    import torch

    from asrlora.data.batches import read_batches
    from asrlora.engine import runtime as runtimes
    from asrlora.engine.run import Run
    from asrlora.engine.step import learning_rate, train_step
    from asrlora.models import adapters, families

    # 1. processes, data, model
    runtime = runtimes.start(config)
    training, data = _open_data(config, inputs, runtime)
    samples = training.samples.samples
    base = families.load_base(config.model_id)
    base.model.to(runtime.device)
    labels = {s.id: families.label_ids(base, s.text) for s in samples}
    _check_labels(base, labels)
    run = Run(config, runtime, base, data)

    try:
        # 2. the baseline: the base before anything is attached to it
        run.open(inputs.audit, training.samples, training.left_out)
        run.evaluate(0, base.model)

        # 3. the adapter
        torch.manual_seed(config.seed)
        model = adapters.attach(base, config)
        if config.gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        run.keep_initial(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        run.tell(f"{runtime.kind}, {runtime.world_size} processes, {_count(model, trained)}")
        runtime.prepare(model, torch.optim.AdamW(trained, config.learning_rate, weight_decay=0.0))

        # 4. the loop
        planned, ahead = itertools.tee(training.steps(config))
        mine = (
            (epoch, batch)
            for epoch, microbatches in ahead
            for batch in plan.share(microbatches, runtime.rank, runtime.world_size)
        )
        batches = read_batches(training.samples, mine, _augment(config).apply)
        for step, (epoch, microbatches) in enumerate(planned, 1):
            used = [samples[i] for batch in microbatches for i in batch]
            tokens = sum(len(labels[s.id]) for s in used)
            seconds = sum(s.duration for s in used)
            start = time.perf_counter()
            share = list(itertools.islice(batches, len(microbatches) // runtime.world_size))
            result = train_step(runtime, base, share, labels, tokens, config, step)
            spent = time.perf_counter() - start
            run.log(
                step, seconds, loss=result.loss, grad_norm=result.grad_norm, tokens=tokens,
                epoch=epoch, learning_rate=learning_rate(config, step),
                data_wait=sum(batch.waited for batch in share) / spent,
            )  # fmt: skip
            if step % config.eval_interval == 0 or step == config.max_steps:
                run.evaluate(step, runtime.bare_model())
                if run.stopped:
                    break

        # 5. the verdict
        run.finish()
    except BaseException as error:
        run.fail(error)
        raise
    runtime.close()
    return 0


@dataclass(frozen=True)
class Training:
    """What is trained on: our own samples, and those to replay behind them."""

    samples: shards.Shards
    ours: int
    left_out: Counter[str]

    def steps(self, config: RunConfig) -> Iterator[tuple[int, list[plan.Microbatch]]]:
        """The whole run's (epoch, microbatches), step by step; the same on every rank."""
        heard, seed, replay = _augment(config), config.seed, len(self.samples.rows) - self.ours
        return plan.iterate_steps(
            lambda epoch: heard.durations(self.samples, epoch), config.max_steps, seed=seed,
            members=lambda epoch: plan.mix(self.ours, replay, config.replay_ratio, seed=seed, epoch=epoch),
            microbatches_per_step=config.gradient_accumulation_steps, **config.microbatch,
        )  # fmt: skip


def _open_data(
    config: RunConfig, inputs: Inputs, runtime: "Runtime"
) -> tuple[Training, dict[str, shards.Shards]]:
    """Collective. Shards of all sets; each machine's first process builds those that are missing."""
    sets: dict[str, Source] = {"train": inputs.train, **inputs.evaluation}
    if inputs.replay is not None:
        sets["replay"] = inputs.replay
    opened: dict[str, shards.Shards] = {}
    with runtime.accelerator.local_main_process_first():
        for name, source in sets.items():
            if isinstance(source, shards.Shards):
                opened[name] = source
                continue
            total = sum(utterance.duration for utterance in source)
            shown = runtime.accelerator.is_local_main_process
            with progress(f"shards of {name}", total, shown) as advance:
                opened[name] = shards.cached(source, advance)
    samples, left_out = _usable(config, opened.pop("train"), runtime)
    ours = len(samples.rows)
    if "replay" in opened:
        replay, rejected = _usable(config, opened.pop("replay"), runtime)
        twice = np.intersect1d(samples.lengths["key"], replay.lengths["key"])
        if len(twice):
            raise UserError(
                f"{len(twice)} ids of --replay-path are ids of --dataset-path too; take the utterances out"
                " of one of the two, or give them other ids"
            )
        samples = samples.join(replay)
        left_out.update({f"{reason} (replay)": count for reason, count in rejected.items()})
    training = Training(samples, ours, left_out)
    if next(training.steps(config), None) is None:
        raise UserError(
            f"{manifest.describe(len(samples.rows), left_out)}: fewer than one step needs; lower"
            " --batch-size, --batch-seconds or --gradient-accumulation-steps"
        )
    return training, opened


def _usable(
    config: RunConfig, whole: shards.Shards, runtime: "Runtime"
) -> tuple[shards.Shards, Counter[str]]:
    """Collective. What can be trained on, the same on all ranks, and what cannot, by reason."""
    samples, left_out = shards.for_training(whole, config.min_seconds, config.max_seconds)
    left_out.update(whole.rejected)
    if config.on_damage == "skip":
        samples, damaged = shards.without_damage(
            samples, runtime.rank, runtime.world_size,
            lambda found: runtime.from_main(runtime.gather(found) or []),
        )  # fmt: skip
        left_out.update({"damaged": len(damaged)} if damaged else {})
        for message in damaged if runtime.is_main else []:
            console.print(f"left out: {message}")
    return samples, left_out


def _augment(config: RunConfig) -> Augment:
    return Augment(config.seed, config.augment_speed, config.augment_noise_snr, config.augment_time_masks)


def _check_labels(base: "Base", labels: dict[str, list[int]]) -> None:
    longest = base.model.config.max_position_embeddings
    for identity, tokens in labels.items():
        if len(tokens) > longest:
            raise UserError(
                f"the text of utterance {identity!r} has {len(tokens)} tokens, and the model writes at"
                f" most {longest}; shorten it or lower --max-seconds"
            )


def _count(model: Any, trained: list[Any]) -> str:
    count, everything = (sum(p.numel() for p in ps) for ps in (trained, model.parameters()))
    return f"{count:,} of {everything:,} parameters trained ({count / everything:.2%})"


if __name__ == "__main__":
    sys.exit(exit_code(main))
