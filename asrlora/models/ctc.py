"""What CTC models share: an encoder that gives each frame a distribution over tokens and a blank.

A text's probability is summed over all ways to spread its tokens over the frames (Graves et al., 2006).
A family of CTC models takes its `summed_loss`, `transcribe` and `check` from here, and has Base.frames
say how many encoder frames so many samples make. The blank is the model's pad_token_id.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.functional import ctc_loss, log_softmax

from asrlora.data.audio import SAMPLE_RATE
from asrlora.errors import UserError
from asrlora.models import padding
from asrlora.models.family import Base, Decoded, Features, Lengths, Source
from asrlora.models.pretrained import load_pretrained

# seconds: LibriSpeech's longest utterance, 35, is decoded whole. No CTC model has a limit of its own so near,
# but attention's memory grows with the square.
MAX_SECONDS = 40.0
DECODING = {"method": "ctc greedy"}


def load(source: Source) -> Base:
    """Raises UserError where beams are asked for."""
    if source.num_beams > 1:
        raise UserError(
            f"--num-beams {source.num_beams}: {source.kind} is a CTC model and has no beams; leave it out"
        )
    return load_pretrained(source, "AutoModelForCTC")


def frames(base: Base, samples: int) -> int:
    """Encoder frames of so many samples."""
    assert base.frames is not None, f"the family of {base.kind} says how many frames samples make"
    return base.frames(base, samples)


def conv_frames(count: int, convolutions: Iterable[tuple[int, int, int]]) -> int:
    """Frames that convolutions of (kernel, stride, padding on both sides together) make of `count`:
    Transformers' own formulas, which want tensors."""
    for kernel, stride, padded in convolutions:
        count = (count + padded - kernel) // stride + 1
    return max(0, count)


def check(base: Base, seconds: float, labels: list[int]) -> None:
    """Raises ValueError where the audio has too few frames for the labels: the loss would be infinite."""
    # a blank must stand between two equal tokens
    needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
    there = frames(base, round(seconds * SAMPLE_RATE))
    if needed > there:
        raise ValueError(
            f"has a text of {len(labels)} tokens, which CTC spreads over at least {needed} frames, and"
            f" {seconds:.2f} s are {there}; is it the text of this audio? If so, leave it out"
        )


def summed_loss(
    model: Any, base: Base, features: Features, labels: torch.Tensor, lengths: Lengths
) -> torch.Tensor:
    """See Family; over the frames of the audio, never those of the padding.

    Infinite where `check` was not asked and the text does not fit: the step then fails and says so.
    Lengths as plain numbers and labels as int64 keep CUDA to torch's own kernel: with tensors it would
    wait for the device, and by shape take cuDNN's instead.
    """
    scores = model(**features).logits.float()  # (B, F, V)
    return ctc_loss(
        log_softmax(scores, dim=-1).transpose(0, 1),
        labels.clamp(min=0),
        [frames(base, samples) for samples in lengths.samples],  # type: ignore[arg-type]  # may be numbers
        lengths.tokens,  # type: ignore[arg-type]
        blank=base.model.config.pad_token_id,
        reduction="sum",
    )


def transcribe(model: Any, base: Base, features: Features, seconds: list[float]) -> list[Decoded]:
    """The likeliest token of each frame, runs of one token as one, blanks left out."""
    nats, best = model(**features).logits.topk(2)  # (B, F, 2)
    counts = [frames(base, round(s * SAMPLE_RATE)) for s in seconds]
    of_audio = padding.up_to(torch.tensor(counts, device=nats.device), nats.shape[1])
    margins = (nats[..., 0] - nats[..., 1]).masked_fill(~of_audio, torch.inf)
    closest = margins.amin(1).tolist()
    blank = base.model.config.pad_token_id
    decoded = []
    for row, length, margin in zip(best[..., 0].tolist(), counts, closest, strict=True):
        tokens = [token for token, _ in itertools.groupby(row[:length]) if token != blank]
        # group_tokens: CTC tokenizers would collapse "ll" a second time
        text = base.tokenizer.decode(tokens, skip_special_tokens=True, group_tokens=False)
        decoded.append(Decoded(text.strip(), margin))
    return decoded
