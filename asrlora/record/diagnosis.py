"""Why a run was not accepted, from its own curves: pure functions of what the run directory holds.

A diagnosis names the step at which it shows. Several may hold at once; the gravest comes first.
"""

import math
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrlora.record import run_dir
from asrlora.record.schema import Diagnosis, SetVerdict, Verdict
from asrlora.score.metric import Metric
from asrlora.score.verdict import Criteria

MANY_EPOCHS = 20.0  # as in the audit: past this many, an adapter has seen each sentence too often
LOSS_ROSE = 1.5  # times its lowest smoothed value
LOSS_MOVED = 0.02  # share of its first smoothed value
RESCUE_FAILED = "a rescue was tried (rescue.json); try replay (--replay-path), fewer targets or a lower rate"
WORSE_SINCE = 0.25  # share of the best reduction that was lost again


@dataclass(frozen=True)
class Curves:
    """What a run has logged; error rates are fractions by optimizer step, step 0 the baseline."""

    losses: Mapping[int, float]  # nats per token
    domain: Mapping[int, float]
    heldout: Mapping[int, float]
    epochs: float = 0.0  # over the training data, in all
    reason: str = ""  # why the run failed, if it did
    metric: Metric = "wer"
    run: Path = Path("RUN_DIR")
    gradients: Mapping[int, float] = field(default_factory=dict)  # their norms
    settings: Mapping[str, Any] = field(default_factory=dict)  # the configuration, and trained_parameters


def diagnose(curves: Curves, judged: Verdict | None) -> list[Diagnosis]:
    """All that holds, the gravest first. Nothing for an accepted run; else always at least one.

    `judged` is None for a run that failed before its verdict.
    """
    if judged is not None and judged.accepted:
        return []
    criteria = judged.criteria if judged else Criteria()
    diverged, limit = _diverged(curves), criteria.max_heldout_regression
    found = {
        "diverged": diverged,
        **({} if diverged else _no_gain(curves, limit)),
        "forgot": _forgot(curves, judged, limit),
        "overfitted": _overfitted(curves),
        "learned nothing": _learned_nothing(curves),
        "starved": _starved(curves),
    }
    if judged is None:
        found["failed"] = curves.reason or "it ended before its verdict"
    elif judged.verdict == "inconclusive":
        found["inconclusive"] = _inconclusive(judged)
    elif not any(found.values()):
        found["fell short"] = judged.reason
    return [Diagnosis(kind=kind, told=message) for kind, message in found.items() if message]


