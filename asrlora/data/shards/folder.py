"""shards.json, which makes a folder one of shards: fingerprint, counts, and the sha256 of every other
file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from asrlora.data.shards.index import FILES, FileFacts, Sample, is_shard_name, open_plain
from asrlora.errors import UserError, first_line
from asrlora.storage import atomic_file

META = "shards.json"


class FolderRecord(pydantic.BaseModel, extra="forbid", strict=True):
    """shards.json: nothing but this is accepted."""

    fingerprint: dict[str, Any]
    utterances: int
    seconds: float
    rejected: dict[str, int]  # reason -> utterances that are not here
    files: dict[str, FileFacts]
    tars: list[str] | None = None  # by shard number, of others' tars; None: asrlora built them
    sha256: str

    @property
    def content(self) -> str:
        """sha256 over the facts of all files, and so over every text and every byte of audio."""
        facts = {name: file.model_dump() for name, file in self.files.items()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_record(
    folder: Path,
    fingerprint: Mapping[str, Any],
    samples: Sequence[Sample],
    rejected: Mapping[str, int],
    files: Mapping[str, FileFacts],
    tars: Sequence[str] | None = None,
) -> None:
    """Writes shards.json, which makes a folder one of shards: the last file to be written."""
    record: dict[str, Any] = {
        "fingerprint": fingerprint,
        "utterances": len(samples),
        "seconds": round(sum(sample.duration for sample in samples), 3),
        "rejected": dict(sorted(rejected.items())),
        "files": {name: file.model_dump() for name, file in files.items()},
    }
    if tars is not None:
        record["tars"] = list(tars)
    with atomic_file(folder / META) as file:
        file.write(json.dumps({**record, "sha256": digest(record)}, indent=1).encode())


def read_record(folder: Path) -> FolderRecord:
    """Raises UserError where shards.json is missing, damaged or names files that are no shards."""
    try:
        with open_plain(folder / META) as file:
            read = json.load(file)
        record = FolderRecord.model_validate(read)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} is not a whole folder of shards, as asrlora builds it ({first_line(error)}); build it"
            f" again: uv run asrlora shards build MANIFEST {folder}"
        ) from None
    if read.pop("sha256") != digest(read):
        raise UserError(f"{folder / META} is damaged (its sha256 differs); build the shards again")
    for name in record.files:
        ours = is_shard_name(name) if record.tars is None else name in record.tars and is_tar_name(name)
        if name not in FILES and not ours:
            raise UserError(f"{folder / META} lists {name!r}, which is no file of shards; build them again")
    if not record.files.keys() >= set(FILES):
        raise UserError(f"{folder / META} lists no index; build the shards again")
    if not record.files.keys() >= set(record.tars or ()):
        raise UserError(f"{folder / META} lists tars without their sha256; index them again")
    return record


def digest(record: dict[str, Any]) -> str:
    """What protects shards.json itself: sha256 of all else in it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def is_tar_name(name: str) -> bool:
    """Whether others' tar may be called so: a plain name, which leads to no other folder."""
    return name.endswith(".tar") and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}
