"""Shards on S3 or HTTP: files fetched whole into a local cache, verified, and evicted when it is full.

The cache is shared by all processes of a machine. A file is fetched by one of them under a lock, to a
temporary name first; the others wait and find it. Tars that were not used for longest are evicted first.
"""

import contextlib
import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from asrlora.data.shards.folder import META
from asrlora.data.shards.index import FileFacts, open_plain
from asrlora.errors import UserError
from asrlora.storage import atomic_file

SCHEMES = ("http", "https", "s3", "gs", "file", "memory")
LIMIT = 100 * 10**9  # bytes of tars, over all remote folders; $ASRLORA_CACHE_BYTES
TIMEOUT = 60.0  # seconds without a byte


def cache_root() -> Path:
    """Where shards are kept on this machine: $ASRLORA_CACHE, else ~/.cache/asrlora."""
    return Path(os.environ.get("ASRLORA_CACHE") or Path.home() / ".cache" / "asrlora")


def mirror(url: str, root: Path) -> Path:
    """Fetches shards.json; returns the local folder, below `root`, of what it describes."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url:
        raise UserError(f"{url}: shards are read from {', '.join(SCHEMES)} addresses only")
    with _failures(url), _open(f"{url.rstrip('/')}/{META}") as file:
        data = file.read()
    folder = root / "remote" / hashlib.sha256(data).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / META) as file:
        file.write(data)
    return folder


def fetched(url: str, folder: Path, name: str, facts: FileFacts) -> BufferedReader:
    """The file, open for reading; fetched first where it is not in the cache.

    Raises UserError where it cannot be fetched, or is not what shards.json says.
    """
    path = folder / name
    while True:  # another process may evict it between the two
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # so that it is among the last to be evicted
            return open_plain(path)
        with _locked(folder / f".{name}.lock"):
            if not path.exists():
                _make_room(folder.parent, facts.bytes)
                _fetch(f"{url.rstrip('/')}/{name}", path, facts)


def _fetch(url: str, path: Path, facts: FileFacts) -> None:
    with _failures(url), atomic_file(path) as file, _open(url) as source:
        if _copy(source, file, facts.bytes + 1) != facts.sha256:
            raise UserError(f"{url} is damaged (its sha256 differs); upload it again")


def _copy(source: BinaryIO, to: BinaryIO, most: int) -> str:
    """Copies at most so many bytes; returns their sha256."""
    digest = hashlib.sha256()
    while data := source.read(min(2**20, most)):
        digest.update(data)
        to.write(data)
        most -= len(data)
    return digest.hexdigest()


def _make_room(root: Path, count: int) -> None:
    limit = int(os.environ.get("ASRLORA_CACHE_BYTES", LIMIT))
    with _locked(root / ".room.lock"):
        tars = [(path, path.stat()) for path in root.glob("*/*.tar")]
        held = sum(stat.st_size for _, stat in tars)
        for path, stat in sorted(tars, key=lambda item: item[1].st_mtime_ns):
            if held + count <= limit:
                return
            path.unlink(missing_ok=True)  # whoever has it open reads on
            held -= stat.st_size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds other threads and processes of this machine off; ends with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(url: str) -> BinaryIO:
    if url.startswith(("http://", "https://")):
        return cast(BinaryIO, urllib.request.urlopen(url, timeout=TIMEOUT))
    import fsspec  # s3:// needs s3fs as well, gs:// gcsfs

    return cast(BinaryIO, fsspec.open(url, "rb").open())


@contextlib.contextmanager
def _failures(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"{url}: {error}; install asrlora[remote]") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({error})") from None
