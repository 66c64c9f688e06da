"""Of a run that learned the domain and broke a guardrail, readers are shown the step that did."""

import html
import json
import re
from pathlib import Path

import pytest

import written
from asrlora import cli
from asrlora.demo import demo
from asrlora.record import run_dir
from asrlora.record.schema import Verdict, read
from asrlora.report import alignment, compare, page
from asrlora.report import groups as grouping
from asrlora.score import bootstrap
from asrlora.tracking import wandb


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = written.write_forgetful(tmp_path_factory.mktemp("forgetful") / "run")
    written.judge(folder)
    run_dir.RunDirectory.reopen(folder).end("complete", None)
    return folder


@pytest.fixture(scope="module")
def judged(run: Path) -> Verdict:
    return read(run / "verdict.json", Verdict)


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    """The report without its tags."""
    source = page.write_report(run).read_text().partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def test_the_report_compares_the_base_with_the_learned_step(run: Path, judged: Verdict, text: str) -> None:
    assert judged.learned
    for section in judged.learned.sets().values():
        numbers = f"{percent(section.baseline_wer)} → {percent(section.tuned_wer)}"
        assert numbers in text
    assert (
        "so the base stays; everything below compares the base with step 4, which missed heldout by" in text
    )
    assert "✗ fails Heldout" not in text
    assert "Guardrail: heldout ✗ fails" in text
    assert "Domain ✓ holds" in text
    assert "Guardrail: quiet" in text
    assert "Step 4 is circled." in (run / "report.html").read_text(), "of the curves, for screen readers"
    assert f"{percent(judged.learned.domain.baseline_wer)} before and" in text
    assert "domain: most improved domain-" in text


def test_the_report_names_the_next_command(run: Path, text: str) -> None:
    assert f"Next: uv run asrlora strength {run} ." in text


def test_the_excerpts_and_tables_are_of_that_step(run: Path, judged: Verdict) -> None:
    alone = alignment.read_pair(run, "domain", run_dir.step_folder(run, 4), "wer")
    found = page.shown(run, judged)
    assert found["domain"] == alone.shown() != []
    assert found["heldout"] != []
    assert found["quiet"] == []


def test_halves_of_the_base_are_not_shown_as_results(tmp_path: Path) -> None:
    folder = written.write_forgetful(tmp_path / "run", count=600, report_manifest="auto")
    assert written.judge(folder)["domain_report"]["reduction"] == 0
    assert "part held out from choosing" not in page.write_report(folder).read_text()


def test_compare_shows_the_learned_step_and_its_changes(run: Path, judged: Verdict) -> None:
    assert judged.learned
    other = written.write_run(run.parent / "other", {"domain": written.better(), "heldout": written.same()})
    written.judge(other)
    (group,) = grouping.grouped(grouping.read_runs([run, other]))
    shown = next(one for one in group.runs if one.name == "run")
    assert (shown.best_step, shown.learned_step, shown.state) == (0, 4, "reject")
    assert shown.scores["domain"].change == judged.learned.domain.change
    assert shown.scores["heldout"].change_interval == judged.learned.heldout.change_interval
    at = group.paired.index("run")
    pair = group.pairs["domain"][at - 1]  # the base against it
    counts = (run_dir.read_counts(run_dir.step_folder(run, step) / "domain.jsonl") for step in (0, 4))
    assert pair[0] == pytest.approx(bootstrap.compare(*counts).change)
    compare.write_page([group], run.parent / "compare.html")
    source = (run.parent / "compare.html").read_text()
    data = json.loads(source.split('id="data">')[1].split("</script>")[0])
    steps = {one["name"]: (one["best_step"], one["learned_step"]) for one in data["groups"][0]["runs"]}
    assert steps == {"run": (0, 4), "other": (2, None)}


def test_the_records_of_such_a_run_alone_are_enough(run: Path, tmp_path: Path, judged: Verdict) -> None:
    for name in ("run.json", "verdict.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert judged.learned
    assert grouping.read_run(tmp_path).evaluations[4]["domain"] == judged.learned.domain.tuned_wer


def test_wandb_gets_the_learned_step(judged: Verdict, tmp_path: Path) -> None:
    assert judged.learned
    found = wandb.summary(judged)
    assert (found["best_step"], found["learned_step"]) == (0, 4)
    assert found["domain/reduction"] == 0
    assert found["learned/domain/reduction"] == judged.learned.domain.reduction > 0.2
    assert found["learned/heldout/regression_high"] == judged.learned.sets()["heldout"].interval[1]
    plain = written.write_run(tmp_path / "plain", {"domain": written.better(), "heldout": written.same()})
    written.judge(plain)
    assert not [name for name in wandb.summary(read(plain / "verdict.json", Verdict)) if "learned" in name]


def test_the_commands_say_what_comes_next(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "verdict.json").read_bytes()
    assert cli.main(["verdict", str(run)]) == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "so the base stays (step 0): step 4 took domain WER from" in printed
    assert "domain: better with probability 100.0%" in printed
    assert f"next: uv run asrlora strength {run}".replace(" ", "") in printed.replace(" ", "")
    assert (run / "verdict.json").read_bytes() == before
    assert demo._report(run, {"all": 1.0}) == 3
    printed = capsys.readouterr().out
    assert "step 4" in printed
    assert "next:" in printed
