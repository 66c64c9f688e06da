"""Which step becomes the best adapter, and which utterances have no say in it.

The best of N checkpoints looks better on the manifest that it was chosen on than it is (selection bias). So
part of the domain is held out from choosing, and its WER is shown beside the WER of the whole.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import TypeVar

from asrlora.score.verdict import Criteria, within_guardrail

# Each half then has about 200 utterances. Fewer gave this project's predecessor lucky averages, and a
# choice among checkpoints by fewer would lose more by its own noise than the honest number is worth.
LARGE_ENOUGH = 400
CHOSEN_ON, REPORT = "domain_chosen_on", "domain_report"

T = TypeVar("T")


def held_out(ids: Collection[str]) -> frozenset[str]:
    """About half of the ids; none where there are fewer than LARGE_ENOUGH.

    One bit of a hash of the id alone decides: no seed, no order, and an utterance stays on its side
    when others join the manifest. Speakers may be on both sides.
    """
    if len(ids) < LARGE_ENOUGH:
        return frozenset()
    return second_half(ids)


def second_half(ids: Collection[str]) -> frozenset[str]:
    """The half that `held_out` takes, of however few ids."""
    return frozenset(i for i in ids if hashlib.sha256(f"held out/{i}".encode()).digest()[0] % 2)


def halves(domain: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Both parts of what is known by utterance id, by their names; {} where nothing is held out."""
    out = held_out(domain)
    if not out:
        return {}
    return {
        CHOSEN_ON: {i: one for i, one in domain.items() if i not in out},
        REPORT: {i: one for i, one in domain.items() if i in out},
    }


def is_better(
    chosen_on: float,
    best: float,
    guardrails: Mapping[str, float],
    baseline: Mapping[str, float],
    criteria: Criteria = Criteria(),
) -> bool:
    """Whether a step takes the place of the best one so far, which has a rate of `best`.

    `chosen_on` is the step's error rate on what may choose; `guardrails` are its rates there, each of which
    must be inside its own limit, and `baseline` holds the base's. All are fractions, of one metric.
    """
    inside = all(within_guardrail(rate, baseline[name], criteria) for name, rate in guardrails.items())
    return inside and chosen_on < best
