"""Planned microbatches become padded tensors, read ahead by threads.

Threads, because reading, sha256 and FLAC release Python's lock. What travels to the device is 16-bit
audio and lengths, a sixth of waves and mask: those are made there.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from asrlora import allocation
from asrlora.data import audio
from asrlora.data.plan import QUANTUM, Cost, by_length
from asrlora.data.shards.index import Sample

FRAMES = round(QUANTUM * audio.SAMPLE_RATE)

Change = Callable[[audio.Pcm, str, int], audio.Pcm]  # audio, id, epoch


class Readable(Protocol):
    """Shards, or what is read like them."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What there is to read."""

    def read(self, number: int) -> audio.Pcm:
        """int16 samples (T,) at 16 kHz."""


@dataclass(frozen=True)
class Batch:
    """Utterances of one microbatch."""

    samples: list[Sample]
    pcm: torch.Tensor  # int16 (B, T), zeros behind the end
    lengths: torch.Tensor  # int64 (B,)
    waited: float = 0.0  # seconds that the consumer waited for this batch

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Waves, float32 (B, T) in [-1, 1), and mask, bool (B, T), true where there is audio."""
        return _unpack(to_device(self.pcm, device), to_device(self.lengths, device))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. A copy to a GPU goes by pinned memory and is not waited for; the kernels that
    read it are queued behind it."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def pad(pcms: list[audio.Pcm]) -> tuple[torch.Tensor, torch.Tensor]:
    """int16 (T_i,) each to waves (B, T) and mask (B, T)."""
    return _unpack(*pack(pcms))


def pack(pcms: list[audio.Pcm]) -> tuple[torch.Tensor, torch.Tensor]:
    """int16 (T_i,) each to int16 (B, T) and lengths (B,).

    T is rounded up to half a second: few distinct shapes let oneDNN and cuDNN reuse their kernels,
    which makes a CPU step several times faster.
    """
    longest = -(-max(map(len, pcms)) // FRAMES) * FRAMES
    packed = np.zeros((len(pcms), longest), np.int16)
    for row, pcm in zip(packed, pcms, strict=True):
        row[: len(pcm)] = pcm
    return torch.from_numpy(packed), torch.tensor([len(pcm) for pcm in pcms])


def padding(batches: Sequence[Batch], cost: Cost = by_length) -> float:
    """The share of what is computed on that is silence put behind the utterances."""
    longest = np.array([batch.pcm.shape[1] / audio.SAMPLE_RATE for batch in batches])
    padded = float(np.dot(cost(longest), [len(batch.pcm) for batch in batches]))
    return 1 - sum(int(batch.lengths.sum()) for batch in batches) / audio.SAMPLE_RATE / padded


def _unpack(pcm: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    waves = pcm.float().mul_(1 / 32768)  # exact: a power of two
    if pcm.is_cuda:
        return waves, torch.arange(pcm.shape[1], device=pcm.device) < lengths[:, None]
    mask = torch.zeros(pcm.shape, dtype=torch.bool)  # by comparison it would cost a CPU more than the waves
    for row, length in zip(mask, lengths.tolist(), strict=True):
        row[:length] = True
    return waves, mask


def read_batches(
    shards: Readable,
    plan: Iterable[tuple[int, list[int]]],
    change: Change = lambda pcm, identity, epoch: pcm,
    workers: int | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yields the batches of `plan` (epoch and numbers in `shards`) in order.

    `plan` is run through only as far as is read ahead: two batches a thread. An error of a thread is
    raised here, at the batch it belongs to. `change` alters the audio (see data/augment.py). There are as
    many threads as `workers`, or as this process may use. With `pin` they put the audio into pinned memory,
    for a GPU.
    """
    workers = workers or allocation.of_process().loader_threads

    def read(epoch: int, numbers: list[int]) -> Batch:
        """One batch, in a thread."""
        samples = [shards.samples[number] for number in numbers]
        pcms = [change(shards.read(n), s.id, epoch) for n, s in zip(numbers, samples, strict=True)]
        pcm, lengths = pack(pcms)
        return Batch(samples, *((pcm.pin_memory(), lengths.pin_memory()) if pin else (pcm, lengths)))

    pool = ThreadPoolExecutor(workers, "read")
    ahead: deque[Future[Batch]] = deque()
    rest = iter(plan)
    try:
        while True:
            while len(ahead) < 2 * workers and (following := next(rest, None)) is not None:
                ahead.append(pool.submit(read, *following))
            if not ahead:
                return
            start = time.perf_counter()
            done = ahead.popleft().result()
            yield replace(done, waited=time.perf_counter() - start)
    finally:
        pool.shutdown(cancel_futures=True)
