import json
import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from asrlora.errors import UserError
from asrlora.record import diagnosis, ledger, run_dir, status
from asrlora.record.schema import Scores
from asrlora.report.page import write_report
from asrlora.score import text
from asrlora.score.scoring import Hypothesis, score
from written import judge

CONFIG = {"max_steps": 4, "learning_rate": 1e-4, "manifest_path": "d|x.jsonl"}


def scored(identity: str, reference: str, hypothesis: str, speaker: str | None = None) -> Hypothesis:
    return score(identity, reference, hypothesis, text.normaliser(None, "en"), speaker, 1.0)


def make_run(folder: Path, best_step: int = 2, **fingerprint: Any) -> run_dir.RunDirectory:
    """A finished run: the baseline has 40 wrong words of 120, step 2 has none."""
    run = run_dir.RunDirectory.create(
        folder,
        command="uv run python asrlora/train.py --max-steps 4",
        config=CONFIG, fingerprint={"base": "b"}, world_size=1, launch="one process",
        training={"set": "9 utterances kept", "content": "0"}, best_step=best_step, trained_parameters=10,
    )  # fmt: skip
    for step, hypothesis in ((0, "a wrong c"), (2, "a b c")):
        hypotheses = [asdict(scored(f"u{i}", "a b c", hypothesis, f"s{i // 2}")) for i in range(40)]
        found = Scores(
            step=step, fingerprint={"base": "b", **(fingerprint if step else {})},
            **{name: {"wer": 0.0 if step else 1 / 3} for name in ("domain", "heldout")},
        )  # fmt: skip
        run.write_evaluation(step, {"domain": hypotheses, "heldout": hypotheses}, found)
    run.log({"step": 1, "loss": 2.5})
    return run


def test_the_verdict_comes_from_the_files_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    judged = judge(tmp_path / "run")
    assert judged["verdict"] == "accept"
    assert judged["domain"]["baseline_wer"] == pytest.approx(1 / 3)
    assert judged["domain"]["tuned_wer"] == 0
    assert judged["domain"]["words"] == 120
    assert json.loads((tmp_path / "run" / "verdict.json").read_text()) == judged
    assert set(judged) >= {"verdict", "point", "domain", "heldout", "criteria", "best_step", "fingerprint"}


def test_the_best_step_is_judged_and_not_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    worse = [asdict(scored(f"u{i}", "a b c", "all is wrong")) for i in range(40)]
    found = Scores(step=4, fingerprint={"base": "b"}, domain={"wer": 1.0}, heldout={"wer": 1.0})
    run.write_evaluation(4, {"domain": worse, "heldout": worse}, found)
    assert judge(tmp_path / "run")["domain"]["tuned_wer"] == 0


def test_scores_with_other_fingerprints_are_not_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "run", text={"name": "other"})
    with pytest.raises(UserError, match="differ in text"):
        judge(tmp_path / "run")


def test_scores_of_another_normalisation_are_not_compared(tmp_path: Path) -> None:
    """The predecessor normalised in one way while training and in another while evaluating.

    By fingerprint: the same name with another version, or a file of rules that has changed.
    """
    english = dict(text.normaliser("whisper-english", "en").fingerprint)
    for number, other in enumerate((text.normaliser("basic", "en").fingerprint, english | {"version": "0"})):
        run = make_run(tmp_path / f"run{number}", text=dict(other))
        path = run_dir.step_folder(run.folder, 0) / "scores.json"
        scores = run_dir.read_json(path)
        scores["fingerprint"]["text"] = english
        path.write_text(json.dumps(scores))
        with pytest.raises(UserError, match="differ in text"):
            judge(run.folder)


def test_hypotheses_scored_against_another_reference_are_not_compared(tmp_path: Path) -> None:
    """The same mistake where fingerprints are silent: the references themselves differ."""
    make_run(tmp_path / "run")
    file = run_dir.step_folder(tmp_path / "run", 2) / "domain.jsonl"
    lines = run_dir.read_lines(file)
    lines[7]["reference"] = "A b c"
    file.write_text(run_dir.to_lines(lines))
    with pytest.raises(UserError, match=r"reference of 'u7' differs.*normalised in two ways"):
        judge(tmp_path / "run")


def test_a_run_is_judged_again_by_speakers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert judge(tmp_path / "run")["domain"]["resampled"] == {"by": "utterance", "units": 40}
    judged = judge(tmp_path / "run", "speaker")
    assert judged["domain"]["resampled"] == {"by": "speaker", "units": 20}
    assert judged["domain"]["mapsswe"]["segments"] == 40
    assert judged["domain"]["improvement_probability"] == 1
    run.update(config={**CONFIG, "resample_by": "speaker"})
    assert judge(tmp_path / "run") == judged


