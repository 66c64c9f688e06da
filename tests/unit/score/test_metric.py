"""A run judged by characters or mixed units: whatever reads it goes by the metric."""

import json
from pathlib import Path

import pytest

from asrlora import cli
from asrlora.errors import UserError
from asrlora.record import diagnosis, ledger, run_dir, schema, status
from asrlora.report import compare, page
from asrlora.report import groups as grouping
from asrlora.score import degenerate, text
from asrlora.score.metric import Metric
from asrlora.score.scoring import score, summary
from asrlora.sweep import trials
from asrlora.sweep.sweep_file import Criteria, Trial
from asrlora.tracking import wandb
from written import judge

SAID = "我们星期三十点在 harbour 出发"  # 10 characters of Chinese and a word


def write_run(folder: Path, metric: Metric, count: int = 200) -> Path:
    """The baseline writes two characters of each domain sentence wrong, step 2 one of every tenth."""
    run = run_dir.RunDirectory.create(
        folder, command="uv run python asrlora/train.py", config={"max_steps": 2, "learning_rate": 1e-4,
        "manifest_path": "d.jsonl"}, fingerprint={"base": "b", "metric": metric}, metric=metric,
        world_size=1, launch="one process", training={"set": "9 utterances kept", "content": "0"},
        best_step=2, trained_parameters=10, held_out="nothing",
    )  # fmt: skip
    normal = text.normaliser(None, "zh")
    for step in (0, 2):
        sets = {}
        for name in ("domain", "heldout"):
            wrong = [2 if step == 0 and name == "domain" else int(i % 10 == 0) for i in range(count)]
            sets[name] = [
                score(f"{name}-{i:03d}", SAID, "他" * n + SAID[n:], normal, f"s{i % 3}", 2.0)
                for i, n in enumerate(wrong)
            ]
        lines = {name: [one.line() for one in found] for name, found in sets.items()}
        run.write_evaluation(step, lines, schema.Scores(
            step=step, metric=metric, fingerprint={"base": "b", "metric": metric},
            **{name: summary(found) for name, found in sets.items()},
        ))  # fmt: skip
    run.log({"step": 1, "loss": 2.5, "audio_seconds": 1.0})
    run.end("complete", None)
    return folder


@pytest.mark.parametrize(
    ("metric", "key", "length", "baseline"),
    [("cer", "characters", 17, 2 / 17), ("mer", "mixed_units", 11, 2 / 11)],
)
def test_the_verdict_is_of_the_metric_and_tells_the_true_wer(
    metric: Metric, key: str, length: int, baseline: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", metric)
    assert cli.main(["verdict", str(run)]) == 0
    judged = json.loads((run / "verdict.json").read_text())
    assert (judged["verdict"], judged["metric"]) == ("accept", metric)
    domain = judged["domain"]
    assert domain[f"baseline_{metric}"] == pytest.approx(baseline)
    assert domain["reduction"] == pytest.approx(0.95 * baseline)
    assert domain["interval"][0] < domain["reduction"] < domain["interval"][1]
    assert domain[key] == 200 * length
    assert (domain["baseline_wer"], domain["words"]) == (pytest.approx(1 / 3), 600)  # one wrong of three
    assert domain["tuned_wer"] == pytest.approx(0.1 / 3)
    assert domain["mapsswe"]["segments"] == 200
    assert judged["heldout"][f"tuned_{metric}"] == pytest.approx(0.1 / length)
    assert judged["heldout"]["tuned_wer"] == pytest.approx(0.1 / 3)
    assert f"domain {metric.upper()} reduction" in judged["reason"]
    assert "WER" not in judged["reason"]
    assert "domain" in capsys.readouterr().out


def test_by_words_the_sections_are_as_they_always_were(tmp_path: Path) -> None:
    judged = judge(write_run(tmp_path / "run", "wer"))
    assert list(judged["domain"]) == [
        "baseline_wer", "baseline_interval", "tuned_wer", "tuned_interval", "reduction", "interval",
        "utterances", "words", "improvement_probability", "resampled", "mapsswe",
    ]  # fmt: skip


def test_records_of_earlier_versions_are_by_words() -> None:
    for name in ("demo-seed1", "predecessor-recipe"):
        folder = Path(__file__).parents[3] / "docs" / "runs" / name
        judged = run_dir.read_json(folder / "verdict.json")
        assert "metric" not in judged
        assert ledger.row(folder).count("CER") == 0
        assert grouping.read_run(folder).scores["domain"].rate == judged["domain"]["tuned_wer"]


def test_report_matrix_and_tracking_are_by_the_metric(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "cer")
    judge(run)
    html = page.write_report(run).read_text()
    assert "Domain CER 11.76 % before" in html
    assert "errors: 2 before" in html
    assert "0 after, of 17 characters" in html
    assert "WER of 33.33 %" in html  # said beside it
    assert "CER 11.76%" in ledger.row(run)
    summed = wandb.summary(schema.read(run / "verdict.json", schema.Verdict))
    assert summed["domain/tuned_cer"] == pytest.approx(0.1 / 17)
    assert summed["domain/tuned_wer"] == pytest.approx(0.1 / 3)
    assert diagnosis.read_curves(run).domain == pytest.approx({0: 2 / 17, 2: 0.1 / 17})
    told = status.line(schema.ProgressRecord.model_validate({
        "step": 1, "max_steps": 2, "loss": 1.0, "data_wait": 0.0, "wers": {"domain": 0.1},
        "baseline": {"domain": 0.2}, "metric": "cer",
    }))  # fmt: skip
    assert "CER domain 10.00 %" in told


def test_runs_of_two_metrics_are_never_ranked_together(tmp_path: Path) -> None:
    metrics: tuple[Metric, ...] = ("cer", "mer", "wer")
    folders = [write_run(tmp_path / metric, metric) for metric in metrics]
    for folder in folders:
        judge(folder)
    groups = grouping.grouped(grouping.read_runs(folders))
    assert [[run.metric for run in group.runs] for group in groups] == [["cer"], ["mer"], ["wer"]]
    assert "other metric" in str(compare.tables(groups)[1].title)
    assert compare.tables(groups)[0].columns[2].header == "domain CER, %\nchange, points"
    assert groups[0].pairs["domain"][0][0] == pytest.approx(-1.9 / 17)
    statuses = [trials.read_status(Trial("k", {}, {}, folder), Criteria()) for folder in folders]
    assert [one.metric for one in statuses] == ["cer", "mer", "wer"]
    with pytest.raises(UserError, match=r"several metrics \(k by cer and k by mer and k by wer\)"):
        trials.select(statuses, Criteria())
    chosen = trials.select(statuses[:1], Criteria())
    assert chosen is not None
    assert "domain CER 0.59%" in chosen.why


def test_scores_by_another_metric_are_not_judged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "cer")
    path = run_dir.step_folder(run, 2) / "scores.json"
    scores = run_dir.read_json(path)
    path.write_text(json.dumps({**scores, "fingerprint": {**scores["fingerprint"], "metric": "wer"}}))
    with pytest.raises(UserError, match="differ in metric"):
        judge(run)


@pytest.mark.parametrize(
    ("written", "runaway"),
    [("好的好的好的好的好的", 1), ("好的好的", 0), ("no no no no no", 1), ("我很好谢谢你", 0)],
)
def test_a_loop_is_seen_without_spaces(written: str, runaway: int) -> None:
    assert degenerate.ran_away("好", written, unfinished=False) == runaway
