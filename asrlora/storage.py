"""Writing files so that nobody ever reads half of one, and agreeing on which process works on what."""

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

LEASE_TIMEOUT = 20.0  # seconds without a heartbeat after which a lease is free


@contextlib.contextmanager
def atomic_file(path: Path, synced: bool = True) -> Iterator[BinaryIO]:
    """A new file that replaces `path` at the end of the block: readers see the old one or the new one.

    After an error the old one stays. Several processes may write the same path at once. `synced` puts it on
    the disk first; without it a crash of the machine may leave a damaged file, so that is for files which are
    checked against a hash and synced later.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(descriptor)
        os.chmod(temporary, 0o644)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if synced:
        sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder of files that replaces `path`, synced, at the end of the block; not after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        temporary.chmod(0o755)
        old = path.with_name(f".{path.name}-old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file by `content` (text is written as UTF-8), and makes its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any, **how: Any) -> None:
    """Replaces a file by the value as indented JSON; `how` are further arguments of json.dumps."""
    write_atomic(path, to_json(value, indent=1, **how) + "\n")


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


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file that nobody reads yet, and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Puts a file's bytes, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, seconds: float) -> BinaryIO | None:
    """Locks `path` until the result is closed or the process has ended, however it ended.

    Returns None where another process has held it for so many seconds. By flock, which on NFS holds between
    machines too. Not by the library filelock: where a file system has no flock, that falls back to a file
    which outlives a killed process.
    """
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


@dataclass(frozen=True)
class Lease:
    """Work that one process has at a time, over NFS too: a file that holds its owner, and a heartbeat.

    The owner calls `renew` every few seconds. If it dies without `release`, the lease is free LEASE_TIMEOUT
    seconds later. Who gets it is decided under a lock on a file beside it: otherwise another process could
    take an expired lease between our look at it and our removal of it. That lock is held for moments only,
    so a machine that fails does not keep it.
    """

    path: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # of this holder alone

    def acquire(self, owner: str) -> bool:
        """Whether this process has it now; False where another one has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as guard:
            if guard is None:
                return False
            os.utime(guard.fileno())  # now, by the clock of the file system, like all heartbeats in it
            found = self._read()
            if found is not None:
                if abs(os.fstat(guard.fileno()).st_mtime - found[2]) <= LEASE_TIMEOUT:
                    return False
                self.path.unlink()
            # nobody else creates one now; a file that exists all the same is an older version's
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{owner}\n{self.token}\n")
        return True

    def renew(self) -> bool:
        """A heartbeat; False where the lease is ours no more, since this process was stopped for too long."""
        found = self._read()
        if found is None or found[1] != self.token:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return True

    def release(self) -> None:
        """Frees it, if it is ours."""
        self._remove_if(lambda owner, token: token == self.token)

    def revoke(self, dead: str) -> None:
        """Frees it, if its owner is `dead`, of which the caller knows that it has ended."""
        self._remove_if(lambda owner, token: owner == dead)

    def owner(self) -> str | None:
        """Its owner; None where no process has it."""
        found = self._read()
        return found[0] if found is not None and abs(time.time() - found[2]) <= LEASE_TIMEOUT else None

    def _remove_if(self, condition: Callable[[str, str], bool]) -> None:
        with self._locked() as guard:
            found = self._read()
            if guard is not None and found is not None and condition(*found[:2]):
                self.path.unlink()

    def _read(self) -> tuple[str, str, float] | None:
        """Owner, token, and the time of the last heartbeat; None where there is no lease.

        By opening the file: NFS asks its server then, and otherwise answers with what it knew seconds ago.
        """
        try:
            with open(self.path, encoding="utf-8") as file:
                owner, token, *_ = [*file.read().split("\n"), "", ""]
                return owner, token, os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO | None]:
        """Holds the lock, whose file is never removed; None where it cannot be had."""
        if not self.path.parent.exists():
            yield None
            return
        guard = lock(self.path.with_name(f".{self.path.name}.guard"), LEASE_TIMEOUT)
        try:
            yield guard
        finally:
            if guard is not None:
                guard.close()
