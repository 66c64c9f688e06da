"""The state of a sweep's trials, which is best and why: read from their files alone, at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.schema import Record, RunRecord, Scores, Verdict, read
from asrlora.score import bootstrap, verdict
from asrlora.score.metric import Metric
from asrlora.storage import Lease
from asrlora.sweep.pruning import PRUNED
from asrlora.sweep.sweep_file import Criteria, Trial

ATTEMPTS, LOG, LEASE = "trial.json", "log.txt", "running.lock"  # in the run directory
DONE = ("complete", "pruned")
DORA_COST = 1.45  # times a LoRA step, measured (docs/guide/sweeps.md)


class TrialAttempt(Record):
    """One process that ran a trial of a sweep, and how it ended."""

    owner: str
    started: str = ""
    ended: str | None = None
    restart: int = 0  # by Slurm, counted from 0
    cause: str | None = None  # complete, preempted, failed, …: see sweep/trials.py
    told: str = ""  # its last error
    code: int | None = None  # exit code


class TrialRecord(Record):
    """trial.json, in the run directory of a trial: who has run it."""

    id: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)  # what sets it apart within its phase
    attempts: list[TrialAttempt] = Field(default_factory=list)


@dataclass(frozen=True)
class TrialStatus:
    """A trial as its files say. Rates are fractions of `metric`; `tuned` is of the best step so far."""

    trial: Trial
    # waiting, running, complete, pruned; or how the last attempt ended: preempted, given up, timed out,
    # cancelled, stopped, lost (node failure or SIGKILL), refused, failed
    state: str
    step: int = 0
    max_steps: int = 0
    baseline: dict[str, float] | None = None
    tuned: dict[str, float] | None = None
    judged: Verdict | None = None
    why: str = ""
    metric: Metric = "wer"

    @property
    def domain(self) -> float:
        """The domain's rate of the best step. Only of a trial that was evaluated."""
        assert self.tuned is not None
        return self.tuned["domain"]

    @property
    def accepted(self) -> bool:
        """Whether its verdict is accept, by the sweep's criteria."""
        return self.judged is not None and self.judged.accepted


def read_attempts(trial: Trial) -> list[TrialAttempt]:
    """What trial.json says of the processes that ran it."""
    path = trial.folder / ATTEMPTS
    return list(read(path, TrialRecord).attempts) if path.exists() else []


def read_status(trial: Trial, criteria: Criteria) -> TrialStatus:
    """How far a trial has come; its verdict is by the sweep's criteria."""
    path = trial.folder / "run.json"
    identity = read(path, RunRecord) if path.exists() else None
    if identity is not None and identity.state == "complete":
        return _completed(trial, identity, criteria)
    state, why = _state(trial, identity)
    if identity is None:
        return TrialStatus(trial, state, why=why)
    if state in ("failed", "given up"):
        why = identity.reason or why
        if identity.diagnosis:
            why += f" ({identity.diagnoses})"
    metrics = run_dir.read_log(trial.folder / "metrics.jsonl")
    rates = run_dir.read_rates(trial.folder, identity.metric)
    return TrialStatus(
        trial=trial,
        state=state,
        step=metrics[-1]["step"] if metrics else 0,
        max_steps=identity.config.max_steps,
        baseline=rates.get(0),
        tuned=rates.get(max(rates, default=0)),
        why=why,
        metric=identity.metric,
    )


def _state(trial: Trial, identity: RunRecord | None) -> tuple[str, str]:
    """The state of a trial that is not complete, and what is known of the cause."""
    attempts, owner = read_attempts(trial), Lease(trial.folder / LEASE).owner()
    last = attempts[-1] if attempts else None
    if last is not None and last.cause and last.ended is None:
        return last.cause, last.told  # it was told to end, and may be killed before it has
    if owner is not None:
        return "running", owner
    if last is None:
        return identity.state if identity else "waiting", ""
    if last.ended is None:
        return "lost", f"no heartbeat from {last.owner}: its node failed, or it was killed"
    assert last.cause is not None
    return last.cause, last.told


def _completed(trial: Trial, identity: RunRecord, criteria: Criteria) -> TrialStatus:
    judged = restate(read(trial.folder / "verdict.json", Verdict), criteria)
    reason, metric = identity.reason or "", judged.metric
    sets = {name: one for name, one in judged.sets().items() if name in ("domain", "heldout")}
    baseline = {name: one.baseline(metric) for name, one in sets.items()}
    tuned = {name: one.tuned(metric) for name, one in sets.items()}
    if judged.rescue:  # judged on halves, and compared with other trials on all of the sets
        before, after = (
            read(folder / "scores.json", Scores).sets
            for folder in (
                run_dir.step_folder(trial.folder, 0),
                run_dir.best_evaluation(trial.folder, judged),
            )
        )
        baseline, tuned = ({name: of[name].rate(metric) for name in sets} for of in (before, after))
    return TrialStatus(
        trial=trial,
        state="pruned" if reason.startswith(PRUNED) else "complete",
        step=judged.best_step,
        max_steps=identity.config.max_steps,
        baseline=baseline,
        tuned=tuned,
        judged=judged,
        why="; ".join(filter(None, (reason, identity.diagnoses))),
        metric=metric,
    )


