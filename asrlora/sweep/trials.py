"""How the trials of a sweep stand, which is best and why: read from their files alone, at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.schema import RunRecord, Verdict, read
from asrlora.score import verdict
from asrlora.score.metric import Metric
from asrlora.score.wer import Tally
from asrlora.storage import Lease
from asrlora.sweep.pruning import PRUNED
from asrlora.sweep.sweep_file import Criteria, Trial

ATTEMPTS, LOG, CLAIM = "trial.json", "log.txt", "running.lock"  # in the run directory
DONE = ("complete", "pruned")
DORA_COST = 1.45  # times a LoRA step, measured (docs/guide/sweeps.md)


@dataclass(frozen=True)
class Standing:
    """A trial as its files tell it. Rates are fractions of `metric`; `tuned` is of the best step so far."""

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


def standing(trial: Trial, criteria: Criteria) -> Standing:
    path = trial.folder / "run.json"
    identity = read(path, RunRecord) if path.exists() else None
    attempts = (_json(trial.folder / ATTEMPTS) or {}).get("attempts", [])
    owner = Lease(trial.folder / CLAIM).owner()
    last = attempts[-1] if attempts else None
    why = (last or {}).get("told", "")
    if identity is not None and identity.state == "complete":
        return _finished(trial, identity, criteria)
    if (
        last is not None and last["ended"] is None and last["cause"]
    ):  # told to end; it may be killed meanwhile
        state = last["cause"]
    elif owner is not None:
        state, why = "running", owner
    elif last is not None and last["ended"] is None:
        state = "lost"
        why = f"no heartbeat from {last['owner']}: its node failed, or it was killed"
    elif last is not None:
        state = last["cause"]
    else:
        state = "waiting" if identity is None else identity.state
    if identity is None:
        return Standing(trial, state, why=why)
    if state in ("failed", "given up"):
        why = identity.reason or why
        if identity.diagnosis:
            why += f" ({identity.diagnoses})"
    metrics, metric = run_dir.read_log(trial.folder / "metrics.jsonl"), identity.metric
    rates = run_dir.read_rates(trial.folder, metric)
    return Standing(
        trial, state, metrics[-1]["step"] if metrics else 0, identity.config.max_steps,
        rates.get(0), rates.get(max(rates, default=0)), why=why, metric=metric,
    )  # fmt: skip


def _finished(trial: Trial, identity: RunRecord, criteria: Criteria) -> Standing:
    judged = restate(read(trial.folder / "verdict.json", Verdict), criteria)
    reason = identity.reason or ""
    sets = {name: one for name, one in judged.sets().items() if name in ("domain", "heldout")}
    metric = judged.metric
    return Standing(
        trial, "pruned" if reason.startswith(PRUNED) else "complete", judged.best_step,
        identity.config.max_steps,
        {name: one.baseline(metric) for name, one in sets.items()},
        {name: one.tuned(metric) for name, one in sets.items()},
        judged, "; ".join(part for part in (reason, identity.diagnoses) if part), metric,
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any] | None:
    return run_dir.read_json(path) if path.exists() else None


def restate(judged: Verdict, criteria: Criteria) -> Verdict:
    """verdict.json under the criteria of a sweep, by the rule of score/verdict.py."""
    need, limit = criteria.min_domain_reduction, criteria.max_heldout_regression
    own = verdict.Criteria(need, limit)
    if judged.criteria == own:
        return judged
    intervals = {name: section.interval for name, section in judged.sets().items()}
    domain = intervals.pop("domain")
    losses = list(intervals.values())
    passed = domain[0] >= need and bool(losses) and all(high <= limit for _, high in losses)
    failed = domain[1] < need or any(low > limit for low, _ in losses)
    named = "accept" if passed else "reject" if failed else "inconclusive"
    reason = f"{judged.reason}; under the sweep's criteria ({need:.2%}, {limit:.2%}): {named}"
    return judged.changed(verdict=named, criteria=own, reason=reason)


def within_guardrail(one: Standing, criteria: Criteria) -> bool:
    assert one.tuned is not None
    assert one.baseline is not None
    return verdict.within_guardrail(
        one.tuned.get("heldout"), one.baseline.get("heldout"),
        verdict.Criteria(criteria.min_domain_reduction, criteria.max_heldout_regression),
    )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The best of some trials, and by which rule it was chosen."""

    best: Standing
    why: str


def choose(standings: Sequence[Standing], criteria: Criteria) -> Choice | None:
    """Guardrail first, then the domain WER; ties within the interval go to the cheaper.

    None where no trial has a verdict. A tie: the 95 % interval of the paired difference to the lowest
    domain WER holds 0. WER stands for the trials' metric; raises UserError where they have several.
    """
    judged = [one for one in standings if one.judged is not None]
    metrics = {one.metric: one.trial.id for one in judged}
    if len(metrics) > 1:
        told = " and ".join(f"{trial} by {metric}" for metric, trial in sorted(metrics.items()))
        raise UserError(f"trials were scored by several metrics ({told}) and cannot be ranked; fix --metric")
    within = [one for one in judged if within_guardrail(one, criteria)]
    pool = within or judged
    if not pool:
        return None
    lowest = min(pool, key=lambda one: (_rate(one), one.trial.id))
    near = [one for one in pool if one is not lowest and _overlap(lowest, one)]
    cheap = sorted([lowest, *near], key=lambda one: (cost(one.trial.folder), _rate(one), one.trial.id))
    best = next(one for one in cheap if one is lowest or _ties(lowest, one))
    rule = f"{len(within)} of {len(judged)} hold the guardrail" if within else "none holds the guardrail"
    why = f"{rule}; domain {best.metric.upper()} {_rate(best):.2%}"
    if best.step == 0:
        why += ", the base's own,"
    if best is lowest:
        return Choice(best, f"{why} is the lowest")
    return Choice(
        best,
        f"{why} ties with the lowest, {_rate(lowest):.2%} ({lowest.trial.label}), and is the cheapest so",
    )


def _overlap(one: Standing, other: Standing) -> bool:
    """Whether the intervals of both rates meet: where they do not, nobody need ask whether they tie."""
    ends = [x.judged.domain.tuned_interval for x in (one, other) if x.judged]
    if ends[0] is None or ends[1] is None:  # of an older version
        return True
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]


def _rate(one: Standing) -> float:
    assert one.tuned is not None
    return one.tuned["domain"]


def _ties(best: Standing, other: Standing) -> bool:
    if _rate(best) == _rate(other):
        return True
    low, high = verdict.compare(_counts(best), _counts(other)).change_interval
    return low <= 0 <= high


def _counts(one: Standing) -> dict[str, Tally]:
    assert one.judged is not None
    folder = run_dir.step_folder(one.trial.folder, one.judged.best_step)
    return run_dir.read_counts(folder / "domain.jsonl", one.metric)


def cost(run: Path) -> tuple[float, int]:
    """What a run took: audio-seconds trained on, weighted by the adapter's kind; then its parameters."""
    identity = run_dir.read_run(run)
    seconds = sum(line["audio_seconds"] for line in run_dir.read_log(run / "metrics.jsonl"))
    weight = DORA_COST if identity.config.use_dora else 1.0
    return round(seconds * weight, 1), identity.trained_parameters
