"""The sets of a run as shards: built or found, filtered, and the same on all ranks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrlora.config import RunConfig
from asrlora.console import console, progress
from asrlora.data import manifest, plan
from asrlora.data.augment import Augment
from asrlora.data.shards import cache, reader
from asrlora.engine.runtime import Runtime
from asrlora.errors import UserError

Source = list[manifest.Utterance] | reader.Shards  # a manifest's utterances, or a folder of shards


@dataclass(frozen=True)
class Training:
    """What is trained on: our own samples, and those to replay behind them."""

    samples: reader.Shards
    ours: int
    left_out: Counter[str]
    cost: plan.Cost

    def steps(self, config: RunConfig) -> Iterator[tuple[int, list[plan.Microbatch]]]:
        """The whole run's (epoch, microbatches), step by step; the same on every rank."""
        heard, seed, replay = augmentation(config), config.seed, len(self.samples.rows) - self.ours
        return plan.iterate_steps(
            lambda epoch: heard.durations(self.samples, epoch), config.max_steps, seed=seed,
            members=lambda epoch: plan.mix(self.ours, replay, config.replay_ratio, seed=seed, epoch=epoch),
            microbatches_per_step=config.gradient_accumulation_steps, cost=self.cost, **config.microbatch,
        )  # fmt: skip


def open_sets(
    config: RunConfig, sets: dict[str, Source], runtime: Runtime, cost: plan.Cost
) -> tuple[Training, dict[str, reader.Shards]]:
    """Collective. Shards of all sets; each machine's first process builds those that are missing.

    `sets` holds train, replay where it is wanted, and the evaluation sets, which are returned by name.
    """
    opened: dict[str, reader.Shards] = {}
    for name, source in sets.items():
        if isinstance(source, reader.Shards):
            opened[name] = source
        else:
            opened[name] = cached(runtime, f"shards of {name}", source)
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
    training = Training(samples, ours, left_out, cost)
    if next(training.steps(config), None) is None:
        raise UserError(
            f"{manifest.describe(len(samples.rows), left_out)}: fewer than one step needs; lower"
            " --batch-size, --batch-seconds or --gradient-accumulation-steps"
        )
    return training, opened


def cached(runtime: Runtime, what: str, utterances: list[manifest.Utterance]) -> reader.Shards:
    """Collective. The utterances' shards; each machine's first process builds those that are missing."""

    def open_or_build() -> reader.Shards:
        total = sum(utterance.duration for utterance in utterances)
        with progress(what, total, runtime.accelerator.is_local_main_process) as advance:
            return cache.cached(utterances, advance)

    return runtime.first_of_machine(what, open_or_build)


def _usable(config: RunConfig, whole: reader.Shards, runtime: Runtime) -> tuple[reader.Shards, Counter[str]]:
    """Collective. What can be trained on, the same on all ranks, and what cannot, by reason."""
    samples, left_out = reader.for_training(whole, config.min_seconds, config.max_seconds)
    left_out.update(whole.rejected)
    if config.on_damage == "skip":
        samples, damaged = reader.without_damage(
            samples, runtime.rank, runtime.world_size,
            lambda found: runtime.from_main(runtime.gather(found) or []),
        )  # fmt: skip
        left_out.update({"damaged": len(damaged)} if damaged else {})
        for message in damaged if runtime.is_main else []:
            console.print(f"left out: {message}")
    return samples, left_out


def augmentation(config: RunConfig) -> Augment:
    return Augment(config.seed, config.augment_speed, config.augment_noise_snr, config.augment_time_masks)
