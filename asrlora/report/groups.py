"""Runs side by side, from their directories alone: read, grouped, ranked and compared pair by pair.

Runs are ranked only among runs of one fingerprint: what was scored on other manifests, with another
normaliser, other decode settings, another base or other audio is in a group of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from asrlora.config import RESUMABLE_SETTINGS
from asrlora.errors import UserError
from asrlora.record import ledger, run_dir
from asrlora.record.run_dir import read_counts, read_hypotheses, step_folder
from asrlora.record.schema import RunRecord, SetVerdict, Verdict
from asrlora.score import selection, verdict
from asrlora.score.bootstrap import Interval, choose_speakers, interval, resample
from asrlora.score.metric import Metric
from asrlora.score.wer import Tally
from asrlora.sweep import phases, sweep_file

SETS = ("domain", "heldout")
STATES = ("accept", "inconclusive", "reject", "complete", "running", "preempted", "failed")  # best first
PAIRED = 200  # runs of a group, best first, that are compared pair by pair: 19,900 pairs take 10 s
BASE = "the base"


@dataclass(frozen=True)
class Score:
    """One evaluation set of one run: the base, and what `Run.evaluation` holds. Fractions; intervals 95 %."""

    baseline: float
    rate: float
    change: float  # below 0 is better
    interval: Interval | None = None
    change_interval: Interval | None = None


@dataclass(frozen=True)
class Run:
    """What the page knows of a run. Paths are as the files say; nothing here needs the run to have ended."""

    name: str
    folder: Path
    identity: RunRecord
    state: str  # one of STATES
    why: str  # the verdict's or the failure's reason
    criteria: verdict.Criteria
    scores: dict[str, Score]
    best_step: int
    learned_step: int | None  # shown in the place of best_step 0: see Learned
    evaluation: Path  # what is compared with the base, and with other runs
    losses: list[tuple[float, float]]  # step, nats per token
    evaluations: dict[int, dict[str, float]]  # of the metric, by step and set

    @property
    def metric(self) -> Metric:
        """Of its rates."""
        return self.identity.metric

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its scores depend on, by dotted keys."""
        return {**flat(self.identity.fingerprint), "metric": self.metric}

    @property
    def settings(self) -> dict[str, Any]:
        """What may make the difference: the configuration, the training set, the processes, the code."""
        identity = self.identity
        config = identity.config.as_json()
        return {
            **{k: v for k, v in config.items() if k not in RESUMABLE_SETTINGS | {"output_dir"}},
            "base_commit": identity.base_commit,
            "training_content": identity.training and identity.training.content[:12],
            "processes": identity.world_size,
            "launch": identity.launch,
            "git_commit": (identity.git_commit or "")[:9] or None,
        }

    @property
    def rank(self) -> tuple[int, float]:
        """To sort by, best first."""
        domain = self.scores.get("domain")
        return STATES.index(self.state), domain.rate if domain else math.inf


@dataclass(frozen=True)
class Group:
    """Runs of one fingerprint, best first, and how each pair of them differs."""

    runs: list[Run]
    fingerprint: dict[str, Any]
    metric: Metric
    sets: list[str]  # SETS, and the guardrails beside heldout
    columns: list[str]  # settings that differ
    paired: list[str]  # names, BASE the first; empty without hypotheses
    # by set: for each pair of `paired`, in the order of itertools.combinations, the later one's rate minus
    # the earlier one's, and its 95 % interval
    pairs: dict[str, list[tuple[float, float, float]]]


def trials(file: Path) -> list[Path]:
    """The run directories of a sweep file's trials that have begun. Raises UserError where none has."""
    found = [one.trial.folder for phase in phases.read_phases(sweep_file.load(file)) for one in phase.trials]
    begun = [folder for folder in found if (folder / "run.json").exists()]
    if not begun:
        raise UserError(f"{file}: none of its trials has begun; `asrlora sweep run` starts them")
    return begun


def find(places: Sequence[Path]) -> list[Path]:
    """Run directories at and below `places`. Raises UserError where there are none."""
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist; give run directories, or a folder that holds some")
    found = ledger.find_runs(places)
    if not found:
        raise UserError(f"no run.json at or below {', '.join(map(str, places))}; give run directories")
    return found


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads them all. Names are made unique by the folders above, as far as is needed."""
    runs = [read_run(folder) for folder in folders]
    resolved = [run.folder.resolve() for run in runs]
    parts = 1
    names = [run.name for run in runs]
    while len(set(names)) < len(names) and parts < max(len(path.parts) for path in resolved):
        names = ["/".join(path.parts[-parts:]) for path in resolved]
        parts += 1
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def read_run(folder: Path) -> Run:
    """What a run directory holds; there need be no verdict, and no end."""
    identity, judged = run_dir.read_run(folder), run_dir.read_verdict(folder)
    metrics = run_dir.read_log(folder / "metrics.jsonl")
    best = judged.best_step if judged else identity.best_step
    metric = identity.metric
    evaluations = _evaluations(folder, metric)
    if judged is not None:
        shown = judged.learned or judged
        scores = {name: _judged_score(one, metric) for name, one in shown.sets().items()}
    else:
        before, after = evaluations.get(0, {}), evaluations.get(best, {})
        both = [name for name in before if name in after]
        scores = {name: Score(before[name], after[name], after[name] - before[name]) for name in both}
    if judged is not None and not evaluations:  # only the records were kept
        evaluations = {
            0: {name: score.baseline for name, score in scores.items()},
            judged.shown_step: {name: score.rate for name, score in scores.items()},
        }
    state = identity.state
    return Run(
        name=folder.resolve().name,
        folder=folder,
        identity=identity,
        state=judged.verdict if judged and state == "complete" else state,
        why=_why(identity, judged),
        criteria=judged.criteria if judged else verdict.Criteria(),
        scores=scores,
        best_step=best,
        learned_step=judged.learned.step if judged and judged.learned else None,
        evaluation=run_dir.shown_evaluation(folder, judged) if judged else step_folder(folder, best),
        losses=[
            (line["step"], line["loss"]) for line in metrics if math.isfinite(line.get("loss", math.nan))
        ],
        evaluations=evaluations,
    )


def _why(identity: RunRecord, judged: Verdict | None) -> str:
    """The diagnosis where there is one, and the verdict's reason, or why the run has not ended."""
    reason = judged.reason if judged and identity.state == "complete" else identity.reason
    return "; ".join(filter(None, (identity.diagnoses, reason)))


