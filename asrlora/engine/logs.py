"""Where the output of ranks other than 0 goes: a file each, so that the terminal shows each message once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def into_file(path: Path) -> Callable[[], None]:
    """Sends stdout and stderr of this process, its libraries' too, to the end of a file.

    Returns a function that gives the terminal back, for what must be seen there: why a run ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)

    def give_back() -> None:
        """Puts the streams back on the terminal."""
        while kept:
            for stream in streams:
                stream.flush()
            os.dup2(kept[-1], len(kept))
            os.close(kept.pop())

    return give_back
