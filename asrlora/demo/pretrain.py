"""Trains the small base model that ships in `base/`, from scratch, on *general* speech only.

A Moonshine (Transformers' own class, raw audio in) of 2.7 million parameters with characters as
tokens. A CTC head on the encoder helps the alignment to form and is thrown away at the end; on
few hours of speech the attention decoder alone takes several times longer (Kim, Hori, Watanabe,
"Joint CTC-attention based end-to-end speech recognition", 2017). Recipe and log: docs/log/base_model.md.
"""

import json
import string
import time
from pathlib import Path

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

BASE = Path(__file__).parent / "base"
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, BOS, EOS, UNK = range(4)


def build_processor() -> Wav2Vec2Processor:
    """Lower-case letters, space and apostrophe, one token each."""
    characters = [*SPECIALS, *string.ascii_lowercase, " ", "'"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(characters)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(sampling_rate=audio.SAMPLE_RATE, do_normalize=False),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
            clean_up_tokenization_spaces=False,
        ),
    )  # fmt: skip


def build_model(vocab_size: int) -> MoonshineForConditionalGeneration:
    return MoonshineForConditionalGeneration(
        MoonshineConfig(
            vocab_size=vocab_size, hidden_size=144, intermediate_size=576,
            encoder_num_hidden_layers=4, decoder_num_hidden_layers=3,
            encoder_num_attention_heads=4, decoder_num_attention_heads=4,
            max_position_embeddings=256, attention_dropout=0.0,
            max_audio_seconds=4.0,  # the longest clip it is trained on; read by models/registry.py
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS,
            attn_implementation="eager",
        )
    )  # fmt: skip


def pretrain(
    output: Path,
    work: Path,
    *,
    utterances: int = 16_000,
    steps: int = 3_600,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    warmup_steps: int = 300,
    ctc_weight: float = 0.3,
    seed: int = 1,
) -> None:
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
    helper = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    parameters = [*model.parameters(), *helper.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (steps - step) / (steps - warmup_steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    durations = [len(pcm) / audio.SAMPLE_RATE for pcm, _ in train]
    output.mkdir(parents=True, exist_ok=True)
    log = (output / "training_log.jsonl").open("w")
    step, epoch = 0, 0
    while step < steps:
        planned = plan.plan_epoch(
            durations, seed=seed, epoch=epoch, microbatches_per_step=1, batch_size=batch_size
        )
        for (batch,) in planned[: steps - step]:
            waves, mask = pad([train[i][0] for i in batch])
            labels = [[*tokenizer(train[i][1]).input_ids, EOS] for i in batch]
            targets = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(ids) for ids in labels], batch_first=True, padding_value=-100
            )
            with torch.autocast("cpu", torch.bfloat16):
                out = model(input_values=waves, attention_mask=mask, labels=targets)
                logits = helper(out.encoder_last_hidden_state)
            frames = torch.tensor([model._get_feat_extract_output_lengths(int(n)) for n in mask.sum(1)])
            ctc = torch.nn.functional.ctc_loss(
                logits.float().log_softmax(-1).transpose(0, 1),
                targets.clamp(min=0), frames, torch.tensor([len(ids) for ids in labels]),
                blank=PAD, zero_infinity=True,
            )  # fmt: skip
            loss = (1 - ctc_weight) * out.loss + ctc_weight * ctc
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                print(
                    f"step {step} loss {out.loss.item():.3f} ctc {ctc.item():.3f}"
                    f" {time.monotonic() - start:.0f} s",
                    flush=True,
                )
            if step % 400 == 0 or step == steps:
                entry = {
                    "step": step,
                    "loss": round(out.loss.item(), 4),
                    "wer": round(_wer(model, processor, check), 4),
                    "seconds": round(time.monotonic() - start),
                }
                log.write(json.dumps(entry) + "\n")
                log.flush()
                print(entry, flush=True)
        epoch += 1
    log.close()
    # bf16 halves the file; every bf16 number is an fp32 number, so nothing differs when it is
    # loaded in fp32, as asrlora always does.
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def _speak(name: str, count: int, *, heldback: bool, seed: int, work: Path) -> list[tuple[audio.Pcm, str]]:
    lines = corpus.draw_lines(name, count, corpus.PRETRAINING, heldback, seed)
    records = list(corpus.write_set(lines, work / name))
    return [(audio.read_audio(work / record["audio"]), record["text"]) for record in records]


@torch.inference_mode()
def _wer(
    model: MoonshineForConditionalGeneration,
    processor: Wav2Vec2Processor,
    check: list[tuple[audio.Pcm, str]],
) -> float:
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
