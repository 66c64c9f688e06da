"""Tars without an index, recognised before anything reads them as something else."""

import gzip
import re
from pathlib import Path

from asrlora.data.shards.folder import META
from asrlora.data.shards.index import ROWS

TAR = re.compile(r"\.(tar|tgz|tar\.\w{2,4})$", re.IGNORECASE)
COMPRESSED = re.compile(r"\.(tgz|tar\.\w{2,4})$", re.IGNORECASE)
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
ADVICE = (
    "tars are read where their folder has an index: put them, plain (gunzip *.tar.gz), in a folder, index it"
    " (uv run asrlora shards index FOLDER), and give the folder to --dataset-path. For a manifest of them,"
    " unpack them (tar -xf X.tar -C FOLDER), then uv run asrlora manifest import FOLDER --output MANIFEST"
)


def foreign_shards(place: Path | str) -> str | None:
    """What `place` is and what to do, where it is, names or holds tars without an index; else None."""
    name, path = str(place), Path(place)
    if name.startswith("pipe:"):
        what = "a command, as WebDataset takes it, and none is run"
    elif "{" in name and TAR.search(name):
        what = "a brace pattern of tars, as WebDataset takes it"
    elif "://" in name:
        what = "one tar and not a folder of shards" if TAR.search(name) else ""
    elif path.is_dir():
        ours = (path / META).exists() or (path / ROWS).exists()
        tars = [] if ours else sorted(p.name for p in path.iterdir() if TAR.search(p.name))
        what = f"holds {len(tars)} tars such as {tars[0]}, but no index ({META})" if tars else ""
    elif path.is_file() and (TAR.search(name) or _is_tar(path)):
        if (path.parent / META).exists():
            return f"{name}: one tar of a folder of shards; give the folder, {path.parent}"
        what = "a tar, of a WebDataset perhaps, without an index"
    else:
        what = "" if path.exists() or not TAR.search(name) else "there is no such file"
    return f"{name}: {what}; {ADVICE}" if what else None


def is_compressed(path: Path) -> bool:
    """Whether the file is compressed as a whole, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(6).startswith(PACKED)
    except OSError:
        return False


def _is_tar(path: Path) -> bool:
    """By its first block, compressed by gzip or not."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                head = packed.read(512)
    except (OSError, EOFError):
        return False
    return head[257:262] == b"ustar"
