"""One optimizer step: the same update on any number of processes."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from asrlora.config import RunConfig
from asrlora.data.loader import Batch, to_device
from asrlora.engine import memory
from asrlora.engine.runtime import Runtime
from asrlora.engine.training_set import StepData
from asrlora.models import objective
from asrlora.models.family import Base, Lengths


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step came to, the same on all ranks."""

    loss: float  # nats per label token, over the whole step on all ranks
    tokens: int  # label tokens of the whole step on all ranks
    grad_norm: float  # before clipping
    adapter_norm: float  # of the adapter that loss and gradient belong to: before the update
    stop: bool  # some rank was asked to stop: all end after this step

    @property
    def applied(self) -> bool:
        """Whether the adapter was changed: not where loss or gradient is not finite."""
        return math.isfinite(self.grad_norm)

    def describe(self) -> str:
        """ "loss nan, gradient norm nan" """
        return f"loss {self.loss}, gradient norm {self.grad_norm}"


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
    base: Base,
    data: StepData,
    labels: dict[str, list[int]],
    config: RunConfig,
    step: int,
) -> StepResult:
    """Collective. Updates the adapter from this rank's microbatches of the step.

    `labels` maps utterance ids to tokens. A loss that is not finite makes every rank's gradient so, and then
    no rank changes its adapter.
    """
    strategy, device = runtime.strategy, runtime.device
    objective.set_training(strategy.model)
    for group in strategy.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    # The loss's denominator: the label tokens of the whole step over all ranks, known from the plan.
    tokens = sum(len(labels[sample.id]) for sample in data.samples)
    # DDP and ZeRO average gradients over ranks, so their mean over ranks is scaled to their sum
    scale = runtime.world_size / tokens
    # On the device, in double precision: to read a loss here would wait for each microbatch's forward pass.
    summed = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(data.batches):
        last = number == len(data.batches) - 1
        torch.manual_seed(dropout_seed(config.seed, step, runtime.rank + number * runtime.world_size))
        full = memory.explained(batch, f"training step {step}", memory.training_remedy(config))
        with full, strategy.microbatch(last):
            loss = _summed_loss(runtime, base, batch, labels, config.mixed_precision == "bf16")
            value = loss.detach()
            summed += value
            # a loss of infinity can have a finite gradient, which must not be applied either
            strategy.backward(loss * torch.where(torch.isfinite(value), scale, math.nan), last)
    norm, adapter_norm, total, stops = strategy.update(summed, runtime.stop.requested)
    return StepResult(total / tokens, tokens, norm, adapter_norm, stops > 0)


def _summed_loss(
    runtime: Runtime, base: Base, batch: Batch, labels: dict[str, list[int]], bf16: bool
) -> torch.Tensor:
    """The loss in nats, summed over the label tokens of a microbatch; a scalar on the device."""
    device = runtime.device
    waves, mask = batch.to(device)
    targets = [labels[sample.id] for sample in batch.samples]
    padded = to_device(objective.pad_labels(targets), device)
    lengths = Lengths(batch.lengths.tolist(), [len(one) for one in targets])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with runtime.work.on("computing a loss"), autocast:
        return objective.summed_loss(runtime.strategy.model, base, waves, mask, padded, lengths)


def check_finite(result: StepResult, in_a_row: int, step: int, config: RunConfig) -> None:
    """Raises FloatingPointError, on all ranks alike, where too many steps in a row were not finite."""
    if in_a_row >= config.max_nonfinite_steps:
        raise FloatingPointError(
            f"{in_a_row} steps in a row were not finite, the last one step {step} ({result.describe()});"
            " their utterances are in nonfinite.jsonl"
        )


def dropout_seed(seed: int, step: int, position: int) -> int:
    """The seed of torch's generator for microbatch `position` of an optimizer step, counted over all ranks.

    From NumPy's SeedSequence, which is documented to stay the same: dropout depends on these three numbers,
    not on what a process did before, on the number of processes or on Python's version.
    """
    (drawn,) = np.random.SeedSequence((seed, step, position)).generate_state(1, np.uint64)
    return int(drawn)
