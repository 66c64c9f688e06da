"""Whisper: log-mel features of exactly 30 s, and a decoder whose prompt names language and task."""

import math
from dataclasses import replace
from typing import Any

import torch

from asrlora.data.audio import SAMPLE_RATE
from asrlora.errors import UserError
from asrlora.models import seq2seq
from asrlora.models.family import Base, Decoder, Features, Source, Targets, refuse_longer
from asrlora.models.features import whisper_log_mel
from asrlora.models.pretrained import load_pretrained

# Scripts that the byte-level tokens barely know take several tokens a character: three times English
_TOKENS_PER_SECOND = 20.0
_EXTRA_TOKENS = 8
_MULTILINGUAL = 51_865  # OpenAI's own rule: English-only vocabularies are smaller


summed_loss, transcribe = seq2seq.summed_loss, seq2seq.transcribe


def load(source: Source) -> Base:
    """Nothing is done about padding: an utterance is always encoded as 30 s."""
    base = load_pretrained(source, seq2seq.AUTO_CLASS)
    return replace(
        base,
        targets=Targets(("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")),
        max_seconds=_window(base),
        decoding={
            **seq2seq.method(base),
            "tokens_per_second": _TOKENS_PER_SECOND,
            "extra_tokens": _EXTRA_TOKENS,
            "prompt": base.tokenizer.convert_ids_to_tokens(_prompt(base)),
            **_suppressed(base),
        },
        label_ids=_label_ids,
        check=_check,
        decoder=Decoder(_prompt(base), _token_limit, _suppressed(base)),
    )


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    """The encoder has no mask: it has only ever been given 30 s, and takes the zeros for silence. Longer
    audio, which would be cut, is refused by `check` and here."""
    mels = whisper_log_mel(base.extractor, waves, mask)
    # the mask is not used, but without it Transformers warns of every batch
    return {"input_features": mels, "attention_mask": mels.new_ones(mels.shape[::2], dtype=torch.long)}


def _prompt(base: Base) -> list[int]:
    """Start, and for multilingual models language and task; then: no timestamps."""
    words = ["<|startoftranscript|>"]
    settings = base.model.generation_config
    if getattr(settings, "is_multilingual", base.model.config.vocab_size >= _MULTILINGUAL):
        words += [f"<|{base.language}|>", "<|transcribe|>"]
    words.append("<|notimestamps|>")
    vocabulary = base.tokenizer.get_vocab()
    for word in words:
        if word not in vocabulary:
            raise UserError(
                f"--language {base.language}: the model in {base.folder} has no token {word}; give a"
                " language by its code, such as en or de"
            )
    return [vocabulary[word] for word in words]


def _label_ids(base: Base, text: str) -> list[int]:
    """With the space in front that the base writes as part of its first word. Where it is a token of
    its own, in scripts without spaces, the base never begins with it (begin_suppress_tokens)."""
    ids = seq2seq.label_ids(base, " " + text.strip())
    return ids[1:] if ids[0] == base.tokenizer.convert_tokens_to_ids("Ġ") else ids


def _check(base: Base, seconds: float, labels: list[int]) -> None:
    refuse_longer(seconds, _window(base))
    seq2seq.refuse_more_labels(labels, _room(base))


def _window(base: Base) -> float:
    """Seconds of audio that the encoder takes."""
    return float(base.extractor.n_samples / SAMPLE_RATE)


def _token_limit(base: Base, seconds: float) -> int:
    return min(math.ceil(seconds * _TOKENS_PER_SECOND) + _EXTRA_TOKENS, _room(base))


def _room(base: Base) -> int:
    """The most tokens after the prompt."""
    return int(base.model.config.max_target_positions) - len(seq2seq.decoder(base).prompt)


def _suppressed(base: Base) -> dict[str, Any]:
    """Tokens that the base's own settings never let it write, such as notes of music."""
    settings = base.model.generation_config
    names = ("suppress_tokens", "begin_suppress_tokens")
    return {name: getattr(settings, name) for name in names if getattr(settings, name, None)}
