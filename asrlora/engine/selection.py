"""Which step is best so far under the guardrails, and what ends a run early. The same on all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from asrlora.config import RunConfig
from asrlora.data.shards.reader import Shards
from asrlora.errors import UserError
from asrlora.score.metric import Metric
from asrlora.score.selection import REPORT, held_out, is_better
from asrlora.score.verdict import Criteria

Rates = Mapping[str, float]  # error rates, as fractions, by evaluation set


@dataclass
class Selection:
    """The best step so far. Step 0 is a candidate like any other: it changes nothing."""

    config: RunConfig
    metric: Metric
    baseline: Rates = field(default_factory=dict)  # of the base
    best_step: int = 0
    best_wer: float = float("inf")  # of the best step, on the utterances that may choose it
    stopped: str | None = None  # why the run ends before its last step

    @property
    def criteria(self) -> Criteria:
        """What the verdict and the guardrails go by."""
        return Criteria.of(self.config)

    def update(self, step: int, rates: Rates, chosen_on: float) -> bool:
        """Takes in the evaluation of a step; returns whether that step is the best so far.

        `chosen_on` is the domain's error rate on the utterances that may choose.
        """
        if step == 0:
            self.baseline, self.best_wer = rates, chosen_on
        guardrails = {name: rates[name] for name in self.config.guardrails}
        best = step > 0 and is_better(chosen_on, self.best_wer, guardrails, self.baseline, self.criteria)
        if best:
            self.best_step, self.best_wer = step, chosen_on
        limit = self.config.wer_stop_threshold
        for name, rate in {"domain": rates["domain"], **guardrails}.items():
            if limit is not None and rate > limit * self.baseline[name]:
                self.stopped = (
                    f"stopped at step {step}: {name} {self.metric.upper()} {rate:.2%} passed {limit:g} times"
                    f" its baseline of {self.baseline[name]:.2%}"
                )
        return best

    def unexpected_baseline(self) -> UserError | None:
        """Why nothing is to be trained: the base does not score as --expect-baseline says."""
        expected, tolerance = self.config.expect_baseline, self.config.baseline_tolerance
        rate = self.baseline["domain"]
        # rounded: 0.1178 is 0.001 from 0.1168, but not in floating point
        if expected is None or round(abs(rate - expected), 9) <= tolerance:
            return None
        return UserError(
            f"--expect-baseline {expected:g}: the base has a domain {self.metric.upper()} of {rate:.2%} and"
            f" not of {expected:.2%}, to within {100 * tolerance:.2f} points, so nothing is trained; look for"
            f" another --model-id, manifest, normaliser or --language, or expect {rate:.4f}"
        )


def describe_held_out(config: RunConfig, sets: Mapping[str, Shards], metric: Metric) -> str:
    """Which domain utterances have no say in which step is best, in a sentence."""
    if REPORT in sets:
        count = len(sets[REPORT].samples)
        return f"held out from choosing the step: {count:,} utterances of {config.report_manifest}"
    ids = [sample.id for sample in sets["domain"].samples]
    out = held_out(ids) if config.report_manifest == "auto" else ()
    if out:
        return (
            f"held out from choosing the step: {len(out):,} of {len(ids):,} domain utterances, by a hash"
            " of their ids"
        )
    return (
        "held out from choosing the step: no domain utterance"
        f" (--report-manifest {config.report_manifest}, {len(ids):,} utterances), so the domain"
        f" {metric.upper()} of the best step is optimistic"
    )
