"""rescue.json, of a run that `--rescue auto` or `asrlora strength` worked on."""

from asrlora.record.schema import Record, SetVerdict


class Tried(Record):
    """One candidate of a rescue against the base, on the half of each set that chooses."""

    evaluation: str  # its folder below eval/
    step: int
    strength: float
    averaged: tuple[int, ...] = ()  # steps whose checkpoints were averaged
    margin: float | None  # standard errors by which it meets all criteria; None: it does not
    domain: SetVerdict | None  # None: ruled out before the domain was evaluated
    guardrails: dict[str, SetVerdict]  # heldout and those beside it


class RescueRecord(Record):
    """rescue.json: what was tried to make a run that had forgotten an accepted one."""

    outcome: str  # a sentence
    installed: str | None = None  # the evaluation of the adapter that is now adapter_best/
    evaluations: int = 0
    seconds: float = 0.0
    tried: tuple[Tried, ...] = ()  # the adapter at full strength first
