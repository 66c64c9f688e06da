"""Base models of every family: loading, labels and loss. What a family must provide: family.py.

Shapes: B utterances, T samples at 16 kHz, L label tokens, V vocabulary.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from asrlora.data.audio import SAMPLE_RATE
from asrlora.data.audit import checks
from asrlora.data.audit.findings import Finding
from asrlora.errors import UserError
from asrlora.models import cost, ctc, moonshine, whisper
from asrlora.models.family import IGNORED, LABEL_QUANTUM, Family, case_of
from asrlora.models.family import Base as Base
from asrlora.models.family import Lengths as Lengths
from asrlora.models.hub import find_model, hash_weights, lasting_name

FAMILIES: dict[str, Family] = {  # by Transformers' name of the model type
    "moonshine": moonshine,
    "moonshine_streaming": moonshine,
    "whisper": whisper,
    "wav2vec2": ctc,
    "hubert": ctc,
    "wavlm": ctc,
    "parakeet_ctc": ctc,
}

SHORTEST_LIMIT = 1.0  # seconds: recordings cannot be cut any finer


class No4Bit(UserError):
    """A base cannot be loaded in 4 bits, here or at all."""


def load_base(model_id: str, language: str = "en", in_4bit: bool = False, num_beams: int = 1) -> Base:
    """Loads model, tokenizer and feature extractor; fp32 whatever the file holds, in eval mode."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # asrlora's own lines say what is loaded
    folder = find_model(model_id)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(
            f"--model-id {model_id}: models of type {kind} are not supported; supported:"
            f" {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    if num_beams > 1 and family is ctc:
        raise UserError(f"--num-beams {num_beams}: {kind} is a CTC model and has no beams; leave it out")
    for part in (config, getattr(config, "encoder_config", None)):
        _let_torch_alone_draw(part)
    model, loaded = getattr(transformers, family.MODEL_CLASS).from_pretrained(
        folder,
        config=config,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation=_attention(),
        **(_in_4bit(kind) if in_4bit else {}),
    )
    if loaded["missing_keys"]:
        raise UserError(
            f"--model-id {model_id}: its weights lack {', '.join(sorted(loaded['missing_keys'])[:3])}, which"
            " would be random; give a model that was trained to write text"
        )
    family.ignore_padding(model, kind)
    # what saved adapters name: not a path that depends on the working directory, nor the hub's cache
    model.name_or_path = lasting_name(model_id)
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # frozen anyway; else gradients run through its convolutions in vain
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    except ImportError:  # Parakeet's filters
        raise UserError(
            f"--model-id {model_id}: Transformers {transformers.__version__} wants librosa to make its"
            " features; install librosa, or Transformers 5.23 or newer"
        ) from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(
            f"--model-id {model_id}: hears audio at {extractor.sampling_rate} Hz; only models for"
            f" {SAMPLE_RATE} Hz are supported"
        )
    return Base(
        model.eval(), tokenizer, extractor, family, kind, language, in_4bit, num_beams, case_of(tokenizer),
        folder, hash_weights(folder), cost.of(str(folder)),
    )  # fmt: skip


def _attention() -> str | None:
    """None leaves it to Transformers, which takes SDPA where the model's class has it; WavLM's has not."""
    if not torch.cuda.is_available():
        return "eager"  # 38 % of a CPU step went into the backward of SDPA's flash attention
    from transformers import AttentionMaskInterface

    AttentionMaskInterface.register("sdpa", _sdpa_mask)
    return None


def _sdpa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Transformers' mask, kept also where it masks nothing: to find that out would wait for the device at
    every forward, and have a batch whose utterances are of one length computed by another kernel."""
    from transformers.masking_utils import sdpa_mask

    if kwargs.get("attention_mask") is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _let_torch_alone_draw(config: Any) -> None:
    """Dropout is seeded by (seed, step, microbatch) through torch. LayerDrop would leave adapters
    without gradients, which DDP refuses; SpecAugment draws from NumPy, which nobody seeds."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False


def _in_4bit(kind: str) -> dict[str, Any]:
    """QLoRA's base (Dettmers et al., 2023): NF4 weights, opened to the precision of the input."""
    if kind == "wavlm":
        raise No4Bit("--load-in-4bit: wavlm's attention reads its weights directly, so they must be whole")
    if not torch.cuda.is_available():
        raise No4Bit("--load-in-4bit needs a GPU; leave it out to train on this machine")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise No4Bit("--load-in-4bit needs bitsandbytes; install asrlora[qlora]")
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # autocast lowers it in bf16 training steps
    )  # fmt: skip
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}


