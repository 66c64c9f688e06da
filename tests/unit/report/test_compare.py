"""The numbers of the page; what it does under clicks is in test_compare_page.py."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

import written
from asrlora import cli
from asrlora.errors import UserError
from asrlora.record import judge, ledger, run_dir
from asrlora.report import compare
from asrlora.report import groups as grouping
from asrlora.score import bootstrap
from asrlora.sweep import sweep_file
from conftest import ROOT
from sweeps import FINGERPRINT, write_run, write_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight complete runs, one each running, preempted and failed, and one on another heldout manifest."""
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, 8)
    write_run(folder / "running", {"seed": 91}, state="running", until=0.5)
    write_run(folder / "preempted", {"seed": 92}, state="preempted", until=0.5, reason="on request")
    early = write_run(folder / "failed", {"seed": 93}, state="failed", until=0.1, reason="loss is nan")
    (early / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')  # killed in the middle
    write_run(folder / "other", {}, fingerprint={**FINGERPRINT, "heldout manifest": "x" * 64})
    return folder


@pytest.fixture(scope="module")
def groups(folder: Path) -> list[grouping.Group]:
    return grouping.grouped(grouping.read_runs(grouping.find([folder])))


def test_every_pair_has_the_interval_that_comparing_the_two_alone_gives(groups: list[grouping.Group]) -> None:
    """The oracle is the verdict's own function, on the files of two runs."""
    group = groups[0]
    folders = {run.name: run_dir.step_folder(run.folder, run.best_step) for run in group.runs}
    folders[grouping.BASE] = run_dir.step_folder(group.runs[0].folder, 0)
    pairs = list(itertools.combinations(group.paired, 2))
    assert len(pairs) == len(group.pairs["domain"]) == 66
    for name in ("domain", "heldout"):
        for (a, b), (change, low, high) in list(zip(pairs, group.pairs[name], strict=True))[::7]:
            counts = (run_dir.read_counts(folders[run] / f"{name}.jsonl") for run in (a, b))
            alone = bootstrap.compare(*counts)
            assert change == pytest.approx(alone.change, abs=1e-12)
            assert (low, high) == pytest.approx(alone.change_interval, abs=1e-12)


@pytest.mark.parametrize("by", ["auto", "utterance"])
def test_pairs_draw_speakers_unless_a_run_drew_utterances(tmp_path: Path, by: str) -> None:
    """Of domain there are 30 speakers, of heldout one; a run of an earlier version drew utterances."""
    folders = write_sweep(tmp_path, 2)
    for number, run in enumerate(folders):
        for name, count in (("domain", 30), ("heldout", 1)):
            for file in (run / "eval").rglob(f"{name}.jsonl"):
                lines = enumerate(run_dir.read_lines(file))
                file.write_text(run_dir.to_lines([{**one, "speaker": f"s{i % count}"} for i, one in lines]))
        if number:
            record = run_dir.read_json(run / "run.json")
            record["config"]["resample_by"] = by
            (run / "run.json").write_text(json.dumps(record))
    (group,) = grouping.grouped(grouping.read_runs(folders))
    best = group.runs[0]
    for name in ("domain", "heldout"):
        old, new = (run_dir.step_folder(best.folder, s) / f"{name}.jsonl" for s in (0, best.best_step))
        alone = judge.compare_files(old, new, by)
        assert alone.resampled == ("speaker" if (name, by) == ("domain", "auto") else "utterance")
        assert group.pairs[name][0][1:] == pytest.approx(alone.change_interval, abs=1e-12)


def test_a_run_without_a_verdict_gets_the_intervals_that_one_would_give(groups: list[grouping.Group]) -> None:
    run = next(run for run in groups[0].runs if run.name == "running")
    old, new = (run_dir.step_folder(run.folder, step) / "heldout.jsonl" for step in (0, run.best_step))
    alone = bootstrap.compare(run_dir.read_counts(old), run_dir.read_counts(new))
    assert run.scores["heldout"].interval == pytest.approx(alone.tuned_interval, abs=1e-12)
    assert run.scores["heldout"].change_interval == pytest.approx(alone.change_interval, abs=1e-12)
    assert not (run.folder / "verdict.json").exists(), "somebody else's run is only read"


def test_other_fingerprints_are_other_groups_and_never_paired(groups: list[grouping.Group]) -> None:
    assert [len(group.runs) for group in groups] == [11, 1]
    assert [run.name for run in groups[1].runs] == ["other"]
    assert "other" not in groups[0].paired
    assert grouping.differing([group.fingerprint for group in groups]) == ["heldout manifest"]
    assert compare.tables(groups)[1].title == "group 2: not comparable with group 1, other heldout manifest"


def test_runs_are_ranked_by_verdict_and_domain_wer(groups: list[grouping.Group]) -> None:
    runs = groups[0].runs
    assert [run.state for run in runs] == sorted((r.state for r in runs), key=grouping.STATES.index)
    for one, next_one in itertools.pairwise(runs):
        assert one.state != next_one.state or one.scores["domain"].rate <= next_one.scores["domain"].rate
    assert {run.name: run.why for run in runs}["failed"] == "loss is nan"
    assert {run.name: run.losses for run in runs}["failed"] == []


def test_settings_that_differ_are_named(groups: list[grouping.Group]) -> None:
    assert groups[0].columns == ["max_steps", "learning_rate", "seed"]


def test_every_guardrail_has_a_column(tmp_path: Path) -> None:
    sets = {"domain": written.better(), "heldout": written.same(), "quiet": written.worse()}
    judged = written.write_run(tmp_path / "judged", sets)
    section = written.judge(judged)["guardrails"]["quiet"]
    written.write_run(tmp_path / "unjudged", sets)
    (group,) = grouping.grouped(grouping.read_runs(grouping.find([tmp_path])))
    assert group.sets == ["domain", "heldout", "quiet"]
    assert list(group.pairs) == ["domain", "heldout"]
    scores = {run.name: run.scores["quiet"] for run in group.runs}
    assert scores["judged"].change == scores["unjudged"].change == section["regression"]
    assert scores["judged"].change_interval == tuple(section["interval"])
    headers = [str(column.header) for column in compare.tables([group])[0].columns]
    assert "quiet WER, %\nchange, points" in headers


def test_the_records_alone_are_enough() -> None:
    """docs/runs keeps neither hypotheses nor metrics."""
    root = ROOT / "docs" / "runs"
    groups = [g for g in grouping.grouped(grouping.read_runs(grouping.find([root]))) if len(g.runs) > 3]
    assert groups
    for group in groups:
        best = group.runs[0]
        assert group.paired == []
        assert best.state == "accept"
        score = best.scores["domain"]
        assert score.change_interval is not None
        assert score.change_interval[0] < score.change < score.change_interval[1] < 0
        if not (best.folder / "rescue.json").exists():  # whose scores are of the half that judges
            assert best.evaluations[0]["domain"] == score.baseline


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_run(tmp_path / place / "run", {"max_steps": 4}, utterances=4)
    runs = grouping.read_runs(grouping.find([tmp_path]))
    assert sorted(run.name for run in runs) == ["a/run", "b/run"]
    page = tmp_path / "plan.md"
    page.write_text(f"{ledger.BEGIN}\n{ledger.END}\n")
    folders = [run.folder for run in runs]
    assert ledger.write_matrix(page, tmp_path / "archive.md", folders) == (2, 0), "in the ledger too"


def test_hypotheses_of_other_utterances_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{i}", {"max_steps": 4, "seed": i}, utterances=5) for i in range(2)]
    step = run_dir.read_json(runs[1] / "run.json")["best_step"]
    path = run_dir.step_folder(runs[1], step) / "domain.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="hold different utterances, such as 'domain-0004'"):
        grouping.grouped(grouping.read_runs(runs))


def test_a_sweep_is_compared_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    fixed = {"dataset_path": "train.jsonl", "manifest_path": "domain.jsonl", "max_steps": 4}
    content = {"output_dir": str(tmp_path / "trials"), "fixed": fixed, "grid": {"seed": [1, 2, 3]}}
    file.write_text(yaml.safe_dump(content))
    assert cli.main(["compare", "--sweep", str(file)]) == 2
    assert "none of its trials has begun" in capsys.readouterr().err
    loaded = sweep_file.load(file)
    begun = sweep_file.trials_of(loaded, loaded)[:2]
    for trial in begun:
        write_run(trial.folder, {"max_steps": 4, **trial.own}, utterances=4)
    write_run(tmp_path / "trials" / "another", {"max_steps": 4}, utterances=4)
    assert {run.folder for run in grouping.read_runs(grouping.trials(file))} == {t.folder for t in begun}
    assert cli.main(["compare", "--sweep", str(file)]) == 0
    assert (tmp_path / "trials" / "compare.html").is_file()


def test_what_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json at or below"):
        grouping.find([tmp_path])
    assert cli.main(["compare", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["compare"]) == 2


def test_the_command_writes_page_and_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "deep" / "page.html", tmp_path / "figures"
    runs = [str(folder / name) for name in ("lora-1e-05-100-s1", "lora-0.0003-100-s1", "failed")]
    assert cli.main(["compare", *runs, "--output", str(page), "--figures", str(figures)]) == 0
    assert "loss is nan" in capsys.readouterr().out
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    first = data["groups"][0]["runs"][0]
    assert (page.parent / first["report"]).resolve() == folder / first["name"] / "report.html"
    names = {path.name for path in figures.iterdir()}
    assert {"trade-off.pdf", "curves.svg", "sweep-learning_rate.pdf"} <= names
    assert b"/FontType 3" not in (figures / "trade-off.pdf").read_bytes()
