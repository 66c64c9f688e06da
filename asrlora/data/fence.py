"""Which files a manifest may name, and how they are opened.

A manifest may come from a stranger. So the audio that it names must lie in its own folder, whatever
names and links lead there, unless --allow-outside says otherwise; and only regular files are opened,
since a FIFO waits forever and a device never ends.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


class Outside(ValueError):
    """The name leads out of the folder, and --allow-outside was not given."""

    reason = "audio outside"


class Missing(ValueError):
    """There is no file of that name."""

    reason = "audio missing"


@dataclass(frozen=True)
class Fence:
    """The folder around a manifest's audio. `find` looks at names and links, and opens nothing."""

    folder: Path
    allow_outside: bool = False
    _inside: dict[str, bool] = field(default_factory=dict)  # folder -> whether it lies inside

    def find(self, name: str, what: str = "audio file") -> Path:
        """The regular file that `name` means, absolute or relative to the folder.

        Raises Outside where it leads out, Missing where it leads nowhere, and ValueError where it is no
        regular file.
        """
        if "\0" in name:
            raise ValueError(f"the {what} {name!r} has a NUL byte in its name; mend it")
        # absolute, because libsndfile takes the bare name "-" for standard input
        path = os.path.join(os.path.abspath(self.folder), name)
        if not self.allow_outside and not self._holds(os.path.dirname(path)):
            raise Outside(self._outside(path, what))
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not self.allow_outside and not self._holds(os.path.realpath(path)):
                    raise Outside(self._outside(path, what))
                status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"the {what} {path} does not exist; mend its name") from None
        except OSError as error:
            raise ValueError(f"the {what} {path} cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"the {what} {path} is not a regular file; mend its name")
        return Path(path)

    def _holds(self, path: str) -> bool:
        """Whether `path`, with every link followed, is the folder or lies in it."""
        if path not in self._inside:
            root = os.path.realpath(self.folder)
            self._inside[path] = Path(os.path.realpath(path)).is_relative_to(root)
        return self._inside[path]

    def _outside(self, path: str, what: str) -> str:
        return (
            f"the {what} {path} lies outside {self.folder}; move it there, or give --allow-outside"
            " if you trust where this came from"
        )


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; `path` may be a link to one. Raises OSError on any other file.

    Decoders get the open file and not its name, from which they would guess: to libsndfile "-" is standard
    input, ".raw" needs a rate, and an .sd2 file has a second one beside it. Unbuffered, since they move the
    descriptor's place.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)
