"""The phases of a sweep, one after another: what each has chosen, and when it is enough.

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
from asrlora.record.schema import EvalScores, Scores, read
from asrlora.score.metric import Metric
from asrlora.storage import write_json
from asrlora.sweep import runner
from asrlora.sweep.sweep_file import Phase, Settings, Sweep, Trial, phases_of, trials_of
from asrlora.sweep.trials import Choice, Standing, choose, standing

PARITY = 0.001  # the baseline's WER must come out again within so much (fraction)


@dataclass(frozen=True)
class Chapter:
    """A phase with its trials as they stand, and what it has chosen."""

    phase: Phase
    standings: list[Standing]
    choice: Choice | None

    @property
    def accepted(self) -> bool:
        return any(one.judged and one.judged.accepted for one in self.standings)

    @property
    def trials(self) -> list[Trial]:
        return [one.trial for one in self.standings]


def chapters(sweep: Sweep, until: str | None = None) -> list[Chapter]:
    """All phases up to the first accept, or up to the phase named `until`, as they stand."""
    found: list[Chapter] = []
    won: Settings = {}
    for phase in phases_of(sweep):
        standings = [standing(trial, sweep.criteria) for trial in trials_of(sweep, phase, won)]
        chapter = Chapter(phase, standings, choose(_accepted_first(standings), sweep.criteria))
        found.append(chapter)
        if phase.name == until or chapter.accepted:
            break
        if chapter.choice is not None:
            won = {**won, **phase.fixed, **chapter.choice.best.trial.own}
    return found


def _accepted_first(standings: Sequence[Standing]) -> Sequence[Standing]:
    """Where some are accepted, the winner is one of them."""
    accepted = [one for one in standings if one.judged and one.judged.accepted]
    return accepted or standings


def run(sweep: Sweep, jobs: int) -> int:
    """The whole file on this machine; returns what `conduct.run` returns of the last phase that ran."""
    code = check_parity(sweep) if sweep.parity else 0
    for phase in phases_of(sweep):
        if code == runner.PREEMPTED:
            break
        code = run_phase(sweep, phase, jobs)
        check_parity(sweep)
        chapter = chapters(sweep, phase.name)[-1]
        if chapter.phase.name != phase.name or (chapter.accepted and sweep.phases):
            break
        if chapter.choice is not None:
            console.print(f"phase {phase.name}: {chapter.choice.best.trial.label}: {chapter.choice.why}")
    write_outcome(sweep)
    return code


def run_phase(sweep: Sweep, phase: Phase, jobs: int = 1, number: int | None = None) -> int:
    """Runs a phase's trials, or that of this number; does nothing once an earlier one was accepted."""
    chapter = chapters(sweep, phase.name)[-1]
    if chapter.phase.name != phase.name or (sweep.phases and chapter.accepted):
        console.print(f"phase {phase.name}: not needed, {chapter.phase.name} has reached accept")
        return 0
    trials = chapter.trials
    if number is not None and number >= len(trials):  # two of its settings are one with this winner's
        console.print(f"phase {phase.name} has only {len(trials)} different trials now; nothing to do")
        return 0

    def enough() -> bool:
        """A programme stops at the first accept, a plain sweep runs all."""
        return bool(sweep.phases) and any(
            (one.folder / "verdict.json").exists()
            and (judged := standing(one, sweep.criteria).judged) is not None
            and judged.accepted
            for one in trials
        )

    chosen = trials if number is None else [trials[number]]
    return runner.run(sweep, phase, trials, chosen, jobs, enough)


def check_parity(sweep: Sweep) -> int:
    """The baseline on each manifest, twice by `asrlora eval` and once by each trial: all within 0.1 points.

    Raises UserError where they are not, or where they were scored by another audio path, normaliser or
    decoding: then no figure of the programme would mean anything.
    """
    if not sweep.parity:
        return 0
    folder, fixed = sweep.output_dir / "parity", sweep.fixed
    manifests = {"domain": fixed.get("manifest_path"), "heldout": fixed.get("safety_manifest_path")}
    for name, manifest in manifests.items():
        found = [_evaluated(folder / f"{name}-{time}", fixed, manifest) for time in (1, 2) if manifest]
        for path in sorted(sweep.output_dir.glob("*/eval/step-000000/scores.json")):
            scores = read(path, Scores)
            if name in scores.sets:
                rate = scores.sets[name].rate(scores.metric)
                found.append(Baseline(rate, scores.metric, scores.fingerprint))
        _agree(name, found)
    return 0


@dataclass(frozen=True)
class Baseline:
    """What one evaluation of the base gave on one manifest; the rate is a fraction."""

    rate: float
    metric: Metric
    fingerprint: dict[str, Any]


def _evaluated(output: Path, fixed: Settings, manifest: Any) -> Baseline:
    if not (output / "scores.json").exists():
        words = ["eval", "--manifest-path", str(manifest), "--output-dir", str(output)]
        for name in ("model_id", "eval_batch_seconds", "language", "metric", "text_normaliser"):
            if name in fixed:
                words += ["--" + name.replace("_", "-"), str(fixed[name])]
        words += ["--allow-outside"] if fixed.get("allow_outside") else []
        if subprocess.run([sys.executable, "-m", "asrlora.cli", *words]).returncode:
            raise UserError(f"parity: the baseline cannot be evaluated on {manifest}; see above")
    scores = read(output / "scores.json", EvalScores)
    return Baseline(scores.rate(scores.metric), scores.metric, scores.fingerprint)


def _agree(name: str, found: Sequence[Baseline]) -> None:
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


def outcome(sweep: Sweep) -> dict[str, Any]:
    """Each phase's winner with its rule, the best of all, and what stands in its way."""
    found = chapters(sweep)
    pool = [one for chapter in found for one in chapter.standings]
    best = choose(_accepted_first(pool), sweep.criteria)
    told: dict[str, Any] = {
        "phases": [
            {
                "name": chapter.phase.name,
                "trials": {one.trial.id: one.state for one in chapter.standings},
                "winner": chapter.choice and chapter.choice.best.trial.id,
                "settings": chapter.choice and chapter.choice.best.trial.own,
                "why": chapter.choice.why if chapter.choice else "no trial has a verdict",
            }
            for chapter in found
        ],
        "best": None,
        "verdict": None,
        "in_the_way": ["no trial has a verdict"],
    }
    if best is not None and best.best.judged is not None:
        judged = best.best.judged
        diagnoses = read_run(best.best.trial.folder).diagnoses
        told["best"], told["verdict"] = str(best.best.trial.folder), judged.verdict
        ways = [] if judged.accepted else [judged.reason, diagnoses]
        told["in_the_way"] = [way for way in ways if way]
    return told


def write_outcome(sweep: Sweep) -> dict[str, Any]:
    """Writes outcome.json beside the trials, and says it."""
    told = outcome(sweep)
    write_json(sweep.output_dir / "outcome.json", told, default=str)
    for phase in told["phases"]:
        console.print(f"phase {phase['name']}: {phase['winner']} {phase['settings'] or ''}: {phase['why']}")
    console.print(f"best: {told['best']}, verdict {told['verdict']}")
    for way in told["in_the_way"]:
        console.print(f"in the way: {way}")
    return told
