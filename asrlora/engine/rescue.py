"""From reject to accept: an adapter that learned the domain and forgot the rest, at part of its strength, or
the mean of a run's last checkpoints. The rule of choice is in score/rescue.py.

Works on a run directory, at the end of a run (`--rescue auto`) and after it (`asrlora strength`). What is
evaluated stays in eval/, one folder a candidate, so that a search that was interrupted continues from there.
The adapter and the verdict of before stay in before_rescue/.
"""

import functools
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from asrlora.config import RESCUE_CHECKPOINTS, RunConfig
from asrlora.console import console, progress
from asrlora.data.shards.reader import Shards
from asrlora.engine import checkpoint, longform
from asrlora.engine.evaluate import Evaluation, evaluate, fingerprint
from asrlora.engine.runtime import Runtime
from asrlora.errors import UserError
from asrlora.models import adapters, registry, strength
from asrlora.models.family import Base
from asrlora.record import judge, run_dir
from asrlora.record.rescue_record import RescueRecord
from asrlora.record.schema import Rescued, Scores, Verdict, read
from asrlora.score import bootstrap, degenerate, keyword_recall, metric, rescue, text, verdict
from asrlora.score.rescue import Candidate
from asrlora.score.scoring import Hypothesis, summary
from asrlora.score.selection import REPORT
from asrlora.storage import atomic_folder, write_json

T = TypeVar("T")

KEPT = "before_rescue"  # the adapter and the verdict that the run itself ended with
SCRATCH = ".rescue"  # adapters of candidates, while they are compared
RANKS = {"reject": 0, "inconclusive": 1, "accept": 2}


class Stopped(Exception):
    """On all ranks: one of them was asked to stop."""


@dataclass(frozen=True)
class Source:
    """What a rescue begins with."""

    step: int  # whose adapter learned most, by the domain
    adapter: Path | None  # its folder; None where only its checkpoint is left
    steps: tuple[int, ...]  # whose checkpoints are left, oldest first
    choosing: dict[str, frozenset[str]]  # by set, the ids that choose
    judging: dict[str, frozenset[str]]  # by set, those that the verdict is given on


def find_source(folder: Path) -> Source | str:
    """What can be rescued of a run; or why nothing can, in a sentence."""
    identity, judged = run_dir.read_run(folder), kept_verdict(folder)
    if judged is not None and judged.accepted:
        return "the run is accepted without"
    baseline = run_dir.step_folder(folder, 0)
    choosing, judging = rescue.split(
        {path.stem: run_dir.read_hypotheses(path).keys() for path in sorted(baseline.glob("*.jsonl"))}
    )
    if not choosing.keys() - {"domain", REPORT}:
        return "the run has no heldout manifest, so nothing shows what was forgotten"
    for name in choosing.keys() | judging.keys():
        fewest = min(len(part[name]) for part in (choosing, judging) if name in part)
        if fewest < rescue.FEWEST:
            return (
                f"one half of {name} chooses and the other one judges, and a half of {fewest} utterances"
                f" shows nothing ({rescue.FEWEST} are the fewest)"
            )
    best = judged.best_step if judged else identity.best_step
    judgements = judged.judgements if judged else {}
    guards = {one.outcome for name, one in judgements.items() if name not in ("domain", "domain_report")}
    if best and guards == {"holds"}:
        return "the guardrails hold; the domain's gain is not shown, and a weaker adapter would learn less"
    saved = {int(path.name.removeprefix("step-")) for path in checkpoint.find(folder / "checkpoints")}
    gains = {
        step: _compare(folder, run_dir.step_folder(folder, step).name, "domain", choosing["domain"]).change
        for step in sorted({*saved, best} - {0})
        if (run_dir.step_folder(folder, step) / "scores.json").exists()
    }
    if not gains:
        return "no adapter of an evaluated step is left in checkpoints/"
    # of equal ones the last: long training at part of the strength forgets less than stopping early. No gain
    # is asked for at full strength: a step that is past its best may have one when it is weakened.
    step = min(gains, key=lambda one: (gains[one], -one))
    before = folder / KEPT / "adapter_best"
    adapter = (before if before.exists() else folder / "adapter_best") if step == best else None
    return Source(step, adapter, tuple(sorted(saved & gains.keys())), choosing, judging)


def is_rescued(folder: Path) -> bool:
    """Whether adapter_best/ is one that a rescue has put there."""
    return (folder / KEPT).exists()


def kept_verdict(folder: Path) -> Verdict | None:
    """The verdict of the run itself, before any rescue."""
    return run_dir.read_verdict(folder / KEPT) or run_dir.read_verdict(folder)