def _judged_score(one: SetVerdict, metric: Metric) -> Score:
    return Score(one.baseline(metric), one.tuned(metric), one.change, one.tuned_interval, one.change_interval)


def _evaluations(folder: Path, metric: Metric) -> dict[int, dict[str, float]]:
    """The metric of each set, by step."""
    return {
        step: {name: rate for name, rate in rates.items() if name != selection.REPORT}
        for step, rates in run_dir.read_rates(folder, metric).items()
    }


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"decode": {"method": "greedy"}} to {"decode.method": "greedy"}."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        found.update(inner)
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same everywhere, in the order of the first that has them."""
    keys = {key: None for one in settings for key in one}
    return [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups of equal fingerprints, the largest first; each ranked and compared pair by pair."""
    by_fingerprint: dict[str, list[Run]] = {}
    for run in runs:
        by_fingerprint.setdefault(json.dumps(run.fingerprint, sort_keys=True), []).append(run)
    return [_group(found) for found in sorted(by_fingerprint.values(), key=len, reverse=True)]


def _group(runs: Sequence[Run]) -> Group:
    ranked = sorted(runs, key=lambda run: (run.rank, run.name))
    metric = ranked[0].metric
    found = list(dict.fromkeys(name for run in ranked for name in run.scores))
    sets = [name for name in SETS if name in found]
    # docs/runs and its like keep no hypotheses, and a run that failed early has none
    kept = [run for run in ranked if sets and all(_hypotheses(run, name) for name in sets)][:PAIRED]
    intervals: dict[str, dict[str, Score]] = {run.name: dict(run.scores) for run in ranked}
    pairs = {}
    for name in sets if kept else ():
        unjudged = [run for run in kept if run.scores[name].change_interval is None]
        systems = [
            read_counts(step_folder(kept[0].folder, 0) / f"{name}.jsonl", metric),
            *(read_counts(run.evaluation / f"{name}.jsonl", metric) for run in kept),
            *(read_counts(step_folder(run.folder, 0) / f"{name}.jsonl", metric) for run in unjudged),
        ]
        drawn = resample(systems, _speakers(kept, name))
        count = 1 + len(kept)
        rates = [sum(counts.values(), Tally()).rate for counts in systems[:count]]
        pairs[name] = _pairs(rates, drawn[:count])
        for run, old in zip(unjudged, drawn[count:], strict=True):
            new = drawn[1 + kept.index(run)]
            intervals[run.name][name] = replace(
                run.scores[name], interval=interval(new), change_interval=interval(new - old)
            )
    return Group(
        [replace(run, scores=intervals[run.name]) for run in ranked],
        ranked[0].fingerprint,
        metric,
        [*SETS, *(name for name in found if name not in SETS)],
        differing([run.settings for run in ranked]),
        [BASE, *(run.name for run in kept)] if kept else [],
        pairs,
    )


def _hypotheses(run: Run, name: str) -> bool:
    folders = step_folder(run.folder, 0), run.evaluation
    return name in run.scores and all((folder / f"{name}.jsonl").exists() for folder in folders)


def _speakers(runs: Sequence[Run], name: str) -> dict[str, str] | None:
    """Whom to draw on one set, by utterance id; None, utterances, where a run is judged by these, as those of
    earlier versions are."""
    by = "utterance" if any(run.identity.config.resample_by == "utterance" for run in runs) else "auto"
    lines = read_hypotheses(step_folder(runs[0].folder, 0) / f"{name}.jsonl")
    return choose_speakers(name, {i: line.get("speaker") for i, line in lines.items()}, by)[0]


def _pairs(rates: Sequence[float], drawn: np.ndarray) -> list[tuple[float, float, float]]:
    found = []
    for i in range(len(rates)):
        low, high = np.quantile(drawn[i + 1 :] - drawn[i], [0.025, 0.975], axis=1)
        found += [
            (rates[j] - rates[i], float(low[j - i - 1]), float(high[j - i - 1]))
            for j in range(i + 1, len(rates))
        ]
    return found
