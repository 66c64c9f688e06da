"""Writing files so that nobody ever sees half of one."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
            time.sleep(0.02)


LOST = 20.0  # seconds without a heartbeat after which a claim is nobody's


@dataclass(frozen=True)
class Claim:
    """What one process works on and no other, over NFS too: a file that holds its owner.

    Its owner calls `keep` every few seconds; who dies without `give_up` has lost it after LOST seconds. All
    that decides who has it happens under a lock on a file beside it: between the look at a claim that its
    owner has lost and its removal another process could put its own in that place. That lock is held for
    moments only, so no machine that fails keeps it.
    """

    path: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # of this holder alone

    def take(self, owner: str) -> bool:
        """Whether it is ours now; False where another process lives that has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone() as guard:
            if guard is None:
                return False
            os.utime(guard.fileno())  # by the clock of the file system, as all claims in it
            found = self._read()
            if found is not None:
                if abs(os.fstat(guard.fileno()).st_mtime - found[2]) <= LOST:
                    return False
                self.path.unlink()
            # nobody else creates one now; a file that is there all the same is an older version's
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{owner}\n{self.token}\n")
        return True

    def keep(self) -> bool:
        """A heartbeat; False where it is ours no more, since this process was stopped for too long."""
        found = self._read()
        if found is None or found[1] != self.token:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return True

    def give_up(self) -> None:
        """Leaves it to others, if it is ours."""
        self._remove(lambda owner, token: token == self.token)

    def take_from(self, dead: str) -> None:
        """Frees it where `dead` has it, of whom the caller knows that it lives no more."""
        self._remove(lambda owner, token: owner == dead)

    def owner(self) -> str | None:
        """Who works on it now; None where nobody does."""
        found = self._read()
        return found[0] if found is not None and abs(time.time() - found[2]) <= LOST else None

    def _remove(self, theirs: Callable[[str, str], bool]) -> None:
        with self._alone() as guard:
            found = self._read()
            if guard is not None and found is not None and theirs(*found[:2]):
                self.path.unlink()

    def _read(self) -> tuple[str, str, float] | None:
        """Owner, token, and the time of the last heartbeat; None where there is no claim.

        By opening it: NFS asks its server then, and otherwise tells what it knew some seconds ago.
        """
        try:
            with open(self.path, encoding="utf-8") as file:
                owner, token, *_ = [*file.read().split("\n"), "", ""]
                return owner, token, os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[BinaryIO | None]:
        """The lock, which is never removed; None where it cannot be had."""
        if not self.path.parent.exists():
            yield None
            return
        guard = lock(self.path.with_name(f".{self.path.name}.guard"), LOST)
        try:
            yield guard
        finally:
            if guard is not None:
                guard.close()
