"""One optimizer step: the same update on any number of processes."""

import math
from dataclasses import dataclass

import torch

from asrlora.config import RunConfig
from asrlora.data.batches import Batch
from asrlora.engine.runtime import Runtime
from asrlora.models import families


@dataclass(frozen=True)
class StepResult:
    loss: float  # nats per label token, over the whole step on all ranks
    grad_norm: float
    stop: bool  # some rank was asked to stop: all end after this step

    @property
    def applied(self) -> bool:
        """Whether the adapter was changed: not where loss or gradient is not finite."""
        return math.isfinite(self.grad_norm)


def learning_rate(config: RunConfig, step: int) -> float:
    """The rate of optimizer step `step` (the first is 1): linear warm-up, then the chosen shape."""
    warmup = round(config.warmup_ratio * config.max_steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - warmup - 1) / max(1, config.max_steps - warmup)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (1 - done)


def train_step(
    runtime: Runtime,
    base: families.Base,
    batches: list[Batch],
    labels: dict[str, list[int]],
    tokens: int,
    config: RunConfig,
    step: int,
) -> StepResult:
    """Collective. Updates the adapter from this rank's microbatches of the step.

    `labels` maps utterance ids to tokens; `tokens` is the number of label tokens in the whole step,
    over all ranks: the loss's denominator, known from the plan without asking the other ranks.
    A loss that is not finite makes every rank's gradient so, and then no rank changes its adapter.
    """
    families.set_training(runtime.model)
    for group in runtime.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    # DDP and ZeRO average gradients over ranks; the plan wants their sum
    scale = runtime.world_size / tokens
    nan = float("nan")
    summed = 0.0
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        # Dropout depends on (seed, step, microbatch), not on what a process did before.
        position = runtime.rank + number * runtime.world_size
        torch.manual_seed(hash((config.seed, step, position)) % 2**63)
        device = runtime.device
        waves, mask = batch.to(device)
        with runtime.microbatch(last):
            bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16")
            with runtime.work.on("computing a loss"), bf16:
                loss = families.summed_loss(
                    runtime.model,
                    base,
                    waves,
                    mask,
                    families.pad_labels([labels[s.id] for s in batch.samples]).to(device),
                )
                value = float(loss.detach())
            summed += value
            # a loss of infinity can have a finite gradient, which must not be applied either
            runtime.backward(loss * (scale if math.isfinite(value) else nan), last)
    norm = runtime.update()
    summed, stops = runtime.sum(summed, runtime.stop_requested)
    return StepResult(summed / tokens, norm, stops > 0)
