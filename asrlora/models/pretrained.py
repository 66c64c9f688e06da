"""Loading a pretrained model by Transformers, as every family wants it: fp32, frozen, and exact."""

import importlib.util
from typing import Any, Literal

import torch
import transformers
from transformers.utils import logging

from asrlora.data.audio import SAMPLE_RATE
from asrlora.errors import UserError
from asrlora.models.family import Base, Source
from asrlora.models.hub import commit_of, hash_weights, split


class No4BitError(UserError):
    """A base cannot be loaded in 4 bits, here or at all."""


def load_pretrained(source: Source, auto_class: str) -> Base:
    """Loads model, tokenizer and feature extractor, the model by Transformers' `auto_class`; in eval mode.

    Attention is Transformers' default, SDPA where the model's class has it: WavLM's has not.
    Raises UserError where weights are missing or the audio would be of another sample rate.
    """
    logging.disable_progress_bar()  # asrlora's own lines say what is loaded
    transformers.AttentionMaskInterface.register("sdpa", _sdpa_mask)
    config = transformers.AutoConfig.from_pretrained(source.folder)
    for part in (config, getattr(config, "encoder_config", None)):
        _only_seeded_dropout(part)
    model, loaded = getattr(transformers, auto_class).from_pretrained(
        source.folder,
        config=config,
        output_loading_info=True,
        dtype=torch.float32,
        **(_in_4bit() if source.in_4bit else {}),
    )
    if loaded["missing_keys"]:
        raise UserError(
            f"--model-id {source.model_id}: its weights lack"
            f" {', '.join(sorted(loaded['missing_keys'])[:3])}, which would be random; give a model that was"
            " trained to write text"
        )
    # what saved adapters name: not a path that depends on the working directory, nor the hub's cache
    model.name_or_path = split(source.model_id)[0]
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # frozen anyway; else gradients run through its convolutions in vain
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder)
    return Base(
        model=model.eval(),
        tokenizer=tokenizer,
        extractor=_extractor(source),
        family=source.family,
        kind=source.kind,
        language=source.decoding.language,
        in_4bit=source.in_4bit,
        num_beams=source.decoding.num_beams,
        repetition_guard=source.decoding.repetition_guard,
        case=_case_of(tokenizer),
        folder=source.folder,
        sha256=hash_weights(source.folder),
        commit=commit_of(source.model_id, source.folder),
        cost=source.cost,
    )


def _extractor(source: Source) -> Any:
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source.folder)
    except ImportError:  # Parakeet's filters
        raise UserError(
            f"--model-id {source.model_id}: Transformers {transformers.__version__} needs librosa to make its"
            " features; install librosa, or Transformers 5.23 or newer"
        ) from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(
            f"--model-id {source.model_id}: takes audio at {extractor.sampling_rate} Hz; only models for"
            f" {SAMPLE_RATE} Hz are supported"
        )
    return extractor


def _case_of(tokenizer: Any) -> Literal["lower", "upper", "both"]:
    special = set(tokenizer.all_special_tokens)
    words = [word for word in tokenizer.get_vocab() if word not in special]
    lower, upper = any(w != w.upper() for w in words), any(w != w.lower() for w in words)
    return "both" if lower == upper else "lower" if lower else "upper"


def _sdpa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Transformers' mask, kept also where it masks nothing: to find that out would wait for a GPU at every
    forward, and have a batch whose utterances are of one length computed by another kernel."""
    from transformers.masking_utils import sdpa_mask

    if kwargs.get("attention_mask") is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _only_seeded_dropout(config: Any) -> None:
    """Dropout is seeded by (seed, step, microbatch) through torch. LayerDrop would leave adapters without
    gradients, which DDP refuses; SpecAugment draws from NumPy, which nobody seeds."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False


def _in_4bit() -> dict[str, Any]:
    """QLoRA's base (Dettmers et al., 2023): NF4 weights, opened to the precision of the input."""
    if not torch.cuda.is_available():
        raise No4BitError("--load-in-4bit needs a GPU; leave it out to train on this machine")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise No4BitError("--load-in-4bit needs bitsandbytes; install asrlora[qlora]")
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # autocast lowers it in bf16 training steps
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
