"""What a family of models provides, and what loading one gives.

A family is a module and its line in registry.py. It provides five things: `load`, `features`,
`summed_loss` and `transcribe` are functions of the module (see Family); `cost` is named in the line, since
batches are planned before torch is imported. wav2vec2.py is a short one to start from.

Shapes: B utterances, T samples at 16 kHz, F encoder frames, L label tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.data.loader import FRAMES
from asrlora.data.plan import Cost
from asrlora.models.key_terms import Trie
from asrlora.models.registry import Decoding
from asrlora.score.characters import names

IGNORED = -100  # cross entropy's mark for padding
Features = dict[str, torch.Tensor]  # keyword arguments of the model's forward


@dataclass(frozen=True)
class Decoded:
    """What a model makes of one utterance."""

    text: str
    margin: float  # nats by which the closest of all choices was made; infinite for beams
    unfinished: bool = False  # the limit of tokens ended it, not the model


@dataclass(frozen=True)
class Lengths:
    """Of a batch, each (B,), known on the host: asking the device for them would wait for all its work."""

    samples: list[int]
    tokens: list[int]  # of the labels


@dataclass(frozen=True)
class Targets:
    """Which linear modules of a model `--lora-targets` means, by the last part of their names."""

    attention: tuple[str, ...] = ()
    feed_forward: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()  # the model reads their weights past any adapter


@dataclass(frozen=True)
class Decoder:
    """How seq2seq.py runs a decoder."""

    prompt: list[int]  # tokens that it continues
    token_limit: Callable[["Base", float], int]  # the most tokens for an utterance of so many seconds
    suppressed: Mapping[str, list[int]] = field(default_factory=dict)  # never written: see GenerationConfig


@dataclass(frozen=True)
class Source:
    """Which base is to be loaded, and how."""

    model_id: str  # as the user gave it
    folder: Path
    kind: str  # Transformers' model_type, of config.json
    family: "Family"
    cost: Cost
    decoding: Decoding
    in_4bit: bool = False


class Family(Protocol):
    """The functions of a family's module. `model` is the base, the base with an adapter, or either in DDP's
    or DeepSpeed's wrapper; `base` is what `load` gave.

    An utterance's loss and hypothesis must not depend on its batch: `load` sees to it that no norm and no
    attention takes in padding (padding.py), and `transcribe` reports how close its choices were.
    """

    def load(self, source: Source) -> "Base":
        """The base with fp32 weights in eval mode: usually what pretrained.load_pretrained gives, with the
        family's own fields of Base replaced. Raises UserError naming the flag at fault."""

    def features(self, base: "Base", waves: torch.Tensor, mask: torch.Tensor) -> Features:
        """Waves (B, T) and their mask (B, T), as the audio path made them, to the model's input: fp32, on
        their device, without waiting for it. Raises ValueError rather than cut audio."""

    def summed_loss(
        self, model: Any, base: "Base", features: Features, labels: torch.Tensor, lengths: Lengths
    ) -> torch.Tensor:
        """Nats, summed in fp32 over the labels (B, L), padded with IGNORED, of all utterances."""

    def transcribe(self, model: Any, base: "Base", features: Features, seconds: list[float]) -> list[Decoded]:
        """Hypotheses of utterances that last `seconds`; by base.num_beams where there is a decoder."""


def spell(base: "Base", text: str) -> list[int]:
    """Tokens of `text`, without special ones, in the case that the vocabulary has letters of.

    Raises ValueError for characters that the vocabulary cannot spell: as a label, <unk> would teach the
    model nothing but to write <unk>.
    """
    if base.case != "both":
        text = text.lower() if base.case == "lower" else text.upper()
    ids: list[int] = base.tokenizer(text, add_special_tokens=False).input_ids
    unknown = base.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        missing = [c for c in set(text) if unknown in base.tokenizer(c, add_special_tokens=False).input_ids]
        raise ValueError(
            "cannot be written by this model, whose vocabulary lacks"
            f" {names(sorted(missing)) or 'parts of it'}; spell the text as the model does"
        )
    return ids


def accept(base: "Base", seconds: float, labels: list[int]) -> None:
    """The `check` of a family that can learn any text from any audio."""


@dataclass(frozen=True)
class Base:
    """A base model as loaded. Families replace the fields that have defaults."""

    model: Any  # transformers.PreTrainedModel; an adapter is put into it in place
    tokenizer: Any
    extractor: Any  # transformers' feature extractor
    family: Family
    kind: str  # Transformers' model_type
    language: str
    in_4bit: bool
    num_beams: int
    repetition_guard: bool
    case: Literal["lower", "upper", "both"]  # of the letters that the vocabulary has
    folder: Path
    sha256: str  # of the weights
    commit: str | None  # of a model from the hub
    cost: Cost  # of utterances: see registry.py

    targets: Targets = Targets()
    # Seconds of audio that the model is given at once, at most: what it can take in and was trained on.
    # Longer recordings are transcribed in windows (engine/longform.py).
    max_seconds: float = math.inf
    # all that decides how `transcribe` writes, for the fingerprint
    decoding: Mapping[str, Any] = field(default_factory=dict)
    # The tokens that the loss is summed over and divided by. Raises ValueError that says why the model
    # cannot write the text.
    label_ids: Callable[["Base", str], list[int]] = spell
    # Raises ValueError that says why the model cannot take in so many seconds, or learn these labels from
    # them: nothing is cut to fit.
    check: Callable[["Base", float, list[int]], None] = accept
    frames: Callable[["Base", int], int] | None = None  # of CTC models: encoder frames of so many samples
    decoder: Decoder | None = None  # of models that have one
    key_terms: Trie | None = None  # to which decoding is drawn


def padded_samples(seconds: float) -> int:
    """The samples of so much audio in the shortest batch that holds it (see data/loader.py, `pad`)."""
    return -(-round(seconds * SAMPLE_RATE) // FRAMES) * FRAMES


def longest_that(fits: Callable[[float], bool], cap: float) -> float:
    """The most seconds that fit, from `cap` down in steps of half a second; at least one second."""
    seconds = cap
    while seconds > 1.0 and not fits(seconds):
        seconds -= 0.5
    return seconds


def refuse_longer(seconds: float, limit: float) -> None:
    """Raises ValueError where an utterance is longer than the model was trained on."""
    if seconds > limit:
        raise ValueError(
            f"lasts {seconds:.2f} s, and this model is trained on at most {limit:g} s; split it or leave it"
            " out (--max-seconds)"
        )
