"""Errors of the user's making."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message names the file, line or field, and the mend."""


def exit_code(main: Callable[[], int]) -> int:
    """Runs a door; a UserError becomes one line on stderr and exit code 2, without traceback."""
    try:
        return main()
    except UserError as error:
        tell(error)
        return 2


def tell(error: UserError) -> None:
    # a name may hold line breaks or a terminal's control codes; they are shown, not obeyed
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
    print(f"asrlora: error: {message}", file=sys.stderr, flush=True)
