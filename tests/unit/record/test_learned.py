"""A run that learned the domain and broke a guardrail says what it learned and what that cost."""

import json
import shutil
from pathlib import Path

import pytest

import written
from asrlora.record import diagnosis, ledger, run_dir
from asrlora.record.schema import Verdict, read
from asrlora.score import selection
from asrlora.storage import write_json

LIMIT = 0.002


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = written.write_forgetful(tmp_path_factory.mktemp("forgetful") / "run")
    written.judge(folder)
    return folder


def with_best(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run that chose another step."""
    shutil.copytree(run, folder)
    write_json(folder / "run.json", {**run_dir.read_json(run / "run.json"), "best_step": step})
    return folder


def test_what_was_learned_is_what_a_verdict_on_that_step_says(run: Path, tmp_path: Path) -> None:
    judged = run_dir.read_json(run / "verdict.json")
    learned = judged["learned"]
    alone = written.judge(with_best(run, tmp_path / "run", 4))
    assert (judged["verdict"], judged["best_step"], learned["step"]) == ("reject", 0, 4)
    for key in ("domain", "heldout", "guardrails", "judgements"):
        assert learned[key] == alone[key], key
    assert learned["missed"] == {"heldout": pytest.approx(alone["heldout"]["regression"] - LIMIT)}
    assert judged["domain"]["reduction"] == 0, "the verdict is still about the base"
    assert "learned" not in alone


def test_the_reason_says_what_was_learned_and_by_how_much_it_missed(run: Path) -> None:
    judged = run_dir.read_json(run / "verdict.json")
    rates = {
        name: [sum(sides[n]) / 30 for n in (0, 2)]  # per cent of 300 times ten words
        for name, sides in {
            "domain": (*written.better(), written.draws(0.05, 300, 5)),
            "heldout": (*written.worse(), written.draws(0.4, 300, 7)),
        }.items()
    }
    gain = rates["domain"][0] - rates["domain"][1]
    loss = rates["heldout"][1] - rates["heldout"][0]
    ends = {name: [100 * end for end in judged["learned"][name]["interval"]] for name in rates}
    assert judged["reason"] == (
        "no step that lowered domain WER kept every guardrail, so the base stays (step 0): step 4 took domain"
        f" WER from {rates['domain'][0]:.2f} to {rates['domain'][1]:.2f} % ({gain:.2f} points, 95 % interval"
        f" {ends['domain'][0]:.2f} to {ends['domain'][1]:.2f}), and heldout WER from"
        f" {rates['heldout'][0]:.2f} to {rates['heldout'][1]:.2f} % (regression {loss:.2f} points, 95 %"
        f" interval {ends['heldout'][0]:.2f} to {ends['heldout'][1]:.2f}; at most 0.20 passes, missed by"
        f" {loss - 0.2:.2f})"
    )


def test_every_guardrail_that_broke_is_told(tmp_path: Path) -> None:
    sets = {
        "domain": written.better(),
        "heldout": written.same(),
        "far": written.worse(),
        "near": written.worse(),
    }
    judged = written.judge(written.write_run(tmp_path / "run", sets, best_step=0))
    assert judged["learned"]["missed"].keys() == {"far", "near"}
    assert "far WER from" in judged["reason"]
    assert "and near WER from" in judged["reason"]
    assert "heldout" not in judged["reason"]


@pytest.mark.parametrize(
    ("sets", "best"),
    [
        ({"domain": written.better(), "heldout": written.same()}, 2),
        ({"domain": written.better()}, 2),
    ],
    ids=["a step was chosen", "without a guardrail"],
)
def test_other_verdicts_are_as_they_were(
    tmp_path: Path, sets: dict[str, tuple[list[int], ...]], best: int
) -> None:
    judged = written.judge(written.write_run(tmp_path / "run", sets, best))
    assert "learned" not in judged
    assert judged["reason"].startswith("domain WER reduction")
    assert read(tmp_path / "run" / "verdict.json", Verdict).shown_step == best


@pytest.mark.parametrize("sides", [written.worse(), written.same()], ids=["got worse", "stayed"])
def test_a_domain_that_no_step_lowered_is_reported_as_such(
    tmp_path: Path, sides: tuple[list[int], ...]
) -> None:
    judged = written.judge(
        written.write_run(tmp_path / "run", {"domain": sides, "heldout": written.worse()}, 0)
    )
    assert "learned" not in judged
    before, after = (sum(side) / 30 for side in sides)
    assert judged["reason"].startswith(
        "no step lowered domain WER, so the base stays (step 0): step 2 took domain WER from"
        f" {before:.2f} to {after:.2f} % ({before - after:.2f} points, 95 % interval"
    )
    assert read(tmp_path / "run" / "verdict.json", Verdict).shown_step == 0


def test_the_step_is_the_best_on_the_utterances_that_may_choose(tmp_path: Path) -> None:
    """Step 4 is the lowest on the whole domain, step 2 on the half that chooses."""
    ids = [f"domain-{i:04d}" for i in range(600)]
    out = selection.held_out(ids)
    sides = [3] * 600, [1 if i not in out else 3 for i in ids], [2 if i not in out else 0 for i in ids]
    sets = {"domain": sides, "heldout": (*written.worse(), written.worse()[1])}
    for setting, step in (("auto", 2), ("none", 4)):
        run = written.write_run(tmp_path / setting, sets, 0, report_manifest=setting)
        assert written.judge(run)["learned"]["step"] == step


def test_evaluations_beside_those_of_steps_are_not_taken_for_them(run: Path, tmp_path: Path) -> None:
    """Of an adapter at a lower strength, and of a step whose hypotheses somebody has deleted."""
    folder = with_best(run, tmp_path / "run", 0)
    weaker = folder / "eval" / "step-000004-strength-0.500"
    shutil.copytree(folder / "eval" / "step-000004", weaker)
    assert list(run_dir.read_scores(folder)) == [0, 2, 4, 6]
    before = (run / "verdict.json").read_text()
    written.judge(folder)
    assert (folder / "verdict.json").read_text() == before
    judged = read(folder / "verdict.json", Verdict)
    assert run_dir.shown_evaluation(folder, judged) == folder / "eval" / "step-000004"
    assert json.loads(before)["learned"]["step"] == judged.shown_step == 4
    (folder / "eval" / "step-000004" / "domain.jsonl").unlink()
    assert written.judge(folder)["learned"]["step"] == 2
    record = run_dir.RunDirectory.reopen(folder)
    record.rewind(2)
    assert sorted(p.name for p in (folder / "eval").iterdir()) == ["step-000000", "step-000002", weaker.name]


def points(one: dict[str, float], key: str) -> str:
    return f"{100 * one[key]:.2f} points"


def test_the_diagnosis_names_what_was_learned_what_it_cost_and_the_next_command(run: Path) -> None:
    learned = run_dir.read_json(run / "verdict.json")["learned"]
    found = {one.kind: one.told for one in diagnosis.of_run(run)}
    assert list(found) == ["forgot", "overfitted"]
    assert found["forgot"] == (
        f"step 4 lowered domain WER by {points(learned['domain'], 'reduction')} and heldout rose by"
        f" {points(learned['heldout'], 'regression')}, {points(learned['missed'], 'heldout')} too many; see"
        f" at which strength below 1 it passes: uv run asrlora strength {run}"
    )


def test_the_next_command_can_be_pasted(run: Path) -> None:
    judged = read(run / "verdict.json", Verdict)
    command = "uv run asrlora strength 'outputs/my run'"
    assert diagnosis.next_command(Path("outputs/my run"), judged) == command
    assert diagnosis.next_command(Path("outputs/my run"), judged.changed(learned=None)) is None


def test_the_ledger_has_the_learned_step_and_its_cost(run: Path) -> None:
    learned = run_dir.read_json(run / "verdict.json")["learned"]
    cells = ledger.row(run).split(" | ")
    tuned, heldout = (cells[ledger.COLUMNS.index(name)] for name in ("Tuned WER", "Heldout WER"))
    assert tuned.startswith(f"{learned['domain']['tuned_wer']:.2%} [")
    assert f" → {learned['heldout']['tuned_wer']:.2%} [" in heldout
    assert tuned.endswith("(step 4, not kept)")
    assert heldout.endswith("(step 4, not kept)")


def test_a_repeated_run_is_compared_by_what_it_learned(run: Path, tmp_path: Path) -> None:
    again = with_best(run, tmp_path / "again", 0)
    written.judge(again)
    assert ledger.compare(run, again) == []
    record = run_dir.read_json(again / "verdict.json")
    record["learned"]["domain"]["tuned_wer"] += 0.01
    write_json(again / "verdict.json", record)
    assert [line.split(":")[0] for line in ledger.compare(run, again)] == ["domain tuned_wer"]
    del record["learned"]  # of an earlier version
    write_json(again / "verdict.json", record)
    assert ledger.compare(run, again) == []
