"""What surviving costs: `asrlora bench engine`, on the demo's training with a save every 50 steps.

One run is left alone, one is killed and gone on with. Their own records (run.json) hold the seconds of
each stage. The evaluation sets are a few utterances: they are not what is measured.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from asrlora.bench import Figures
from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.demo.demo import training_command
from asrlora.engine import checkpoint
from asrlora.record.run_dir import read_json, read_lines
from asrlora.tracking.sinks import Tracker, finish, start

STEPS, SAVE_INTERVAL, KILLED_AFTER = 200, 50, 110
EVALUATED = 8  # utterances of domain and of heldout
LOGGED_STEPS, LOGGED_VALUES = 2_000, 15
PATIENCE = 300.0  # seconds
LOAD = "import asrlora.engine.run; from asrlora.models import families; families.load_base({!r})"


def bench_engine(data: Path) -> Figures:
    """All figures; `data` is the demo's corpus."""
    with tempfile.TemporaryDirectory(prefix="asrlora-bench-") as name:
        folder = Path(name)
        settings = {"--max-steps": str(STEPS), "--save-interval": str(SAVE_INTERVAL), "--resume": "auto"}
        for flag, part in (("--manifest-path", "domain"), ("--safety-manifest-path", "heldout")):
            settings[flag] = str(few(data / f"{part}_manifest.jsonl", folder / f"{part}.jsonl"))
        commands = {
            run: [
                *training_command(data, folder / run, settings),
                "--allow-outside",
                "--wandb-mode",
                "disabled",
            ]
            for run in ("whole", "killed")
        }
        console.print("bench: a run that is left alone")
        subprocess.run(commands["whole"], check=True, stdout=subprocess.DEVNULL)
        console.print("bench: a run that is killed and gone on with")
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
    folder.mkdir()
    identity = read_json(run / "run.json")
    as_before = {**identity["config"], "output_dir": folder, "wandb_mode": "offline"}
    tracker = Tracker(start(RunConfig.model_validate(as_before), identity, ["bench"]))
    values = {f"train/value_{number}": 0.1 for number in range(LOGGED_VALUES)}
    spent = []
    for step in range(LOGGED_STEPS):
        begin = time.perf_counter()
        tracker.log(step, values)
        spent.append(time.perf_counter() - begin)
    finish(tracker)
    return {
        "steps logged one after another": LOGGED_STEPS,
        "milliseconds a step": 1e3 * statistics.mean(spent),
        "milliseconds, the slowest step": 1e3 * max(spent),
        "share of a step's time": statistics.mean(spent) / step_seconds,
    }


def few(manifest: Path, copy: Path, count: int = EVALUATED) -> Path:
    """The first utterances of a manifest, their audio where it was."""
    few = [json.loads(line) for line in manifest.read_text().splitlines()[:count]]
    lines = [json.dumps({**one, "audio": str((manifest.parent / one["audio"]).resolve())}) for one in few]
    copy.write_text("".join(f"{line}\n" for line in lines))
    return copy


def _kill(command: list[str], run: Path) -> None:
    """Starts the run and kills all of it once KILLED_AFTER steps are done."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or len(read_lines(run / "metrics.jsonl")) < KILLED_AFTER:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the run to be killed did not come to step {KILLED_AFTER}")
        time.sleep(0.1)
    launcher = psutil.Process(process.pid)
    for one in [*launcher.children(recursive=True), launcher]:
        one.kill()
    process.wait()


def _checkpoints(run: Path) -> dict[str, Any]:
    stages = read_json(run / "run.json")["stage_seconds"]
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
    identity = read_json(run / "run.json")
    # the last with a copy of the best adapter at the end
    before = ("start and shards", "baseline", "adapter")
    everything = sum(identity["stage_seconds"][stage] for stage in before)
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", LOAD.format(identity["config"]["model_id"])], check=True)
    loading = time.monotonic() - begin
    return {
        "went on after step": identity["attempts"][-1]["from_step"],
        "seconds to the first step": everything,
        "of them imports and model load, measured alone": loading,
        "seconds beyond imports and model load": everything - loading,
    }
