"""`asrlora demo`: corpus, manifests, audit, shards, baseline, training, verdict, report."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from asrlora.console import console, progress
from asrlora.demo import corpus
from asrlora.errors import UserError
from asrlora.record.diagnosis import next_command
from asrlora.record.run_dir import read_json, read_run
from asrlora.record.schema import Verdict, read
from asrlora.score.verdict import EXIT_CODES
from asrlora.sweep.sweep_file import from_here

ROOT = Path(__file__).parents[2]
CORPUS_SEED = 1
SETS = {  # utterances, style, and whether their sentences are held back from training
    "train-domain": (600, corpus.DOMAIN, False),
    "train-general": (1_500, corpus.GENERAL, False),
    "domain": (600, corpus.DOMAIN, True),
    "heldout": (1_500, corpus.GENERAL, True),
}
SECONDS_EACH = 2.2  # about; only for the progress bar

# The recipe of the demo's run: general speech in the training set keeps the heldout WER where it is.
FLAGS = {
    "--max-steps": "500",
    "--eval-interval": "500",  # each takes half a minute of the five that the demo may take
    "--learning-rate": "1.5e-3",
    "--batch-size": "4",
    "--gradient-accumulation-steps": "2",
    "--lora-r": "16",
    "--lora-alpha": "32",
    "--lora-dropout": "0",  # drawing its masks takes a fifth of a CPU step
    "--mixed-precision": "bf16",
}


def make_corpus(data: Path) -> float:
    """Speaks the corpus into `data` and writes the three manifests; returns the seconds of audio.

    Done once: a folder whose recipe is the same is kept. Raises UserError where the folder is not the demo's.
    """
    draw = {
        name: corpus.draw_lines(name, count, style, heldback, CORPUS_SEED)
        for name, (count, style, heldback) in SETS.items()
    }
    recipe = hashlib.sha256(f"{corpus.VERSION} {draw}".encode()).hexdigest()
    done = data / "corpus.json"
    if done.exists() and read_json(done)["recipe"] == recipe:
        return float(read_json(done)["seconds"])
    if data.exists() and not done.exists() and any(data.iterdir()):
        raise UserError(f"--data-dir {data} holds files that are not the demo's; give another folder")
    shutil.rmtree(data, ignore_errors=True)
    aside = data.with_name(f".{data.name}-making")
    shutil.rmtree(aside, ignore_errors=True)
    total = SECONDS_EACH * sum(map(len, draw.values()))
    records: dict[str, list[dict[str, Any]]] = {}
    with progress("speaking the corpus", total) as advance:
        for name, lines in draw.items():
            records[name] = []
            for record in corpus.write_set(lines, aside / name):
                records[name].append(record)
                advance(record["duration"])
    train = records["train-domain"] + records["train-general"]
    corpus.write_manifest(aside / "train_manifest_expanded.jsonl", train)
    corpus.write_manifest(aside / "domain_manifest.jsonl", records["domain"])
    corpus.write_manifest(aside / "heldout_manifest.jsonl", records["heldout"])
    seconds = sum(record["duration"] for spoken in records.values() for record in spoken)
    (aside / "corpus.json").write_text(json.dumps({"recipe": recipe, "seconds": seconds}) + "\n")
    aside.rename(data)
    return float(seconds)


def run_demo(data: Path, output: Path, seed: int) -> int:
    """Speaks the corpus, trains on it and prints the verdict; returns the exit code of that verdict.

    Raises UserError outside a clone of the project.
    """
    if not (ROOT / "accelerate_configs" / "cpu.yaml").is_file():
        raise UserError("asrlora demo runs from a clone of the project, where accelerate_configs/ is")
    if (output / "run.json").exists():
        console.print(f"{output} holds an earlier demo; it is replaced")
        shutil.rmtree(output)
    times: dict[str, float] = {}
    with _timed("corpus", times):
        seconds = make_corpus(data)
    console.print(f"corpus: {seconds / 3600:.2f} h of speech in {data}")
    command = training_command(data, output, {"--seed": str(seed)})
    with _timed("audit, shards, baseline, training, verdict", times):
        finished = subprocess.run(command)
    if finished.returncode:
        console.print(f"training ended with code {finished.returncode}; see its messages above")
        return 1
    return _report(output, times)


def training_command(data: Path, output: Path, settings: dict[str, str]) -> list[str]:
    """The command of the demo's training on two processes; flags in `settings` replace its own."""
    paths = {
        "--model-id": ROOT / "asrlora" / "demo" / "base",
        "--dataset-path": data / "train_manifest_expanded.jsonl",
        "--manifest-path": data / "domain_manifest.jsonl",
        "--safety-manifest-path": data / "heldout_manifest.jsonl",
        "--output-dir": output,
    }
    flags = {**{flag: str(from_here(path)) for flag, path in paths.items()}, **FLAGS, **settings}
    return [*on_two_processes("train.py"), *(word for pair in flags.items() for word in pair)]


def on_two_processes(script: str) -> list[str]:
    """The command that launches a script of asrlora/ on two processes."""
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch"]
    config, program = ROOT / "accelerate_configs" / "cpu.yaml", ROOT / "asrlora" / script
    return [*launch, "--config_file", str(from_here(config)), str(from_here(program))]


def _report(output: Path, times: dict[str, float]) -> int:
    judged = read(output / "verdict.json", Verdict)
    tuned = f"WER of step {judged.learned.step}, not kept" if judged.learned else "tuned WER"
    table = Table("set", "baseline WER", tuned, "change, points")
    for name, part in (judged.learned or judged).sets().items():
        low, high = part.change_interval
        table.add_row(
            name,
            _with_interval(part.baseline_wer, part.baseline_interval),
            _with_interval(part.tuned_wer, part.tuned_interval),
            f"{100 * part.change:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]",
        )
    console.print(table)
    console.print(f"verdict: {judged.verdict} ({judged.reason})")
    if command := next_command(output, judged):
        console.print(f"next:    {command}")
    console.print(f"report:  {output / 'report.html'}")
    stages = {**times, **read_run(output).stage_seconds}
    whole = sum(times.values())
    console.print("time:    " + ", ".join(f"{name} {spent:.0f} s" for name, spent in stages.items()))
    console.print(f"in all:  {whole:.0f} s")
    return EXIT_CODES[judged.verdict]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    assert interval is not None
    return f"{value:.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"


@contextlib.contextmanager
def _timed(name: str, times: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    times[name] = time.monotonic() - start
