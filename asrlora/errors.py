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
        print(f"asrlora: error: {error}", file=sys.stderr, flush=True)
        return 2
