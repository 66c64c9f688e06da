"""The choice among weaker adapters: what is taken, how many are tried, and that nobody peeks."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlora.score import rescue
from asrlora.score.bootstrap import Comparison
from asrlora.score.rescue import Candidate
from asrlora.score.selection import REPORT
from asrlora.score.verdict import Criteria

CRITERIA = Criteria(min_domain_reduction=0.01, max_heldout_regression=0.002)


def change(points: float, reach: float = 0.1, baseline: float = 20.0) -> Comparison:
    """A comparison whose change and half interval are these, in points."""
    low, high = points - reach, points + reach
    return Comparison(
        baseline=baseline / 100,
        baseline_interval=(0.0, 1.0),
        tuned=(baseline + points) / 100,
        tuned_interval=(0.0, 1.0),
        change=points / 100,
        change_interval=(low / 100, high / 100),
        utterances=500,
        length=5000,
        improvement_probability=0.5,
        resampled="utterance",
        units=500,
        mapsswe=None,
    )


def candidate(strength: float, domain: float | None, heldout: float, reach: float = 0.1) -> Candidate:
    on_domain = None if domain is None else change(domain, reach)
    return Candidate(300, strength, (), on_domain, {"heldout": change(heldout, reach, 5.0)})


def test_the_strongest_that_is_shown_to_pass_is_taken_before_a_stronger_one_that_may_pass() -> None:
    shown, may, fails = candidate(0.5, -5, 0.0), candidate(0.75, -8, 0.15), candidate(1.0, -10, 1.0)
    weaker = candidate(0.25, -3, -0.1)
    assert rescue.choose([fails, may, shown, weaker], CRITERIA) is shown
    assert rescue.margin(shown, CRITERIA) == rescue.MARGINS[0]
    assert rescue.margin(fails, CRITERIA) is None
    # 0.15 and one standard error of 0.1 / 1.96 points is 0.201: past 0.20
    assert rescue.margin(may, CRITERIA) == 0.0
    assert rescue.margin(candidate(0.75, -8, 0.14), CRITERIA) == 1.0
    assert rescue.choose([fails, may], CRITERIA) is may
    assert rescue.choose([fails], CRITERIA) is None


def test_every_guardrail_and_the_domain_must_be_met() -> None:
    good = candidate(0.5, -5, 0.0)
    second = replace(good, guardrails={**good.guardrails, "calls": change(0.5)})
    assert rescue.choose([second], CRITERIA) is None
    assert rescue.choose([candidate(0.5, -0.9, -1.0)], CRITERIA) is None
    assert rescue.choose([candidate(0.5, None, -1.0)], CRITERIA) is None


@given(st.floats(-8, 8), st.floats(-4, 8), st.floats(0.01, 2.0), st.floats(0.3, 3), st.integers(0, 5))
def test_a_search_ends_within_its_evaluations_and_never_tries_one_twice(
    gain: float, cost: float, reach: float, bend: float, checkpoints: int
) -> None:
    names: list[str] = []

    def measure(one: Candidate, wide: float = 0.0) -> Candidate:
        names.append(one.name)
        at = one.strength
        found = candidate(at, gain * at, cost * math.pow(at, bend), reach)
        kept = rescue.keeps_guardrails(found.guardrails, CRITERIA, wide)
        return replace(one, domain=found.domain if kept else None, guardrails=found.guardrails)

    steps = range(100, 100 + checkpoints)
    full = candidate(1.0, gain, cost, reach)
    tried = rescue.search(full, steps, measure, CRITERIA)
    assert len(tried) - 1 == len(names) == len(set(names)) <= rescue.MAX_EVALUATIONS
    assert all(0 < one.strength <= 1 for one in tried)
    chosen = rescue.choose(tried, CRITERIA)
    if chosen is not None:
        assert chosen.domain is not None
        assert chosen.domain.change <= -0.01
        assert chosen.guardrails["heldout"].change <= 0.002 + 1e-12


def test_the_search_ends_near_the_strongest_that_passes() -> None:
    """Heldout passes up to 0.6 of the strength: 0.5 and its stronger neighbours are tried, and no mean."""

    def measure(one: Candidate, wide: float = 0.0) -> Candidate:
        at = one.strength
        found = candidate(at, -10 * at, 0.0 if at <= 0.6 else 1.0, 0.05)
        kept = rescue.keeps_guardrails(found.guardrails, CRITERIA, wide)
        return replace(one, domain=found.domain if kept else None, guardrails=found.guardrails)

    tried = rescue.search(measure(Candidate(300, 1.0)), [200, 300], measure, CRITERIA)
    assert [one.strength for one in tried] == [1.0, 0.5, 0.75, 0.625]
    chosen = rescue.choose(tried, CRITERIA)
    assert chosen is not None
    assert chosen.strength == 0.5


def test_nothing_is_evaluated_that_cannot_be_chosen() -> None:
    """Heldout passes at a half by points only, and at a quarter with a margin: nothing stronger than a half
    is tried, and between them only heldout is evaluated."""
    wides = []

    def measure(one: Candidate, wide: float) -> Candidate:
        wides.append(wide)
        found = candidate(one.strength, -10 * one.strength, 0.1 if one.strength > 0.25 else -0.1, 0.5)
        kept = rescue.keeps_guardrails(found.guardrails, CRITERIA, wide)
        return replace(one, domain=found.domain if kept else None, guardrails=found.guardrails)

    tried = rescue.search(candidate(1.0, -10, 1.0), [300], measure, CRITERIA)
    assert [one.strength for one in tried] == [1.0, 0.5, 0.25, 0.375]
    assert wides == [0.0, 0.0, 1.0]
    assert [one.domain is None for one in tried] == [False, False, False, True]
    chosen = rescue.choose(tried, CRITERIA)
    assert chosen is not None
    assert chosen.strength == 0.25


def test_means_of_checkpoints_are_tried_where_no_strength_is_shown_to_pass() -> None:
    def measure(one: Candidate, wide: float = 0.0) -> Candidate:
        return replace(one, domain=change(-5), guardrails={"heldout": change(-0.5 if one.averaged else 0.15)})

    tried = rescue.search(candidate(1.0, -8, 1.0), [100, 200], measure, CRITERIA)
    assert [one.name for one in tried][-2:] == ["strength-1-mean-100-200", "strength-0.5-mean-100-200"]
    assert rescue.choose(tried, CRITERIA) in tried[-2:]
    alone = rescue.search(candidate(1.0, -8, 1.0), [200], measure, CRITERIA)
    assert not any(one.averaged for one in alone)
    given_ones = rescue.search(candidate(1.0, -8, 1.0), [100, 200], measure, CRITERIA, [0.3, 1.2])
    assert [one.strength for one in given_ones] == [1.0, 0.3, 1.2]


@given(st.sets(st.text("abc", min_size=1, max_size=6), min_size=1), st.booleans())
def test_no_utterance_both_chooses_and_judges(ids: set[str], apart: bool) -> None:
    sets = {"domain": ids, "heldout": ids} | ({REPORT: {"r1", "r2"}} if apart else {})
    choosing, judging = rescue.split(sets)
    for name, whole in sets.items():
        parts = [side.get(name, frozenset()) for side in (choosing, judging)]
        assert parts[0] | parts[1] == whole
        assert not parts[0] & parts[1]
    if apart:
        assert choosing["domain"] == ids
        assert judging[REPORT] == {"r1", "r2"}


@pytest.mark.parametrize("averaged", [(), (100, 200)])
def test_a_candidate_is_named_by_what_it_is(averaged: tuple[int, ...]) -> None:
    names = {Candidate(300, at, averaged).name for at in (0.125, 0.5, 0.5625, 1.0)}
    assert len(names) == 4
    assert all(name.startswith("strength-") for name in names)