def test_auto_draws_the_speakers_of_sets_that_name_enough(tmp_path: Path) -> None:
    """Each set by itself: of heldout, one reader's, utterances are drawn, and the verdict says so."""
    run = make_run(tmp_path / "run")
    run.update(config={**CONFIG, "resample_by": "auto"})
    for step in (0, 2):
        file = run_dir.step_folder(tmp_path / "run", step) / "heldout.jsonl"
        file.write_text(run_dir.to_lines([{**line, "speaker": "LJ"} for line in run_dir.read_lines(file)]))
    judged = judge(tmp_path / "run")
    assert judged["domain"]["resampled"] == {"by": "speaker", "units": 20}
    assert judged["heldout"]["resampled"] == {"by": "utterance", "units": 40, "too_few": "1 speaker"}
    assert "not speakers, where a set names fewer than 20: heldout names 1 speaker" in judged["reason"]
    by_utterance = judge(tmp_path / "run", "utterance")
    assert "speaker" not in by_utterance["reason"]
    assert by_utterance["domain"]["resampled"] == {"by": "utterance", "units": 40}


def test_lines_of_an_older_run_are_judged_as_before(tmp_path: Path) -> None:
    """0.1.0 wrote neither characters nor speaker nor duration, and no setting resample_by."""
    make_run(tmp_path / "run")
    for file in (tmp_path / "run" / "eval").rglob("*.jsonl"):
        old = ("character_errors", "characters", "speaker", "duration")
        lines = [{k: v for k, v in line.items() if k not in old} for line in run_dir.read_lines(file)]
        file.write_text(run_dir.to_lines(lines))
    assert judge(tmp_path / "run")["verdict"] == "accept"
    with pytest.raises(UserError, match="names no speaker of 40 utterances, such as 'u0'"):
        judge(tmp_path / "run", "speaker")


def test_an_utterance_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    file = run_dir.step_folder(tmp_path / "run", 2) / "domain.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[0]]))
    with pytest.raises(UserError, match="twice"):
        judge(tmp_path / "run")


def test_a_run_directory_is_not_taken_twice(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        run_dir.check_free(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run_dir.check_free(tmp_path / "file")
    run_dir.check_free(tmp_path / "new" / "deep")


def test_the_ledger_keeps_failures_with_their_reason(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "good")
    judge(tmp_path / "runs" / "good")
    failed = run_dir.RunDirectory.create(
        tmp_path / "runs" / "bad", command="uv run python asrlora/train.py", config=CONFIG
    )
    failed.end("failed", "FloatingPointError: the loss of step 3 is nan")
    page, archive = tmp_path / "page.md", tmp_path / "archive.md"
    foreign = "| of another machine | 2026-11-01 |" + " x |" * (len(ledger.COLUMNS) - 2)
    page.write_text(f"before\n{ledger.BEGIN}\na stale row\n{foreign}\n{ledger.END}\nafter\n")
    assert ledger.write_matrix(page, archive, ledger.find_runs([tmp_path / "runs"])) == (3, 0)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert foreign in text, "a run whose record is not here stays"
    assert "| failed | FloatingPointError: the loss of step 3 is nan |" in text
    assert "`uv run python asrlora/train.py --max-steps 4`" in text
    assert "| 33.33% [33.33, 33.33] | 0.00% [0.00, 0.00] |" in text
    assert "d\\|x.jsonl" in text
    assert not archive.exists()
    ledger.archive(tmp_path / "runs" / "bad", "trained on raw audio")
    for _ in range(2):
        assert ledger.write_matrix(page, archive, ledger.find_runs([tmp_path / "runs"])) == (2, 1)
    assert "| bad |" not in page.read_text()
    assert "trained on raw audio; FloatingPointError" in archive.read_text()


def test_many_that_draw_the_ledger_at_once_lose_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"by hand\n{ledger.BEGIN}\n{ledger.END}\n")
    runs = []
    for number in range(8):
        runs.append(tmp_path / f"run{number}")
        run_dir.RunDirectory.create(runs[-1], command=f"uv run {number}", config=CONFIG)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: ledger.write_matrix(page, tmp_path / "a.md", [run]), runs))
    assert all(f"| run{number} |" in page.read_text() for number in range(8))
    assert page.read_text().startswith("by hand\n")


