"""Which weaker or averaged form of an adapter keeps what was learned and is held to have forgotten least.

A *candidate* is the adapter of a step at some strength, or the mean of several checkpoints. Candidates are
compared on one half of each evaluation set only, and the verdict is given on the other half: the choice among
many looks better on what it was made on than it is.

The rule of choice: of the candidates that meet all criteria with a margin, the one with the lowest domain
error rate. The margin is as wide as any candidate allows: first the whole reach of the 95 % interval, then
one standard error (as in the "one standard error rule" of Breiman et al., Classification and Regression
Trees, 1984), then none. The plain rule of checkpoint selection, which has no margin, would take the strongest
candidate that just passes, and about half of those fail on other utterances.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from asrlora.score.bootstrap import Comparison
from asrlora.score.selection import REPORT, second_half
from asrlora.score.verdict import Criteria

MAX_EVALUATIONS = 8
MARGINS = (1.96, 1.0, 0.0)  # in standard errors
RESOLUTION = 0.13  # a strength's distance from its neighbours at which the search ends
FEWEST = 20  # utterances in either half; fewer show nothing

Halves = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Candidate:
    """What was measured of an adapter, against the base, on the half that may choose."""

    step: int
    strength: float
    averaged: tuple[int, ...] = ()  # steps whose checkpoints were averaged
    domain: Comparison | None = None  # None: ruled out before the domain was evaluated
    guardrails: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder below eval/."""
        of = "mean-" + "-".join(map(str, self.averaged)) if self.averaged else f"step-{self.step:06d}"
        return f"strength-{self.strength:g}-{of}"


def split(sets: Mapping[str, Collection[str]]) -> tuple[Halves, Halves]:
    """(ids that choose, ids that judge), by set: the halves by which a step is chosen.

    Where utterances of their own judge the step (--report-manifest), they do so here, and all of the domain
    chooses.
    """
    judging = {name: second_half(ids) for name, ids in sets.items()}
    choosing = {name: frozenset(ids) - judging[name] for name, ids in sets.items()}
    if REPORT in sets:
        choosing["domain"], judging[REPORT] = frozenset(sets["domain"]), frozenset(sets[REPORT])
        del choosing[REPORT], judging["domain"]
    return choosing, judging


def margin(candidate: Candidate, criteria: Criteria) -> float | None:
    """The widest of MARGINS at which all criteria are met; None where none is."""
    if candidate.domain is None:
        return None
    asked = [(candidate.domain, -criteria.min_domain_reduction)]
    asked += [(one, criteria.max_heldout_regression) for one in candidate.guardrails.values()]
    return next((wide for wide in MARGINS if all(_below(one, limit, wide) for one, limit in asked)), None)


def keeps_guardrails(guardrails: Mapping[str, Comparison], criteria: Criteria, wide: float) -> bool:
    """Whether the domain is worth evaluating: every regression keeps the margin of the best candidate so far;
    with less, this one could not be chosen."""
    return all(_below(one, criteria.max_heldout_regression, wide) for one in guardrails.values())


def _below(one: Comparison, limit: float, wide: float) -> bool:
    """Whether the change, so many standard errors worse, is still not above the limit."""
    return one.change + wide / MARGINS[0] * (one.change_interval[1] - one.change) <= limit


def choose(candidates: Sequence[Candidate], criteria: Criteria) -> Candidate | None:
    """The best candidate by the rule above; None where none meets the criteria by points."""
    margins = [(one, margin(one, criteria)) for one in candidates]
    widest = max((wide for _, wide in margins if wide is not None), default=None)
    best = [one for one, wide in margins if wide is not None and wide == widest]
    return min(best, key=_domain_rate, default=None)


def _domain_rate(candidate: Candidate) -> float:
    assert candidate.domain is not None
    return candidate.domain.tuned


def is_shown(candidate: Candidate | None, criteria: Criteria) -> bool:
    """Whether the half that chose shows by its intervals what the verdict asks for."""
    return candidate is not None and margin(candidate, criteria) == MARGINS[0]


def search(
    full: Candidate,
    steps: Sequence[int],
    measure: Callable[[Candidate, float], Candidate],
    criteria: Criteria,
    strengths: Sequence[float] = (),
) -> list[Candidate]:
    """`full`, and the candidates that were tried after it, each as `measure` gives it back, which is told the
    margin of the best one so far.

    Strengths of one adapter first; then, where none of them is shown to pass, the mean of the checkpoints of
    `steps`, as it is and weakened. Only `strengths`, where some are given.
    """
    tried = [full]
    if strengths:
        return tried + [measure(Candidate(full.step, strength), MARGINS[-1]) for strength in strengths]
    while (strength := next_strength(tried, criteria)) is not None:
        tried.append(measure(Candidate(full.step, strength), _widest(tried, criteria)))
    best = choose(tried, criteria)
    if len(steps) > 1 and not is_shown(best, criteria):
        weaker = best.strength if best and best.strength < 1 else 0.5
        for strength in (1.0, weaker)[: MAX_EVALUATIONS - len(tried) + 1]:
            candidate = Candidate(full.step, strength, tuple(steps))
            tried.append(measure(candidate, _widest(tried, criteria)))
    return tried


def _widest(tried: Sequence[Candidate], criteria: Criteria) -> float:
    """The margin of the best candidate so far; none at all where none passes."""
    best = choose(tried, criteria)
    return (best and margin(best, criteria)) or MARGINS[-1]


def next_strength(tried: Sequence[Candidate], criteria: Criteria) -> float | None:
    """The strength to try next, from candidates of one adapter at full strength and below; None at the end.

    Coarse first: a half, then three quarters where a half passes with a margin, a quarter where nothing is
    shown to pass; then between the best so far and its stronger neighbour.
    """
    by_strength = {one.strength: one for one in tried}
    if 0.5 not in by_strength:
        return 0.5
    if 0.75 not in by_strength and (margin(by_strength[0.5], criteria) or 0.0) > MARGINS[-1]:
        return 0.75
    best = choose(tried, criteria)
    if 0.25 not in by_strength and not is_shown(best, criteria):
        return 0.25
    if best is None:
        return None if 0.125 in by_strength else 0.125
    stronger = min((strength for strength in by_strength if strength > best.strength), default=best.strength)
    return (best.strength + stronger) / 2 if stronger - best.strength > RESOLUTION else None
