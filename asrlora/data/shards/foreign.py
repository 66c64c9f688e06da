"""Shards that asrlora did not build, recognised before anything reads them as something else."""

import gzip
import re
from pathlib import Path

INDEX = "shards.json"  # what every folder of our own shards holds, with the next beside it
ROWS = "rows.bin"
TAR = re.compile(r"\.(tar|tgz|tar\.\w{2,4})$", re.IGNORECASE)
OWN = (
    "only shards built by asrlora are read. To build your own: unpack the tars (tar -xf X.tar -C FOLDER),"
    " then uv run asrlora manifest import FOLDER --output MANIFEST, uv run asrlora shards build MANIFEST OUT"
)


def foreign_shards(place: Path | str) -> str | None:
    """What `place` is and what to do, where it is, names or holds tars of somebody else's; else None."""
    name, path = str(place), Path(place)
    if name.startswith("pipe:"):
        what = "a command, as WebDataset takes it, and none is run"
    elif "{" in name and TAR.search(name):
        what = "a brace pattern of tars, as WebDataset takes it"
    elif "://" in name:
        what = "one tar and not a folder of shards" if TAR.search(name) else ""
    elif path.is_dir():
        ours = (path / INDEX).exists() or (path / ROWS).exists()
        tars = [] if ours else sorted(p.name for p in path.iterdir() if TAR.search(p.name))
        what = f"holds {len(tars)} tars such as {tars[0]}, but no index ({INDEX})" if tars else ""
    elif path.is_file() and (TAR.search(name) or _is_tar(path)):
        if (path.parent / INDEX).exists():
            return f"{name}: one tar of a folder of shards; give the folder, {path.parent}"
        what = "a tar, of a WebDataset perhaps, without an index"
    else:
        what = "" if path.exists() or not TAR.search(name) else "there is no such file"
    return f"{name}: {what}; {OWN}" if what else None


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