def set_training(model: Any) -> None:
    """Training mode, except for BatchNorm: the statistics are part of the base, and an adapter that
    was trained beside drifting ones would not fit the base it is saved for."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def label_ids(base: Base, text: str) -> list[int]:
    """The tokens of `text` that the loss counts. Raises ValueError where the model cannot write it."""
    return base.family.label_ids(base, text)


def longest(base: Base) -> float:
    """The most seconds of audio to give the model at once: its family's limit, or what its folder states.

    `max_audio_seconds` in config.json is for models that were trained on clips shorter than their
    family usually is.
    """
    limit = base.family.longest(base)
    stated = getattr(base.model.config, "max_audio_seconds", None)
    if stated is None:
        return limit
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated >= SHORTEST_LIMIT:
        raise UserError(
            f"{base.folder / 'config.json'}: max_audio_seconds must be seconds, at least {SHORTEST_LIMIT:g},"
            f" and not {stated!r}"
        )
    return min(limit, float(stated))


def label(
    base: Base, texts: Mapping[str, str], seconds: Mapping[float, Iterable[float]]
) -> tuple[dict[str, list[int]], list[Finding]]:
    """Label tokens of all utterances that can be learned, by id, and a finding about the others.

    `seconds` are the durations of `texts`, in their order, at each speed that the audio may be played at:
    slowed down it must fit into the model, and sped up hold its text.
    """
    played = {speed: dict(zip(texts, durations, strict=True)) for speed, durations in seconds.items()}
    labels: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    for identity, text in texts.items():
        try:
            tokens = label_ids(base, text)
        except ValueError as error:
            refused[identity] = str(error)
            continue
        for speed, durations in played.items():
            try:
                base.family.check(base, durations[identity], tokens)
            except ValueError as error:
                at = "" if speed == 1 else f"at --augment-speed {speed:g} "
                refused[identity] = f"{at}{error}"
        if identity not in refused:
            labels[identity] = tokens
    return labels, checks.tokens(refused, len(texts))


def pad_labels(labels: list[list[int]]) -> torch.Tensor:
    """Token lists to (B, L), padded with IGNORED."""
    longest = -(-max(map(len, labels)) // LABEL_QUANTUM) * LABEL_QUANTUM
    padded = torch.full((len(labels), longest), IGNORED)
    for row, tokens in enumerate(labels):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    return padded


def logits(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Logits for waves (B, T), mask (B, T) and labels (B, L); their shape is the family's."""
    with torch.autocast(waves.device.type, enabled=False):  # features are fp32, as in evaluation
        features = base.family.features(base, waves, mask)
    return base.family.logits(model, base, features, labels)


def summed_loss(
    model: Any,
    base: Base,
    waves: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    lengths: Lengths | None = None,
) -> torch.Tensor:
    """Loss in nats, summed (not averaged) over the label tokens of the microbatch.

    The caller divides by the token count of the whole optimizer step: a mean of microbatch means
    would weigh a token by who shares its microbatch, and change with the number of GPUs. Without
    `lengths` they are read off mask and labels, which on a GPU waits for the device.
    """
    scores = logits(model, base, waves, mask, labels).float()
    if lengths is None:
        lengths = Lengths(mask.sum(1).tolist(), (labels != IGNORED).sum(1).tolist())
    return base.family.loss(base, scores, labels, lengths)
