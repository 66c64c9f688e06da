"""Random models of every family, made by Transformers' own classes and saved as real ones are."""

import json
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from parts import require

BASE = Path(__file__).parents[1] / "asrlora" / "demo" / "base"
RAW = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (10, 32), "num_feat_extract_layers": 2}
ENCODER = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0, "final_dropout": 0.0, **RAW,
}  # fmt: skip
KINDS = [
    "moonshine", "moonshine_streaming", "whisper", "whisper.en", "wav2vec2", "wav2vec2-group", "hubert",
    "wavlm", "parakeet",
]  # fmt: skip


def save(kind: str, folder: Path) -> str:
    """Writes model, tokenizer and feature extractor; returns the folder, a --model-id."""
    torch.manual_seed(0)
    model, *rest = MAKERS[kind.partition("-")[0].partition(".")[0]](kind)
    head = next(getattr(model, name) for name in ("proj_out", "lm_head", "ctc_head") if hasattr(model, name))
    with torch.no_grad():
        # adapters cannot make the small numbers of a random head large
        if not kind.startswith("whisper"):  # whose head is tied to its embeddings: it has a larger init_std
            head.weight.mul_(25)
    for part in (model, *rest):
        part.save_pretrained(folder)
    return str(folder)


class Folders(dict[str, str]):
    """Folders of models by kind; each is saved when it is first asked for."""

    def __init__(self, new_folder: Callable[[str], Path]) -> None:
        super().__init__()
        self._new_folder = new_folder

    def __missing__(self, kind: str) -> str:
        self[kind] = save(kind, self._new_folder(kind))
        return self[kind]


def _moonshine(kind: str) -> list[Any]:
    sizes = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 200,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    if kind == "moonshine":
        config = hf.MoonshineConfig(
            **sizes, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        )  # fmt: skip
        return [hf.MoonshineForConditionalGeneration(config), hf.Wav2Vec2Processor.from_pretrained(BASE)]
    encoder = hf.MoonshineStreamingEncoderConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_windows=((16, 4), (16, 0)),
    )  # fmt: skip
    config = hf.MoonshineStreamingConfig(
        **sizes, encoder_config=encoder, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    return [hf.MoonshineStreamingForConditionalGeneration(config), hf.Wav2Vec2Processor.from_pretrained(BASE)]


def _whisper(kind: str) -> list[Any]:
    """Hears 2 s instead of 30."""
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters["Ġh"] = len(letters)  # real vocabularies join a word's space to its first letters
    tokenizer = hf.WhisperTokenizer(vocab=letters, merges=[("Ġ", "h")])
    prompt = [
        "<|startoftranscript|>",
        "<|en|>",
        "<|de|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", *prompt]})
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ["<|endoftext|>", *prompt]}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        num_mel_bins=16, max_source_positions=100, max_target_positions=48, suppress_tokens=None,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        begin_suppress_tokens=None, init_std=0.5,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config)
    with torch.no_grad():  # the end doubles as padding, for which torch makes a row of zeros
        model.proj_out.weight[end].normal_(std=0.5)
    multilingual = {
        "lang_to_id": {"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    }
    model.generation_config = hf.GenerationConfig(
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        is_multilingual=kind == "whisper", no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False, suppress_tokens=[letters["q"]], max_length=48,
        begin_suppress_tokens=[letters["Ġ"], end], **(multilingual if kind == "whisper" else {}),
    )  # fmt: skip
    return [model, tokenizer, hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)]


def _letters(capital: bool) -> dict[str, int]:
    alphabet = string.ascii_uppercase if capital else string.ascii_lowercase
    return {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *alphabet, "'"])}


def _raw_ctc(kind: str) -> list[Any]:
    name, _, norm = kind.partition("-")
    classes = {
        "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC),
        "hubert": (hf.HubertConfig, hf.HubertForCTC),
        "wavlm": (hf.WavLMConfig, hf.WavLMForCTC),
    }
    make_config, make_model = classes[name]
    model = make_model(
        make_config(**ENCODER, feat_extract_norm=norm or "layer", do_stable_layer_norm=not norm)
    )
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(_letters(capital=True), file)
        file.flush()
        tokenizer = hf.Wav2Vec2CTCTokenizer(file.name)
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=not norm)
    return [model, hf.Wav2Vec2Processor(extractor, tokenizer)]


def _parakeet(kind: str) -> list[Any]:
    require("librosa")
    words = ["<unk>", *string.ascii_lowercase, "▁", "'", "<pad>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    encoder = hf.ParakeetEncoderConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_mel_bins=16,
        subsampling_conv_channels=8, conv_kernel_size=5, dropout=0.0, activation_dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    config = hf.ParakeetCTCConfig(vocab_size=len(words), pad_token_id=len(words) - 1, encoder_config=encoder)
    return [
        hf.ParakeetForCTC(config),
        hf.ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"),
        hf.ParakeetFeatureExtractor(feature_size=16),
    ]


MAKERS = {
    "moonshine": _moonshine, "moonshine_streaming": _moonshine, "whisper": _whisper, "parakeet": _parakeet,
    "wav2vec2": _raw_ctc, "hubert": _raw_ctc, "wavlm": _raw_ctc,
}  # fmt: skip
