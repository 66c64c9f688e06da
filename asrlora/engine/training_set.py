"""The sets of a run as shards: built or found, filtered, and the same on all ranks."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.data import loader, manifest, plan
from asrlora.data.audit.findings import Finding
from asrlora.data.audit.transcript_style import restyle
from asrlora.data.augment import Augment
from asrlora.data.shards import cache, reader
from asrlora.data.shards.index import Sample
from asrlora.engine.runtime import Runtime
from asrlora.errors import UserError
from asrlora.models import objective
from asrlora.models.family import Base

Reading = tuple[int, plan.Microbatch]  # epoch, numbers of samples
Source = list[manifest.Utterance] | reader.Shards  # a manifest's utterances, or a folder of shards


@dataclass(frozen=True)
class StepData:
    """What one optimizer step trains on."""

    epoch: int
    samples: list[Sample]  # of the whole step over all ranks, in the order of the plan
    batches: list[loader.Batch]  # this rank's microbatches


@dataclass(frozen=True)
class Training:
    """What is trained on: our own samples, and those to replay behind them."""

    samples: reader.Shards
    ours: int
    left_out: Counter[str]
    cost: plan.Cost

    def steps(self, config: RunConfig, done: int = 0) -> Iterator[tuple[int, list[plan.Microbatch]]]:
        """(epoch, microbatches) of each optimizer step behind the first `done`; the same on every rank."""
        augment, seed, replay = augmentation(config), config.seed, len(self.samples.rows) - self.ours
        ratio = self._replay_ratio(config)
        planned = plan.iterate_steps(
            lambda epoch: augment.durations(self.samples, epoch),
            config.max_steps,
            seed=seed,
            members=lambda epoch: plan.mix(self.ours, replay, ratio, seed=seed, epoch=epoch),
            microbatches_per_step=config.gradient_accumulation_steps,
            cost=self.cost,
            **config.microbatch,
        )
        return itertools.islice(planned, done, None)

    def _replay_ratio(self, config: RunConfig) -> float:
        """The share of replayed utterances in an epoch."""
        if config.replay_share is None:
            return config.replay_ratio
        seconds = self.samples.durations
        ours, replay = float(seconds[: self.ours].mean()), float(seconds[self.ours :].mean())
        return plan.ratio_of_share(config.replay_share, ours, replay)

    def shares(self, config: RunConfig, done: int, rank: int, world_size: int) -> Iterator[Reading]:
        """(epoch, numbers of samples) of each microbatch of one rank, step after step."""
        for epoch, microbatches in self.steps(config, done):
            for microbatch in plan.share(microbatches, rank, world_size):
                yield epoch, microbatch

    def read(self, config: RunConfig, done: int, runtime: Runtime) -> Iterator[StepData]:
        """The data of each optimizer step behind the first `done`; threads read ahead.

        The plan is a pure function: the steps here and the threads' reading go through it by themselves.
        """
        reading = loader.read_batches(
            self.samples,
            self.shares(config, done, runtime.rank, runtime.world_size),
            augmentation(config).apply,
            runtime.threads.loader_threads,
            pin=runtime.device.type == "cuda",
        )
        batches = runtime.work.each("reading a batch", reading)
        for epoch, microbatches in self.steps(config, done):
            samples = [self.samples.samples[i] for microbatch in microbatches for i in microbatch]
            mine = [next(batches) for _ in range(len(microbatches) // runtime.world_size)]
            yield StepData(epoch, samples, mine)


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
    first = runtime.collectives.local_rank == 0
    return runtime.collectives.first_of_machine(
        what, lambda: cache.cached(utterances, what if first else None)
    )


def _usable(config: RunConfig, whole: reader.Shards, runtime: Runtime) -> tuple[reader.Shards, Counter[str]]:
    """Collective. What can be trained on, the same on all ranks, and what cannot, by reason."""
    samples, left_out = reader.for_training(whole, config.min_seconds, config.max_seconds)
    left_out.update(whole.rejected)
    if config.on_damage == "skip":
        samples, damaged = reader.without_damage(
            samples, runtime.rank, runtime.world_size, runtime.collectives.all_gather
        )
        left_out.update({"damaged": len(damaged)} if damaged else {})
        for message in damaged if runtime.is_main else []:
            console.print(f"left out: {message}")
    return samples, left_out


def augmentation(config: RunConfig) -> Augment:
    """What changes the audio of training, as the flags say."""
    return Augment(config.seed, config.augment_speed, config.augment_noise_snr, config.augment_time_masks)


@dataclass(frozen=True)
class Labels:
    """What the model learns to write, by utterance id."""

    texts: dict[str, str]
    tokens: dict[str, list[int]]  # of the texts that can be learned
    unlearnable: list[Finding]  # about the other ones


def label(base: Base, samples: reader.Shards, config: RunConfig) -> Labels:
    """The labels of a training set, in the style that the flags ask for."""
    style = (config.label_case, config.label_punctuation, config.label_characters)
    texts = {sample.id: restyle(sample.text, *style) for sample in samples.samples}
    return Labels(texts, *objective.label(base, texts, augmentation(config).extremes(samples)))
