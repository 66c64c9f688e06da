"""Which utterances make which microbatch: pure functions of durations, seed, epoch and step.

World size is no argument of `plan_epoch`: a step holds the same microbatches on one GPU and on
eight, and `share` deals them out. Needs neither torch nor audio. A plan is a few arrays, whatever the
number of utterances; the lists of a step are made when it is asked for.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

QUANTUM = 0.5  # seconds; padded lengths are multiples of it, see batches.pack

# Microbatches whose utterances are sorted by length together. More pads less and shuffles less; on
# lengths like LibriSpeech's in batches of 160 s, padding (of which 2.0 % is the quantum's) comes to
#   32: 4.3 %, 64: 3.3 %, 128: 2.7 %, 256: 2.4 %, all in one pool: 2.0 %
POOL = 128

Microbatch = list[int]  # indices of utterances
Seconds = npt.NDArray[np.float64]
Members = npt.NDArray[np.int64]
Cost = Callable[[Seconds], Seconds]  # of utterances (N,): what a model computes on, see models/registry.py


def by_length(seconds: Seconds) -> Seconds:
    """The cost of an utterance to models that take it as long as it is."""
    return seconds


@dataclass(frozen=True)
class EpochPlan:
    """plan[s][m]: what microbatch m of optimizer step s holds."""

    order: Members  # indices of utterances, microbatch by microbatch
    bounds: Members  # (M, 2) the first of each microbatch in `order`, and the one behind its last
    microbatches_per_step: int
    dropped: int  # utterances left over at the end, too few for another step

    def __len__(self) -> int:
        return len(self.bounds) // self.microbatches_per_step

    def __getitem__(self, step: int) -> list[Microbatch]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        first = step * self.microbatches_per_step
        bounds = self.bounds[first : first + self.microbatches_per_step]
        return [self.order[start:end].tolist() for start, end in bounds]


def plan_epoch(
    durations: Sequence[float] | Seconds,
    *,
    seed: int,
    epoch: int,
    microbatches_per_step: int,
    batch_size: int | None = None,
    batch_seconds: float | None = None,
    members: Members | None = None,
    cost: Cost = by_length,
) -> EpochPlan:
    """Plans one epoch: every utterance at most once, similar lengths together, in random order.

    A microbatch holds `batch_size` utterances, or as many as fit into `batch_seconds` of padded
    audio, as `cost` weighs it. Exactly one of the two is given; durations are in seconds. `members`
    are the utterances of this epoch, default all. The incomplete last microbatch (of `batch_size`)
    and the incomplete last step are dropped and counted.
    """
    rng = np.random.default_rng([seed, epoch])
    length = cost(np.asarray(durations, dtype=np.float64))
    members = np.arange(len(length)) if members is None else members
    order = members[rng.permutation(len(members))]
    quanta = np.ceil(length / QUANTUM).astype(np.int64)  # padded lengths
    if batch_size is not None:
        pool = POOL * batch_size
    else:
        assert batch_seconds is not None
        mean = float(length[order].mean()) if len(order) else 1.0
        pool = POOL * max(1, int(batch_seconds / mean))
    # Utterances of one padded length stay in random order: sorting them further would pad no less.
    order = order[np.lexsort((quanta[order], np.arange(len(order)) // pool))]
    if batch_size is not None:
        starts = np.arange(0, len(order) - len(order) % batch_size, batch_size)
        bounds = np.stack([starts, starts + batch_size], axis=1)
    else:
        assert batch_seconds is not None
        bounds = _cut_by_seconds(quanta[order], batch_seconds / QUANTUM, pool)
    bounds = bounds[rng.permutation(len(bounds))]
    bounds = bounds[: len(bounds) - len(bounds) % microbatches_per_step]
    kept = int((bounds[:, 1] - bounds[:, 0]).sum())
    return EpochPlan(order, bounds, microbatches_per_step, len(order) - kept)


def iterate_steps(
    durations: Callable[[int], Sequence[float] | Seconds],
    steps: int,
    *,
    members: Callable[[int], Members | None] = lambda epoch: None,
    start: tuple[int, int] = (0, 0),
    **settings: Any,
) -> Iterator[tuple[int, list[Microbatch]]]:
    """Yields (epoch, microbatches) for `steps` optimizer steps; `settings` as for `plan_epoch`.

    `durations` and `members` are asked for each epoch. `start` is a cursor (epoch, step): the first
    k steps and those from the cursor behind them are all steps. The caller has made sure that an
    epoch holds at least one step.
    """
    first_epoch, first_step = start
    done = 0
    for epoch in itertools.count(first_epoch):
        planned = plan_epoch(durations(epoch), epoch=epoch, members=members(epoch), **settings)
        for step in range(first_step, len(planned)):
            if done == steps:
                return
            yield epoch, planned[step]
            done += 1
        first_step = 0


def mix(ours: int, replay: int, ratio: float, *, seed: int, epoch: int) -> Members:
    """The utterances of an epoch with replay: all of ours, and of the replay set (numbered behind
    ours) as many as make the share `ratio` of the epoch.

    The replay set is gone through in an order of its own, which runs on from epoch to epoch: none
    of it comes again before all of it has come.
    """
    count = round(ours * ratio / (1 - ratio)) if replay else 0
    if not count:
        return np.arange(ours)
    first, last = epoch * count, (epoch + 1) * count
    rounds = range(first // replay, -(-last // replay))
    orders = [np.random.default_rng([seed, turn, 1]).permutation(replay) for turn in rounds]
    drawn = np.concatenate(orders)[first - rounds.start * replay :][:count]
    return np.concatenate([np.arange(ours), ours + drawn])


def ratio_of_share(share: float, ours: float, replay: float) -> float:
    """The share of replayed utterances that makes a share of replayed audio, where our utterances last `ours`
    seconds on average and those to replay `replay`."""
    each = share / (1 - share) * ours / replay  # replayed utterances for each of ours
    return each / (1 + each)


def plan_evaluation(
    ids: Sequence[str],
    durations: Sequence[float] | Seconds,
    batch_seconds: float,
    cost: Cost = by_length,
) -> list[Microbatch]:
    """Batches for evaluation: every utterance exactly once, those of similar length together, which pads
    least, and the longest first, so that what does not fit into memory fails at once and ranks end together.

    Depends on the set of (id, duration) only, not on the order of the manifest or the world size.
    """
    order = np.array(sorted(range(len(ids)), key=lambda i: (-durations[i], ids[i])), np.int64)
    length = cost(np.asarray(durations, dtype=np.float64)[order])
    bounds = _cut_by_seconds(length, batch_seconds, len(order) or 1)
    return [order[start:end].tolist() for start, end in bounds]


def share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """What one rank takes of a step's microbatches or of the evaluation's batches."""
    return list(items[rank::world_size])


def padding(plan: EpochPlan, durations: Seconds, cost: Cost = by_length) -> float:
    """The share of what is computed on that is padding."""
    padded = real = 0.0
    for start, end in plan.bounds:
        seconds = durations[plan.order[start:end]]
        padded += float(np.ceil(cost(seconds).max() / QUANTUM)) * QUANTUM * len(seconds)
        real += float(seconds.sum())
    return 1 - real / padded


def _cut_by_seconds(lengths: npt.NDArray[Any], budget: float, pool: int) -> Members:
    """Cuts a run of utterances where the padded audio would pass the budget, and after each pool.

    Lengths and budget are in one unit. An utterance longer than the budget makes a batch of its own.
    Returns (M, 2) bounds.
    """
    starts = []
    for first in range(0, len(lengths), pool):
        longest, begun = 0.0, first
        starts.append(first)
        for number, length in enumerate(lengths[first : first + pool].tolist(), first):
            longest = max(longest, length)
            if longest * (number - begun + 1) > budget and number > begun:
                starts.append(number)
                longest, begun = length, number
    bounds = np.array([*starts, len(lengths)], np.int64)
    return np.stack([bounds[:-1], bounds[1:]], axis=1)
