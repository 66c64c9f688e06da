"""The memory of a device: how much is used, what a training step needs, and what to do where it is full."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

from asrlora.config import RunConfig
from asrlora.data import loader
from asrlora.data.audio import SAMPLE_RATE
from asrlora.data.loader import Batch
from asrlora.data.plan import QUANTUM
from asrlora.engine.training_set import Labels, Training
from asrlora.errors import UserError, first_line
from asrlora.models import objective
from asrlora.models.family import Base, Lengths

# What a step takes at its peak, in what it keeps for its backward pass: on CPUs 2.6 times (Moonshine tiny)
# and 3.3 times (Whisper tiny.en) in two runs, as the heap is never trimmed and blocks of many sizes tear it;
# tensors alone are 1.04 times. A GPU's was not measured.
PEAK = {"cpu": 3.0, "cuda": 1.3}
# beside torch.OutOfMemoryError: libraries that allocate by themselves, and the CPU's allocator
FULL = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory", re.IGNORECASE)


@contextlib.contextmanager
def explained(batch: Batch, doing: str, remedy: str) -> Iterator[None]:
    """Around what is computed of a batch. Raises UserError where that needs more memory than there is.

    `doing` says what it was, and `remedy` what to give instead.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not (isinstance(error, torch.OutOfMemoryError) or FULL.search(str(error))):
            raise
        longest = max(batch.samples, key=lambda sample: sample.duration)
        audio = sum(sample.duration for sample in batch.samples)
        ids = [sample.id for sample in batch.samples]
        shown = ", ".join(map(repr, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise UserError(
            f"the memory is full while {doing}, by {len(ids)} utterances of {audio:.1f} s of audio, padded to"
            f" {batch.pcm.numel() / SAMPLE_RATE:.1f} s ({shown}; the longest is {longest.id!r} of"
            f" {longest.duration:.1f} s): {remedy} ({first_line(error)})"
        ) from error


def training_remedy(config: RunConfig) -> str:
    """Which flags make a training step need less memory."""
    if config.batch_seconds is not None:
        budget = f"lower --batch-seconds (now {config.batch_seconds:g})"
    elif (config.batch_size or 1) > 1:
        budget = f"lower --batch-size (now {config.batch_size})"
    else:
        budget = f"lower --max-seconds (now {config.max_seconds:g})"
    checkpointing = "" if config.gradient_checkpointing else ", or give --gradient-checkpointing"
    return (
        f"{budget}{checkpointing}, in a new --output-dir; --gradient-accumulation-steps (now"
        f" {config.gradient_accumulation_steps}) raised by as much keeps the size of an update"
    )


def evaluation_remedy(batch_seconds: float) -> str:
    """Which flag makes an evaluation need less memory."""
    return f"lower --eval-batch-seconds (now {batch_seconds:g}), which changes no hypothesis"


def peak_bytes(device: torch.device) -> int:
    """Bytes at most allocated on this rank's GPU so far, or held by its process without one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def describe_need(config: RunConfig, model: Any, base: Base, training: Training, labels: Labels) -> str:
    """What a microbatch of the longest utterances takes, and how many would fit, by what one and two of them
    keep for the backward pass. Empty with gradient checkpointing, which computes again what it does not keep.
    """
    if config.gradient_checkpointing or not labels.tokens:
        return ""
    samples = [sample for sample in training.samples.samples if sample.id in labels.tokens]
    longest = max(samples, key=lambda sample: sample.duration)
    tokens = labels.tokens[longest.id]
    one, two = (
        kept_bytes(model, base, longest.duration, tokens, rows, config.mixed_precision == "bf16")
        for rows in (1, 2)
    )
    peak, free = PEAK.get(base.model.device.type, 1.0), free_bytes(base.model.device)
    each, fixed = peak * (two - one), one - (two - one)
    (cost,) = training.cost(np.array([longest.duration]))
    rows = config.batch_size or max(1, int((config.batch_seconds or 0) / (-(-cost // QUANTUM) * QUANTUM)))
    fits = max(0, int((free - fixed) / each))
    told = (
        f"memory: a microbatch of {rows} utterances as long as the longest ({longest.duration:.1f} s) takes"
        f" some {(fixed + rows * each) / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free, for some {fits:,}"
        " such utterances"
    )
    return told if fits >= rows else f"{told}; it will not fit: {training_remedy(config)}"


def kept_bytes(
    model: Any, base: Base, seconds: float, tokens: list[int], rows: int, bf16: bool = False
) -> int:
    """Bytes that the forward pass of `rows` utterances of silence keeps for the backward pass, beside the
    model's own tensors; nothing of it is left afterwards. `tokens` are the label of each."""
    device = base.model.device
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Counts a storage once: many views of it may be kept."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    silence = np.zeros(round(seconds * SAMPLE_RATE), np.int16)
    waves, mask = (one.to(device) for one in loader.pad([silence] * rows))
    labels = objective.pad_labels([tokens] * rows).to(device)
    lengths = Lengths([len(silence)] * rows, [len(tokens)] * rows)
    objective.set_training(model)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    # of this device alone: by default the random numbers of all GPUs are saved, which opens them
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        autocast,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one),
    ):
        loss = objective.summed_loss(model, base, waves, mask, labels, lengths)
    del loss
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on its GPU, or of the machine's memory without one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)