def smoothed(losses: Mapping[int, float]) -> dict[int, float]:
    """Running medians over a tenth of the curve, by the last step of each window."""
    steps = sorted(losses)
    width = max(3, len(steps) // 10)
    return {
        steps[i]: statistics.median(losses[s] for s in steps[i + 1 - width : i + 1])
        for i in range(width - 1, len(steps))
    }


def loss_rose(losses: Mapping[int, float], factor: float) -> tuple[int, float] | None:
    """The step of the lowest smoothed loss and how many times it the last one is, if over `factor`.

    And if it is above the first one as well: batches differ, so that a sound loss of small numbers goes up
    and down by such factors.
    """
    curve = smoothed({step: loss for step, loss in losses.items() if math.isfinite(loss)})
    if not curve:
        return None
    last, lowest = max(curve), min(curve, key=lambda step: (curve[step], step))
    times = curve[last] / curve[lowest] if curve[lowest] > 0 else 1.0
    return (lowest, times) if times > factor and curve[last] > curve[min(curve)] else None


def _diverged(curves: Curves) -> str | None:
    bad = [step for step, loss in curves.losses.items() if not math.isfinite(loss)]
    if bad or "not finite" in curves.reason:
        at = f" from step {min(bad)}" if bad else ""
        return f"loss or gradient was not finite{at}; try a lower learning rate"
    rose = loss_rose(curves.losses, LOSS_ROSE)
    return rose and f"loss rose to {rose[1]:.1f} times its lowest after step {rose[0]}; try a lower rate"


def _no_gain(curves: Curves, limit: float) -> dict[str, str]:
    """That no evaluation lowered the domain's rate, by kind. The loss of wrong texts falls as well."""
    rates = {step: rate for step, rate in curves.domain.items() if step > 0}
    base = curves.domain.get(0, math.nan)
    if not rates or not min(rates.values()) >= base:
        return {}
    last, metric = max(rates), curves.metric.upper()
    message = (
        f"domain {metric} fell at no evaluation, and was up by {_points(rates[last] - base)} at step {last}"
    )
    kind = "harmed" if min(rates.values()) > base else "no gain"
    return {kind: f"{message}; what may help: {_help(curves, limit)}"}


def _help(curves: Curves, limit: float) -> str:
    """What may help a run without any gain, each with the figure of the run that speaks for it."""
    curve, settings, found = smoothed(curves.losses), curves.settings, []
    rate = f"{settings.get('learning_rate', math.nan):g}"
    if curves.gradients:
        rate += f", median gradient norm {statistics.median(curves.gradients.values()):.2g}"
    size = f"{settings.get('trained_parameters', 0):,} parameters on {settings.get('lora_targets')}"
    if curve:
        first, last = curve[min(curve)], curve[max(curve)]
        loss = f"loss {first:.3f} to {last:.3f} nats per token"
        if abs(last - first) <= LOSS_MOVED * abs(first):
            found += [f"a higher learning rate ({rate}; {loss})", f"more targets ({size})"]
        else:
            found.append(f"training texts that belong to their audio and to this domain ({loss})")
            found.append(f"a lower learning rate ({rate})")
    if 0 < curves.epochs < 1:
        found.append(f"more steps ({curves.epochs:.2f} epochs)")
    worst = max(curves.heldout, key=lambda step: curves.heldout[step], default=0)
    past = curves.heldout.get(worst, 0.0) - curves.heldout.get(0, math.inf)
    if past > limit:
        share = f"a share of {settings['replay_ratio']:g}" if settings.get("replay_path") else "none"
        found.append(f"more replay ({share}; heldout up {_points(past)} at step {worst})")
        found.append(f"fewer targets ({size})")
    return "; ".join(found) or "more steps"


def next_command(run: Path, judged: Verdict) -> str | None:
    """What to run next on a run that learned the domain and broke a guardrail; None for others, and where
    that was tried."""
    if not judged.learned or (run / "rescue.json").exists():
        return None
    return f"uv run asrlora strength {shlex.quote(str(run))}"


def _forgot(curves: Curves, judged: Verdict | None, limit: float) -> str | None:
    if judged and (learned := judged.learned):
        costs = [
            f"{name} rose by {_points(learned.sets()[name].regression)}, {_points(miss)} too many"
            for name, miss in learned.missed.items()
        ]
        command = next_command(curves.run, judged)
        advice = f"see at which strength below 1 it passes: {command}" if command else RESCUE_FAILED
        return (
            f"step {learned.step} lowered domain {curves.metric.upper()} by"
            f" {_points(learned.domain.reduction)} and {' and '.join(costs)}; {advice}"
        )
    for step in sorted(curves.heldout):
        past = curves.heldout[step] - curves.heldout.get(0, math.inf)
        gain = curves.domain.get(0, 0.0) - curves.domain.get(step, math.inf)
        if past > limit and gain > 0:
            return (
                f"heldout broke the guardrail at step {step} (up {_points(past)}) while the domain fell by"
                f" {_points(gain)}; try replay (--replay-path), fewer targets or a lower rate"
            )
    return None


def _overfitted(curves: Curves) -> str | None:
    if len(curves.domain) < 3 or 0 not in curves.domain:
        return None
    best = min(curves.domain, key=lambda step: (curves.domain[step], step))
    last = max(curves.domain)
    gain, lost = curves.domain[0] - curves.domain[best], curves.domain[last] - curves.domain[best]
    if best in (0, last) or lost <= WORSE_SINCE * gain:
        return None
    metric = curves.metric.upper()
    return f"best at step {best}, domain {metric} {_points(lost)} worse since; stop there, or add data"


def _learned_nothing(curves: Curves) -> str | None:
    curve = smoothed(curves.losses)
    if len(curve) < 2:
        return None
    first, last = curve[min(curve)], curve[max(curve)]
    if not math.isfinite(first) or abs(last - first) > LOSS_MOVED * abs(first):
        return None
    return f"loss hardly moved ({first:.3f} to {last:.3f} nats per token); try a higher rate or more steps"


def _starved(curves: Curves) -> str | None:
    if curves.epochs <= MANY_EPOCHS:
        return None
    return f"{curves.epochs:.0f} epochs over the training data (more than {MANY_EPOCHS:.0f}); add data"


def _inconclusive(judged: Verdict) -> str:
    need, limit = judged.criteria.min_domain_reduction, judged.criteria.max_heldout_regression
    reasons = [_unsettled("domain reduction", judged.domain.reduction, need, judged.domain)]
    if judged.heldout is None:
        reasons.append("there is no heldout manifest")
    else:
        reasons.append(_unsettled("heldout regression", judged.heldout.regression, limit, judged.heldout))
    return f"below what the manifests can detect: {'; '.join(filter(None, reasons)) or judged.reason}"


def _unsettled(what: str, value: float, asked: float, one: SetVerdict) -> str | None:
    """How far the interval reaches, where the criterion lies inside it."""
    low, high = one.interval
    if not low < asked < high:
        return None
    return (
        f"{what} {_points(value)} lies within {_points((high - low) / 2)} of the {_points(asked)} asked for,"
        f" on {one.utterances:,} utterances"
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"


def read_curves(run: Path) -> Curves:
    """The curves of a run directory, of a run that has not ended too."""
    metrics, identity = run_dir.read_log(run / "metrics.jsonl"), run_dir.read_run(run)
    train = identity.audit.sets.get("train")
    planned = train.epochs or 0.0 if train else 0.0
    share = metrics[-1]["step"] / identity.config.max_steps if metrics else 0.0
    rates = run_dir.read_rates(run, identity.metric)
    domain, heldout = (
        {step: one[name] for step, one in rates.items() if name in one} for name in ("domain", "heldout")
    )
    losses = {line["step"]: line["loss"] for line in metrics}
    return Curves(
        losses,
        domain,
        heldout,
        planned * share,
        identity.reason or "",
        identity.metric,
        run,
        {line["step"]: norm for line in metrics if math.isfinite(norm := line.get("grad_norm", math.nan))},
        {**identity.config.as_json(), "trained_parameters": identity.trained_parameters},
    )


def of_run(run: Path) -> list[Diagnosis]:
    """The diagnoses of a run, as run.json keeps them."""
    return diagnose(read_curves(run), run_dir.read_verdict(run))
