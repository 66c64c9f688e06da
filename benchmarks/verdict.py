"""How often the verdict's rule is right, where the truth is known because it was made up.

The noise model. An utterance has words (a gamma distribution, rounded) and a difficulty, its own rate
of errors (a beta distribution), so that errors clump in utterances. The tuned system writes most
utterances word for word as the baseline does; the others it writes anew, as well or as badly as
their difficulty says, times a factor that carries the true change. What that leaves out: insertions
that run away, speakers, and recordings that fail as a whole.

The figures below were chosen to match the difference between base and tuned model in the record
"predecessor-recipe" of docs/runs, whose change is small like the ones of interest: there, the squared
differences in errors summed up to 0.079 a word on the domain (WER 26 %) and 0.026 on heldout (WER
4 %); here, to about 0.08 and 0.03.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np

from asrlora.arguments import count
from asrlora.score import bootstrap, verdict

WORDS, WORDS_SPREAD = 15.0, 7.0  # mean and standard deviation, of an utterance
CLUMPING = 0.15  # correlation of two words' errors within an utterance
DOMAIN_WER, HELDOUT_WER = 0.12, 0.05
DOMAIN_REWRITTEN, HELDOUT_REWRITTEN = 0.40, 0.30  # shares of the utterances
HEAD = (
    "| truth | utterances, domain + heldout | margins, points | accept | inconclusive | reject |\n"
    "|---|---|---|---|---|---|"
)
RESAMPLES = 1000  # a trial; the verdict itself takes ten times as many
SEED = 20_261_122


@dataclass(frozen=True)
class Truth:
    """What is true of the systems compared. Changes are of WERs, fractions; below 0 is better."""

    name: str
    domain_change: float
    heldout_change: float
    domain_utterances: int = 1000
    heldout_utterances: int = 1500


@dataclass(frozen=True)
class Rates:
    """Shares of the trials, and half the mean width of both intervals, as fractions."""

    truth: Truth
    accept: float
    inconclusive: float
    reject: float
    domain_margin: float
    heldout_margin: float


TRUTHS = (
    Truth("two identical systems", 0.0, 0.0),
    Truth("domain exactly at its limit, heldout 1 point better", -0.010, -0.010),
    Truth("heldout exactly at its limit, domain 4 points better", -0.040, 0.002),
    Truth("domain 2 points better, heldout unchanged", -0.020, 0.0),
    Truth("the same", -0.020, 0.0, heldout_utterances=3000),
    Truth("the same", -0.020, 0.0, heldout_utterances=6000),
    Truth("domain 2 points better, heldout 0.2 better", -0.020, -0.002),
    Truth("domain 2 points better, heldout 0.4 better", -0.020, -0.004),
    Truth("domain 2 points better, heldout 1 point worse", -0.020, 0.010),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench verdict`."""
    parser.set_defaults(run=_run)
    parser.add_argument("--trials", type=count, default=2000, help="a row (default: 2000)")


def _run(args: argparse.Namespace) -> int:
    print(HEAD)
    for truth in TRUTHS:
        print(as_row(rates(truth, args.trials)), flush=True)
    print(f"\n{seconds():.2f} s of CPU time for 10,000 resamples of 5,000 utterances")
    return 0


def draw_base(
    utterances: int, wer: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By utterance: words of the reference, difficulty (a rate of errors), errors of the base."""
    shape = (WORDS / WORDS_SPREAD) ** 2
    words = np.maximum(1, np.rint(rng.gamma(shape, WORDS / shape, utterances))).astype(np.int64)
    both = 1 / CLUMPING - 1  # the beta's two parameters together
    difficulty = rng.beta(wer * both, (1 - wer) * both, utterances)
    return words, difficulty, rng.binomial(words, difficulty)


def draw(
    utterances: int, wer: float, change: float, rewritten: float, rng: np.random.Generator
) -> np.ndarray:
    """One row an utterance: errors before, errors after, words of the reference."""
    words, difficulty, before = draw_base(utterances, wer, rng)
    anew = rng.binomial(words, np.clip(difficulty * (1 + change / (rewritten * wer)), 0, 1))
    after = np.where(rng.random(utterances) < rewritten, anew, before)
    return np.stack([before, after, words], 1).astype(np.float64)


def rates(truth: Truth, trials: int) -> Rates:
    """Judges `trials` pairs of systems of which `truth` holds."""
    rng = np.random.default_rng(SEED)
    domain_draws, heldout_draws = (
        list(bootstrap.drawings(utterances, RESAMPLES))
        for utterances in (truth.domain_utterances, truth.heldout_utterances)
    )
    verdicts: list[str] = []
    margins = []
    for _ in range(trials):
        domain = draw(truth.domain_utterances, DOMAIN_WER, truth.domain_change, DOMAIN_REWRITTEN, rng)
        heldout = draw(truth.heldout_utterances, HELDOUT_WER, truth.heldout_change, HELDOUT_REWRITTEN, rng)
        on_domain = bootstrap.compare_rows(domain, draws=domain_draws)
        on_heldout = bootstrap.compare_rows(heldout, draws=heldout_draws)
        verdicts.append(verdict.judge(on_domain, on_heldout)["verdict"])
        margins.append([_half(on_domain.change_interval), _half(on_heldout.change_interval)])
    shares = [verdicts.count(name) / trials for name in ("accept", "inconclusive", "reject")]
    return Rates(truth, *shares, *np.mean(margins, axis=0).tolist())


def _half(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2


def as_row(found: Rates) -> str:
    """A row of the table of docs/log/verdict.md; HEAD stands above it."""
    truth = found.truth
    return (
        f"| {truth.name} | {truth.domain_utterances:,} + {truth.heldout_utterances:,}"
        f" | ±{100 * found.domain_margin:.2f}, ±{100 * found.heldout_margin:.2f}"
        f" | {found.accept:.1%} | {found.inconclusive:.1%} | {found.reject:.1%} |"
    )


def seconds(utterances: int = 5000) -> float:
    """CPU time of one comparison of so many utterances, as the verdict makes it."""
    rows = draw(utterances, DOMAIN_WER, -0.02, DOMAIN_REWRITTEN, np.random.default_rng(SEED))
    start = time.process_time()
    bootstrap.compare_rows(rows)
    return time.process_time() - start
