"""What an audit reports: findings, and figures of the sets they are about."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from asrlora.data.manifest import Utterance
from asrlora.data.shards.index import Sample
from asrlora.errors import UserError

EXAMPLES = 5  # utterances or lines that are named; the JSON of bad lines holds all

Item = Utterance | Sample


@dataclass(frozen=True)
class Finding:
    """One fault, or one thing to know, of one or several sets."""

    kind: str  # manifest, leakage, starvation, label style, tokens, detectable effect, ...
    stops: bool
    message: str  # with the fix
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What a later stage may know better: a finding about the same replaces this one."""
        return repr([self.kind, *(self.numbers.get(key) for key in ("what", "sets"))])


@dataclass(frozen=True)
class Audit:
    """Figures of each set, by name, and all findings."""

    sets: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def stops(self) -> list[Finding]:
        """The findings that make a run worthless."""
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
        """As run.json and `manifest check --json` hold it."""
        return {"sets": self.sets, "findings": [asdict(finding) for finding in self.findings]}


def of_set(
    kind: str, name: str, what: str, message: str, numbers: Mapping[str, Any], stops: bool = False
) -> Finding:
    """A finding about one set, whose name begins the message."""
    return Finding(kind, stops, f"{label(name)}: {message}", {"what": what, "sets": [name], **numbers})


def label(name: str) -> str:
    """How messages call a set."""
    return "the training set" if name == "train" else name
