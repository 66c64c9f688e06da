"""What CTC models share: an encoder that gives each frame a distribution over tokens and a blank.

A text's probability is summed over all ways to spread its tokens over the frames (Graves et al., 2006).
A family of CTC models takes its `summed_loss`, `transcribe` and `check` from here, and has Base.frames
say how many encoder frames so many samples make. The blank is the model's pad_token_id.
"""

import heapq
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import ctc_loss, log_softmax

from asrlora.data.audio import SAMPLE_RATE
from asrlora.errors import UserError
from asrlora.models import padding
from asrlora.models.family import Base, Decoded, Features, Lengths, Source
from asrlora.models.key_terms import START, State, Trie
from asrlora.models.pretrained import load_pretrained

# seconds: LibriSpeech's longest utterance, 35, is decoded whole. No CTC model has a limit of its own so near,
# but attention's memory grows with the square.
MAX_SECONDS = 40.0
DECODING = {"method": "ctc greedy"}


def load(source: Source) -> Base:
    """Raises UserError where something of a decoder is asked for."""
    chosen = source.decoding
    if chosen.num_beams > 1:
        raise UserError(
            f"--num-beams {chosen.num_beams}: {source.kind} is a CTC model and has no beams; leave it out"
        )
    if chosen.repetition_guard:
        raise UserError(
            f"--repetition-guard: {source.kind} is a CTC model, which never repeats itself; leave it out"
        )
    return load_pretrained(source, "AutoModelForCTC")


def frames(base: Base, samples: int) -> int:
    """Encoder frames of so many samples."""
    assert base.frames is not None, f"the family of {base.kind} says how many frames samples make"
    return base.frames(base, samples)


@dataclass
class Prefix:
    """A beginning of a text, as a search over prefixes keeps it."""

    tokens: list[int]
    state: State
    bonus: float  # nats of key terms
    blank: float = -math.inf  # nats of all ways to have written it that end in a blank
    token: float = -math.inf  # of those that end in its last token

    @property
    def nats(self) -> float:
        """By which it is ranked."""
        return _log_add(self.blank, self.token) + self.bonus


def search(nats: np.ndarray, blank: int, terms: Trie, width: int = 16, tokens: int = 16) -> list[Prefix]:
    """Prefix beam search (Hannun et al., "First-pass large vocabulary continuous speech recognition using
    bi-directional recurrent DNNs", 2014) with the bonus of key terms; the best first.

    Nats (F, V); `width` prefixes are kept, and each goes on with the likeliest `tokens` of a frame and
    with those that continue a term.
    """
    beams = [Prefix([], START, 0.0, blank=0.0)]
    for frame in nats:
        likely, frame_nats = np.argsort(frame)[-tokens:].tolist(), frame.tolist()
        following: dict[tuple[int, ...], Prefix] = {}
        for one in beams:
            whole, key = _log_add(one.blank, one.token), tuple(one.tokens)
            same = following.setdefault(key, replace(one, blank=-math.inf, token=-math.inf))
            same.blank = _log_add(same.blank, whole + frame_nats[blank])
            if one.tokens:
                same.token = _log_add(same.token, one.token + frame_nats[one.tokens[-1]])
            for token in {*likely, *terms.continuations(one.state)} - {blank}:
                repeats = bool(one.tokens) and token == one.tokens[-1]
                longer = following.get((*key, token))
                if longer is None:
                    step = terms.step(one.state, token)
                    longer = Prefix([*one.tokens, token], step.state, one.bonus + step.gain)
                    following[(*key, token)] = longer
                before = one.blank if repeats else whole
                longer.token = _log_add(longer.token, before + frame_nats[token])
        beams = heapq.nlargest(width, following.values(), key=lambda one: one.nats)
    ended = [replace(one, bonus=one.bonus + terms.last_gain(one.state)) for one in beams]
    return sorted(ended, key=lambda one: -one.nats)


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


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
        lengths.tokens,  # type: ignore[arg-type]  # the same
        blank=base.model.config.pad_token_id,
        reduction="sum",
    )


def transcribe(model: Any, base: Base, features: Features, seconds: list[float]) -> list[Decoded]:
    """The likeliest token of each frame, runs of one token as one, blanks left out; where a search over
    prefixes completes more key terms, what that finds."""
    logits = model(**features).logits
    nats, best = logits.topk(2)  # (B, F, 2)
    counts = [frames(base, round(s * SAMPLE_RATE)) for s in seconds]
    of_audio = padding.up_to(torch.tensor(counts, device=nats.device), nats.shape[1])
    margins = (nats[..., 0] - nats[..., 1]).masked_fill(~of_audio, torch.inf)
    closest = margins.amin(1).tolist()
    blank = base.model.config.pad_token_id
    decoded = []
    for number, (row, length, margin) in enumerate(zip(best[..., 0].tolist(), counts, closest, strict=True)):
        tokens = [token for token, _ in itertools.groupby(row[:length]) if token != blank]
        if base.key_terms:
            of_frames = log_softmax(logits[number, :length].float(), dim=-1).cpu().numpy()
            found = search(of_frames, blank, base.key_terms)
            if base.key_terms.bonus(found[0].tokens) > base.key_terms.bonus(tokens):
                tokens = found[0].tokens
            margin = min(margin, *(found[0].nats - other.nats for other in found[1:2]))
        # group_tokens: CTC tokenizers would collapse "ll" a second time
        text = base.tokenizer.decode(tokens, skip_special_tokens=True, group_tokens=False)
        decoded.append(Decoded(text.strip(), margin))
    return decoded
