"""Where the time of a training step goes: `asrlora bench profile`, by torch's profiler.

One microbatch of the longest utterances that --longest allows, after two steps of warm-up. The table is by
operator, with the time spent in it and not in what it calls; --trace writes all of it for chrome://tracing or
Perfetto.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from asrlora.arguments import count
from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.data import audio, loader, manifest
from asrlora.errors import UserError
from asrlora.models import adapters, objective, registry
from asrlora.models.family import Lengths
from benchmarks.common import Figures, add_output, report

WARM_UP, TIMED, ROWS = 2, 5, 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench profile`."""
    parser.set_defaults(run=_run)
    add_output(parser)
    parser.add_argument("--model-id", default="asrlora/demo/base", help="base (default: the demo's)")
    parser.add_argument("--manifest-path", type=Path, required=True, help="utterances to train on")
    parser.add_argument("--batch-size", type=count, default=16, help="utterances (default: 16)")
    parser.add_argument("--longest", type=float, default=8.0, help="longest of them, seconds (default: 8)")
    parser.add_argument("--lora-r", type=count, default=16, help="rank (default: 16)")
    parser.add_argument("--lora-dropout", type=float, default=0.05, help="dropout (default: 0.05)")
    parser.add_argument("--lora-module-filter", help="as in training")
    parser.add_argument("--use-dora", action="store_true", help="DoRA")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--trace", type=Path, help="write the trace here")


def _run(args: argparse.Namespace) -> int:
    return report(profile(args), args.output)


def profile(args: argparse.Namespace) -> Figures:
    """Speed of a step, and its costliest operators. Raises UserError where no utterance is short enough."""
    utterances = [u for u in manifest.read_manifest(args.manifest_path, True) if u.duration <= args.longest]
    utterances = sorted(utterances, key=lambda u: u.duration)[-args.batch_size :]
    if not utterances:
        raise UserError(f"{args.manifest_path}: no utterance of at most --longest {args.longest:g} s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = RunConfig(
        model_id=args.model_id, dataset_path=args.manifest_path, manifest_path=args.manifest_path,
        output_dir=Path("unused"), lora_r=args.lora_r, lora_alpha=2 * args.lora_r,
        lora_dropout=args.lora_dropout, lora_module_filter=args.lora_module_filter, use_dora=args.use_dora,
    )  # fmt: skip
    base = registry.load_base(args.model_id)
    model = adapters.attach(base, config, None).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    objective.set_training(model)

    pcms = [audio.read_audio(u.audio, u.offset or 0.0, u.duration) for u in utterances]
    tokens = [base.label_ids(base, u.text) for u in utterances]
    waves, mask = (part.to(device) for part in loader.pad(pcms))
    labels = objective.pad_labels(tokens).to(device)
    lengths = Lengths([len(pcm) for pcm in pcms], [len(one) for one in tokens])

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = objective.summed_loss(model, base, waves, mask, labels, lengths)
        torch.autograd.backward(loss / sum(lengths.tokens))
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    console.print("bench: profiling one step")
    with torch.profiler.profile() as profiler:
        step()
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))
    spoken, median = sum(lengths.samples) / audio.SAMPLE_RATE, float(np.median(seconds[WARM_UP:]))
    return {
        "step": {"audio-s": spoken, "seconds, median": median, "audio-s per second": spoken / median},
        **_by_operator(profiler, device.type),
    }


def _by_operator(profiler: torch.profiler.profile, device: str) -> Figures:
    """Share of the step and calls of the costliest operators, by the time of the device."""
    own = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))
    whole = sum(getattr(event, own) for event in events)
    return {
        event.key: {"share, per cent": 100 * getattr(event, own) / whole, "calls": event.count}
        for event in events[:ROWS]
    }
