"""Planned microbatches become padded tensors, read one step ahead in a thread."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from asrlora.data import audio
from asrlora.data.shards import Sample, Shards

QUANTUM = audio.SAMPLE_RATE // 2  # padded lengths are multiples of half a second: see `pad`


@dataclass(frozen=True)
class Batch:
    samples: list[Sample]
    waves: torch.Tensor  # float32 (B, T)
    mask: torch.Tensor  # int64 (B, T), 1 where there is audio


def pad(pcms: list[audio.Pcm]) -> tuple[torch.Tensor, torch.Tensor]:
    """int16 (T_i,) each to waves (B, T) and mask (B, T).

    T is rounded up to half a second: few distinct shapes let oneDNN and cuDNN reuse their kernels,
    which makes a CPU step several times faster.
    """
    longest = -(-max(map(len, pcms)) // QUANTUM) * QUANTUM
    waves = torch.zeros(len(pcms), longest)
    mask = torch.zeros(len(pcms), longest, dtype=torch.long)
    for row, pcm in enumerate(pcms):
        waves[row, : len(pcm)] = torch.from_numpy(audio.to_float(pcm))
        mask[row, : len(pcm)] = 1
    return waves, mask


def read_batches(shards: Shards, plan: Iterable[list[int]]) -> Iterator[Batch]:
    """Yields the batches of `plan` (lists of indices into `shards`) in order."""

    def read(indices: list[int]) -> Batch:
        waves, mask = pad([shards.read(index) for index in indices])
        return Batch([shards.samples[index] for index in indices], waves, mask)

    # one thread keeps the order and one batch ahead; an error in it is raised here
    with ThreadPoolExecutor(1) as thread:
        pending = None
        for indices in plan:
            following = thread.submit(read, indices)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
