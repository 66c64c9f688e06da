"""Sets of utterances: sample, merge, split, filter, describe. Nothing is left out uncounted.

What is drawn depends on the seed and the ids alone, not on the order of the lines.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from asrlora.data.manifest import Utterance
from asrlora.errors import UserError
from asrlora.score import characters

BINS = 5  # of equal numbers of utterances, by duration, for stratified samples
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def sample(utterances: Sequence[Utterance], count: int, seed: int) -> list[Utterance]:
    """`count` utterances, or all where there are fewer, stratified by duration and speaker, shuffled.

    A stratum is a fifth of the durations, or one speaker within it: each is there with its share, to
    within one utterance. Shuffled, any prefix is a fair sample too and a running WER flattens.
    """
    strata = duration_bins(utterances)
    ordered = sorted(utterances, key=lambda u: (strata[u.id], u.speaker or "", _lot(seed, "draw", u.id)))
    count = min(count, len(ordered))
    # every (len / count)-th from a random start: a run of n neighbours gives n * count / len, up or down
    start = Random(seed).random()
    drawn = [ordered[math.floor((i + start) * len(ordered) / count)] for i in range(count)]
    return sorted(drawn, key=lambda u: _lot(seed, "order", u.id))


def duration_bins(utterances: Sequence[Utterance]) -> dict[str, int]:
    """id -> 0 (the shortest fifth) to 4 (the longest)."""
    ordered = sorted(utterances, key=lambda u: (u.duration, u.id))
    return {u.id: rank * BINS // len(ordered) for rank, u in enumerate(ordered)}


def _lot(seed: int, purpose: str, identity: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{identity}".encode()).digest()


def merge(manifests: Mapping[Path, Sequence[Utterance]]) -> list[Utterance]:
    """All utterances, in order. Raises UserError where two have one id."""
    merged: list[Utterance] = []
    manifest_of_id: dict[str, Path] = {}
    for path, utterances in manifests.items():
        for utterance in utterances:
            if utterance.id in manifest_of_id:
                raise UserError(
                    f"manifest {path}: the id {utterance.id!r} is taken by {manifest_of_id[utterance.id]};"
                    " ids must differ"
                )
            manifest_of_id[utterance.id] = path
            merged.append(utterance)
    return merged


def parse_parts(text: str) -> dict[str, float]:
    """ "train=0.9,domain=0.1" -> {"train": 0.9, "domain": 0.1}; names become file names. Raises UserError."""
    parts: dict[str, float] = {}
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\w[\w.-]*)=([0-9]*\.?[0-9]+)\s*", word)
        if not match or match[1] in parts:
            raise UserError(f"--parts {text}: {word!r} is not NAME=SHARE with a name of its own")
        parts[match[1]] = float(match[2])
    if min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-6:
        raise UserError(f"--parts {text}: the shares must be above 0 and sum to 1")
    return parts


def split(
    utterances: Sequence[Utterance], parts: Mapping[str, float], seed: int, by_speaker: bool = False
) -> dict[str, list[Utterance]]:
    """Every utterance in one part, in the order of the lines; by speaker, no speaker is in two parts.

    Raises UserError where a part would be empty, or where a speaker is wanted and not known.
    """
    part_of = _split_speakers(utterances, parts, seed) if by_speaker else _split_ids(utterances, parts, seed)
    divided: dict[str, list[Utterance]] = {name: [] for name in parts}
    for utterance in utterances:
        divided[part_of[(utterance.speaker or "") if by_speaker else utterance.id]].append(utterance)
    for name, members in divided.items():
        if not members:
            what = "speakers" if by_speaker else "utterances"
            raise UserError(f"the part {name} would be empty: too few {what} for its share")
    return divided


def _split_ids(utterances: Sequence[Utterance], parts: Mapping[str, float], seed: int) -> dict[str, str]:
    """id -> part; each part has its share of the utterances to within one."""
    ids = sorted((u.id for u in utterances), key=lambda identity: _lot(seed, "split", identity))
    part_of: dict[str, str] = {}
    passed = 0.0
    for name, share in parts.items():
        first, passed = round(passed * len(ids)), passed + share
        part_of.update(dict.fromkeys(ids[first : round(passed * len(ids))], name))
    return part_of


def _split_speakers(utterances: Sequence[Utterance], parts: Mapping[str, float], seed: int) -> dict[str, str]:
    """speaker -> part; each goes where most utterances are missing, and no part is left empty-handed."""
    counts: Counter[str] = Counter()
    for utterance in utterances:
        if not utterance.speaker:
            raise UserError(
                f"utterance {utterance.id!r} has no speaker, which --by-speaker needs; give it one"
            )
        counts[utterance.speaker] += 1
    missing = {name: share * len(utterances) for name, share in parts.items()}
    empty = set(parts)
    part_of: dict[str, str] = {}
    speakers = sorted(counts, key=lambda speaker: _lot(seed, "split", speaker))
    for position, speaker in enumerate(speakers):
        forced = len(speakers) - position <= len(empty)
        name = max((n for n in parts if n in empty or not forced), key=lambda n: missing[n])
        part_of[speaker] = name
        missing[name] -= counts[speaker]
        empty.discard(name)
    return part_of


@dataclass(frozen=True)
class Filter:
    """What an utterance must be to stay."""

    min_seconds: float = 0.0
    max_seconds: float = math.inf
    min_words: int = 0
    max_words: float = math.inf
    match: re.Pattern[str] | None = None  # found anywhere in the text
    speakers: Collection[str] | None = None

    def reason(self, utterance: Utterance) -> str | None:
        """Why it goes; the first of several reasons. None: it stays."""
        words = len(utterance.text.split())
        if utterance.duration < self.min_seconds:
            return f"shorter than {self.min_seconds:g} s"
        if utterance.duration > self.max_seconds:
            return f"longer than {self.max_seconds:g} s"
        if words < self.min_words:
            return f"with fewer than {self.min_words} words"
        if words > self.max_words:
            return f"with more than {self.max_words:g} words"
        if self.match and not self.match.search(utterance.text):
            return f"without a match of {self.match.pattern}"
        if self.speakers is not None and utterance.speaker not in self.speakers:
            return "of other speakers"
        return None


def apply_filter(utterances: Sequence[Utterance], wanted: Filter) -> tuple[list[Utterance], Counter[str]]:
    """len(kept) + left_out.total() == len(utterances)"""
    kept: list[Utterance] = []
    left_out: Counter[str] = Counter()
    for utterance in utterances:
        reason = wanted.reason(utterance)
        if reason is None:
            kept.append(utterance)
        else:
            left_out[reason] += 1
    return kept, left_out


def statistics(utterances: Sequence[Utterance]) -> dict[str, str]:
    """What `manifest stats` shows, as names and readable figures."""
    seconds = np.array([u.duration for u in utterances])
    words = np.array([len(u.text.split()) for u in utterances])
    speakers = Counter(utterance.speaker or "" for utterance in utterances)
    unknown = speakers.pop("", 0)
    written = sorted(set("".join(u.text for u in utterances)))
    unusual = set[str]().union(*(part for u in utterances for part in characters.replaced(u.text)))
    return {
        "utterances": f"{len(utterances):,}",
        "hours": f"{seconds.sum() / 3600:.3f}",
        f"seconds, {_percentile_names()}": _percentiles(seconds, ".2f"),
        "speakers": f"{len(speakers):,}" + (f" ({unknown:,} utterances name none)" if unknown else ""),
        "words": f"{words.sum():,}, {len({w for u in utterances for w in u.text.split()}):,} different",
        f"words per utterance, {_percentile_names()}": _percentiles(words, ".0f"),
        f"words per second, {_percentile_names()}": _percentiles(words / seconds, ".2f"),
        f"characters ({len(written)})": "".join(written).strip(),
        "of these unseen, or look-alikes": characters.names(sorted(unusual), len(unusual)) or "none",
    }


def _percentile_names() -> str:
    return "percentiles " + "/".join(map(str, PERCENTILES))


def _percentiles(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in np.percentile(values, PERCENTILES))
