"""The memory of a device: how much is used, and what to do where it is full."""

import contextlib
import re
from collections.abc import Iterator

import psutil
import torch

from asrlora.config import RunConfig
from asrlora.data.audio import SAMPLE_RATE
from asrlora.data.loader import Batch
from asrlora.errors import UserError, first_line

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
