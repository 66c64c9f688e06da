"""Errors of the user's making."""

import os
import sys
import time
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message names the file, line or field, and the mend."""


def exit_code(main: Callable[[], int]) -> int:
    """Runs a door; a UserError becomes one line on stderr and exit code 2, without traceback."""
    try:
        return main()
    except UserError as error:
        _leave_the_word_to_local_rank_0()
        tell(error)
        return 2


def _leave_the_word_to_local_rank_0() -> None:
    """Called with a mistake to tell: returns at once on local rank 0, and elsewhere only if needed.

    All ranks find the same mistake, and the launcher ends the others as soon as one has ended: so
    the others wait for that, and speak only where their local rank 0 has found nothing wrong.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(30)


def tell(error: UserError) -> None:
    # a name may hold line breaks or a terminal's control codes; they are shown, not obeyed
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
    print(f"asrlora: error: {message}", file=sys.stderr, flush=True)