def restate(judged: Verdict, criteria: Criteria) -> Verdict:
    """A verdict under the criteria of a sweep, by the rule of score/verdict.py."""
    need, limit = criteria.min_domain_reduction, criteria.max_heldout_regression
    own = verdict.Criteria(need, limit)
    if judged.criteria == own:
        return judged
    intervals = {name: section.interval for name, section in judged.sets().items()}
    domain = intervals.pop("domain")
    named = verdict.by_intervals(domain, list(intervals.values()), own)
    reason = f"{judged.reason}; under the sweep's criteria ({need:.2%}, {limit:.2%}): {named}"
    return judged.changed(verdict=named, criteria=own, reason=reason)


def within_guardrail(one: TrialStatus, criteria: Criteria) -> bool:
    """Whether the heldout rate of a trial's best step is within the sweep's limit."""
    assert one.tuned is not None
    assert one.baseline is not None
    limits = verdict.Criteria(**criteria.model_dump())
    return verdict.within_guardrail(one.tuned.get("heldout"), one.baseline.get("heldout"), limits)


@dataclass(frozen=True)
class Selection:
    """The best of some trials, and by which rule it was chosen."""

    best: TrialStatus
    why: str


def select(trials: Sequence[TrialStatus], criteria: Criteria) -> Selection | None:
    """Guardrail first, then the domain WER; ties within the interval go to the cheaper.

    None where no trial has a verdict. A tie: the 95 % interval of the paired difference to the lowest
    domain WER holds 0. WER stands for the trials' metric; raises UserError where they have several.
    """
    judged = [one for one in trials if one.judged is not None]
    metrics = {one.metric: one.trial.id for one in judged}
    if len(metrics) > 1:
        named = " and ".join(f"{trial} by {metric}" for metric, trial in sorted(metrics.items()))
        raise UserError(f"trials were scored by several metrics ({named}) and cannot be ranked; fix --metric")
    within = [one for one in judged if within_guardrail(one, criteria)]
    pool = within or judged
    if not pool:
        return None
    lowest = min(pool, key=lambda one: (one.domain, one.trial.id))
    near = [one for one in pool if one is not lowest and _overlap(lowest, one)]
    cheap = sorted([lowest, *near], key=lambda one: (cost(one.trial.folder), one.domain, one.trial.id))
    best = next(one for one in cheap if one is lowest or _ties(lowest, one))
    rule = f"{len(within)} of {len(judged)} hold the guardrail" if within else "none holds the guardrail"
    why = f"{rule}; domain {best.metric.upper()} {best.domain:.2%}"
    if best.step == 0:
        why += ", the base's own,"
    if best is lowest:
        return Selection(best, f"{why} is the lowest")
    tie = f"ties with the lowest, {lowest.domain:.2%} ({lowest.trial.label}), and is the cheapest so"
    return Selection(best, f"{why} {tie}")


def select_accepted(trials: Sequence[TrialStatus], criteria: Criteria) -> Selection | None:
    """The best of the accepted ones; of all, where none is accepted."""
    return select([one for one in trials if one.accepted] or trials, criteria)


def _overlap(one: TrialStatus, other: TrialStatus) -> bool:
    """Whether the intervals of both rates meet: where they do not, nobody need ask whether they tie."""
    ends = [x.judged.domain.tuned_interval for x in (one, other) if x.judged]
    if ends[0] is None or ends[1] is None:  # of an older version
        return True
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]


def _ties(best: TrialStatus, other: TrialStatus) -> bool:
    if best.domain == other.domain:
        return True
    lines = [_domain_lines(one) for one in (best, other)]
    # as both verdicts drew: those of earlier versions drew utterances
    drawn = [one.judged.domain.resampled for one in (best, other) if one.judged]
    by = "auto" if all(one and one.by == "speaker" for one in drawn) else "utterance"
    speakers, _ = bootstrap.choose_speakers("domain", {i: h.get("speaker") for i, h in lines[0].items()}, by)
    counts = [run_dir.tallies(of, best.metric) for of in lines]
    low, high = bootstrap.compare(counts[0], counts[1], speakers).change_interval
    return low <= 0 <= high


def _domain_lines(one: TrialStatus) -> dict[str, dict[str, Any]]:
    assert one.judged is not None
    folder = run_dir.best_evaluation(one.trial.folder, one.judged)
    return run_dir.read_hypotheses(folder / "domain.jsonl")


def cost(run: Path) -> tuple[float, int]:
    """What a run took: audio-seconds trained on, weighted by the adapter's kind; then its parameters."""
    identity = run_dir.read_run(run)
    seconds = sum(line["audio_seconds"] for line in run_dir.read_log(run / "metrics.jsonl"))
    weight = DORA_COST if identity.config.use_dora else 1.0
    return round(seconds * weight, 1), identity.trained_parameters