def _compare(folder: Path, evaluation: str, name: str, ids: frozenset[str]) -> bootstrap.Comparison:
    """The base against an evaluation, on these utterances of a set."""
    identity = run_dir.read_run(folder)
    folders = run_dir.step_folder(folder, 0), folder / "eval" / evaluation
    old, new = (one / f"{name}.jsonl" for one in folders)
    return judge.compare_files(old, new, identity.config.resample_by, ids, identity.metric)


def rescue_run(
    runtime: Runtime,
    config: RunConfig,
    record: run_dir.RunDirectory | None,
    sets: Mapping[str, Shards],
    strengths: Sequence[float] = (),
) -> bool:
    """Collective. Searches a candidate that the verdict accepts, or is at least less against; installs it.

    `record` is rank 0's; `sets` are the run's evaluation sets; only `strengths` are tried where some are
    given. False, on all ranks, where one was asked to stop: what was evaluated stays. Raises UserError where
    base or sets are no longer those of the run.
    """
    folder, start = config.output_dir, time.monotonic()
    source = runtime.collectives.on_main("looking for an adapter to rescue", lambda: find_source(folder))
    if isinstance(source, str):
        runtime.collectives.on_main("the rescue", lambda: _give_up(folder, source))
        return True
    search = Search(Evaluations(runtime, config, folder, sets), source)
    try:
        tried = search.candidates(strengths)
        chosen = rescue.choose(tried, search.criteria)
        if chosen is not None and chosen != tried[0]:
            search.complete(chosen)
    except Stopped:
        return False
    seconds = time.monotonic() - start
    runtime.collectives.on_main("the rescue", lambda: _end(search, record, tried, chosen, seconds))
    return True


@dataclass
class Evaluations:
    """Evaluations of a run directory, each in its folder below eval/, utterance by utterance."""

    runtime: Runtime
    config: RunConfig
    folder: Path
    sets: Mapping[str, Shards]
    cuts: dict[str, longform.Cuts] = field(default_factory=dict)

    @cached_property
    def normaliser(self) -> text.Normaliser:
        """What references and hypotheses are scored after."""
        return text.normaliser(self.config.text_normaliser, self.config.language)

    def on_main(self, what: str, work: Callable[[], T]) -> T:
        """What rank 0 makes of `work`, on every rank."""
        return self.runtime.collectives.on_main(what, work)

    def load_base(self) -> Base:
        """The base that the run began with, on the CPU."""
        name = run_dir.base_of_run(self.folder, self.config)
        return registry.load_base(name, registry.Decoding.of(self.config), self.config.load_in_4bit)

    def base(self) -> Base:
        """Collective. A fresh base; how long utterances are cut for it is found out once."""
        base = self.load_base()
        base.model.to(self.runtime.device)
        if not self.cuts:
            self.cuts = {n: longform.cut_set(self.runtime, base, data) for n, data in self.sets.items()}
        return base

    def fingerprint(self, base: Base) -> dict[str, Any]:
        """What must be the same in all evaluations of a run."""
        chosen = metric.choose(self.config.metric, self.config.language)
        found = fingerprint(base, self.normaliser, chosen.name, any(self.cuts.values()))
        return {**found, **{f"{name} manifest": data.content for name, data in self.sets.items()}}

    def check_unchanged(self, base: Base) -> None:
        """Raises UserError where base, sets or settings are no longer those of the run."""
        now, then = self.fingerprint(base), run_dir.read_run(self.folder).fingerprint
        for key in sorted(now.keys() | then.keys()):
            if now.get(key) != then.get(key):
                raise UserError(
                    f"{self.folder}: {key} is {now.get(key)!r} now and was {then.get(key)!r} in the run; put"
                    " back what the run was evaluated with"
                )

    def complete(self, base: Base, model: Any, evaluation: str, name: str, ids: Collection[str]) -> None:
        """Collective. Has the model write what the evaluation lacks of these utterances of a set.

        Raises Stopped, on all ranks, where one of them was asked to stop.
        """
        path, data = self.folder / "eval" / evaluation / f"{name}.jsonl", self.sets[name]
        known = self.on_main("reading hypotheses", lambda: set(_lines(path)))
        numbers = [i for i, one in enumerate(data.samples) if one.id in ids and one.id not in known]
        if not numbers:
            return
        cuts = {new: self.cuts[name][old] for new, old in enumerate(numbers) if old in self.cuts[name]}
        part, budget = data.subset(numbers), self.config.eval_batch_seconds
        with progress(f"{evaluation}: {name}", part.seconds, self.runtime.is_main) as advance:
            found = evaluate(self.runtime, model, base, part, budget, self.normaliser, advance, cuts)
        if found is None:
            raise Stopped
        self.on_main("writing hypotheses", lambda: self._keep(path, name, found))

    def _keep(self, path: Path, name: str, found: Evaluation) -> None:
        """Only rank 0. Adds to what the evaluation's folder holds; scores.json comes last."""
        lines = {**_lines(path), **{one.id: one.line() for one in found.hypotheses}}
        run_dir.write_atomic(path, run_dir.to_lines(lines[i] for i in sorted(lines)))
        run, file = run_dir.read_run(self.folder), path.parent / "scores.json"
        before = read(file, Scores).as_json() if file.exists() else {}
        counted = degenerate.add(before.get(name, {}), {**found.degenerate, **found.windows})
        hypotheses = [Hypothesis.of(line) for line in lines.values()]
        scored = {**summary(hypotheses), **counted}
        if name == "domain":
            words = frozenset((self.folder / "domain_words.txt").read_text(encoding="utf-8").split())
            scored |= keyword_recall.summary(hypotheses, words)
        whole = {"metric": run.metric, "fingerprint": run.fingerprint, **before, name: scored}
        write_json(file, Scores.model_validate(whole).as_json())


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    return run_dir.read_hypotheses(path) if path.exists() else {}


