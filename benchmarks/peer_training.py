"""How others train the same adapter, in a process of its own: `python -m benchmarks.peer_training SPEC.json`.

Two peers: Transformers' Seq2SeqTrainer with PEFT, set up as its speech recognition example does it
(examples/pytorch/speech-recognition/run_speech_recognition_seq2seq.py: features are computed before
training, and a collator pads them), and a plain loop of model, loss, AdamW. Neither imports asrlora: audio,
labels and the modules to adapt are in the files that SPEC names, so that all train the same thing.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

Row = dict[str, Any]


class Speech(Dataset[Row]):
    """Features and labels, one utterance a row, in the order that SPEC gives."""

    def __init__(self, spec: dict[str, Any], extractor: Any) -> None:
        self.seconds = [row["seconds"] for row in spec["utterances"]]
        self.rows = []
        for row in spec["utterances"]:
            wave = np.load(row["samples"]).astype(np.float32) / 32768
            inputs = extractor(wave, sampling_rate=16_000)
            key = extractor.model_input_names[0]
            self.rows.append({key: inputs[key][0], "labels": row["labels"]})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return {**self.rows[number], "number": number}


class Collator:
    """Pads features and labels, and starts the decoder with the model's prompt."""

    def __init__(self, extractor: Any, prompt: list[int], pad: int) -> None:
        self.extractor, self.prompt, self.pad = extractor, prompt, pad
        self.batches: list[list[int]] = []  # the numbers of the utterances of each batch, in turn

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        self.batches.append([row["number"] for row in rows])
        key = self.extractor.model_input_names[0]
        batch = dict(self.extractor.pad([{key: row[key]} for row in rows], return_tensors="pt"))
        longest = max(len(row["labels"]) for row in rows)
        labels = torch.full((len(rows), longest), -100)
        for line, row in zip(labels, rows, strict=True):
            line[: len(row["labels"])] = torch.tensor(row["labels"])
        start = torch.tensor(self.prompt).expand(len(rows), -1)
        previous = torch.cat([start, labels[:, :-1]], dim=1)
        ignored = labels.new_full((len(rows), len(self.prompt) - 1), -100)
        batch["decoder_input_ids"] = previous.masked_fill(previous == -100, self.pad)
        batch["labels"] = torch.cat([ignored, labels], dim=1)
        return batch


class Clock(TrainerCallback):  # type: ignore[misc]  # Transformers has no types
    """When each update ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def by_trainer(spec: dict[str, Any], model: Any, data: Speech, collator: Collator) -> Clock:
    """Trains with Seq2SeqTrainer."""
    clock = Clock()
    settings = Seq2SeqTrainingArguments(
        output_dir=spec["folder"],
        per_device_train_batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=spec["updates"],
        bf16=spec["bf16"],
        use_cpu=spec["device"] == "cpu",
        train_sampling_strategy=spec["order"],
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=collator,
        processing_class=collator.extractor,  # names the input whose length counts
        callbacks=[clock],
    )
    trainer.train()
    return clock


def by_loop(spec: dict[str, Any], model: Any, data: Speech, collator: Collator) -> Clock:
    """Trains with a plain loop, on batches in the order of the data."""
    clock, size = Clock(), spec["batch_size"]
    adapted = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(adapted, lr=spec["learning_rate"], weight_decay=0.0)
    model.to(spec["device"]).train()
    clock.on_train_begin()
    for update in range(spec["updates"]):
        batch = collator([data[number] for number in range(update * size, (update + 1) * size)])
        with torch.autocast(spec["device"], torch.bfloat16, enabled=spec["bf16"]):
            loss = model(**{key: value.to(spec["device"]) for key, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.on_step_end()
    return clock


def main(path: Path) -> None:
    """Trains what `path` says and writes what was measured beside it."""
    spec = json.loads(path.read_text())
    torch.manual_seed(spec["seed"])
    model = AutoModelForSpeechSeq2Seq.from_pretrained(spec["model"], dtype=torch.float32)
    extractor = AutoFeatureExtractor.from_pretrained(spec["model"])
    config = LoraConfig(
        r=spec["rank"], lora_alpha=spec["alpha"], target_modules=spec["targets"], use_dora=spec["dora"]
    )
    model = get_peft_model(model, config)
    data = Speech(spec, extractor)
    collator = Collator(extractor, spec["prompt"], model.config.pad_token_id or 0)
    train = by_loop if spec["order"] == "given" else by_trainer
    clock = train(spec, model, data, collator)
    batches = collator.batches[: spec["updates"]]
    found = {
        "seconds": [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)],
        "audio_seconds": [sum(data.seconds[number] for number in batch) for batch in batches],
        "losses": clock.losses,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_update": time.time() - (time.perf_counter() - clock.ends[1]) - spec["started"],
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if spec["device"] == "cuda" else None,
    }
    path.with_suffix(".found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
