"""Bootstrap intervals of many systems at once, on the resamples of `verdict.compare`."""

from collections.abc import Mapping, Sequence

import numpy as np

from asrlora.errors import UserError
from asrlora.score import verdict
from asrlora.score.wer import Tally

Interval = tuple[float, float]


def resample(systems: Sequence[Mapping[str, Tally]]) -> np.ndarray:
    """Error rates of all systems in each resample of the utterances: (systems, RESAMPLES).

    The resamples are those of `verdict.compare`, drawn once for all: a pair's interval is the one
    that it gives, at the price of one comparison instead of one for each pair.
    Raises UserError where the systems were scored on different utterances.
    """
    ids = sorted(systems[0])
    for system in systems:
        if system.keys() != systems[0].keys():
            raise UserError(
                "runs of one fingerprint hold different utterances, such as"
                f" {sorted(system.keys() ^ systems[0].keys())[0]!r}; a file of hypotheses is damaged"
            )
    errors = np.array([[float(system[i].errors) for system in systems] for i in ids])  # (N, systems)
    lengths = np.array([float(systems[0][i].length) for i in ids])
    rng = np.random.default_rng(verdict.SEED)
    drawn = []
    for _ in range(verdict.RESAMPLES // verdict.BATCH):
        numbers = rng.integers(0, len(ids), (verdict.BATCH, len(ids)))
        numbers += len(ids) * np.arange(verdict.BATCH)[:, None]
        # how often each utterance is drawn in each resample: (BATCH, N)
        times = np.bincount(numbers.ravel(), minlength=numbers.size).reshape(numbers.shape)
        drawn.append((times @ errors).T / np.maximum(times @ lengths, 1))
    return np.concatenate(drawn, axis=1)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of a system's resampled rates, or of the difference of two."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
