"""Training against what people use: `asrlora bench peers`, on the same model, audio and labels.

The peers are Transformers' Seq2SeqTrainer with PEFT, with its batches at random and of similar lengths, and
a plain loop (peer_training.py). Every way is a process of its own, started in turn, and again as often as
--turns says; a figure is the median of the turns. The first updates are warm-up. Ours reads and checks
shards, computes features from audio, keeps padding out of the loss's way and writes a log, all of it inside
its time; a peer has its features before it starts.

Equal work: the same utterances and as many updates. The plain loop gets the batches that ours takes, so its
losses must be those of ours but for rounding, the first adapter's random numbers, and padding, which has an
effect on the peers' (2 % with the demo's base): the table says how far they are apart, and more than 5 % is
an error.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from asrlora.arguments import count
from asrlora.console import console
from asrlora.data import audio, manifest, plan
from asrlora.data.audit.transcript_style import Case, Characters, Punctuation, restyle
from asrlora.demo.demo import ROOT, make_corpus
from asrlora.errors import UserError
from asrlora.models import registry
from asrlora.record.run_dir import read_lines, read_run
from benchmarks.common import Figures, add_data_dir, add_output, report

WARM_UP = 2  # updates
SEED, RANK, ALPHA = 1, 8, 16
STYLE: tuple[Case, Punctuation, Characters] = ("sentence", "full-stop", "keep")  # of published bases
EVALUATED = 4  # utterances that a run of ours evaluates before it trains; not part of its time
LONGEST = 12.0  # seconds of an utterance: plain batches of longer ones do not fit into a small machine
LOSSES_APART = 0.05
LOG_HEAD = """# Benchmarks

