"""`asrlora manifest check`: the audit of whole manifests, which ends at no bad line but collects them.

Needs no torch until audio is decoded.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asrlora.config import RunConfig
from asrlora.console import progress
from asrlora.data import audio, plan
from asrlora.data.audit import checks
from asrlora.data.audit.findings import Audit, Item
from asrlora.data.manifest import BadLine, Utterance, read_lines
from asrlora.data.shards import cache, reader, writer
from asrlora.errors import UserError


@dataclass(frozen=True)
class Set:
    """A manifest as far as it can be used."""

    utterances: list[Utterance]
    bad: dict[int, BadLine]  # by line number
    line_of_id: dict[str, int]

    def without(self, undecodable: Mapping[str, BadLine]) -> "Set":
        """The utterances whose audio decodes; `undecodable` are the others, by id."""
        kept = [utterance for utterance in self.utterances if utterance.id not in undecodable]
        bad = {self.line_of_id[identity]: why for identity, why in undecodable.items()}
        return Set(kept, {**self.bad, **bad}, self.line_of_id)


def check(
    paths: Mapping[str, Path],
    config: RunConfig,
    allow_outside: bool = False,
    *,
    decode: bool = True,
    cost: plan.Cost = plan.by_length,
) -> tuple[Audit, dict[str, reader.Shards]]:
    """Audits train, domain and heldout; returns their shards too, none where nothing was decoded.

    Raises UserError where a file as a whole is no manifest.
    """
    sets = {name: read_set(path, allow_outside) for name, path in paths.items()}
    opened: dict[str, reader.Shards] = {}
    if decode and all(read.utterances for read in sets.values()):
        for name, read in sets.items():
            sets[name], opened[name] = _open(name, read)
    whole = {name: read.utterances for name, read in sets.items()}
    found = checks.quick(whole.pop("train"), whole, config, cost)
    found = found.plus(finding for name, read in sets.items() for finding in checks.bad_lines(name, read.bad))
    if opened:
        found = checks.deep(found, opened)
    described = {
        name: found.sets[name] | _account(name, read, opened.get(name), config) for name, read in sets.items()
    }
    return replace(found, sets=described), opened


def read_set(path: Path, allow_outside: bool = False) -> Set:
    """Reads every line. Raises UserError where the file as a whole is no manifest."""
    lines = list(read_lines(path, allow_outside))
    good = {number: read for number, read in lines if isinstance(read, Utterance)}
    bad = {number: read for number, read in lines if isinstance(read, BadLine)}
    return Set(list(good.values()), bad, {utterance.id: number for number, utterance in good.items()})


def _open(name: str, read: Set) -> tuple[Set, reader.Shards]:
    """Shards of what can be decoded. Sound sets are decoded once; others twice, to find all faults."""
    try:
        return read, cache.cached(read.utterances, f"shards of {name}")
    except UserError:
        undecodable = find_undecodable(read.utterances)
        if not undecodable:
            raise
        read = read.without(undecodable)
        return read, cache.cached(read.utterances, f"shards of {name}")


def find_undecodable(utterances: Sequence[Utterance]) -> dict[str, BadLine]:
    """Decodes everything; returns what is wrong, by utterance id."""
    wrong = {}
    with progress("looking for all faults", sum(utterance.duration for utterance in utterances)) as advance:
        for utterance in utterances:
            try:
                writer.read_utterance(utterance)
            except audio.AudioError as error:
                reason = f"audio {re.split('[(:;]', str(error))[0].strip()}"
                wrong[utterance.id] = BadLine(reason, f"the audio file {utterance.audio} {error}")
            advance(utterance.duration)
    return wrong


def _account(name: str, read: Set, opened: reader.Shards | None, config: RunConfig) -> dict[str, object]:
    """Every line of the manifest: lines = kept + rejected by reason."""
    items: Sequence[Item] = read.utterances if opened is None else opened.samples
    rejected = Counter(line.reason for line in read.bad.values())
    rejected.update(opened.rejected if opened else {})
    kept = len(items)
    if name == "train":
        usable, left_out = checks.usable(items, config)
        kept = len(usable)
        rejected.update(left_out)
    return {"lines": kept + rejected.total(), "kept": kept, "rejected": dict(rejected)}