@dataclass(frozen=True)
class Live:
    """An adapter on a base of its own, whose strength can be set."""

    base: Base
    model: Any
    layers: list[strength.Trained]
    averaged: tuple[int, ...]


@dataclass
class Search:
    """The candidates of one run. Every rank holds one and does the same."""

    evaluations: Evaluations
    source: Source
    live: Live | None = None

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.evaluations.folder

    @property
    def criteria(self) -> verdict.Criteria:
        """Of the run."""
        return verdict.Criteria.of(self.evaluations.config)

    def candidates(self, strengths: Sequence[float]) -> list[Candidate]:
        """Collective. The adapter at full strength, as it is on the disk, and all that was tried after it."""
        evaluation = run_dir.step_folder(self.folder, self.source.step).name
        found = {name: self._compared(evaluation, name) for name in sorted(self.source.choosing)}
        full = Candidate(self.source.step, 1.0, domain=found.pop("domain"), guardrails=found)
        steps = self.source.steps[-RESCUE_CHECKPOINTS:]
        return rescue.search(full, steps, self._measure, self.criteria, strengths)

    def complete(self, chosen: Candidate) -> None:
        """Collective. Saves the chosen adapter, loads it on a fresh base, and has that write what is missing
        of all sets: what is judged is what was saved."""
        live = self._live(chosen)
        saved = self.folder / SCRATCH / chosen.name
        made = {"strength": chosen.strength, "averaged": list(chosen.averaged)}
        on_main = self.evaluations.on_main
        on_main("saving the adapter", lambda: adapters.save(live.model, saved, None, live.base, made))
        base = self.evaluations.base()
        model = adapters.load(base, saved)
        for name, data in self.evaluations.sets.items():
            self.evaluations.complete(base, model, chosen.name, name, {one.id for one in data.samples})

    def _compared(self, evaluation: str, name: str) -> bootstrap.Comparison:
        """Collective. The base against an evaluation, on the half of a set that chooses."""
        ids = self.source.choosing[name]
        return self.evaluations.on_main("comparing", lambda: _compare(self.folder, evaluation, name, ids))

    def _live(self, candidate: Candidate) -> "Live":
        """Collective. The candidate's adapter on a base, at its strength."""
        if self.live is None or self.live.averaged != candidate.averaged:
            self.live = None  # its memory is free for the next one
            adapter = None if candidate.averaged else self.source.adapter
            if adapter is None:
                adapter = self.folder / SCRATCH / ("mean" if candidate.averaged else "step")
                steps = candidate.averaged or (candidate.step,)
                write = functools.partial(self._of_checkpoints, steps, adapter)
                self.evaluations.on_main("writing the adapter of a checkpoint", write)
            base = self.evaluations.base()
            self.evaluations.check_unchanged(base)
            model = adapters.load(base, adapter)
            self.live = Live(base, model, strength.trained(model), candidate.averaged)
        strength.set_strength(self.live.layers, candidate.strength)
        return self.live

    def _of_checkpoints(self, steps: Sequence[int], adapter: Path) -> None:
        """Only rank 0. The mean of checkpoints as an adapter's folder."""
        config = self.evaluations.config
        paths = (checkpoint.at(self.folder / "checkpoints", step) for step in steps)
        tensors = checkpoint.average([checkpoint.read(path).evaluated for path in paths])
        base = self.evaluations.load_base()
        checkpoint.as_adapter(base, config, tensors, self.folder, adapter)

    def _measure(self, candidate: Candidate, wide: float) -> Candidate:
        """Collective. Evaluates a candidate on the choosing halves, guardrails first.

        The domain is not evaluated where a guardrail's margin is less than `wide`, that of the best so far.
        """
        live, found, choosing = self._live(candidate), {}, self.source.choosing
        for name in sorted(choosing.keys() - {"domain"}):
            self.evaluations.complete(live.base, live.model, candidate.name, name, choosing[name])
            found[name] = self._compared(candidate.name, name)
        domain = None
        if rescue.keeps_guardrails(found, self.criteria, wide):
            self.evaluations.complete(live.base, live.model, candidate.name, "domain", choosing["domain"])
            domain = self._compared(candidate.name, "domain")
        return replace(candidate, domain=domain, guardrails=found)


