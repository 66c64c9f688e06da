"""What checkpoints and resuming cost: `asrlora bench engine`, on the demo's training, saved every 50 steps.

One run is left alone, one is killed and resumed. Their own records (run.json) hold the seconds of
each stage. The evaluation sets are a few utterances: they are not what is measured.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.demo.demo import make_corpus, training_command
from asrlora.record.run_dir import read_lines, read_run
from benchmarks.common import Figures, add_data_dir, add_output, first_utterances, report

STEPS, SAVE_INTERVAL, KILLED_AFTER = 200, 50, 110
EVALUATED = 8  # utterances of domain and of heldout
LOGGED_STEPS, LOGGED_VALUES = 2_000, 15
TIMEOUT = 300.0  # seconds for the run to be killed to get so far
LOAD = "import asrlora.engine.run; from asrlora.models import registry; registry.load_base({!r})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench engine`."""
    parser.set_defaults(run=_run)
    add_data_dir(parser)
    add_output(parser)


def _run(args: argparse.Namespace) -> int:
    make_corpus(args.data_dir)
    return report(bench_engine(args.data_dir), args.output)


def bench_engine(data: Path) -> Figures:
    """All figures; `data` is the demo's corpus."""
    with tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name:
        folder = Path(name)
        settings = {"--max-steps": str(STEPS), "--save-interval": str(SAVE_INTERVAL), "--resume": "auto"}
        for flag, part in (("--manifest-path", "domain"), ("--safety-manifest-path", "heldout")):
            manifest, copy = data / f"{part}_manifest.jsonl", folder / f"{part}.jsonl"
            settings[flag] = str(first_utterances(manifest, copy, EVALUATED))
        extra = ["--allow-outside", "--wandb-mode", "disabled"]
        commands = {
            run: [*training_command(data, folder / run, settings), *extra] for run in ("whole", "killed")
        }
        console.print("bench: a run that is left alone")
        subprocess.run(commands["whole"], check=True, stdout=subprocess.DEVNULL)
        console.print("bench: a run that is killed and resumed")
        _kill(commands["killed"], folder / "killed")
        subprocess.run(commands["killed"], check=True, stdout=subprocess.DEVNULL)
        step = statistics.median(line["seconds"] for line in read_lines(folder / "whole" / "metrics.jsonl"))
        return {
            "checkpoints": _checkpoints(folder / "whole"),
            "resume": _resume(folder / "killed"),
            "W&B": _tracking(folder / "whole", folder / "tracked", step),
        }


def _tracking(run: Path, folder: Path, step_seconds: float) -> dict[str, Any]:
    """How long training waits in W&B's `log`; where the numbers go then is another process's work."""
    from asrlora.tracking import wandb

    folder.mkdir()
    identity = read_run(run)
    as_before = {**identity.config.as_json(), "output_dir": folder, "wandb_mode": "offline"}
    sink = wandb.WandbSink(wandb.start(RunConfig.model_validate(as_before), identity, ["bench"]))
    values = {f"train/value_{number}": 0.1 for number in range(LOGGED_VALUES)}
    spent = []
    for step in range(LOGGED_STEPS):
        begin = time.perf_counter()
        sink.log(step, values)
        spent.append(time.perf_counter() - begin)
    sink.finish()
    return {
        "steps logged one after another": LOGGED_STEPS,
        "milliseconds a step": 1e3 * statistics.mean(spent),
        "milliseconds, the slowest step": 1e3 * max(spent),
        "share of a step's time": statistics.mean(spent) / step_seconds,
    }


def _kill(command: list[str], run: Path) -> None:
    """Starts the run and kills all of it once KILLED_AFTER steps are done."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + TIMEOUT
    while not (run / "metrics.jsonl").exists() or len(read_lines(run / "metrics.jsonl")) < KILLED_AFTER:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the run to be killed did not reach step {KILLED_AFTER}")
        time.sleep(0.1)
    launcher = psutil.Process(process.pid)
    for one in [*launcher.children(recursive=True), launcher]:
        one.kill()
    process.wait()


def _checkpoints(run: Path) -> dict[str, Any]:
    from asrlora.engine import checkpoint

    stages = read_run(run).stage_seconds
    newest = checkpoint.find(run / "checkpoints")[-1]
    adapter = (newest / checkpoint.ADAPTER).stat().st_size
    size = sum(path.stat().st_size for path in newest.iterdir())
    return {
        "steps": STEPS,
        "checkpoints": STEPS // SAVE_INTERVAL,
        "seconds of training": stages["training"],
        "seconds of checkpoints": stages["checkpoints"],
        "overhead": stages["checkpoints"] / stages["training"],
        "bytes": size,
        "bytes, times the adapter's file": size / adapter,
    }


def _resume(run: Path) -> dict[str, Any]:
    identity = read_run(run)
    # the last with a copy of the best adapter at the end
    before = ("start and shards", "baseline", "adapter")
    everything = sum(identity.stage_seconds[stage] for stage in before)
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", LOAD.format(identity.config.as_json()["model_id"])], check=True)
    loading = time.monotonic() - begin
    return {
        "resumed after step": identity.attempts[-1].from_step,
        "seconds to the first step": everything,
        "of them imports and model load, measured alone": loading,
        "seconds beyond imports and model load": everything - loading,
    }
