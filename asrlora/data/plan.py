"""Which utterances make which microbatch: pure functions of durations, seed, epoch and step.

World size is no argument of `plan_epoch`: a step holds the same microbatches on one GPU and on
eight, and `share` deals them out. Needs neither torch nor audio.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

POOL = 32  # microbatches whose utterances are sorted by length together; more pads less, shuffles less

Microbatch = list[int]  # indices of utterances


@dataclass(frozen=True)
class EpochPlan:
    steps: list[list[Microbatch]]  # steps[s][m]: what microbatch m of optimizer step s holds
    dropped: int  # utterances left over at the end, too few for another step


def plan_epoch(
    durations: Sequence[float],
    *,
    seed: int,
    epoch: int,
    microbatches_per_step: int,
    batch_size: int | None = None,
    batch_seconds: float | None = None,
) -> EpochPlan:
    """Plans one epoch: every utterance at most once, similar lengths together, in random order.

    A microbatch holds `batch_size` utterances, or as many as fit into `batch_seconds` of padded
    audio. Exactly one of the two is given; durations are in seconds. The incomplete last
    microbatch (of `batch_size`) and the incomplete last step are dropped and counted.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(durations))
    length = np.asarray(durations, dtype=np.float64)
    if batch_seconds is None:
        assert batch_size is not None
        pool = POOL * batch_size
    else:
        mean = float(length.mean()) if len(length) else 1.0
        pool = POOL * max(1, int(batch_seconds / mean))
    microbatches: list[Microbatch] = []
    for start in range(0, len(order), pool):
        chosen = order[start : start + pool]
        chosen = chosen[np.argsort(length[chosen], kind="stable")]
        if batch_size is not None:
            cut = [chosen[i : i + batch_size].tolist() for i in range(0, len(chosen), batch_size)]
            microbatches += [batch for batch in cut if len(batch) == batch_size]
        else:
            assert batch_seconds is not None
            microbatches += _cut_by_seconds(chosen.tolist(), length, batch_seconds)
    shuffled = [microbatches[i] for i in rng.permutation(len(microbatches))]
    count = len(shuffled) // microbatches_per_step
    steps = [shuffled[s * microbatches_per_step : (s + 1) * microbatches_per_step] for s in range(count)]
    kept = sum(len(batch) for step in steps for batch in step)
    return EpochPlan(steps, len(durations) - kept)


def iterate_steps(
    durations: Sequence[float], steps: int, **settings: Any
) -> Iterator[tuple[int, list[Microbatch]]]:
    """Yields (epoch, microbatches) for `steps` optimizer steps; `settings` as for `plan_epoch`.

    The caller has made sure that an epoch holds at least one step.
    """
    done = 0
    for epoch in itertools.count():
        for microbatches in plan_epoch(durations, epoch=epoch, **settings).steps:
            if done == steps:
                return
            yield epoch, microbatches
            done += 1


def plan_evaluation(ids: Sequence[str], durations: Sequence[float], batch_seconds: float) -> list[Microbatch]:
    """Batches for evaluation: longest first, every utterance exactly once.

    Depends on the set of (id, duration) only, not on the order of the manifest or the world size:
    some models hear who shares their batch, so the batches must not change with either.
    """
    order = sorted(range(len(ids)), key=lambda i: (-durations[i], ids[i]))
    return _cut_by_seconds(order, durations, batch_seconds)


def share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """What one rank takes of a step's microbatches or of the evaluation's batches."""
    return list(items[rank::world_size])


def _cut_by_seconds(
    order: Sequence[int], durations: "Sequence[float] | np.ndarray", batch_seconds: float
) -> list[Microbatch]:
    """Cuts a run of utterances where the padded audio would pass the budget.

    An utterance longer than the budget makes a batch of its own.
    """
    batches: list[Microbatch] = []
    batch: Microbatch = []
    longest = 0.0
    for index in order:
        longest = max(longest, float(durations[index]))
        if batch and longest * (len(batch) + 1) > batch_seconds:
            batches.append(batch)
            batch, longest = [], float(durations[index])
        batch.append(index)
    return [*batches, batch] if batch else batches
