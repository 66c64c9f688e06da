"""The phases of a sweep, one after another: what each has selected, and when no more are needed.

Nothing is kept between phases but the trials' records, so that array tasks on many nodes, or one process at
home, find the same winners by the same rule.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlora.console import console
from asrlora.errors import UserError
from asrlora.record.run_dir import read_run
from asrlora.record.schema import EvalScores, Record, Scores, read
from asrlora.score.metric import Metric
from asrlora.storage import write_json
from asrlora.sweep import runner
from asrlora.sweep.sweep_file import Phase, Settings, Sweep, phases_of, trials_of
from asrlora.sweep.trials import Selection, TrialStatus, read_status, select_accepted

PARITY = 0.001  # the baseline's WER must come out again within so much (fraction)


@dataclass(frozen=True)
class PhaseStatus:
    """A phase, the state of its trials, and what it has selected of them."""

    phase: Phase
    trials: list[TrialStatus]
    selection: Selection | None

    @property
    def accepted(self) -> bool:
        """Whether one of its trials is."""
        return any(one.accepted for one in self.trials)


def read_phases(sweep: Sweep, until: str | None = None) -> list[PhaseStatus]:
    """The state of all phases up to the first accept, or up to the phase named `until`."""
    found: list[PhaseStatus] = []
    won: Settings = {}
    for phase in phases_of(sweep):
        trials = [read_status(trial, sweep.criteria) for trial in trials_of(sweep, phase, won)]
        status = PhaseStatus(phase, trials, select_accepted(trials, sweep.criteria))
        found.append(status)
        if phase.name == until or status.accepted:
            break
        if status.selection is not None:
            won = {**won, **phase.fixed, **status.selection.best.trial.own}
    return found


def run(sweep: Sweep, jobs: int) -> int:
    """The whole file on this machine; returns what `runner.run` returns of the last phase that ran."""
    code = 0
    check_parity(sweep)
    for phase in phases_of(sweep):
        if code == runner.PREEMPTED:
            break
        code = run_phase(sweep, phase, jobs)
        check_parity(sweep)
        status = read_phases(sweep, phase.name)[-1]
        if status.phase.name != phase.name or (status.accepted and sweep.phases):
            break
        if status.selection is not None:
            label, why = status.selection.best.trial.label, status.selection.why
            console.print(f"phase {phase.name}: {label}: {why}")
    write_outcome(sweep)
    return code


def run_phase(sweep: Sweep, phase: Phase, jobs: int = 1, number: int | None = None) -> int:
    """Runs a phase's trials, or that of this number; does nothing once an earlier one was accepted."""
    status = read_phases(sweep, phase.name)[-1]
    if status.phase.name != phase.name or (sweep.phases and status.accepted):
        console.print(f"phase {phase.name}: not needed, {status.phase.name} has reached accept")
        return 0
    trials = [one.trial for one in status.trials]
    if number is not None and number >= len(trials):  # two of its settings are one with this winner's
        console.print(f"phase {phase.name} has only {len(trials)} different trials now; nothing to do")
        return 0

    def should_stop() -> bool:
        """Phases end at the first accept, a plain sweep runs all its trials."""
        judged = [one for one in trials if (one.folder / "verdict.json").exists()] if sweep.phases else []
        return any(read_status(one, sweep.criteria).accepted for one in judged)

    chosen = trials if number is None else [trials[number]]
    return runner.run(sweep, phase, trials, chosen, jobs, should_stop)


@dataclass(frozen=True)
class Baseline:
    """What one evaluation of the base gave on one manifest; the rate is a fraction."""

    rate: float
    metric: Metric
    fingerprint: dict[str, Any]


def check_parity(sweep: Sweep) -> None:
    """Where the sweep asks for it: the baseline on each manifest, twice by `asrlora eval` and once by each
    trial, all within 0.1 points.

    Raises UserError where they are not, or where they were scored by another audio path, normaliser or
    decoding: then no figure of the sweep would mean anything.
    """
    if not sweep.parity:
        return
    folder, fixed = sweep.output_dir / "parity", sweep.fixed
    manifests = {"domain": fixed.get("manifest_path"), "heldout": fixed.get("safety_manifest_path")}
    for name, manifest in manifests.items():
        found = [_evaluated(folder / f"{name}-{time}", fixed, manifest) for time in (1, 2) if manifest]
        for path in sorted(sweep.output_dir.glob("*/eval/step-000000/scores.json")):
            scores = read(path, Scores)
            if name in scores.sets:
                rate = scores.sets[name].rate(scores.metric)
                found.append(Baseline(rate, scores.metric, scores.fingerprint))
        _check_equal(name, found)


