"""The door of training: parse, check, build, then the loop.

    uv run accelerate launch --config_file accelerate_configs/cpu.yaml asrlora/train.py FLAGS
    uv run python asrlora/train.py FLAGS     # the same on one process

Exit codes: 0 done, 2 a mistake of the user's. What is slow to import is imported after the checks,
so that a mistake is told within two seconds.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asrlora.config import RunConfig, parse_run
from asrlora.console import progress
from asrlora.data import audit, manifest, plan, shards
from asrlora.engine import launcher
from asrlora.errors import UserError, exit_code
from asrlora.models.hub import find_model
from asrlora.runs import record

if TYPE_CHECKING:
    from asrlora.engine.runtime import Runtime


@dataclass(frozen=True)
class Inputs:
    """What the checks have read. `train` is a manifest's utterances or a folder of shards."""

    train: list[manifest.Utterance] | shards.Shards
    evaluation: dict[str, list[manifest.Utterance]]  # domain, and heldout where given
    audit: audit.Audit


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_run(argv)
        return train(config, check(config))
    except UserError:
        launcher.leave_the_word_to_local_rank_0()
        raise


def check(config: RunConfig) -> Inputs:
    """Everything that can be found wrong without a model. Raises UserError."""
    record.check_free(config.output_dir)
    launcher.check_processes(config.gradient_accumulation_steps)
    if config.dataset_path.is_dir():
        source: list[manifest.Utterance] | shards.Shards = shards.open_shards(config.dataset_path)
    else:
        source = manifest.read_manifest(config.dataset_path, config.allow_outside)
    evaluation = {"domain": manifest.read_manifest(config.manifest_path, config.allow_outside)}
    if config.safety_manifest_path:
        evaluation["heldout"] = manifest.read_manifest(config.safety_manifest_path, config.allow_outside)
    found = audit.audit(
        [] if isinstance(source, shards.Shards) else source,
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
    return Inputs(source, evaluation, found)


def train(config: RunConfig, inputs: Inputs) -> int:
    import torch

    from asrlora.data.batches import read_batches
    from asrlora.engine import runtime as runtimes
    from asrlora.engine.run import Run
    from asrlora.engine.step import learning_rate, train_step
    from asrlora.models import adapters, families

    # 1. processes, data, model
    runtime = runtimes.start(config.torch_compile)
    data = _open_data(config, inputs, runtime)
    training, left_out = data.pop("train"), data.pop("left_out")
    base = families.load_base(config.model_id, config.language, config.load_in_4bit)
    base.model.to(runtime.device)
    labels = families.label(base, training.samples)
    for held in data.values():
        families.check(base, {s.id: s.duration for s in held.samples})
    run = Run(config, runtime, base, data)

    try:
        # 2. the baseline: the base before anything is attached to it
        run.open(inputs.audit, training, left_out)
        run.evaluate(0, base.model)

        # 3. the adapter
        torch.manual_seed(config.seed)
        model = adapters.attach(base, config)
        if config.gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.torch_compile and runtime.device.type == "cpu":
            run.tell("--torch-compile on a CPU: the first steps take minutes, and little is won")
        run.keep_initial(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        run.tell(f"{runtime.kind}, {runtime.world_size} processes, {_count(model, trained)}")
        runtime.prepare(model, torch.optim.AdamW(trained, config.learning_rate, weight_decay=0.0))

        # 4. the loop
        steps = list(
            plan.iterate_steps(
                training.durations, config.max_steps, seed=config.seed,
                microbatches_per_step=config.gradient_accumulation_steps, **config.microbatch,
            )
        )  # fmt: skip
        mine = [plan.share(batches, runtime.rank, runtime.world_size) for _, batches in steps]
        batches = read_batches(training, [batch for step in mine for batch in step])
        for step, (epoch, microbatches) in enumerate(steps, 1):
            samples = [training.samples[i] for batch in microbatches for i in batch]
            tokens = sum(len(labels[s.id]) for s in samples)
            seconds = sum(s.duration for s in samples)
            share = list(itertools.islice(batches, len(mine[step - 1])))
            result = train_step(runtime, base, share, labels, tokens, config, step)
            run.log(
                step, seconds, loss=result.loss, grad_norm=result.grad_norm, tokens=tokens,
                epoch=epoch, learning_rate=learning_rate(config, step),
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


def _open_data(config: RunConfig, inputs: Inputs, runtime: "Runtime") -> dict[str, Any]:
    """Collective. Shards of all sets; each machine's first process builds those that are missing."""
    opened: dict[str, Any] = {}
    sets: dict[str, Any] = {"train": inputs.train, **inputs.evaluation}
    with runtime.accelerator.local_main_process_first():
        for name, source in sets.items():
            if isinstance(source, shards.Shards):
                opened[name] = source
                continue
            total = sum(utterance.duration for utterance in source)
            shown = runtime.accelerator.is_local_main_process
            with progress(f"shards of {name}", total, shown) as advance:
                opened[name] = shards.cached(source, advance)
    whole = opened["train"]
    kept, left_out = manifest.filter_for_training(whole.samples, config.min_seconds, config.max_seconds)
    left_out.update(whole.rejected)
    opened["train"], opened["left_out"] = whole.subset(kept), left_out
    first = plan.plan_epoch(
        opened["train"].durations, seed=config.seed, epoch=0,
        microbatches_per_step=config.gradient_accumulation_steps, **config.microbatch,
    )  # fmt: skip
    if not first.steps:
        raise UserError(
            f"{manifest.describe(len(kept), left_out)}: fewer than one step needs; lower --batch-size,"
            " --batch-seconds or --gradient-accumulation-steps"
        )
    return opened


def _count(model: Any, trained: list[Any]) -> str:
    count, everything = (sum(p.numel() for p in ps) for ps in (trained, model.parameters()))
    return f"{count:,} of {everything:,} parameters trained ({count / everything:.2%})"


if __name__ == "__main__":
    sys.exit(exit_code(main))
