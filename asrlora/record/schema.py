"""The files of a run and of a sweep as typed records. Needs no torch.

pydantic checks them, as it checks settings: msgspec would be faster, but the files are small, and it would be
one more dependency. Files of older versions are read too: what they lack has a default. Keys that are unknown
here are kept, and all keys keep their order, so a record that is read and written again is the same file.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import BeforeValidator, WithJsonSchema

from asrlora.errors import UserError
from asrlora.score.mapsswe import Mapsswe
from asrlora.score.metric import KEYS, Metric
from asrlora.score.verdict import Criteria, Judgement

# JSON has no number for what is not finite: a null in a file, NaN here
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"type": ["number", "null"]}),
]
Interval = tuple[Number, Number]  # 95 %, low and high


class Record(pydantic.BaseModel):
    """A JSON object of a file. It does not change: `changed` returns another one."""

    # built at the first use: a command needs a few of these
    model_config = pydantic.ConfigDict(extra="allow", frozen=True, defer_build=True)
    _keys: tuple[str, ...] = ()  # as they were given

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _remember_keys(cls, data: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        record = handler(data)
        if isinstance(data, Mapping):
            record._keys = tuple(data)
        return record

    @pydantic.model_serializer(mode="wrap")
    def _in_order(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {key: values[key] for key in self._keys}

    def as_json(self) -> dict[str, Any]:
        """The keys that were given, in their order; numbers that are not finite are written as null."""
        return self.model_dump()

    def changed(self, **changes: Any) -> Self:
        """The same record with other values, or with further keys at the end."""
        return self.model_validate({**self.as_json(), **changes})


R = TypeVar("R", bound=Record)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object as it stands in a file. Raises UserError where there is none that can be read."""
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is this a run directory?") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read(path: Path, kind: type[R]) -> R:
    """Reads a file as a record of this kind. Raises UserError that names the file and the key."""
    try:
        return kind.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}: {first['msg'].lower()}; was it written by asrlora?") from None


class Resampled(Record):
    """What was drawn again for the intervals."""

    by: str  # "utterance" or "speaker"
    units: int  # how many of these there are
    too_few: str = ""  # such as "9 speakers": what the set names where "auto" could not draw speakers


class SetVerdict(Record):
    """One set of verdict.json: the baseline against the best step. Rates and intervals are fractions.

    The keys of another metric stand beside those of words. The domain has a reduction (baseline minus best
    step), a guardrail has a regression (best step minus baseline).
    """

    baseline_wer: Number
    tuned_wer: Number
    words: int = 0
    baseline_cer: Number = math.nan
    tuned_cer: Number = math.nan
    characters: int = 0
    baseline_mer: Number = math.nan
    tuned_mer: Number = math.nan
    mixed_units: int = 0
    baseline_interval: Interval | None = None
    tuned_interval: Interval | None = None
    reduction: Number = math.nan
    regression: Number = math.nan
    interval: Interval  # of the reduction or the regression
    utterances: int = 0
    improvement_probability: float = math.nan
    resampled: Resampled | None = None
    mapsswe: Mapsswe | None = None

    def baseline(self, metric: Metric) -> float:
        """The baseline's rate, NaN where the references are empty."""
        return float(getattr(self, f"baseline_{metric}"))

    def tuned(self, metric: Metric) -> float:
        """The best step's rate."""
        return float(getattr(self, f"tuned_{metric}"))

    def length(self, metric: Metric) -> int:
        """Of the references, in the metric's units."""
        return int(getattr(self, KEYS[metric][1]))

    @property
    def has_reduction(self) -> bool:
        """Whether it is of the domain."""
        return "reduction" in self.model_fields_set

    @property
    def change(self) -> float:
        """Best step minus baseline: below 0 is better."""
        return -self.reduction if self.has_reduction else self.regression

    @property
    def change_interval(self) -> tuple[float, float]:
        """95 %, of the change."""
        low, high = self.interval
        return (-high, -low) if self.has_reduction else (low, high)


class Learned(Record):
    """The best step by domain of a run in which no step with a gain kept every guardrail."""

    step: int
    domain: SetVerdict
    heldout: SetVerdict | None
    guardrails: dict[str, SetVerdict] = {}
    missed: dict[str, Number]  # regression minus the limit, a fraction, by the set that is past it
    judgements: dict[str, Judgement] = {}

    def sets(self) -> dict[str, SetVerdict]:
        """Domain, heldout and the guardrails beside it."""
        return _sets(self)


