"""Intervals by speakers: when, against a plain loop, and what the verdict says where they cannot be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from asrlora.errors import UserError
from asrlora.score import bootstrap, power, verdict
from asrlora.score.wer import Tally

Speakers = dict[str, str | None]


def named(speakers: int, each: int = 3, without: int = 0) -> Speakers:
    """Utterances of so many speakers, and some of nobody."""
    found: Speakers = {f"u{s:03}-{n}": f"s{s:03}" for s in range(speakers) for n in range(each)}
    return found | {f"x{n}": None for n in range(without)}


@pytest.mark.parametrize(
    ("speakers", "drawn", "too_few"),
    [
        (named(20), "speaker", ""),
        (named(125), "speaker", ""),
        (named(19), "utterance", "19 speakers"),
        (named(1, 385), "utterance", "1 speaker"),
        (named(0, without=7), "utterance", "no speaker"),
        (named(30, without=2), "utterance", "no speaker of 2 utterances"),
        ({}, "utterance", "no speaker"),
    ],
)
def test_auto_draws_speakers_where_there_are_enough(speakers: Speakers, drawn: str, too_few: str) -> None:
    chosen, why = bootstrap.choose_speakers("domain", speakers, "auto")
    assert (chosen, why) == (speakers if drawn == "speaker" else None, too_few)
    assert bootstrap.choose_speakers("domain", speakers, "utterance") == (None, "")
    if drawn == "speaker":
        assert bootstrap.choose_speakers("domain", speakers, "speaker") == (speakers, "")
    elif speakers:
        with pytest.raises(UserError, match="--resample-by speaker: domain "):
            bootstrap.choose_speakers("domain", speakers, "speaker")


def two_systems(speakers: Speakers, seed: int = 1, spread: float = 2.0) -> list[dict[str, Tally]]:
    """Before and after: `spread` is how much the change differs between speakers, in errors an utterance."""
    rng = np.random.default_rng(seed)
    of = {name: rng.normal(0, spread) for name in sorted({str(s) for s in speakers.values()})}
    systems: list[dict[str, Tally]] = [{}, {}]
    for i, speaker in speakers.items():
        length = int(rng.integers(8, 20))
        errors = (rng.poisson(3), rng.poisson(3) + round(of[str(speaker)]))
        for system, wrong in zip(systems, errors, strict=True):
            system[i] = Tally(int(np.clip(wrong, 0, length)), length)
    return systems


def test_the_interval_is_that_of_a_plain_loop_over_speakers() -> None:
    """Random units of the same generator, each speaker's utterances gathered by hand; and scipy's own."""
    speakers = named(25, each=4)
    before, after = two_systems(speakers)
    chosen, _ = bootstrap.choose_speakers("domain", speakers, "auto")
    found = bootstrap.compare(before, after, chosen)
    ids: dict[str, list[str]] = {}
    for i in sorted(speakers):
        ids.setdefault(str(speakers[i]), []).append(i)
    rng, changes = np.random.default_rng(bootstrap.SEED), []
    for _ in range(bootstrap.RESAMPLES // bootstrap.BATCH):
        for drawn in rng.integers(0, len(ids), (bootstrap.BATCH, len(ids))):
            said = [i for speaker in drawn for i in list(ids.values())[speaker]]
            length = sum(before[i].length for i in said)
            changes.append(sum(after[i].errors - before[i].errors for i in said) / length)
    assert found.change_interval == pytest.approx(tuple(np.percentile(changes, (2.5, 97.5))), abs=1e-12)
    assert (found.resampled, found.units, found.utterances) == ("speaker", 25, 100)

    sums = [
        [sum(getattr(system[i], what) for i in of) for of in ids.values()]
        for system, what in ((before, "errors"), (after, "errors"), (before, "length"))
    ]
    theirs = stats.bootstrap(
        sums, lambda a, b, n, axis=-1: (b.sum(axis) - a.sum(axis)) / n.sum(axis), paired=True,
        vectorized=True, n_resamples=9_999, method="percentile", rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    width = found.change_interval[1] - found.change_interval[0]
    assert found.change_interval == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_many_systems_are_drawn_as_a_pair_is() -> None:
    speakers = named(30)
    before, after = two_systems(speakers)
    chosen, _ = bootstrap.choose_speakers("domain", speakers, "auto")
    old, new = bootstrap.resample([before, after], chosen)
    alone = bootstrap.compare(before, after, chosen)
    assert bootstrap.interval(new - old) == pytest.approx(alone.change_interval, abs=1e-12)
    assert bootstrap.interval(new) == pytest.approx(alone.tuned_interval, abs=1e-12)


def covered(by: str, trials: int = 200) -> int:
    """Of systems that change nothing on average: how often the interval holds 0."""
    speakers = named(40, each=15)
    chosen, _ = bootstrap.choose_speakers("domain", speakers, by)
    names, found = None if chosen is None else list(chosen.values()), 0
    draws = list(bootstrap.drawings(600 if names is None else 40, 1_000))
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        change = np.repeat(rng.normal(0, 1, 40), 15) + rng.normal(0, 1, 600)
        rows = np.stack([np.full(600, 20.0), 20 + change, np.full(600, 100.0)], axis=1)
        low, high = bootstrap.compare_rows(rows, names, draws=draws).change_interval
        found += low <= 0 <= high
    return found


def test_where_speakers_differ_the_interval_by_utterance_promises_too_much() -> None:
    """95 % of 200 are 190; with speakers who differ as much as their utterances, a third of the width."""
    assert covered("auto") >= 175
    assert covered("utterance") <= 120


def test_the_margin_of_the_audit_is_that_of_speakers() -> None:
    speakers = named(60, each=10)
    rng = np.random.default_rng(3)
    rate = dict(zip(sorted({str(s) for s in speakers.values()}), rng.beta(2, 8, 60), strict=True))
    before = {i: Tally(int(rng.binomial(12, rate[str(s)])), 12) for i, s in speakers.items()}
    chosen, _ = bootstrap.choose_speakers("domain", speakers, "auto")
    low, high = bootstrap.compare(before, before, chosen).baseline_interval
    counts, names = list(before.values()), [str(s) for s in speakers.values()]
    assert power.measured_margin(counts, names) == pytest.approx((high - low) / 2, rel=0.06)
    assert power.measured_margin(counts) < 0.7 * power.measured_margin(counts, names)


def judged(domain: Speakers, heldout: Speakers, by: str = "auto", **guardrails: Speakers) -> dict[str, Any]:
    """The verdict on two systems that speakers of each set tell apart."""
    found = {}
    for name, speakers in {"domain": domain, "heldout": heldout, **guardrails}.items():
        chosen, too_few = bootstrap.choose_speakers(name, speakers, by)
        compared = bootstrap.compare(*two_systems(speakers), chosen)
        found[name] = replace(compared, too_few=too_few)
    held = found.pop("heldout")
    return verdict.judge(found.pop("domain"), held, further=found)


NOT = "intervals draw utterances, not speakers, where a set names fewer than 20: "


def test_the_verdict_says_which_set_drew_utterances() -> None:
    """A heldout manifest of one speaker, as LJ Speech is."""
    found = judged(named(25), named(1, 385))
    assert found["domain"]["resampled"] == {"by": "speaker", "units": 25}
    assert found["heldout"]["resampled"] == {"by": "utterance", "units": 385, "too_few": "1 speaker"}
    assert found["reason"].endswith(f"; {NOT}heldout names 1 speaker")


def test_sets_of_which_the_same_is_true_are_named_together() -> None:
    nobody = named(0, without=30)
    reason = judged(nobody, nobody, far=named(4))["reason"]
    clause = "domain and heldout name no speaker and far names 4 speakers"
    assert reason.endswith(f"; {NOT}{clause}")


def test_nothing_is_said_where_nothing_else_was_asked_for() -> None:
    for found in (judged(named(25), named(30)), judged(named(2), named(3), by="utterance")):
        assert NOT not in found["reason"]
        assert "too_few" not in found["domain"]["resampled"]


def test_an_open_criterion_says_how_many_speakers_would_settle_it() -> None:
    judgement = judged(named(25), named(25))["judgements"]["heldout"]
    assert judgement["outcome"] == "open"
    speakers = -(-25 * judgement["enough"] // 75)
    would = f"about {judgement['enough']:,} such ones of {speakers:,} speakers would"
    assert judgement["reason"].endswith(f"by 75 utterances of 25 speakers; {would}")


def test_what_a_step_learned_comes_with_the_same_clause() -> None:
    before, after = two_systems(named(3, 30), spread=0)
    worse, better = bootstrap.compare(before, after), bootstrap.compare(after, before)
    worse = replace(worse if worse.change > 0 else better, too_few="3 speakers")
    better = replace(worse, change=-worse.change)
    learned = verdict.learned(4, better, {"heldout": worse})
    assert learned is not None
    assert learned[1].endswith(f"; {NOT}domain and heldout name 3 speakers")
