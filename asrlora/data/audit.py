"""Compares train, domain and heldout before any step is run. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asrlora.data.manifest import Utterance, filter_for_training

FILTERS = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0)  # seconds; what each would keep is told


@dataclass(frozen=True)
class Finding:
    kind: str  # leakage, starvation, size
    stops: bool
    message: str


@dataclass(frozen=True)
class Audit:
    sets: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def stops(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.stops]

    def as_json(self) -> dict[str, Any]:
        return {"sets": self.sets, "findings": [asdict(finding) for finding in self.findings]}


def audit(
    train: Sequence[Utterance],
    evaluation: Mapping[str, Sequence[Utterance]],
    *,
    min_seconds: float = 0.1,
    max_seconds: float = 20.0,
    utterances_per_step: int = 1,
) -> Audit:
    """Looks for what would make a run worthless: leakage and starvation.

    `evaluation` maps names (domain, heldout) to their utterances.
    """
    findings: list[Finding] = []
    kept, _ = filter_for_training(train, min_seconds, max_seconds)
    if len(kept) < utterances_per_step:
        findings.append(
            Finding(
                "starvation", True,
                f"the filter {min_seconds:g} to {max_seconds:g} s keeps {len(kept)} of {len(train)}"
                f" training utterances, fewer than one step needs ({utterances_per_step}); raise"
                " --max-seconds or lower --batch-size or --gradient-accumulation-steps",
            )
        )  # fmt: skip
    for name, utterances in evaluation.items():
        findings += _leakage(train, name, utterances)
        if len(utterances) < 500:
            findings.append(
                Finding(
                    "size", False,
                    f"{name} holds {len(utterances)} utterances; below 500 an average can be luck",
                )
            )  # fmt: skip
    sets = {name: _describe(items) for name, items in {"train": train, **evaluation}.items()}
    return Audit(sets, findings)


def _leakage(train: Sequence[Utterance], name: str, evaluation: Sequence[Utterance]) -> list[Finding]:
    identity: dict[str, tuple[set[Any], list[Any]]] = {
        "id": ({u.id for u in train}, [u.id for u in evaluation]),
        "audio": ({_place(u) for u in train}, [_place(u) for u in evaluation]),
    }
    findings = []
    for what, (seen, candidates) in identity.items():
        shared = [c for c in candidates if c in seen]
        if shared:
            findings.append(
                Finding(
                    "leakage", True,
                    f"{len(shared)} utterances of {name} are in the training set too (same {what}, such"
                    f" as {shared[0]}); take them out of one of the two",
                )
            )  # fmt: skip
    sentences = {u.text.lower() for u in train}
    shared_sentences = sum(u.text.lower() in sentences for u in evaluation)
    if shared_sentences:
        share = shared_sentences / len(evaluation)
        findings.append(
            Finding("leakage", False, f"{share:.1%} of the sentences of {name} are in the training set")
        )
    return findings


def _place(utterance: Utterance) -> tuple[Path, float]:
    return utterance.audio.resolve(), utterance.offset


def _describe(utterances: Sequence[Utterance]) -> dict[str, Any]:
    seconds = [u.duration for u in utterances]
    return {
        "utterances": len(utterances),
        "hours": round(sum(seconds) / 3600, 4),
        "speakers": len({u.speaker for u in utterances if u.speaker}),
        "kept_by_max_seconds": {f"{f:g}": sum(s <= f for s in seconds) for f in FILTERS},
    }