class Rescued(Record):
    """That a run's best adapter is not that of a step as it was trained."""

    evaluation: str  # the folder below eval/ that the verdict is on
    step: int
    strength: float
    averaged: tuple[int, ...] = ()  # steps whose checkpoints were averaged
    choosing: dict[str, int]  # utterances that chose it, by set
    judging: dict[str, int]  # utterances that the verdict is on

    def describe(self) -> str:
        """What the adapter is, and on what it was chosen and judged."""
        what = f"step {self.step}"
        if self.averaged:
            what = f"the mean of steps {', '.join(map(str, self.averaged))}"
        chosen, judged = (
            ", ".join(f"{count:,} of {name}" for name, count in of.items())
            for of in (self.choosing, self.judging)
        )
        return f"{what} at strength {self.strength:g}, chosen on {chosen}, judged on other {judged}"


class Verdict(Record):
    """verdict.json."""

    verdict: Literal["accept", "reject", "inconclusive"]
    metric: Metric = "wer"  # of earlier versions too
    point: bool = False  # the plain rule on the point estimates
    reason: str = ""
    domain: SetVerdict
    heldout: SetVerdict | None
    guardrails: dict[str, SetVerdict] = {}  # beside heldout
    domain_chosen_on: SetVerdict | None = None  # the part of the domain that chose the step
    domain_report: SetVerdict | None = None  # the part that did not
    judgements: dict[str, Judgement] = {}
    criteria: Criteria
    best_step: int
    learned: Learned | None = None  # where best_step is 0 for a guardrail's sake
    rescue: Rescued | None = None
    fingerprint: dict[str, Any] = {}

    @property
    def accepted(self) -> bool:
        """Whether every criterion holds."""
        return self.verdict == "accept"

    @property
    def shown_step(self) -> int:
        """The step that readers are shown against the base; `learned or self` holds what came of it."""
        return self.learned.step if self.learned else self.best_step

    def sets(self) -> dict[str, SetVerdict]:
        """All that was judged: domain, heldout and the guardrails beside it."""
        return _sets(self)


def _sets(one: Learned | Verdict) -> dict[str, SetVerdict]:
    heldout = {"heldout": one.heldout} if one.heldout else {}
    return {"domain": one.domain, **heldout, **one.guardrails}


class DomainWords(Record):
    """How many of the domain's own words were written where they were said."""

    recall: float | None  # None where none was said
    hits: int
    occurrences: int
    words: int  # of the list


class SetScores(Record):
    """Error rates (fractions) of one set with their counts, and hypotheses that are no transcripts."""

    wer: Number
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0
    cer: Number = math.nan
    character_errors: int = 0
    characters: int = 0
    mer: Number = math.nan
    mixed_errors: int = 0
    mixed_units: int = 0
    utterances: int = 0
    empty: int = 0
    runaway: int = 0
    runaway_errors: int = 0  # in words
    runaway_example: str | None = None
    windowed: int = 0  # utterances that are longer than the model takes at once
    windows: int = 0
    cuts_in_speech: int = 0
    without_speech: int = 0
    domain_words: DomainWords | None = None
    interval: Interval | None = None  # of the run's metric
    change_interval: Interval | None = None  # since step 0

    def rate(self, metric: Metric) -> float:
        """NaN where the references are empty."""
        return float(getattr(self, metric))


class Scores(Record):
    """eval/step-NNNNNN/scores.json: some keys about the evaluation, and one for each set."""

    __pydantic_extra__: dict[str, SetScores]
    step: int = 0
    metric: Metric = "wer"
    fingerprint: dict[str, Any] = {}
    seconds: float = 0.0
    rtfx: float = 0.0  # seconds of audio in a second

    @property
    def sets(self) -> dict[str, SetScores]:
        """The sets by name."""
        return self.__pydantic_extra__


class GroupScores(Record):
    """The utterances of one speaker, or of one band of durations."""

    wer: Number = math.nan
    cer: Number = math.nan
    mer: Number = math.nan
    errors: int
    words: int = 0
    characters: int = 0
    mixed_units: int = 0
    utterances: int

    def rate(self, metric: Metric) -> float:
        """NaN where the references are empty."""
        return float(getattr(self, metric))

    def length(self, metric: Metric) -> int:
        """Of the references, in the metric's units."""
        return int(getattr(self, KEYS[metric][1]))