Training speed of asrlora and of what people use instead, on the same model, audio and labels, measured in
turn in one run by `make bench-peers` ([the module's head](../../benchmarks/peers.py) says what is equal and
what is not). Audio seconds by second of training; medians; peak memory is the resident set of the process.
"""


@dataclass(frozen=True)
class Work:
    """What is trained."""

    name: str
    model: Path
    train: Path  # manifest
    batch_size: int
    updates: int
    learning_rate: float = 3e-4
    style: tuple[Case, Punctuation, Characters] = ("keep", "keep", "keep")  # of the texts


@dataclass(frozen=True)
class Way:
    """One way to train it. `order` is None for ours."""

    name: str
    order: str | None = None  # of the peer: random, group_by_length, or given, for the plain loop
    dora: bool = False
    bf16: bool = False


WAYS = (
    Way("asrlora, LoRA"),
    Way("asrlora, LoRA, bf16", bf16=True),
    Way("asrlora, DoRA", dora=True),
    Way("plain loop, LoRA, batches of ours", "given"),
    Way("Seq2SeqTrainer, LoRA", "random"),
    Way("Seq2SeqTrainer, LoRA, by length", "group_by_length"),
    Way("Seq2SeqTrainer, LoRA, by length, bf16", "group_by_length", bf16=True),
    Way("Seq2SeqTrainer, DoRA, by length", "group_by_length", dora=True),
)


@dataclass
class Turn:
    """What one process measured."""

    seconds: list[float]  # of each update
    audio_seconds: list[float]
    losses: list[float]
    first_update: float  # seconds from the start of the process; of ours without the evaluation before it
    peak_bytes: int

    @property
    def speed(self) -> float:
        """Audio seconds by second, after the warm-up."""
        return sum(self.audio_seconds[WARM_UP:]) / sum(self.seconds[WARM_UP:])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench peers`."""
    parser.set_defaults(run=_run)
    add_output(parser)
    add_data_dir(parser)
    parser.add_argument("--real", type=Path, default=os.environ.get("ASRLORA_REAL"),
                        help="folder of published models and recordings (default: ASRLORA_REAL)")  # fmt: skip
    parser.add_argument("--only", choices=("demo", "moonshine-tiny", "whisper-tiny.en"), help="one model")
    parser.add_argument("--turns", type=count, default=2, help="of every way (default: 2)")
    parser.add_argument("--updates", type=count, help="of every way (default: by the model)")
    parser.add_argument("--log", type=Path, help="write the tables here as Markdown")


def _run(args: argparse.Namespace) -> int:
    found: dict[str, dict[str, list[Turn]]] = {}
    with tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name:
        for work in _works(args):
            found[work.name] = measure(work, Path(name) / work.name, args.turns)
    if args.log:
        args.log.write_text(LOG_HEAD + _where() + "".join(map(_table, found, found.values())))
    figures: Figures = {}
    for model, ways in found.items():
        figures |= {f"{model}: {way}": values for way, values in _figures(ways).items()}
    return report(figures, args.output)


def _works(args: argparse.Namespace) -> list[Work]:
    works = []
    if args.only in (None, "demo"):
        make_corpus(args.data_dir)
        train = args.data_dir / "train_manifest_expanded.jsonl"
        works.append(Work("demo", ROOT / "asrlora" / "demo" / "base", train, 16, args.updates or 24))
    if args.real and args.only != "demo":
        train = args.real / "nonnative" / "train.jsonl"
        for name, batch_size, updates in (("moonshine-tiny", 16, 16), ("whisper-tiny.en", 4, 6)):
            if args.only in (None, name):
                works.append(
                    Work(name, args.real / name, train, batch_size, args.updates or updates, style=STYLE)
                )
    elif args.only not in (None, "demo"):
        raise UserError(f"--only {args.only}: --real, or ASRLORA_REAL, must name the folder that holds it")
    if any(work.updates <= WARM_UP for work in works):
        raise UserError(f"--updates must be more than {WARM_UP}, which are warm-up")
    return works


def measure(work: Work, folder: Path, turns: int) -> dict[str, list[Turn]]:
    """Every way of training `work`, one after another, `turns` times.

    Raises RuntimeError where the losses say that the work was not the same.
    """
    folder.mkdir()
    needed = work.updates * work.batch_size
    utterances = [u for u in manifest.read_manifest(work.train) if u.duration <= LONGEST]
    if len(utterances) < needed + 2 * EVALUATED:
        raise UserError(
            f"{work.train} has too few utterances of up to {LONGEST} s for {work.updates} updates"
        )
    utterances = [replace(u, text=restyle(u.text, *work.style)) for u in utterances]
    parts = {"train": utterances[:needed], "domain": utterances[needed:][:EVALUATED]}
    parts["heldout"] = utterances[needed + EVALUATED :][:EVALUATED]
    manifests = {part: _write_manifest(folder / f"{part}.jsonl", rows) for part, rows in parts.items()}
    utterances = parts["train"]
    base = registry.load_base(str(work.model))
    order = plan.plan_epoch(
        [u.duration for u in utterances], seed=SEED, epoch=0, microbatches_per_step=1,
        batch_size=work.batch_size, cost=registry.cost_of(str(work.model)),
    )  # fmt: skip
    given = [number for step in range(len(order)) for number in order[step][0]]
    peer = {
        "model": str(work.model), "batch_size": work.batch_size, "updates": work.updates, "seed": SEED,
        "learning_rate": work.learning_rate, "rank": RANK, "alpha": ALPHA, "device": "cpu",
        "prompt": base.decoder.prompt if base.decoder else [],
        "utterances": [_row(base, utterances[number], folder) for number in given],
    }  # fmt: skip
    found: dict[str, list[Turn]] = {way.name: [] for way in WAYS}
    for turn, way in itertools.product(range(turns), WAYS):
        console.print(f"bench: {work.name}, {way.name}, turn {turn + 1} of {turns}")
        place = folder / f"{len(list(folder.iterdir()))}"
        if way.order is None:
            found[way.name].append(_ours(work, way, manifests, place))
            peer["targets"] = sorted(_targets(place))
        else:
            found[way.name].append(_peer(way, peer, place))
    _check_losses(work, found)
    return found


def _row(base: Any, utterance: manifest.Utterance, folder: Path) -> dict[str, Any]:
    place = folder / "samples" / f"{utterance.id}.npy"
    place.parent.mkdir(exist_ok=True)
    if not place.exists():
        np.save(place, audio.read_audio(utterance.audio, utterance.offset or 0.0, utterance.duration))
    labels = base.label_ids(base, utterance.text)
    return {"samples": str(place), "seconds": utterance.duration, "labels": labels}


def _write_manifest(path: Path, utterances: list[manifest.Utterance]) -> Path:
    lines = [
        {"id": u.id, "audio": str(u.audio), "offset": u.offset or 0.0, "duration": u.duration, "text": u.text}
        for u in utterances
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _targets(run: Path) -> list[str]:
    found: list[str] = json.loads((run / "adapter_best" / "adapter_config.json").read_text())[
        "target_modules"
    ]
    return found


def _ours(work: Work, way: Way, manifests: dict[str, Path], place: Path) -> Turn:
    flags = {
        "--model-id": work.model, "--dataset-path": manifests["train"],
        "--manifest-path": manifests["domain"], "--safety-manifest-path": manifests["heldout"],
        "--output-dir": place, "--batch-size": work.batch_size, "--gradient-accumulation-steps": 1,
        "--max-steps": work.updates, "--eval-interval": work.updates, "--learning-rate": work.learning_rate,
        "--lr-scheduler-type": "constant", "--warmup-ratio": 0, "--seed": SEED,
        "--lora-r": RANK, "--lora-alpha": ALPHA, "--lora-dropout": 0,
        "--mixed-precision": "bf16" if way.bf16 else "no", "--wandb-mode": "disabled",
    }  # fmt: skip
    words = [sys.executable, str(ROOT / "asrlora" / "train.py"), "--allow-outside"]
    words += [str(word) for pair in flags.items() for word in pair]
    if way.dora:
        words.append("--use-dora")
    peak = _run_process(words, place.with_suffix(".log"), ok=(0, 3, 4))
    lines, stages = read_lines(place / "metrics.jsonl"), read_run(place).stage_seconds
    return Turn(
        seconds=[line["seconds"] for line in lines],
        audio_seconds=[line["audio_seconds"] for line in lines],
        losses=[line["loss"] for line in lines],
        first_update=stages["start and shards"] + stages["adapter"] + lines[0]["seconds"],
        peak_bytes=peak,
    )


def _peer(way: Way, peer: dict[str, Any], place: Path) -> Turn:
    spec, folder = place.with_suffix(".json"), place.with_suffix(".trainer")
    settings = {"order": way.order, "dora": way.dora, "bf16": way.bf16, "folder": str(folder)}
    spec.write_text(json.dumps({**peer, **settings, "started": time.time()}))
    words = [sys.executable, "-m", "benchmarks.peer_training", str(spec)]
    _run_process(words, place.with_suffix(".log"))
    found = json.loads(spec.with_suffix(".found.json").read_text())
    return Turn(**{name: found[name] for name in Turn.__dataclass_fields__})


def _run_process(words: list[str], log: Path, ok: tuple[int, ...] = (0,)) -> int:
    """Runs a process; returns the most memory that it had, in bytes."""
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ok:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {log.read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


def _loss_ratio(ways: dict[str, list[Turn]]) -> float:
    """Mean loss of the plain loop by that of ours, on the same batches."""
    ours, loop = (ways[WAYS[number].name][0].losses for number in (0, 3))
    return sum(loop) / sum(ours)


def _check_losses(work: Work, found: dict[str, list[Turn]]) -> None:
    if abs(_loss_ratio(found) - 1) > LOSSES_APART:
        raise RuntimeError(
            f"{work.name}: the mean loss of the plain loop is {_loss_ratio(found):.3f} times that of ours, so"
            " they did not do the same work"
        )


def _figures(ways: dict[str, list[Turn]]) -> Figures:
    speeds = {way: statistics.median(turn.speed for turn in turns) for way, turns in ways.items()}
    figures: Figures = {
        way: {
            "audio-s per second": speeds[way],
            "audio-s per second, each turn": ", ".join(f"{turn.speed:.1f}" for turn in turns),
            "seconds to the first update": statistics.median(turn.first_update for turn in turns),
            "peak GiB": max(turn.peak_bytes for turn in turns) / 2**30,
            "mean loss, nats per token": statistics.mean(turns[0].losses),
        }
        for way, turns in ways.items()
    }
    others = {way.name: way for way in WAYS if way.order}
    lora = max(speeds[name] for name, way in others.items() if not way.dora)
    dora = max(speeds[name] for name, way in others.items() if way.dora)
    figures["ratios"] = {
        "LoRA, ours by the best of the peers": max(speeds[WAYS[0].name], speeds[WAYS[1].name]) / lora,
        "DoRA, ours by the peer's": speeds[WAYS[2].name] / dora,
        "time of our DoRA by our LoRA's": speeds[WAYS[0].name] / speeds[WAYS[2].name],
        "mean loss of the plain loop by ours": _loss_ratio(ways),
    }
    return figures


def _where() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "accelerate")
    )
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    return f"\n{date.today()}, commit {commit}; {cores} CPUs ({processor}); {libraries}.\n"


def _table(model: str, ways: dict[str, list[Turn]]) -> str:
    figures = _figures(ways)
    ratios = figures.pop("ratios")
    columns = list(next(iter(figures.values())))
    lines = [f"| {model} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for way, values in figures.items():
        cells = (f"{value:.3g}" if isinstance(value, float) else value for value in values.values())
        lines.append(f"| {way} | {' | '.join(cells)} |")
    told = "; ".join(f"{name} {value:.2f}" for name, value in ratios.items())
    return "\n".join(["", f"## {model}", "", *lines, "", f"Ratios: {told}.", ""])