def _end(
    search: Search,
    record: run_dir.RunDirectory | None,
    tried: list[Candidate],
    chosen: Candidate | None,
    seconds: float,
) -> None:
    """Only rank 0. Judges the chosen candidate, installs it where that is better, and writes rescue.json."""
    assert record is not None
    folder, installed = search.folder, None
    evaluations = len(tried) - 1
    if chosen is None:
        outcome = _nothing_passes(tried, search.criteria)
    elif chosen == tried[0]:
        outcome = "no candidate is better than the adapter at full strength, on the utterances that chose"
    else:
        rescued = Rescued.model_validate(
            {
                "evaluation": chosen.name,
                "step": chosen.step,
                "strength": chosen.strength,
                "averaged": chosen.averaged,
                **{
                    key: {name: len(ids) for name, ids in sorted(of.items())}
                    for key, of in (("choosing", search.source.choosing), ("judging", search.source.judging))
                },
            }
        )
        identity = record.identity.changed(rescue=rescued.as_json(), best_step=chosen.step)
        judged, before = judge.judge(folder, identity), kept_verdict(folder)
        outcome = f"{judged.verdict}: {judged.reason}"
        if before is None or _rank(judged) > _rank(before):
            _install(folder, folder / SCRATCH / chosen.name)
            record.update(rescue=rescued.as_json(), best_step=chosen.step)
            write_json(folder / "verdict.json", judged.as_json())
            installed = chosen.name
        else:
            outcome += "; that is no better than before, so the run stays as it is"
    _write(folder, outcome, installed, evaluations, seconds, tried, search.criteria)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def _rank(judged: Verdict) -> tuple[int, bool]:
    return RANKS[judged.verdict], judged.point


def _install(folder: Path, adapter: Path) -> None:
    """Puts the adapter in the place of adapter_best/, and keeps that and the verdict, once."""
    if not (folder / KEPT).exists():
        with atomic_folder(folder / KEPT) as aside:
            shutil.copytree(folder / "adapter_best", aside / "adapter_best")
            shutil.copy(folder / "verdict.json", aside)
    with atomic_folder(folder / "adapter_best") as aside:
        shutil.copytree(adapter, aside, dirs_exist_ok=True)


def _give_up(folder: Path, why: str) -> None:
    """Only rank 0. Nothing can be rescued."""
    _write(folder, f"nothing was tried: {why}", None, 0, 0.0, [], verdict.Criteria())


def _nothing_passes(tried: Sequence[Candidate], criteria: verdict.Criteria) -> str:
    """Why no candidate can be chosen, with the one that came nearest."""
    limit = criteria.max_heldout_regression
    nearest = min(tried[1:], key=lambda one: max(c.change for c in one.guardrails.values()))
    worst = max(one.change for one in nearest.guardrails.values())
    return (
        f"none of {len(tried) - 1} weaker or averaged adapters keeps the guardrail and the domain's gain; the"
        f" nearest, strength {nearest.strength:g}, regresses by {100 * worst:.2f} points (at most"
        f" {100 * limit:.2f}) on the utterances that choose; try replay (--replay-path)"
    )


def _write(
    folder: Path,
    outcome: str,
    installed: str | None,
    evaluations: int,
    seconds: float,
    tried: Sequence[Candidate],
    criteria: verdict.Criteria,
) -> None:
    found = RescueRecord.model_validate(
        {
            "outcome": outcome,
            "installed": installed,
            "evaluations": evaluations,
            "seconds": round(seconds, 1),
            "tried": [
                {
                    "evaluation": one.name,
                    "step": one.step,
                    "strength": one.strength,
                    "averaged": one.averaged,
                    "margin": rescue.margin(one, criteria),
                    **verdict.sections(one.domain, one.guardrails),
                }
                for one in tried
            ],
        }
    )
    write_json(folder / "rescue.json", found.as_json())
    console.print(f"rescue: {outcome}")