class EvalScores(SetScores):
    """scores.json of `asrlora eval`."""

    metric: Metric = "wer"
    key_terms: dict[str, Any] = {}  # as keyword_recall.summary_of_terms has it
    by_duration: dict[str, GroupScores] = {}
    by_speaker: dict[str, GroupScores] = {}
    fingerprint: dict[str, Any] = {}
    base_commit: str | None = None  # of a base from the hub
    hypothesis_field: str | None = None  # where the hypotheses came from a file
    left_out: dict[str, int] = {}  # utterances by reason
    audio_seconds: float = 0.0
    seconds: float = 0.0
    rtfx: float = 0.0  # seconds of audio in a second
    threads: dict[str, Any] = {}


class Settings(Record):
    """The configuration of a run: what readers use of it; all the others are kept as well."""

    max_steps: int
    learning_rate: float = 0.0
    manifest_path: str = ""
    use_dora: bool = False
    resample_by: str = "utterance"
    report_manifest: str | None = None  # "auto", "none" or a manifest
    min_domain_reduction: float = Criteria().min_domain_reduction
    max_heldout_regression: float = Criteria().max_heldout_regression

    @property
    def criteria(self) -> Criteria:
        """What the run is judged by."""
        return Criteria.of(self)


class TrainingSet(Record):
    """What a run trains on."""

    set: str  # how many utterances were kept and left out, in a sentence
    content: str  # sha256


class AuditedSet(Record):
    """What the audit counted of one set."""

    epochs: float | None = None  # over the training set, in max_steps


class AuditRecord(Record):
    """The audit's figures and findings."""

    sets: dict[str, AuditedSet] = {}
    findings: list[dict[str, Any]] = []


class Attempt(Record):
    """Processes that worked on a run, from when to when."""

    started: str
    from_step: int
    command: str = ""
    world_size: int = 1
    launch: str = ""  # "one process", "DDP" or "ZeRO-2"
    threads: dict[str, Any] = {}
    git_commit: str | None = None
    reason: str | None = None  # where it did not end by itself


class WandbPlace(Record):
    """Where the W&B run of a run directory is."""

    project: str
    entity: str | None
    folder: str  # of the run, when it was logged: a copy of it is another run


class Diagnosis(Record):
    """Why a run was not accepted."""

    kind: str
    told: str


class Archived(Record):
    """When and why a run was archived."""

    date: str
    reason: str


class RunRecord(Record):
    """run.json: what was run, and what became of it."""

    run_id: str
    state: Literal["running", "preempted", "failed", "complete"]
    reason: str | None = None  # of its state
    started: str
    ended: str | None = None
    command: str  # as typed
    config: Settings
    world_size: int = 1
    launch: str = ""
    threads: dict[str, Any] = {}
    best_step: int = 0
    metric: Metric = "wer"
    held_out: str = ""  # which utterances had no say in the choice of the step, in a sentence
    fingerprint: dict[str, Any] = {}
    base_commit: str | None = None  # of a base from the hub
    training: TrainingSet | None = None
    audit: AuditRecord = AuditRecord()
    git_commit: str | None = None
    versions: dict[str, str] = {}
    attempts: list[Attempt] = []
    wandb_id: str | None = None
    wandb: WandbPlace | None = None
    trained_parameters: int = 0
    stage_seconds: dict[str, float] = {}
    diagnosis: list[Diagnosis] = []
    wandb_unsent: bool = False
    archived: Archived | None = None
    rescue: Rescued | None = None

    @property
    def diagnoses(self) -> str:
        """All of them in one line."""
        return "; ".join(f"{one.kind}: {one.told}" for one in self.diagnosis)


class ProgressRecord(Record):
    """progress.json: how far a run has come."""

    stage: str = ""
    wers: dict[str, Number] = {}  # of the run's metric, by set, at the last evaluation
    baseline: dict[str, Number] = {}
    metric: Metric = "wer"
    max_heldout_regression: float = Criteria().max_heldout_regression
    step: int = 0
    max_steps: int = 0
    loss: Number = math.nan  # nats per token
    data_wait: float = 0.0  # share of a step's time
    step_seconds: float = 0.0
    rate: float | None = None  # seconds of audio in a second
    padded_rate: float | None = None  # the same with the padding that the model computes on
    seconds_left: float | None = None
    written: float | None = None  # seconds since 1970

    @property
    def trained(self) -> bool:
        """Whether there was a step."""
        return "loss" in self.model_fields_set
