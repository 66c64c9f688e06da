"""The `accelerate launch` above a run: what it was asked for. Needs no torch, so that a wrong launch is
refused before anything slow starts.
"""

import contextlib
import itertools
import os
import shlex
import sys
import time
from pathlib import Path

import psutil
import yaml

from asrlora.allocation import flag_value
from asrlora.errors import UserError
from asrlora.record.run_dir import redacted


def command_line() -> list[str] | None:
    """The command line of the `accelerate launch` above this process, if there is one."""
    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents():
            words = parent.cmdline()
            for i, word in enumerate(words):
                if Path(word).name == "accelerate" and words[i + 1 : i + 2] == ["launch"]:
                    return ["accelerate", *words[i + 1 :]]
    return None


def command_as_typed() -> str:
    """The `uv run` command that repeats this run."""
    words = command_line() or ["python", *sys.argv]
    return redacted(shlex.join(["uv", "run", *words]))


def process_age() -> float:
    """Seconds since this process started, so that importing torch counts as part of the wait.

    Where /proc exists, setting the clock in between changes nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    return time.time() - float(psutil.Process().create_time())


def check_processes() -> int:
    """The number of processes. Raises UserError where the launcher was asked for another one.

    `accelerate launch --cpu --num_processes 2` silently runs one process (1.15.0).
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    asked = _asked_processes()
    if asked is not None and asked != world_size:
        raise UserError(
            f"the launcher was asked for {asked} processes and {world_size} came up; launch"
            " with --config_file accelerate_configs/cpu.yaml (CPU) or gpu.yaml and set num_processes"
            " there, without --cpu"
        )
    return world_size


def check_microbatches(per_step: int) -> None:
    """Raises UserError unless the microbatches of a step can be divided evenly among the processes."""
    world_size = check_processes()
    if per_step % world_size:
        raise UserError(
            f"--gradient-accumulation-steps {per_step} (microbatches per"
            f" step in all) cannot be divided evenly among {world_size} processes; give a"
            " multiple, or change num_processes in the accelerate config"
        )


def _asked_processes() -> int | None:
    """The num_processes that the launcher's flags or its config file ask for."""
    words = command_line()
    if words is None:
        return None
    own = list(itertools.takewhile(lambda word: not word.endswith(".py"), words))
    if (count := flag_value(own, "num_processes")) is not None:
        return int(count)
    if (file := flag_value(own, "config_file")) is not None:
        settings = yaml.safe_load(Path(file).read_text())
        return int(settings["num_processes"]) if "num_processes" in settings else None
    return None
