"""Whether a trial of a sweep should end early. The run asks after each evaluation; only files are read."""

import math
from pathlib import Path

from asrlora.record import run_dir
from asrlora.record.diagnosis import loss_rose
from asrlora.record.schema import Record, Scores, read
from asrlora.score.metric import Metric
from asrlora.storage import write_json
from asrlora.sweep.sweep_file import Criteria, Pruning, Trial

RULES = "prune.json"  # in the run directory; a run without it is never ended early
PRUNED = "pruned at step"  # how the reason in run.json begins


class PruningRules(Record):
    """prune.json: when a trial ends early."""

    rules: Pruning
    guardrail: float  # heldout regression that is allowed, a fraction
    peers: list[str]  # ids of the trials that it is compared with, its own too


def write_rules(rules: Pruning, criteria: Criteria, trial: Trial, peers: list[Trial]) -> None:
    """Writes a trial's rules, and the trials that it is compared with, into its run directory."""
    record = PruningRules(
        rules=rules, guardrail=criteria.max_heldout_regression, peers=[peer.id for peer in peers]
    )
    write_json(trial.folder / RULES, record.as_json())


def reason(run: Path, step: int, max_steps: int, eval_interval: int) -> str | None:
    """Why the run should end after the evaluation at `step`, or None where it should continue."""
    path = run / RULES
    if not path.exists() or step in (0, max_steps):
        return None
    record, scores = read(path, PruningRules), run_dir.read_scores(run)
    rules, metric = record.rules, scores[step].metric
    why = _heldout(rules, record.guardrail, scores, step) or _loss(rules, run)
    if why is None and rules.halving and step in rungs(max_steps, eval_interval, rules.halving):
        peers = [_domain(run.parent / name, step, metric) for name in record.peers if name != run.name]
        others = [rate for rate in peers if rate is not None]
        why = halving(scores[step].sets["domain"].rate(metric), others, rules.halving, metric)
    return why and f"{PRUNED} {step}: {why}"


def _heldout(rules: Pruning, guardrail: float, scores: dict[int, Scores], step: int) -> str | None:
    if rules.heldout_margin is None or "heldout" not in scores[step].sets:
        return None
    metric = scores[step].metric
    now, before = (scores[at].sets["heldout"].rate(metric) for at in (step, 0))
    if now - before <= guardrail + rules.heldout_margin:
        return None
    return (
        f"heldout {metric.upper()} is up by {100 * (now - before):.2f} points, more than"
        f" {100 * rules.heldout_margin:.2f} past the guardrail"
    )


def _loss(rules: Pruning, run: Path) -> str | None:
    if rules.loss_factor is None:
        return None
    losses = {line["step"]: line["loss"] for line in run_dir.read_log(run / "metrics.jsonl")}
    rose = loss_rose(losses, rules.loss_factor)
    return rose and f"loss rose to {rose[1]:.1f} times its lowest after step {rose[0]}"


def rungs(max_steps: int, eval_interval: int, share: int) -> set[int]:
    """Evaluations at which trials are compared: at 1/N, 1/N^2, ... of the steps, rounded up."""
    found, steps = set(), max_steps / share
    while steps >= eval_interval:
        found.add(math.ceil(steps / eval_interval) * eval_interval)
        steps /= share
    return found - {max_steps}


def halving(rate: float, peers: list[float], share: int, metric: Metric = "wer") -> str | None:
    """Asynchronous successive halving (Li et al. 2020): the best 1/N of those that came as far continue.

    Fewer than N trials, this one included, decide nothing.
    """
    count = len(peers) + 1
    place = 1 + sum(other < rate for other in peers)
    if count < share or place <= math.ceil(count / share):
        return None
    return (
        f"domain {metric.upper()} {rate:.2%} is number {place} of {count} trials that came as far; the best"
        f" 1/{share} go on"
    )


def _domain(run: Path, step: int, metric: Metric) -> float | None:
    """The domain's error rate; None where the step was not evaluated yet, or by another metric."""
    path = run_dir.step_folder(run, step) / "scores.json"
    scores = read(path, Scores) if path.exists() else None
    return scores.sets["domain"].rate(metric) if scores and scores.metric == metric else None
