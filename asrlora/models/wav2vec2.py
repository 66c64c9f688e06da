"""wav2vec2, HuBERT and WavLM: CTC models on raw audio."""

from dataclasses import replace

import torch

from asrlora.models import ctc, padding
from asrlora.models.family import Base, Features, Source, Targets
from asrlora.models.features import normalised
from asrlora.models.pretrained import No4BitError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_FEED_FORWARD = ("intermediate_dense", "output_dense")

summed_loss, transcribe = ctc.summed_loss, ctc.transcribe


def load(source: Source) -> Base:
    """WavLM's attention hands the projections' weights to torch: an adapter on them is never run."""
    wavlm = source.kind == "wavlm"
    if wavlm and source.in_4bit:
        raise No4BitError(
            "--load-in-4bit: wavlm's attention reads its weights directly, so they must be whole"
        )
    base = ctc.load(source)
    _mask_padding(base)
    return replace(
        base,
        targets=Targets(() if wavlm else _ATTENTION, _FEED_FORWARD, _ATTENTION if wavlm else ()),
        max_seconds=ctc.MAX_SECONDS,
        decoding=ctc.DECODING,
        check=ctc.check,
        frames=_frames,
    )


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    """See Family."""
    return {"input_values": normalised(base.extractor, waves, mask), "attention_mask": mask}


def _mask_padding(base: Base) -> None:
    """Norms over time are those of the smaller wav2vec2 and HuBERT; all else is masked as it is."""
    if getattr(base.model.config, "feat_extract_norm", None) != "group":
        return
    first = base.model.base_model.feature_extractor.conv_layers[0]
    norm = padding.mask_norm(first, "layer_norm")

    def count(inputs: dict[str, torch.Tensor]) -> None:
        norm.frames = padding.conv_frames(inputs["attention_mask"].sum(1), first.conv)

    padding.before_forward(base.model.base_model, count)


def _frames(base: Base, samples: int) -> int:
    config = base.model.config
    convolutions = [(k, s, 0) for k, s in zip(config.conv_kernel, config.conv_stride, strict=True)]
    if getattr(config, "add_adapter", False):
        convolutions += [(1, config.adapter_stride, 0)] * config.num_adapter_layers
    return ctc.conv_frames(samples, convolutions)