def test_many_runs_are_drawn_once_each(tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs" / "0")
    judge(tmp_path / "runs" / "0")
    for number in range(1, 50):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({**made.identity.as_json(), "run_id": str(number)}))
        shutil.copy(tmp_path / "runs" / "0" / "verdict.json", folder)
    page = tmp_path / "page.md"
    page.write_text(f"{ledger.BEGIN}\n{ledger.END}\n")
    twice = [tmp_path / "runs", tmp_path / "runs" / "7"]
    assert ledger.write_matrix(page, tmp_path / "a.md", ledger.find_runs(twice)) == (50, 0)
    assert page.read_text().count("\n| 7 |") == 1


def test_the_command_of_a_record_runs_again_into_another_folder(tmp_path: Path) -> None:
    typed = "uv run python asrlora/train.py --manifest-path 'it'\"'\"'s here' --output-dir old"
    words = ledger.again_command(typed, tmp_path)
    assert words[0] == sys.executable
    assert words[1:4] == ["asrlora/train.py", "--manifest-path", "it's here"]
    assert words[-4:] == ["--output-dir", str(tmp_path), "--resume", "never"]
    with pytest.raises(UserError, match="none of training"):
        ledger.again_command("rm -r somewhere", tmp_path)


def test_a_run_that_comes_out_otherwise_is_told(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_run(tmp_path / name)
        judged = judge(tmp_path / name)
    assert ledger.compare(tmp_path / "one", tmp_path / "other") == []
    judged["domain"]["tuned_wer"] = 0.01
    (tmp_path / "other" / "verdict.json").write_text(json.dumps({**judged, "verdict": "reject"}))
    assert ledger.compare(tmp_path / "one", tmp_path / "other") == [
        "verdict: accept and now reject", "domain tuned_wer: 0.00% and now 1.00%",
    ]  # fmt: skip


def test_the_report_is_one_page_with_the_figures(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    judge(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert "<svg" in page
    assert "33.33 %" in page
    assert "accept" in page
    assert 'class="substitute">wrong' in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl", "").replace(
        "http://creativecommons", ""
    )
    assert "src=" not in page


def test_two_attempts_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT", 0.0)
    first = run_dir.RunDirectory.create(tmp_path / "run", command="uv run", config=CONFIG)
    with pytest.raises(UserError, match="in use by another attempt"):
        run_dir.RunDirectory.reopen(tmp_path / "run")
    first.end("preempted", None)
    run_dir.RunDirectory.reopen(tmp_path / "run").end("complete", None)


def strictly(text: str) -> Any:
    """As readers other than Python's take JSON: NaN and Infinity are none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_not_finite_is_null_in_every_file_and_nan_when_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.log({"step": 2, "loss": math.nan, "grad_norm": math.inf})
    run.log({"step": 2, "told": "not finite", "values": [math.nan, 1.5]}, "nonfinite.jsonl")
    run.update(audit={"sets": {"domain": {"margin": math.inf}}})
    run.write_evaluation(
        4, {"domain": []}, Scores(step=4, domain={"wer": math.nan, "interval": (math.nan, 1.0)})
    )
    progress = status.Progress(run.folder)
    progress.update(stage="training", step=2, max_steps=4, loss=math.nan, data_wait=0.0)
    for name in ("run.json", "progress.json", "eval/step-000004/scores.json"):
        strictly((run.folder / name).read_text())
    for path in (run.folder / "metrics.jsonl", run.folder / "nonfinite.jsonl"):
        for line in path.read_text().splitlines():
            strictly(line)
    assert math.isnan(run_dir.read_log(run.folder / "metrics.jsonl")[-1]["loss"])
    assert math.isnan(run_dir.read_scores(run.folder)[4].sets["domain"].wer)
    assert "loss nan nats per token" in status.describe(run.folder)
    assert diagnosis.of_run(run.folder)[0].kind == "diverged"
    judge(run.folder)
    write_report(run.folder)


def test_the_domain_has_no_guardrail_in_the_line_of_a_run(tmp_path: Path) -> None:
    wers = {"domain": 0.124, "domain_report": 0.13, "heldout": 0.0421}
    told = status.against_baseline(wers, {"domain": 0.2649, "domain_report": 0.27, "heldout": 0.0433}, 0.005)
    assert told == (
        "domain 12.40 % (base 26.49), domain_report 13.00 % (base 27.00),"
        " heldout 4.21 % (base 4.33, guardrail 4.83)"
    )


def test_a_run_is_judged_by_its_own_criteria(tmp_path: Path) -> None:
    """Step 2 takes a third of the words: an accept by default, not where half of them is asked for."""
    run = make_run(tmp_path / "run")
    run.update(config={**CONFIG, "min_domain_reduction": 0.5, "max_heldout_regression": 0.01})
    judged = judge(tmp_path / "run")
    assert judged["criteria"] == {"min_domain_reduction": 0.5, "max_heldout_regression": 0.01}
    assert judged["verdict"] == "reject"
