"""What an audit tells: findings, and the sets they are about."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from asrlora.errors import UserError

EXAMPLES = 5  # utterances or lines that are named; the JSON of bad lines holds all


class Item(Protocol):
    """An utterance of a manifest or a sample of a shard."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def duration(self) -> float: ...  # seconds
    @property
    def speaker(self) -> str | None: ...


@dataclass(frozen=True)
class Finding:
    kind: str  # manifest, leakage, starvation, label style, tokens, detectable effect, ...
    stops: bool
    message: str  # with the mend
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What a later stage may know better: a finding about the same replaces this one."""
        return repr([self.kind, *(self.numbers.get(key) for key in ("what", "sets"))])


@dataclass(frozen=True)
class Audit:
    sets: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def stops(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.stops]

    def plus(self, findings: Iterable[Finding]) -> "Audit":
        """With further findings; of two about the same thing the later stays."""
        known = {finding.about: finding for finding in self.findings}
        return replace(self, findings=list({**known, **{f.about: f for f in findings}}.values()))

    def check(self) -> "Audit":
        """Raises UserError where a finding stops a run."""
        if self.stops:
            raise UserError("; ".join(finding.message for finding in self.stops))
        return self

    def as_json(self) -> dict[str, Any]:
        return {"sets": self.sets, "findings": [asdict(finding) for finding in self.findings]}


def spoken(name: str) -> str:
    return "the training set" if name == "train" else name
