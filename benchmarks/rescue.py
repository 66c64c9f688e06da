"""How often a rescue ends in a false accept, where the truth is known because it was made up.

The noise model is that of benchmarks/verdict.py. An adapter at strength s rewrites a share s of what it
rewrites at full strength, and writes each of these anew at every strength, so that there is as much to choose
from as can be. A rescue's own search, choice and verdict run on it, means of checkpoints included.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from asrlora.arguments import count
from asrlora.score import bootstrap, rescue, verdict
from asrlora.score.rescue import Candidate
from benchmarks import verdict as model

HEAD = (
    "| truth | a true accept | accept | inconclusive | reject | nothing to judge | evaluations |\n"
    + "|---" * 7
    + "|"
)
RESAMPLES = 1000  # a trial
DOMAIN, HELDOUT = 1000, 3000  # utterances, in both halves together
SEED = 20_261_129
STEPS = (100, 200, 300)


@dataclass(frozen=True)
class Truth:
    """What is true of an adapter at a strength. Changes of WERs, fractions; below 0 is better."""

    name: str
    domain: Callable[[float], float]
    heldout: Callable[[float], float]
    acceptable: bool  # whether any strength meets the criteria with room to spare


TRUTHS = (
    Truth("an adapter that changes nothing (A/A)", lambda s: 0.0, lambda s: 0.0, False),
    Truth("domain at its limit at every strength", lambda s: -0.01, lambda s: -0.01, False),
    Truth("heldout at its limit at every strength", lambda s: -0.04, lambda s: 0.002, False),
    Truth(
        "forgets in proportion, never below the limit",
        lambda s: -0.06 * s,
        lambda s: max(0.002, 0.01 * s),
        False,
    ),
    Truth("forgets, and learns nothing", lambda s: 0.0, lambda s: 0.01 * s, False),
    Truth(
        "heldout better up to a half, 1 point worse at full",
        lambda s: -0.06 * s,
        lambda s: 0.03 * s * s - 0.02 * s,
        True,
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench rescue`."""
    parser.set_defaults(run=_run)
    parser.add_argument("--trials", type=count, default=1000, help="a row (default: 1000)")


def _run(args: argparse.Namespace) -> int:
    print(HEAD)
    for truth in TRUTHS:
        shares, evaluations = rates(truth, args.trials)
        cells = [f"{shares[name]:.1%}" for name in ("accept", "inconclusive", "reject", "none")]
        true = "yes" if truth.acceptable else "no"
        print(f"| {truth.name} | {true} | {' | '.join(cells)} | {evaluations:.1f} |", flush=True)
    return 0


def rates(truth: Truth, trials: int) -> tuple[dict[str, float], float]:
    """Shares of the verdicts, "none" where nothing could be chosen, and the mean number of evaluations."""
    rng = np.random.default_rng(SEED)
    verdicts, evaluations = [], 0
    for _ in range(trials):
        outcome, tried = _trial(truth, rng)
        verdicts.append(outcome)
        evaluations += tried
    names = ("accept", "inconclusive", "reject", "none")
    return {name: verdicts.count(name) / trials for name in names}, evaluations / trials


@dataclass
class Speech:
    """A set's utterances, written by the base, and anew by an adapter at each strength."""

    words: np.ndarray
    difficulty: np.ndarray
    before: np.ndarray
    order: np.ndarray  # in (0, 1): at which strength an utterance is rewritten
    wer: float
    rewritten: float

    @classmethod
    def draw(cls, utterances: int, wer: float, rewritten: float, rng: np.random.Generator) -> "Speech":
        """New utterances, by the model of benchmarks/verdict.py."""
        words, difficulty, before = model.draw_base(utterances, wer, rng)
        return cls(words, difficulty, before, rng.random(utterances), wer, rewritten)

    def rows(self, strength: float, change: float, rng: np.random.Generator) -> np.ndarray:
        """(utterances, 3): errors of the base, errors at this strength, words."""
        share = self.rewritten * strength
        anew = rng.binomial(self.words, np.clip(self.difficulty * (1 + change / (share * self.wer)), 0, 1))
        after = np.where(self.order < share, anew, self.before)
        return np.stack([self.before, after, self.words], 1).astype(np.float64)


@lru_cache
def _draws(units: int) -> list[np.ndarray]:
    return list(bootstrap.drawings(units, RESAMPLES))


def _compare(rows: np.ndarray) -> bootstrap.Comparison:
    return bootstrap.compare_rows(rows, draws=_draws(len(rows)))


def _trial(truth: Truth, rng: np.random.Generator) -> tuple[str, int]:
    """The verdict of one rescue, and its number of evaluations."""
    domain = Speech.draw(DOMAIN, model.DOMAIN_WER, model.DOMAIN_REWRITTEN, rng)
    heldout = Speech.draw(HELDOUT, model.HELDOUT_WER, model.HELDOUT_REWRITTEN, rng)
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    criteria = verdict.Criteria()

    def measure(candidate: Candidate, wide: float) -> Candidate:
        """On the first half of each set."""
        s = candidate.strength
        both = (domain.rows(s, truth.domain(s), rng), heldout.rows(s, truth.heldout(s), rng))
        written[candidate.name] = both
        on_domain, on_heldout = (_compare(rows[: len(rows) // 2]) for rows in both)
        guardrails = {"heldout": on_heldout}
        kept = rescue.keeps_guardrails(guardrails, criteria, wide)
        return replace(candidate, domain=on_domain if kept else None, guardrails=guardrails)

    tried = rescue.search(measure(Candidate(300, 1.0), 0.0), STEPS, measure, criteria)
    chosen = rescue.choose(tried, criteria)
    if chosen is None:
        return "none", len(tried) - 1
    on_domain, on_heldout = (_compare(rows[len(rows) // 2 :]) for rows in written[chosen.name])
    return verdict.judge(on_domain, on_heldout, criteria)["verdict"], len(tried) - 1
