"""The same utterance, audio or sentence in two sets, or twice in one. Needs no torch."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asrlora.data.audit.findings import EXAMPLES, Finding, Item, label
from asrlora.data.manifest import Utterance
from asrlora.score.characters import for_scoring

OVERLAP = 0.5  # seconds two segments of one file may share; segmenters pad their cuts
_BETWEEN_WORDS = re.compile(r"[^\w\s]|_")


def shared(sets: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Ids, sentences and speakers that two sets share."""
    said = {name: [(words(item.text), item.speaker) for item in items] for name, items in sets.items()}
    for a, b in itertools.combinations(sets, 2):
        count = len(sets[b])
        ids = {item.id for item in sets[a]} & {item.id for item in sets[b]}
        yield from leak("id", a, b, ids, count)
        both = {key for key in said[a] if all(key)}
        ids = {item.id for item, key in zip(sets[b], said[b], strict=True) if key in both}
        yield from leak("sentence by the same speaker", a, b, ids, count)
        for what, part in (("sentences", 0), ("speakers", 1)):
            yield from _share(what, a, b, {key[part] for key in said[a]}, [key[part] for key in said[b]])


def leak(what: str, a: str, b: str, ids: set[str], count: int) -> Iterator[Finding]:
    """`ids` of the `count` utterances of set b are in set a too, which stops a run."""
    if ids:
        shown = sorted(ids)[:EXAMPLES]
        message = (
            f"{len(ids):,} utterances of {label(b)} are in {label(a)} too (same {what}, such as"
            f" {shown[0]!r}); take them out of one of the two"
        )
        numbers = {"what": what, "sets": [a, b], "utterances": len(ids), "share": len(ids) / count}
        yield Finding("leakage", True, message, {**numbers, "examples": shown})


def _share(what: str, a: str, b: str, seen: set[Any], candidates: Sequence[Any]) -> Iterator[Finding]:
    """Does not stop: a command set wants shared sentences, an adapter to one's own voice a shared speaker."""
    shared = sum(bool(candidate) and candidate in seen for candidate in candidates)
    if shared:
        share = shared / len(candidates)
        message = f"{share:.1%} of {label(b)} has {what} of {label(a)}; if that is not meant, split by them"
        numbers = {"what": what, "sets": [a, b], "utterances": shared, "share": share}
        yield Finding("leakage", False, message, numbers)


def repeated(name: str, ids: set[str], contradicting: int) -> Iterator[Finding]:
    """Does not stop: repeating is how small sets are weighted up, and it biases what is measured."""
    if ids:
        effect = "training uses them more often" if name == "train" else "the WER counts them twice"
        other = f", {contradicting:,} of them with another text" if contradicting else ""
        message = (
            f"{len(ids):,} utterances of {label(name)} repeat audio of others in it (such as"
            f" {min(ids)!r}{other}): {effect}; take them out unless that is meant"
        )
        numbers = {"what": "audio", "sets": [name], "utterances": len(ids), "contradicting": contradicting}
        yield Finding("leakage", False, message, {**numbers, "examples": sorted(ids)[:EXAMPLES]})


@dataclass(frozen=True)
class _Place:
    """Where an utterance lies in its file, in seconds."""

    start: float
    end: float
    order: int  # of the set
    set: str
    item: Utterance

    def overlaps(self, other: "_Place") -> bool:
        shared = min(self.end, other.end) - max(self.start, other.start)
        shorter = min(self.end - self.start, other.end - other.start)
        return shared > min(OVERLAP, shorter / 2)


def same_place(sets: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """The same stretch of the same file; a copy of the file is found by `deep`."""
    files: dict[tuple[int, int], list[_Place]] = defaultdict(list)
    for order, (name, items) in enumerate(sets.items()):
        for item in items:
            if isinstance(item, Utterance):
                stat = os.stat(item.audio)  # device and inode: the same through links, and faster than paths
                place = _Place(item.offset, item.offset + item.duration, order, name, item)
                files[stat.st_dev, stat.st_ino].append(place)
    across: dict[tuple[str, str], set[str]] = defaultdict(set)
    within: dict[str, set[str]] = defaultdict(set)
    contradicting: dict[str, set[str]] = defaultdict(set)
    for places in files.values():
        for one, other in _overlapping(places):
            first, second = sorted((one, other), key=lambda place: (place.order, place.item.id))
            if first.set != second.set:
                across[first.set, second.set].add(second.item.id)
            else:
                within[first.set].add(second.item.id)
                if words(first.item.text) != words(second.item.text):
                    contradicting[first.set].add(second.item.id)
    for (a, b), ids in across.items():
        yield from leak("audio", a, b, ids, len(sets[b]))
    for name, ids in within.items():
        yield from repeated(name, ids, len(contradicting[name]))


def _overlapping(places: list[_Place]) -> Iterator[tuple[_Place, _Place]]:
    """All pairs of one file that overlap, by one sweep from its start to its end."""
    active: list[_Place] = []
    for place in sorted(places, key=lambda place: place.start):
        active = [other for other in active if other.end > place.start]
        yield from ((other, place) for other in active if place.overlaps(other))
        active.append(place)


def words(text: str) -> str:
    """What makes two sentences the same: letters and digits, whatever their style."""
    return " ".join(_BETWEEN_WORDS.sub("", for_scoring(text).casefold()).split())
