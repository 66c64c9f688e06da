"""Diagnoses of made curves: each failure is named, with the step at which it shows."""

import math
from dataclasses import replace
from typing import Any

import pytest

from asrlora.record.diagnosis import Curves, diagnose
from asrlora.record.schema import Verdict

FALLING = {step: 2.0 - step / 100 for step in range(1, 101)}
SOUND = Curves(FALLING, {0: 0.30, 50: 0.25, 100: 0.20}, {0: 0.05, 50: 0.05, 100: 0.05}, 2.0)
CRITERIA = {"min_domain_reduction": 0.01, "max_heldout_regression": 0.002}


def judged(verdict: str = "reject") -> Verdict:
    part = {"baseline_wer": 0.3, "tuned_wer": 0.296, "utterances": 60}
    return Verdict.model_validate({
        "verdict": verdict, "reason": "the rule", "criteria": CRITERIA, "best_step": 100,
        "domain": {**part, "reduction": 0.004, "interval": [-0.01, 0.02]},
        "heldout": {**part, "regression": 0.0, "interval": [-0.001, 0.001]},
    })  # fmt: skip


def kinds(curves: Curves, verdict: Verdict | None) -> list[str]:
    return [one.kind for one in diagnose(curves, verdict)]


def test_an_accepted_run_needs_no_diagnosis() -> None:
    assert diagnose(SOUND, judged("accept")) == []


def test_a_run_without_a_fault_of_its_curves_fell_short() -> None:
    assert kinds(SOUND, judged()) == ["fell short"]


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"losses": {s: 2.0 if s <= 40 else 2.0 + s / 20 for s in range(1, 101)}}, "diverged", "after step"),
        ({"losses": {**FALLING, 60: math.nan, 61: math.nan}}, "diverged", "from step 60"),
        ({"heldout": {0: 0.05, 50: 0.06, 100: 0.09}}, "forgot", "at step 50 (up 1.00 points)"),
        ({"domain": {0: 0.30, 50: 0.20, 100: 0.28}}, "overfitted", "best at step 50"),
        ({"losses": {s: 2.0 + 0.01 * (-1) ** s for s in range(1, 101)}}, "learned nothing", "hardly moved"),
        ({"epochs": 45.0}, "starved", "45 epochs"),
        ({"domain": {0: 0.30, 50: 0.31, 100: 0.95}}, "harmed", "by 65.00 points at step 100"),
    ],
)
def test_each_failure_is_named_with_its_step(change: dict[str, Any], kind: str, told: str) -> None:
    found = diagnose(replace(SOUND, **change), judged())
    assert [one.kind for one in found] == [kind]
    assert told in found[0].told


def test_forgetting_without_any_gain_is_not_called_forgetting() -> None:
    curves = replace(SOUND, domain={0: 0.2, 100: 0.3}, heldout={0: 0.05, 100: 0.2})
    assert kinds(curves, judged()) == ["harmed"]


HELPED = {
    "gradients": {1: 0.5, 2: 0.25, 3: 0.125},
    "settings": {"trained_parameters": 36_864, "learning_rate": 1e-3, "lora_targets": "attention"},
}


@pytest.mark.parametrize(
    ("change", "told", "not_told"),
    [
        (
            {},
            ["to this domain (loss 1.9", "a lower learning rate (0.001, median gradient norm 0.25)"],
            ["replay", "targets", "more steps"],
        ),
        (
            {"losses": {s: 2.0 + 0.01 * (-1) ** s for s in range(1, 101)}},
            [
                "higher learning rate (0.001, median gradient norm 0.25; loss ",
                "more targets (36,864 parameters",
            ],
            ["a lower", "replay"],
        ),
        (
            {"heldout": {0: 0.05, 50: 0.09, 100: 0.06}},
            ["more replay (none; heldout up 4.00 points at step 50)", "fewer targets (36,864 parameters"],
            ["more targets"],
        ),
        (
            {
                "heldout": {0: 0.05, 100: 0.09},
                "settings": {**HELPED["settings"], "replay_path": "general.jsonl", "replay_ratio": 0.3},
            },
            ["more replay (a share of 0.3; heldout up 4.00 points at step 100)"],
            ["none"],
        ),
        ({"epochs": 0.4}, ["more steps (0.40 epochs)"], ["replay"]),
    ],
)
@pytest.mark.parametrize(("domain", "kind"), [({100: 0.31}, "harmed"), ({50: 0.31, 100: 0.30}, "no gain")])
def test_a_run_without_any_gain_is_told_what_may_help_with_its_own_figures(
    change: dict[str, Any], told: list[str], not_told: list[str], domain: dict[int, float], kind: str
) -> None:
    curves = replace(SOUND, **{**HELPED, "domain": {0: 0.30, **domain}, **change})
    found = diagnose(curves, judged())[0]
    assert found.kind == kind
    assert [part for part in told if part not in found.told] == []
    assert [part for part in not_told if part in found.told] == []


def test_a_loss_that_goes_up_and_down_below_its_start_has_not_diverged() -> None:
    """As the demo's: batches of its domain cost four times what batches of general speech cost."""
    losses = {step: 0.3 if step <= 10 else 0.05 if 70 <= step <= 85 else 0.2 for step in range(1, 101)}
    assert kinds(replace(SOUND, losses=losses), judged()) == ["fell short"]


def test_an_effect_below_what_can_be_told_is_inconclusive() -> None:
    found = diagnose(SOUND, judged("inconclusive"))
    assert [one.kind for one in found] == ["inconclusive"]
    assert "domain reduction 0.40 points lies within 1.50 points of the 1.00 points" in found[0].told
    assert "heldout" not in found[0].told


def test_a_run_that_broke_keeps_its_reason_beside_what_its_curves_say() -> None:
    broken = replace(SOUND, reason="FloatingPointError: 3 steps in a row were not finite")
    assert kinds(broken, None) == ["diverged", "failed"]
    assert kinds(replace(SOUND, reason="out of memory"), None) == ["failed"]
