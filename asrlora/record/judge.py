"""The verdict of a run, from its files alone. Needs no torch."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.run_dir import read_hypotheses, step_folder, tallies
from asrlora.record.schema import Rescued, RunRecord, Scores, Verdict, read
from asrlora.score import bootstrap, mapsswe, rescue, selection, verdict
from asrlora.score.metric import Metric, units
from asrlora.score.wer import Tally
from asrlora.storage import write_json


def judge_run(run: Path, resample_by: str | None = None) -> Verdict:
    """The verdict of a run from its files alone; writes verdict.json and returns it.

    `resample_by` is the run's own setting unless given. Raises UserError when the baseline and the
    best step were scored with different fingerprints, on different sets or against different references.
    """
    found = judge(run, run_dir.read_run(run), resample_by)
    write_json(run / "verdict.json", found.as_json())
    return found


def judge(run: Path, identity: RunRecord, resample_by: str | None = None) -> Verdict:
    """What verdict.json would be of a run whose run.json is `identity`."""
    by = resample_by or identity.config.resample_by
    if identity.rescue:
        return _judge_rescue(run, identity, identity.rescue, by)
    best, metric, config = identity.best_step, identity.metric, identity.config
    fingerprint, names = _check_comparable(run, step_folder(run, best))

    def compared(name: str, only: Collection[str] | None = None, step: int = best) -> bootstrap.Comparison:
        """The base against a step on one set."""
        old, new = (step_folder(run, one) / f"{name}.jsonl" for one in (0, step))
        return compare_files(old, new, by, only, metric)

    guarded = [name for name in names if name not in ("domain", selection.REPORT)]
    guardrails = {name: compared(name) for name in guarded}
    heldout = guardrails.pop("heldout", None)
    domain, chosen_on, report = compared("domain"), None, None
    halves: Mapping[str, Collection[str]] = {}
    if selection.REPORT in names:
        chosen_on, report = domain, compared(selection.REPORT)
    elif config.report_manifest == "auto":
        halves = selection.halves(read_hypotheses(step_folder(run, 0) / "domain.jsonl"))
        if halves:
            chosen_on = compared("domain", halves[selection.CHOSEN_ON])
            report = compared("domain", halves[selection.REPORT])
    judged = verdict.judge(
        domain, heldout, config.criteria, further=guardrails, chosen_on=chosen_on, report=report
    )
    more = {}
    choosing = halves.get(selection.CHOSEN_ON)
    if best == 0 and (step := _lowest(run, metric, choosing)):
        _check_comparable(run, step_folder(run, step))
        on_choosing = compared("domain", choosing, step)
        if on_choosing.change >= 0:
            judged["reason"] = verdict.not_lowered(step, on_choosing)
        else:
            costs = {name: compared(name, step=step) for name in guarded}
            whole = on_choosing if choosing is None else compared("domain", step=step)
            if learned := verdict.learned(step, whole, costs, config.criteria):
                more["learned"], judged["reason"] = learned
    return Verdict.model_validate({**judged, "best_step": best, **more, "fingerprint": fingerprint})


def _judge_rescue(run: Path, identity: RunRecord, chosen: Rescued, by: str) -> Verdict:
    """The verdict on a weaker or averaged adapter, on the utterances that had no say in its choice."""
    old, new = step_folder(run, 0), run / "eval" / chosen.evaluation
    fingerprint, names = _check_comparable(run, new)
    choosing, judging = rescue.split({name: read_hypotheses(old / f"{name}.jsonl") for name in names})

    def compared(name: str, of: Mapping[str, Collection[str]]) -> bootstrap.Comparison:
        """The base against the adapter on half of a set."""
        return compare_files(old / f"{name}.jsonl", new / f"{name}.jsonl", by, of[name], identity.metric)

    guardrails = {name: compared(name, judging) for name in judging.keys() - {"domain", selection.REPORT}}
    judged = verdict.judge(
        compared("domain" if "domain" in judging else selection.REPORT, judging),
        guardrails.pop("heldout", None),
        identity.config.criteria,
        further=guardrails,
        chosen_on=compared("domain", choosing),
    )
    judged["reason"] = f"{chosen.describe()}: {judged['reason']}"
    more = {"best_step": chosen.step, "rescue": chosen.as_json(), "fingerprint": fingerprint}
    return Verdict.model_validate({**judged, **more})


def _lowest(run: Path, metric: Metric, choosing: Collection[str] | None) -> int:
    """The step behind 0 with the lowest domain rate, of those whose hypotheses are there, on the utterances
    that may choose: all where `choosing` is None. 0 where there is no such step."""
    rates = {}
    for step in run_dir.read_scores(run):
        if step and (path := step_folder(run, step) / "domain.jsonl").exists():
            counts = run_dir.read_counts(path, metric)
            rates[step] = sum((counts[i] for i in choosing or counts if i in counts), Tally()).rate
    return min(rates, key=lambda step: (rates[step], step), default=0)


def _check_comparable(run: Path, new: Path) -> tuple[dict[str, Any], list[str]]:
    """The fingerprint and the names of the sets that step 0 and another evaluation of the run share.

    Raises UserError where they differ.
    """
    folders = (step_folder(run, 0), new)
    before, after = (read(folder / "scores.json", Scores).fingerprint for folder in folders)
    _check_same(run, new, before, after)
    names = [sorted(path.stem for path in folder.glob("*.jsonl")) for folder in folders]
    _check_same(run, new, *({f"set {name}": "there" for name in found} for found in names))
    return before, names[0]


def _check_same(run: Path, new: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises UserError that names the first key in which step 0 and another evaluation differ."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            what = f"step {int(new.name[5:])}" if new.name.startswith("step-") else new.name
            raise UserError(
                f"{run}: step 0 and {what} differ in {name} ({before.get(name)} and"
                f" {after.get(name)}); they cannot be compared"
            )


def compare_files(
    old: Path,
    new: Path,
    resample_by: str,
    only: Collection[str] | None = None,
    metric: Metric = "wer",
) -> bootstrap.Comparison:
    """Two systems' scored lines. Raises UserError unless both were scored against the same references.

    `resample_by` is "auto", "utterance" or "speaker", as bootstrap.choose_speakers has them. `only` these ids
    are compared, all unless given.
    """
    before, after = (
        {i: line for i, line in read_hypotheses(path).items() if only is None or i in only}
        for path in (old, new)
    )
    both = sorted(before.keys() & after.keys())  # compare() refuses what only one of them has
    for i in both:
        if before[i]["reference"] != after[i]["reference"]:
            raise UserError(
                f"{old} and {new}: the reference of {i!r} differs ({before[i]['reference']!r} and"
                f" {after[i]['reference']!r}), so the texts were normalised in two ways; score both alike"
            )
    named = {i: line.get("speaker") for i, line in before.items()}
    speakers, too_few = bootstrap.choose_speakers(str(old), named, resample_by)
    segments = []
    for i in both:
        texts = before[i]["reference"], before[i]["hypothesis"], after[i]["hypothesis"]
        reference, first, second = (units(text, metric) for text in texts)
        segments += mapsswe.segments(reference, first, second)
    compared = bootstrap.compare(tallies(before, metric), tallies(after, metric), speakers, segments)
    compared = replace(compared, too_few=too_few)
    if metric == "wer":
        return compared
    words = [sum(tallies(lines, "wer").values(), Tally()) for lines in (before, after)]
    return replace(compared, metric=metric, words=(words[0], words[1]))
