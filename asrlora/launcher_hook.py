"""Makes the `accelerate launch` above a run end with its ranks' exit code and pass signals on to them.

`import torch` calls `install_launcher_hook` in every process of this environment, through the entry points
`torch.backends` (pyproject.toml). So this module imports nothing that torch has not imported already.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

from asrlora.errors import PREEMPTED, USER_ERROR, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM and clouds announce the end by these
# of mistakes and preemption; 3 and 4 are reject and inconclusive (score/verdict.py, which imports NumPy)
PASSED_ON = {USER_ERROR, PREEMPTED, 3, 4}


def install_launcher_hook() -> None:
    """Installs all of the below in a process of `accelerate launch` of train.py or cli.py; elsewhere nothing.

    The launcher ends with 1 and a traceback whenever a rank ends with another code than 0, and dies of
    SIGUSR1 or SIGTERM before its ranks do. But scripts around it rely on our exit codes, and ranks that are
    asked to stop save a checkpoint first. An entry point of torch's is the only place where a package can run
    code in the launcher's process.
    """
    if Path(sys.argv[0]).name == "accelerate" and any(
        Path(word).parts[-2:] in (("asrlora", "train.py"), ("asrlora", "cli.py")) for word in sys.argv
    ):
        sys.excepthook = _end_like_the_ranks
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_keep_record)
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"  # without SIGTERM
        for number in STOP_SIGNALS:
            signal.signal(number, _pass_on)


def _pass_on(number: int, frame: types.FrameType | None) -> None:
    import psutil

    for rank in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            rank.send_signal(number)


def _end_like_the_ranks(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """The launcher's excepthook: exits with a code of PASSED_ON where the ranks did, without a traceback."""
    if isinstance(error, subprocess.CalledProcessError):  # of one process
        codes = {error.returncode}
    else:  # torch.distributed.elastic's ChildFailedError
        codes = {failure.exitcode for failure in getattr(error, "failures", {}).values()}
    # The launcher ends the ranks that are left by SIGTERM; and a rank that got such a signal before it
    # could save anything has lost nothing.
    ended = {code for code in codes if -code not in STOP_SIGNALS} or (codes and {PREEMPTED})
    if len(ended) == 1 and ended <= PASSED_ON:
        sys.stdout.flush()
        os._exit(ended.pop())
    _note_killed(error)
    sys.__excepthook__(kind, error, trace)


def _note_killed(error: BaseException) -> None:
    """Prints, and records in run.json, which ranks were killed by which signal: only their parent knows."""
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
    # without a record (an evaluation keeps none) the reason is printed all the same
    if _record(reason):  # else the ranks have named the cause, and have killed that rank themselves
        print(f"asrlora: error: {reason}", file=sys.stderr, flush=True)


def _record(reason: str) -> bool:
    """Writes the reason to the run's record; returns False where that holds the ranks' own reason."""
    script = next(i for i, word in enumerate(sys.argv) if Path(word).suffix == ".py")
    if Path(sys.argv[script]).name == "train.py":
        from asrlora.config import parse_run
        from asrlora.record.run_dir import note_failure

        with contextlib.suppress(UserError, OSError):
            return note_failure(parse_run(sys.argv[script + 1 :]).output_dir, reason)
    return True


def _keep_record(record: logging.LogRecord) -> bool:
    """False for the launcher's log record of a rank that ended with such a code: the rank has said why."""
    return not any(f"(exitcode: {code})" in record.getMessage() for code in PASSED_ON)
