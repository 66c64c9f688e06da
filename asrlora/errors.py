"""Errors of the user's making, and the exit code that they end with."""

import os
import sys
import time
from collections.abc import Callable

# exit codes beside 0 (all is well) and 1 (an error of ours)
USER_ERROR = 2
PREEMPTED = 75  # os.EX_TEMPFAIL: stopped on request, and saved, to be resumed


class UserError(Exception):
    """Something the user can correct. The message names the file, line or field, and what to do."""


def exit_code(main: Callable[[], int]) -> int:
    """Runs an entry point; a UserError becomes one line on stderr and exit code 2, without a traceback."""
    try:
        return main()
    except UserError as error:
        report_only_on_local_rank_zero(error)
        return USER_ERROR


def report_only_on_local_rank_zero(error: UserError) -> None:
    """Prints an error that all ranks of a machine find alike.

    Other ranks wait first: the launcher ends them as soon as one rank has ended. So they print it only where
    their local rank 0 has found nothing wrong.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(30)
    report(error)


def first_line(error: BaseException) -> str:
    """How an error's message begins; what kind of error it is where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def report(error: UserError) -> None:
    """Prints an error as one line on stderr."""
    # a name may hold line breaks or a terminal's control codes: they are shown, not obeyed
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
    print(f"asrlora: error: {message}", file=sys.stderr, flush=True)
