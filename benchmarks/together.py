"""What two trials at once cost: `asrlora bench together`.

Two short trials on the demo's corpus, training and evaluations, each from start to end: first each alone,
then both at once, from two terminals, by `sweep run --jobs 2` and, with `--slurm`, as two tasks of srun on
one node. The ratio is the time of both at once over the sum of the two alone: 1 where they share the cores
without loss, below 1 where one alone leaves some idle.
"""

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from asrlora import allocation
from asrlora.arguments import count
from asrlora.console import console
from asrlora.data import manifest
from asrlora.data.shards import cache
from asrlora.demo.demo import ROOT, make_corpus
from asrlora.record.schema import RunRecord, read
from asrlora.sweep import sweep_file
from benchmarks.common import Figures, add_data_dir, add_output, first_utterances, report

SEEDS = (1, 2)
UTTERANCES = {"dataset_path": 512, "manifest_path": 200, "safety_manifest_path": 200}
MANIFESTS = {
    "dataset_path": "train_manifest_expanded.jsonl",
    "manifest_path": "domain_manifest.jsonl",
    "safety_manifest_path": "heldout_manifest.jsonl",
}
OURS = ("OMP_", "GOMP_", allocation.CPUS)  # what would keep the trials from finding their share themselves
# each task of srun becomes the trial of its number
TASK = 'trial="ASRLORA_TRIAL_$SLURM_PROCID"; eval "exec ${!trial}"'

Way = Callable[[sweep_file.Sweep, Path], list[list[str]]]  # the commands that run a sweep's trials at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench together`."""
    parser.set_defaults(run=_run)
    add_data_dir(parser)
    parser.add_argument("--steps", type=count, default=100, help="of a trial (default: 100)")
    parser.add_argument("--slurm", action="store_true", help="also as two tasks of srun on one node")
    add_output(parser)


def _run(args: argparse.Namespace) -> int:
    make_corpus(args.data_dir)
    ways = {**HERE, **(SLURM if args.slurm else {})}
    return report(bench_together(args.data_dir, args.steps, ways), args.output)


def bench_together(data: Path, steps: int, ways: Mapping[str, Way]) -> Figures:
    """All figures; `data` is the demo's corpus, `steps` the optimizer steps of a trial."""
    with tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name:
        folder = Path(name)
        fixed = _settings(data, folder, steps)
        numbers = itertools.count()
        figures: Figures = {}
        for way, commands in ways.items():
            console.print(f"bench: {way}")
            alone = [_seconds(commands, folder / str(next(numbers)), fixed, [seed]) for seed in SEEDS]
            both = folder / str(next(numbers))
            together = _seconds(commands, both, fixed, SEEDS)
            threads = [read(path, RunRecord).threads["torch_threads"] for path in both.glob("*/run.json")]
            figures[way] = {
                "seconds, each alone": ", ".join(f"{one:.1f}" for one in alone),
                "seconds, both at once": together,
                "torch threads of each at once": ", ".join(map(str, threads)),
                "at once over the sum of both alone": together / sum(alone),
            }
        return figures


def _settings(data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Settings of both trials; their shards are built here, so that no trial builds them for another."""
    paths = {
        key: first_utterances(data / MANIFESTS[key], folder / f"{key}.jsonl", number)
        for key, number in UTTERANCES.items()
    }
    for path in paths.values():
        cache.cached(manifest.read_manifest(path, allow_outside=True))
    return {
        **{key: str(path) for key, path in paths.items()},
        "model_id": str(ROOT / "asrlora" / "demo" / "base"),
        "max_steps": steps,
        "eval_interval": steps,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "allow_outside": True,
        "wandb_mode": "disabled",
    }


def _seconds(commands: Way, output: Path, fixed: dict[str, Any], seeds: Sequence[int]) -> float:
    """How long the trials of these seeds take at once, from start to end of their processes."""
    file = output.with_suffix(".yaml")
    file.write_text(
        yaml.safe_dump({"output_dir": str(output), "fixed": fixed, "grid": {"seed": list(seeds)}})
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    begin = time.perf_counter()
    with open(output.with_suffix(".log"), "w+b") as log:
        running = [
            subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
            for words in commands(sweep_file.load(file), file)
        ]
        codes = [process.wait() for process in running]
        seconds = time.perf_counter() - begin
        if any(codes):
            log.seek(0)
            raise RuntimeError(f"a trial ended with {codes}:\n{log.read().decode(errors='replace')[-3000:]}")
    return seconds


def _terminals(loaded: sweep_file.Sweep, file: Path) -> list[list[str]]:
    return [sweep_file.command(loaded, trial) for trial in sweep_file.trials_of(loaded, loaded)]


def _jobs(loaded: sweep_file.Sweep, file: Path) -> list[list[str]]:
    jobs = str(len(sweep_file.trials_of(loaded, loaded)))
    return [[sys.executable, "-m", "asrlora.cli", "sweep", "run", str(file), "--jobs", jobs]]


def _tasks(loaded: sweep_file.Sweep, file: Path) -> list[list[str]]:
    """One srun whose tasks share the CPUs of a node."""
    trials = _terminals(loaded, file)
    each = max(1, allocation.of_process().worker_threads // len(trials))
    variables = [f"ASRLORA_TRIAL_{number}={shlex.join(words)}" for number, words in enumerate(trials)]
    share = ["--nodes=1", f"--ntasks={len(trials)}", f"--cpus-per-task={each}"]
    return [["env", *variables, "srun", *share, "bash", "-c", TASK]]


HERE: dict[str, Way] = {"two terminals": _terminals, "sweep run --jobs 2": _jobs}
SLURM: dict[str, Way] = {"two tasks of srun": _tasks}
