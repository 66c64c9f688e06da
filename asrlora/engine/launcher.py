"""The `accelerate launch` above a run: what it was asked for, and how it passes on exit codes.

Needs no torch, so that a launch which is not what was asked for is refused before anything slow.
"""

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import yaml

from asrlora.config import parse_run
from asrlora.errors import UserError
from asrlora.record.run_dir import note_failure, redacted

USER_ERROR, PREEMPTED = 2, 75  # exit codes: a mistake of the user's; stopped, to be gone on with
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM and clouds announce the end by these


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
    """Seconds since this process started: importing torch is part of the wait. A clock that is set in
    between changes nothing, where this system tells when the process started by one that is not."""
    with contextlib.suppress(OSError, AttributeError):
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    return time.time() - float(psutil.Process().create_time())


def check_processes() -> int:
    """The number of processes. Raises UserError where they are not those that the launcher was told to start.

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
    world_size = check_processes()
    if per_step % world_size:
        raise UserError(
            f"--gradient-accumulation-steps {per_step} (microbatches per"
            f" step in all) cannot be dealt out evenly to {world_size} processes; give a"
            " multiple, or change num_processes in the accelerate config"
        )


def _asked_processes() -> int | None:
    """The num_processes that the launcher's flags or its config file ask for."""
    words = command_line()
    if words is None:
        return None
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
    options: dict[str, str] = {}
    for i, word in enumerate(words[:script]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            options[name[2:].replace("-", "_")] = value if equals else "".join(words[i + 1 : i + 2])
    if "num_processes" in options:
        return int(options["num_processes"])
    if "config_file" in options:
        settings = yaml.safe_load(Path(options["config_file"]).read_text())
        return int(settings["num_processes"]) if "num_processes" in settings else None
    return None


def join_the_launcher() -> None:
    """Makes `accelerate launch` of train.py or cli.py end with its ranks' exit code and hand on signals.

    The launcher ends with 1 and a traceback whenever a rank ends with another code than 0, and dies of
    SIGUSR1 or SIGTERM before its ranks do; scripts around it rely on our codes, and ranks that are told
    to stop save a checkpoint first. `import torch` calls the entry points `torch.backends`, in the
    launcher's process too: the one place where a package may speak there. In every other process this
    does nothing.
    """
    if Path(sys.argv[0]).name == "accelerate" and any(
        Path(word).parts[-2:] in (("asrlora", "train.py"), ("asrlora", "cli.py")) for word in sys.argv
    ):
        sys.excepthook = _end_like_the_ranks
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_not_ours)
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"  # without SIGTERM
        for number in STOP_SIGNALS:
            signal.signal(number, _hand_on)


def _hand_on(number: int, frame: types.FrameType | None) -> None:
    for rank in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            rank.send_signal(number)


def _end_like_the_ranks(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    if isinstance(error, subprocess.CalledProcessError):  # of one process
        codes = {error.returncode}
    else:  # torch.distributed.elastic's ChildFailedError
        codes = {failure.exitcode for failure in getattr(error, "failures", {}).values()}
    # The launcher ends the ranks that are left by SIGTERM; and a rank that such a signal met before it
    # could save anything has lost nothing.
    ended = {code for code in codes if -code not in STOP_SIGNALS} or (codes and {PREEMPTED})
    if ended in ({USER_ERROR}, {PREEMPTED}):
        sys.stdout.flush()
        os._exit(ended.pop())
    _note_killed(error)
    sys.__excepthook__(kind, error, trace)


def _note_killed(error: BaseException) -> None:
    """Says, and records in run.json, which ranks were killed by which signal: their parent alone knows."""
    if isinstance(error, subprocess.CalledProcessError):
        ended = {0: ("", error.returncode)}
    else:
        ended = {
            rank: (f" (process {failure.pid} on {socket.gethostname()})", failure.exitcode)
            for rank, failure in getattr(error, "failures", {}).items()
        }
    killed = [
        f"rank {rank}{process} was killed by {signal.Signals(-code).name}"
        + (": by the kernel for want of memory, or by hand" if -code == signal.SIGKILL else "")
        for rank, (process, code) in ended.items()
        if code < 0 and -code not in STOP_SIGNALS
    ]
    if not killed:
        return
    reason = "; ".join(killed)
    script = next(i for i, word in enumerate(sys.argv) if Path(word).suffix == ".py")
    recorded = True  # evaluations keep no record
    if Path(sys.argv[script]).name == "train.py":
        with contextlib.suppress(UserError, OSError):
            recorded = note_failure(parse_run(sys.argv[script + 1 :]).output_dir, reason)
    if recorded:  # else the ranks have said who it was, and have ended it themselves
        print(f"asrlora: error: {reason}", file=sys.stderr, flush=True)


def _not_ours(record: logging.LogRecord) -> bool:
    """Drops the launcher's report of a rank that ended with an exit code of ours: it has said why."""
    return not any(f"(exitcode: {code})" in record.getMessage() for code in (USER_ERROR, PREEMPTED))
