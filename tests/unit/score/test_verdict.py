"""The verdict and the page of a run, from files that are written here."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrlora import cli
from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.score import bootstrap, power, verdict
from asrlora.score.wer import Tally
from written import WORDS, better, draws, judge, same, worse, write_run


def test_the_first_200_utterances_of_a_sorted_manifest_do_not_accept(tmp_path: Path) -> None:
    """The lucky average: the first 200 are of the kind that improved, and there are 600."""
    luck, rest = better(200), worse(400)
    whole = write_run(
        tmp_path / "whole", {"domain": (luck[0] + rest[0], luck[1] + rest[1]), "heldout": same()}
    )
    first = write_run(tmp_path / "first", {"domain": luck, "heldout": same()})
    assert judge(first)["verdict"] == "accept", "the prefix was to be lucky"
    judged = judge(whole)
    assert judged["verdict"] == "reject"
    assert judged["domain"]["utterances"] == 600
    assert judged["domain"]["words"] == 6_000


@pytest.mark.parametrize("broken", ["heldout", "far-field", "names"])
def test_one_broken_guardrail_of_several_rejects(tmp_path: Path, broken: str) -> None:
    sets = {"domain": better(), "heldout": same(), "far-field": same(), "names": same()}
    assert judge(write_run(tmp_path / "all hold", sets))["verdict"] == "accept"
    judged = judge(write_run(tmp_path / "one fails", {**sets, broken: worse()}))
    assert (judged["verdict"], judged["point"]) == ("reject", False)
    assert judged["guardrails"].keys() == {"far-field", "names"}
    outcomes = {name: judgement["outcome"] for name, judgement in judged["judgements"].items()}
    assert outcomes == {**dict.fromkeys(sets, "holds"), broken: "fails"}
    assert f"{broken} WER regression" in judged["reason"]


def test_each_criterion_has_its_reason_and_what_would_settle_it(tmp_path: Path) -> None:
    sets = {"domain": (draws(0.200, 300, 1), draws(0.185, 300, 2)), "heldout": better()}
    judged = judge(write_run(tmp_path / "run", sets))
    assert judged["verdict"] == "inconclusive"
    domain, heldout = (judged["judgements"][name] for name in ("domain", "heldout"))
    assert (domain["outcome"], heldout["outcome"], heldout["enough"]) == ("open", "holds", None)
    assert judged["reason"] == f"{domain['reason']}; {heldout['reason']}"
    low, high = judged["domain"]["interval"]
    assert domain["detectable"] == pytest.approx((high - low) / 2)
    assert domain["reason"].endswith(
        f"is not settled by 300 utterances; about {domain['enough']:,} such ones would"
    )


@pytest.mark.parametrize(("rate", "seed", "outcome"), [(0.186, 8, "holds"), (0.194, 7, "fails")])
def test_so_many_utterances_do_settle_it(rate: float, seed: int, outcome: str) -> None:
    """The same utterances over and over: the change stays, and the interval shrinks."""
    before, after = draws(0.2, 300, 5), draws(rate, 300, seed)

    def judged(copies: int) -> dict[str, Any]:
        systems = [
            {f"u{i:06d}": Tally(e, 10) for i, e in enumerate(side * copies)} for side in (before, after)
        ]
        found: dict[str, Any] = verdict.judge(bootstrap.compare(*systems), None)["judgements"]["domain"]
        return found

    once = judged(1)
    copies = once["enough"] / 300
    assert once["outcome"] == "open"
    assert 3 < copies < 60
    assert judged(int(0.8 * copies))["outcome"] == "open"
    assert judged(math.ceil(1.25 * copies))["outcome"] == outcome


def test_a_gain_that_the_held_out_half_does_not_show_is_told(tmp_path: Path) -> None:
    from asrlora.score import selection

    ids = [f"domain-{i:04d}" for i in range(600)]
    out = selection.held_out(ids)
    before = draws(0.3, 600, 1)
    after = [n if i in out else 0 for i, n in zip(ids, before, strict=True)]
    sets = {"domain": (before, after), "heldout": same()}
    judged = judge(write_run(tmp_path / "run", sets, report_manifest="auto"))
    assert judged["verdict"] == "accept", "the rule is about the whole manifest"
    assert judged["domain_report"]["reduction"] == 0 < judged["domain_chosen_on"]["reduction"]
    assert "but on utterances that had no say in the choice of the step, held-out domain" in judged["reason"]
    assert "at least 1.00 fails" in judged["reason"]
    # a run that chose on all utterances holds none out
    old = judge(write_run(tmp_path / "old", sets))
    assert (old["domain_report"], old["domain_chosen_on"]) == (None, None)
    assert "no say" not in old["reason"]


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("reference", "reference of 'domain-0007' differs"),
        ("id", "different utterances"),
        ("set", "differ in set names"),
        ("fingerprint", "differ in text"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path: Path, mistake: str, told: str) -> None:
    run = write_run(tmp_path / "run", {"domain": better(), "heldout": same()})
    folder = run_dir.step_folder(run, 2)
    lines = (folder / "domain.jsonl").read_text()
    if mistake == "reference":
        (folder / "domain.jsonl").write_text(lines.replace(
            f'"domain-0007", "reference": "{WORDS}"', f'"domain-0007", "reference": "{WORDS.upper()}"'
        ))  # fmt: skip
    elif mistake == "id":
        (folder / "domain.jsonl").write_text(lines.replace('"domain-0007"', '"domain-9999"'))
    elif mistake == "set":
        (folder / "names.jsonl").write_text(lines)
    else:
        scores = run_dir.read_json(folder / "scores.json")
        scores["fingerprint"]["text"] = {"name": "another"}
        (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=told):
        judge(run)
    assert cli.main(["verdict", str(run)]) == 2
    assert not (run / "verdict.json").exists()


@pytest.mark.parametrize(("utterances", "outcome"), [(24, "open"), (1000, "holds")])
def test_a_few_utterances_that_stay_as_they_are_prove_little(utterances: int, outcome: str) -> None:
    """Nothing changed in 24 utterances: the next hundred may still lose more than 0.2 points."""
    same = bootstrap.compare_rows(np.tile([1.0, 1.0, 10.0], (utterances, 1)))
    gain = bootstrap.compare_rows(np.tile([5.0, 0.0, 10.0], (1000, 1)))
    assert verdict.judge(gain, same)["judgements"]["heldout"]["outcome"] == outcome
    assert same.change_interval[1] == pytest.approx(3 / (10 * utterances))


def test_what_a_guardrail_can_show_is_said_from_the_steps_own_differences() -> None:
    """A change as far below the base as it says holds, a hundredth of a point more does not; with as many
    utterances as it says, none at all holds."""
    limit, utterances, (low, high) = 0.002, 385, (0.0016, 0.0164)
    said = power.guardrail("heldout", utterances, (low, high), limit)
    assert "its 385 utterances show changes from 0.74 points on, and the limit is 0.20" in said
    assert "0.54 points below the base's, or, for one like the base's, about 5,271 such utterances" in said
    margin = (high - low) / 2
    for change, holds in ((-0.0054, True), (-0.0053, False)):
        assert (change + margin <= limit + 1e-12) == holds
    assert math.isclose(margin * math.sqrt(utterances / 5_271), limit, rel_tol=1e-3)
    assert not power.guardrail("heldout", utterances, (-0.002, 0.002), limit)
    assert not power.guardrail("heldout", utterances, (low, high), 0.0)
