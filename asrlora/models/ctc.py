"""CTC models: wav2vec2, HuBERT and WavLM on raw audio, Parakeet on log-mel features.

An encoder writes a distribution over tokens and a blank for every frame; a text's probability is
summed over all ways to spread its tokens over the frames (Graves et al., 2006).
"""

import itertools
import math
from typing import Any

import torch
from torch.nn.functional import ctc_loss, log_softmax

from asrlora.data.audio import SAMPLE_RATE
from asrlora.models import padding
from asrlora.models.family import (
    Base,
    Features,
    Lengths,
    Targets,
    Written,
    longest_that,
    padded_samples,
    refuse_longer,
    tokens,
)
from asrlora.models.features import normalised, parakeet_log_mel

MODEL_CLASS = "AutoModelForCTC"

# seconds: LibriSpeech's longest utterance, 35, is decoded whole, as it always was. No CTC model has a limit
# of its own so near, but attention's memory grows with the square
_LONGEST = 40.0


def targets(kind: str) -> Targets:
    if kind == "parakeet_ctc":
        return Targets(("q_proj", "k_proj", "v_proj", "o_proj"), ("linear1", "linear2"))
    attention, feed_forward = (
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        ("intermediate_dense", "output_dense"),
    )
    if kind == "wavlm":
        # its attention hands the projections' weights to torch, so an adapter on them is never run
        return Targets((), feed_forward, unreachable=attention)
    return Targets(attention, feed_forward)


def ignore_padding(model: Any, kind: str) -> None:
    """Norms over time are those of the smaller wav2vec2 and HuBERT; all else is masked as it is."""
    if getattr(model.config, "feat_extract_norm", None) != "group":
        return
    first = model.base_model.feature_extractor.conv_layers[0]
    norm = padding.mask_norm(first, "layer_norm")

    def count(inputs: dict[str, Any]) -> None:
        norm.frames = padding.conv_frames(inputs["attention_mask"].sum(1), first.conv)

    padding.before(model.base_model, count)


def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
    if base.kind == "parakeet_ctc":
        mels, frames_of_audio = parakeet_log_mel(base.extractor, waves, mask)
        return {"input_features": mels, "attention_mask": frames_of_audio}
    return {"input_values": normalised(base.extractor, waves, mask), "attention_mask": mask}


def label_ids(base: Base, text: str) -> list[int]:
    return tokens(base, text)


def check(base: Base, seconds: float, labels: list[int]) -> None:
    if base.kind == "parakeet_ctc":  # its positions are a table
        longest, most = padded_samples(seconds) / SAMPLE_RATE, base.model.config.encoder_config
        if frames(base, longest) > most.max_position_embeddings:
            refuse_longer(seconds, most.max_position_embeddings * longest / frames(base, longest))
    # a blank must stand between two equal tokens
    needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
    if needed > frames(base, seconds):
        raise ValueError(
            f"has a text of {len(labels)} tokens, which CTC spreads over at least {needed} frames, and"
            f" {seconds:.2f} s are {frames(base, seconds)}; is it the text of this audio? If so, leave it out"
        )


def longest(base: Base) -> float:
    if base.kind != "parakeet_ctc":
        return _LONGEST
    most = base.model.config.encoder_config.max_position_embeddings
    return longest_that(lambda s: frames(base, padded_samples(s) / SAMPLE_RATE) <= most, _LONGEST)


def frames(base: Base, seconds: float) -> int:
    return _frames(base, round(seconds * SAMPLE_RATE))


def logits(model: Any, base: Base, features: Features, labels: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = model(**features).logits
    return scores


def loss(base: Base, scores: torch.Tensor, labels: torch.Tensor, lengths: Lengths) -> torch.Tensor:
    """Over the frames of the audio, never those of the padding.

    Infinite where `check` was not asked and the text does not fit: the step then fails and says so.
    Lengths as plain numbers and labels as int64 keep CUDA to torch's own kernel: with tensors it would
    wait for the device, and by shape take cuDNN's instead.
    """
    return ctc_loss(
        log_softmax(scores, dim=-1).transpose(0, 1),
        labels.clamp(min=0),
        [_frames(base, samples) for samples in lengths.samples],  # type: ignore[arg-type]  # may be numbers
        lengths.tokens,  # type: ignore[arg-type]
        blank=base.model.config.pad_token_id,
        reduction="sum",
    )


def transcribe(
    model: Any, base: Base, waves: torch.Tensor, mask: torch.Tensor, seconds: list[float]
) -> list[Written]:
    """The likeliest token of each frame, runs of one token as one, blanks left out."""
    nats, best = model(**features(base, waves, mask)).logits.topk(2)  # (B, F, 2)
    counts = [frames(base, s) for s in seconds]
    of_audio = padding.up_to(torch.tensor(counts, device=nats.device), nats.shape[1])
    margins = (nats[..., 0] - nats[..., 1]).masked_fill(~of_audio, torch.inf)
    closest = margins.amin(1).tolist()
    blank = base.model.config.pad_token_id
    texts = []
    for row, length, margin in zip(best[..., 0].tolist(), counts, closest, strict=True):
        written = [token for token, _ in itertools.groupby(row[:length]) if token != blank]
        # group_tokens: CTC tokenizers would collapse "ll" a second time
        text = base.tokenizer.decode(written, skip_special_tokens=True, group_tokens=False)
        texts.append(Written(text.strip(), margin))
    return texts


def decoding(base: Base) -> dict[str, Any]:
    return {"method": "ctc greedy"}


def _frames(base: Base, samples: int) -> int:
    """Encoder frames of so many samples: Transformers' own formulas, which want tensors."""
    config, count = base.model.config, samples
    if base.kind == "parakeet_ctc":
        encoder, count = config.encoder_config, count // int(base.extractor.hop_length)
        kernel, stride = encoder.subsampling_conv_kernel_size, encoder.subsampling_conv_stride
        for _ in range(int(math.log2(encoder.subsampling_factor))):
            count = (count + (kernel - 1) // 2 * 2 - kernel) // stride + 1
        return max(0, count)
    convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    if getattr(config, "add_adapter", False):
        convolutions += [(1, config.adapter_stride)] * config.num_adapter_layers
    for kernel, stride in convolutions:
        count = (count - kernel) // stride + 1
    return max(0, count)