def _evaluated(output: Path, fixed: Settings, manifest: Any) -> Baseline:
    """`asrlora eval` of the base, unless that was done before."""
    if not (output / "scores.json").exists():
        words = ["eval", "--manifest-path", str(manifest), "--output-dir", str(output)]
        if fixed.get("model_revision") and "model_id" in fixed:
            fixed = {**fixed, "model_id": f"{fixed['model_id']}@{fixed['model_revision']}"}
        for name in ("model_id", "eval_batch_seconds", "language", "metric", "text_normaliser"):
            if name in fixed:
                words += ["--" + name.replace("_", "-"), str(fixed[name])]
        words += ["--allow-outside"] if fixed.get("allow_outside") else []
        if subprocess.run([sys.executable, "-m", "asrlora.cli", *words]).returncode:
            raise UserError(f"parity: the baseline cannot be evaluated on {manifest}; see above")
    scores = read(output / "scores.json", EvalScores)
    return Baseline(scores.rate(scores.metric), scores.metric, scores.fingerprint)


def _check_equal(name: str, found: Sequence[Baseline]) -> None:
    """Raises UserError where evaluations of one manifest differ in metric, rate or fingerprint."""
    metrics = sorted({one.metric for one in found})
    if len(metrics) > 1:
        raise UserError(f"parity: evaluations of {name} are by several metrics, {', '.join(metrics)}")
    rates = [one.rate for one in found]
    if rates and max(rates) - min(rates) > PARITY:
        raise UserError(
            f"parity: the baseline's {name} {metrics[0].upper()} came out from {min(rates):.2%} to"
            f" {max(rates):.2%} in {len(rates)} evaluations; {PARITY:.1%} is allowed. Find out why before"
            " anything is trained"
        )
    for part in ("audio", "text", "decode", "base"):
        values = {json.dumps(one.fingerprint.get(part), sort_keys=True) for one in found}
        if len(values) > 1:
            raise UserError(f"parity: evaluations of {name} differ in {part}: {' and '.join(sorted(values))}")


class PhaseOutcome(Record):
    """The winner of one phase of a sweep."""

    name: str
    trials: dict[str, str]  # state by id
    winner: str | None  # the id
    settings: dict[str, Any] | None  # the winner's own
    why: str


class Outcome(Record):
    """outcome.json, beside the trials of a sweep: the best of them, and what stands in its way."""

    phases: list[PhaseOutcome]
    best: str | None  # its run directory
    verdict: str | None
    in_the_way: list[str]


def outcome(sweep: Sweep) -> Outcome:
    """Each phase's winner with its rule, the best of all, and what stands in its way."""
    found = read_phases(sweep)
    best = select_accepted([one for status in found for one in status.trials], sweep.criteria)
    phases = [_phase_outcome(status) for status in found]
    if best is None or best.best.judged is None:
        return Outcome(phases=phases, best=None, verdict=None, in_the_way=["no trial has a verdict"])
    judged, folder = best.best.judged, best.best.trial.folder
    obstacles = [] if judged.accepted else [judged.reason, read_run(folder).diagnoses]
    return Outcome(
        phases=phases, best=str(folder), verdict=judged.verdict, in_the_way=list(filter(None, obstacles))
    )


def _phase_outcome(status: PhaseStatus) -> PhaseOutcome:
    best = status.selection.best.trial if status.selection else None
    return PhaseOutcome(
        name=status.phase.name,
        trials={one.trial.id: one.state for one in status.trials},
        winner=best and best.id,
        settings=best and best.own,
        why=status.selection.why if status.selection else "no trial has a verdict",
    )


def write_outcome(sweep: Sweep) -> Outcome:
    """Writes outcome.json beside the trials, and prints it."""
    found = outcome(sweep)
    write_json(sweep.output_dir / "outcome.json", found.as_json(), default=str)
    for phase in found.phases:
        console.print(f"phase {phase.name}: {phase.winner} {phase.settings or ''}: {phase.why}")
    console.print(f"best: {found.best}, verdict {found.verdict}")
    for obstacle in found.in_the_way:
        console.print(f"in the way: {obstacle}")
    return found
