"""The table of docs/log/verdict.md in small; `asrlora bench verdict` draws it in full."""

import numpy as np
import pytest

from asrlora import cli
from benchmarks import verdict as bench_verdict


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_verdict, "RESAMPLES", 250)


TRUTHS = {(t.domain_change, t.heldout_change, t.heldout_utterances): t for t in bench_verdict.TRUTHS}


def test_identical_systems_are_not_accepted() -> None:
    """At most 5 % of 2,000 trials are asked for; here a chance of 5 % would pass once in 28,000 times."""
    assert bench_verdict.rates(TRUTHS[0.0, 0.0, 1500], 200).accept == 0


@pytest.mark.parametrize("changes", [(-0.01, -0.01), (-0.04, 0.002)])
def test_a_system_at_the_limit_is_accepted_about_once_in_40_times(changes: tuple[float, float]) -> None:
    """Red where the bootstrap's interval is one of 80 %: 10 % are accepted then."""
    found = bench_verdict.rates(TRUTHS[(*changes, 1500)], 200)
    assert found.accept <= 0.07  # 2.5 % expected; four standard deviations of a binomial are 4.4 %


def test_a_gain_of_two_points_is_accepted_where_heldout_can_prove_itself() -> None:
    assert bench_verdict.rates(TRUTHS[-0.02, -0.004, 1500], 150).accept > 0.9
    assert bench_verdict.rates(TRUTHS[-0.02, 0.0, 1500], 150).accept < 0.6


def test_the_noise_is_as_it_says() -> None:
    rows = bench_verdict.draw(40_000, 0.12, -0.02, 0.4, np.random.default_rng(1))
    before, after, words = rows.sum(0)
    assert words / len(rows) == pytest.approx(bench_verdict.WORDS, rel=0.01)
    assert before / words == pytest.approx(0.12, abs=0.002)
    assert (before - after) / words == pytest.approx(0.02, abs=0.001)
    errors = rows[:, 1] - rows[:, 0] + 0.02 * rows[:, 2]
    assert (errors**2).sum() / words == pytest.approx(0.08, abs=0.015)  # 0.079 in the record named there


def test_the_table_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "verdict", "--trials", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(bench_verdict.TRUTHS)
    assert "CPU time for 10,000 resamples" in printed
