"""Writing files so that nobody ever sees half of one."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces `path` in one step: a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    write_synced(aside, content.encode("utf-8") if isinstance(content, str) else content)
    aside.replace(path)


def to_json(value: Any, **how: Any) -> str:
    """JSON as its standard has it, by json.dumps and its arguments `how`.

    A number that is not finite becomes null: NaN and Infinity are no JSON, and other readers than Python's
    refuse the whole file.
    """
    return json.dumps(_finite(value), allow_nan=False, **how)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def write_json(path: Path, value: Any, **how: Any) -> None:
    """Replaces `path` by the value as indented JSON, in one step."""
    write_whole(path, to_json(value, indent=1, **how) + "\n")


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file that nobody reads yet, down to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def written_whole(path: Path, synced: bool = True) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on disk; several may write it at once.

    Not `synced`: when all of it is written. After a crash of the machine it may be there and broken, so this
    is for files that are checked against a hash, and synced later.
    """
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(descriptor)
        os.chmod(aside, 0o644)
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    if synced:
        sync(path.parent)


def sync(path: Path) -> None:
    """Puts a file's bytes, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_whole(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` at the end of the block, synced, in the place of an older one.

    After an error nothing does, and the older one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        for file in aside.iterdir():
            sync(file)
        aside.chmod(0o755)
        old = path.with_name(f".{path.name}-old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def lock(path: Path, seconds: float) -> BinaryIO | None:
    """Holds `path` until the result is closed or the process is gone, however it goes; None where somebody
    else holds it for that long. (flock: on NFS it holds between machines too, by Linux's emulation.)"""
    file = open(path, "ab")  # noqa: SIM115 - held open on purpose
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                return None
            time.sleep(0.1)


LOST = 20.0  # seconds without a sign of life after which a claim is nobody's; machines' clocks agree better


@dataclass(frozen=True)
class Claim:
    """What one process works on and no other, over NFS too: a file that only one of them can create.

    Its owner calls `keep` every few seconds; who dies without `give_up` has lost it after LOST seconds.
    """

    path: Path

    def take(self, owner: str) -> bool:
        """Whether it is ours now; False where another process lives that has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.age() > LOST:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(owner)
        return True

    def keep(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)

    def give_up(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def owner(self) -> str | None:
        """Who works on it now; None where nobody does."""
        try:
            return self.path.read_text(encoding="utf-8") if self.age() <= LOST else None
        except FileNotFoundError:
            return None

    def age(self) -> float:
        """Seconds since the last sign of life; 0 where the file is not there."""
        try:
            return time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
