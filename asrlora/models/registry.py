"""The families of base models, by Transformers' model_type, and loading a base. Imports no torch.

A new family is a module that provides what family.py asks for, and a line in FAMILIES.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlora.data.plan import Cost, by_length
from asrlora.errors import UserError
from asrlora.models.hub import find_model, read_config

if TYPE_CHECKING:
    from asrlora.models.family import Base

POSITION = 0.02  # seconds: a Whisper encoder makes one frame of two hops of 160 samples
SHORTEST_LIMIT = 1.0  # seconds: recordings cannot be cut any finer


def by_audio(config: Mapping[str, Any]) -> Cost:
    """The cost of utterances to a model that computes on the audio that there is."""
    return by_length


def by_window(config: Mapping[str, Any]) -> Cost:
    """The cost of utterances to Whisper, which computes on its whole window (30 s) whatever is in it."""
    window = POSITION * float(config.get("max_source_positions", 1500))
    return lambda seconds: np.full(len(seconds), window)


@dataclass(frozen=True)
class Decoding:
    """How hypotheses are written, as far as users choose."""

    language: str = "en"  # of multilingual models; others ignore it
    num_beams: int = 1  # of models with a decoder; 1 is greedy
    repetition_guard: bool = False  # of models with a decoder: see seq2seq.transcribe

    @classmethod
    def of(cls, settings: Any) -> "Decoding":
        """That of a run's settings or a command's arguments."""
        return cls(settings.language, settings.num_beams, settings.repetition_guard)


@dataclass(frozen=True)
class Entry:
    """A family's module, and what utterances cost its models, by their config.json."""

    module: str
    cost: Callable[[Mapping[str, Any]], Cost] = by_audio


FAMILIES = {
    "moonshine": Entry("asrlora.models.moonshine"),
    "moonshine_streaming": Entry("asrlora.models.moonshine"),
    "whisper": Entry("asrlora.models.whisper", by_window),
    "wav2vec2": Entry("asrlora.models.wav2vec2"),
    "hubert": Entry("asrlora.models.wav2vec2"),
    "wavlm": Entry("asrlora.models.wav2vec2"),
    "parakeet_ctc": Entry("asrlora.models.parakeet"),
}


def cost_of(model_id: str) -> Cost:
    """The cost of utterances (N,), in seconds of audio that the model computes on; a batch costs the longest
    one's times their number.

    Batches are planned by it: their budgets, their padding, and how often a run goes through its training
    set. By config.json alone, so that plans can be checked before torch is imported or weights are there.
    Raises UserError where there is no such model.
    """
    config = read_config(model_id)
    entry = FAMILIES.get(config.get("model_type", ""))
    return entry.cost(config) if entry else by_length


def load_base(model_id: str, decoding: Decoding = Decoding(), in_4bit: bool = False) -> "Base":
    """Loads model, tokenizer and feature extractor; fp32 whatever the file holds, in eval mode.

    Raises UserError where the model is of no supported family, or cannot be loaded as asked.
    """
    from asrlora.models.family import Source

    folder = find_model(model_id)
    config = read_config(str(folder))
    kind = config.get("model_type", "")
    if kind not in FAMILIES:
        raise UserError(
            f"--model-id {model_id}: models of type {kind} are not supported; supported:"
            f" {', '.join(FAMILIES)}"
        )
    family: Any = importlib.import_module(FAMILIES[kind].module)
    cost = FAMILIES[kind].cost(config)
    base: Base = family.load(Source(model_id, folder, kind, family, cost, decoding, in_4bit))
    return replace(base, max_seconds=min(base.max_seconds, _stated_seconds(config, folder)))


def _stated_seconds(config: Mapping[str, Any], folder: Path) -> float:
    """`max_audio_seconds` of config.json, infinite where there is none: for models that were trained on
    clips shorter than their family usually is."""
    stated = config.get("max_audio_seconds", float("inf"))
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated >= SHORTEST_LIMIT:
        raise UserError(
            f"{folder / 'config.json'}: max_audio_seconds must be seconds, at least {SHORTEST_LIMIT:g},"
            f" and not {stated!r}"
        )
    return float(stated)
