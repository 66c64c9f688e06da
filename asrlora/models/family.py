"""What a family of models must provide, and what the families share.

A family is a module of plain functions: moonshine.py, whisper.py, ctc.py. families.py says which
module serves which of Transformers' model types.

Shapes: B utterances, T samples at 16 kHz, F encoder frames, L label tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.data.loader import FRAMES
from asrlora.data.plan import Cost
from asrlora.score.characters import names

LABEL_QUANTUM = 8  # label lengths are multiples of this, for the reason given at batches.pad
IGNORED = -100  # cross entropy's mark for padding
Features = dict[str, torch.Tensor]  # keyword arguments of the model's forward


@dataclass(frozen=True)
class Written:
    """What a model writes for one utterance."""

    text: str
    margin: float  # nats by which the closest of all choices was made; infinite for beams
    unfinished: bool = False  # the limit of tokens ended it, not the model


@dataclass(frozen=True)
class Lengths:
    """Of a batch, each (B,), known on the host: to ask the device for them would wait for all that it has
    been given to do."""

    samples: list[int]
    tokens: list[int]  # of the labels


@dataclass(frozen=True)
class Targets:
    """Which linear modules of a model `--lora-targets` means, by the last part of their names."""

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    unreachable: tuple[str, ...] = ()  # the model reads their weights past any adapter


class Family(Protocol):
    """The functions of a family's module. `model` is the base, the base with an adapter, or either in
    DDP's or DeepSpeed's wrapper; `base` is what families.load_base gave."""

    MODEL_CLASS: str  # Transformers' class that loads the weights

    def targets(self, kind: str) -> Targets:
        """Of models of Transformers' type `kind`."""

    def ignore_padding(self, model: Any, kind: str) -> None:
        """Changes a loaded model so that it hears an utterance in a batch as it would hear it alone."""

    def features(self, base: "Base", waves: torch.Tensor, mask: torch.Tensor) -> Features:
        """Waves (B, T) and their mask (B, T), as the audio path made them, to the model's input; on their
        device, without waiting for it."""

    def label_ids(self, base: "Base", text: str) -> list[int]:
        """The tokens that the loss is summed over and divided by. Raises ValueError saying why the
        model cannot write the text."""

    def check(self, base: "Base", seconds: float, labels: list[int]) -> None:
        """Raises ValueError saying why the model cannot hear so much audio or learn `labels` (none in
        evaluation) from it. Nothing is cut to fit."""

    def frames(self, base: "Base", seconds: float) -> int:
        """Encoder frames of so much audio."""

    def longest(self, base: "Base") -> float:
        """Seconds of audio that are given to the model at once, at most: what it can take in and what it
        was trained on. Longer recordings are transcribed in windows (engine/longform.py)."""

    def logits(self, model: Any, base: "Base", features: Features, labels: torch.Tensor) -> torch.Tensor:
        """(B, L, V), teacher-forced by labels (B, L), from a decoder; (B, F, V) from CTC."""

    def loss(
        self, base: "Base", scores: torch.Tensor, labels: torch.Tensor, lengths: "Lengths"
    ) -> torch.Tensor:
        """Nats, summed over the labels (B, L) of all utterances; `scores` are fp32 logits."""

    def transcribe(
        self, model: Any, base: "Base", waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
    ) -> list[Written]:
        """Hypotheses, each a function of its utterance alone; by base.num_beams where there is a decoder."""

    def decoding(self, base: "Base") -> dict[str, Any]:
        """Everything that decides how `transcribe` writes, for the fingerprint."""


@dataclass(frozen=True)
class Base:
    """A base model as loaded: fp32 weights, and what goes with them."""

    model: Any  # transformers.PreTrainedModel; an adapter is put into it in place
    tokenizer: Any
    extractor: Any  # transformers' feature extractor
    family: Family
    kind: str  # Transformers' name of the model type
    language: str  # of multilingual models; others ignore it
    in_4bit: bool
    num_beams: int  # of decoders; 1 is greedy
    case: Literal["lower", "upper", "both"]  # of the letters that the vocabulary has
    folder: Path
    sha256: str  # of the weights
    cost: Cost  # of utterances, see cost.py


def tokens(base: Base, text: str) -> list[int]:
    """Tokens of `text`, without special ones, in the case that the vocabulary has letters of.

    Raises ValueError for characters that the vocabulary cannot spell: as a label, <unk> would teach
    the model nothing but to write <unk>.
    """
    if base.case != "both":
        text = text.lower() if base.case == "lower" else text.upper()
    ids: list[int] = base.tokenizer(text, add_special_tokens=False).input_ids
    unknown = base.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        odd = sorted(c for c in set(text) if unknown in base.tokenizer(c, add_special_tokens=False).input_ids)
        raise ValueError(
            f"cannot be written by this model, whose vocabulary lacks {names(odd) or 'parts of it'};"
            " spell the text as the model does"
        )
    return ids


def case_of(tokenizer: Any) -> Literal["lower", "upper", "both"]:
    special = set(tokenizer.all_special_tokens)
    words = [word for word in tokenizer.get_vocab() if word not in special]
    lower, upper = any(w != w.upper() for w in words), any(w != w.lower() for w in words)
    return "both" if lower == upper else "lower" if lower else "upper"


def padded_samples(seconds: float) -> int:
    """The samples of so much audio in the shortest batch that holds it (see batches.pad)."""
    return -(-round(seconds * SAMPLE_RATE) // FRAMES) * FRAMES


def longest_that(fits: Callable[[float], bool], cap: float) -> float:
    """The most seconds that fit, from `cap` down in steps of half a second; at least one second."""
    seconds = cap
    while seconds > 1.0 and not fits(seconds):
        seconds -= 0.5
    return seconds


def refuse_longer(seconds: float, limit: float) -> None:
    if seconds > limit:
        raise ValueError(
            f"lasts {seconds:.2f} s, and this model is trained on at most {limit:g} s; split it or leave it"
            " out (--max-seconds)"
        )
