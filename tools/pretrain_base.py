"""Trains the base model of asrlora/demo/base from scratch, on *general* speech only (20 to 40 minutes).

    uv run python tools/pretrain_base.py --output-dir outputs/base

A Moonshine (Transformers' own class, raw audio in) of 2.7 million parameters with characters as
tokens. A CTC head on the encoder helps the alignment to form and is thrown away at the end; on
few hours of speech the attention decoder alone takes several times longer (Kim, Hori, Watanabe,
"Joint CTC-attention based end-to-end speech recognition", 2017). Recipe and log: docs/log/base_model.md.
"""

import argparse
import json
import string
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from asrlora import allocation
from asrlora.data import audio, plan
from asrlora.data.loader import pad
from asrlora.demo import corpus

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, BOS, EOS, UNK = range(4)
BATCH_SIZE = 32
LEARNING_RATE, WARMUP_STEPS = 1e-3, 300
CTC_WEIGHT = 0.3

Spoken = list[tuple[audio.Pcm, str]]


def main() -> None:
    """Reads the flags, and trains."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("data/pretrain"))
    parser.add_argument("--utterances", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=3_600)
    args = parser.parse_args()
    pretrain(args.output_dir, args.work_dir, args.utterances, args.steps)


def build_processor() -> Wav2Vec2Processor:
    """Lower-case letters, space and apostrophe, one token each."""
    characters = [*SPECIALS, *string.ascii_lowercase, " ", "'"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(characters)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    return Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(sampling_rate=audio.SAMPLE_RATE, do_normalize=False), fast
    )


def build_model(vocab_size: int) -> MoonshineForConditionalGeneration:
    """The model with random weights."""
    config = MoonshineConfig(
        vocab_size=vocab_size,
        hidden_size=144,
        intermediate_size=576,
        encoder_num_hidden_layers=4,
        decoder_num_hidden_layers=3,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        max_position_embeddings=256,
        attention_dropout=0.0,
        max_audio_seconds=4.0,  # the longest clip it is trained on; read by models/registry.py
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        attn_implementation="eager",
    )
    return MoonshineForConditionalGeneration(config)


def pretrain(output: Path, work: Path, utterances: int, steps: int, seed: int = 1) -> None:
    """Speaks the corpus into `work`, trains, and writes model, processor and log to `output`."""
    start = time.monotonic()
    torch.set_num_threads(allocation.of_process().torch_threads)
    torch.manual_seed(seed)
    train = _speak("base-train", utterances, heldback=False, seed=seed, work=work)
    check = _speak("base-check", 400, heldback=True, seed=seed, work=work)
    print(f"corpus spoken and read, {time.monotonic() - start:.0f} s", flush=True)

    processor = build_processor()
    tokenizer = processor.tokenizer
    model = build_model(len(tokenizer)).train()
    ctc_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    parameters = [*model.parameters(), *ctc_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    durations = [len(pcm) / audio.SAMPLE_RATE for pcm, _ in train]
    output.mkdir(parents=True, exist_ok=True)
    step, epoch = 0, 0
    with (output / "training_log.jsonl").open("w") as log:
        while step < steps:
            planned = plan.plan_epoch(
                durations, seed=seed, epoch=epoch, microbatches_per_step=1, batch_size=BATCH_SIZE
            )
            for (batch,) in planned[: steps - step]:
                loss, ctc = _losses(model, ctc_head, tokenizer, [train[i] for i in batch])
                ((1 - CTC_WEIGHT) * loss + CTC_WEIGHT * ctc).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                seconds = time.monotonic() - start
                if step % 50 == 0:
                    print(f"step {step} loss {loss:.3f} ctc {ctc:.3f} {seconds:.0f} s", flush=True)
                if step % 400 == 0 or step == steps:
                    wer = round(_wer(model, processor, check), 4)
                    entry = {
                        "step": step,
                        "loss": round(loss.item(), 4),
                        "wer": wer,
                        "seconds": round(seconds),
                    }
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    print(entry, flush=True)
            epoch += 1
    # bf16 halves the file; every bf16 number is an fp32 number, so nothing differs when it is
    # loaded in fp32, as asrlora always does.
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up and decay, as a share of LEARNING_RATE."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return max(0.0, (steps - step) / (steps - WARMUP_STEPS))


def _losses(
    model: MoonshineForConditionalGeneration, ctc_head: torch.nn.Module, tokenizer: Any, batch: Spoken
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of the decoder, and CTC loss of the encoder."""
    waves, mask = pad([pcm for pcm, _ in batch])
    labels = [[*tokenizer(text).input_ids, EOS] for _, text in batch]
    targets = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in labels], batch_first=True, padding_value=-100
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_values=waves, attention_mask=mask, labels=targets)
        logits = ctc_head(out.encoder_last_hidden_state)
    ctc = torch.nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets.clamp(min=0),
        torch.tensor([model._get_feat_extract_output_lengths(int(n)) for n in mask.sum(1)]),
        torch.tensor([len(ids) for ids in labels]),
        blank=PAD,
        zero_infinity=True,
    )
    return out.loss, ctc


def _speak(name: str, count: int, *, heldback: bool, seed: int, work: Path) -> Spoken:
    lines = corpus.draw_lines(name, count, corpus.PRETRAINING, heldback, seed)
    records = list(corpus.write_set(lines, work / name))
    return [(audio.read_audio(work / record["audio"]), record["text"]) for record in records]


@torch.inference_mode()
def _wer(model: MoonshineForConditionalGeneration, processor: Wav2Vec2Processor, check: Spoken) -> float:
    model.eval()
    hypotheses: dict[int, str] = {}
    order = np.argsort([len(pcm) for pcm, _ in check])
    for i in range(0, len(order), 64):
        batch = order[i : i + 64]
        waves, mask = pad([check[j][0] for j in batch])
        tokens = model.generate(input_values=waves, attention_mask=mask, max_new_tokens=120)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        hypotheses.update(zip(map(int, batch), texts, strict=True))
    model.train()
    return float(jiwer.wer([text for _, text in check], [hypotheses[i] for i in range(len(check))]))


if __name__ == "__main__":
    main()
