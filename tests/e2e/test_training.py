"""One run from speech to verdict, on one process, with the model that ships."""

import json
from pathlib import Path

import pytest

from asrlora import cli, train
from asrlora.record import run_dir
from asrlora.score import keyword_recall
from conftest import BASE, Speech


@pytest.fixture(scope="module")
def run(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e") / "run"
    (folder.parent / "general.txt").write_text("the\nWAS, and a of")
    settings = {
        "max_steps": 24, "eval_interval": 12, "learning_rate": 3e-3, "batch_size": 8,
        "gradient_accumulation_steps": 2, "lora_r": 16, "lora_alpha": 32, "mixed_precision": "bf16",
        "wandb_mode": "offline",
        # 48 utterances are too few for the guardrail to be more than chance; it has tests of its own
        "safety_manifest_path": None,
        "general_text": folder.parent / "general.txt",
    }  # fmt: skip
    assert train.main(speech.flags(folder, **settings)) == 0
    return folder


def test_the_adapter_learns_the_domain(run: Path) -> None:
    """Red when the adapter is frozen."""
    judged = run_dir.read_json(run / "verdict.json")
    assert judged["best_step"] > 0
    assert judged["domain"]["tuned_wer"] < judged["domain"]["baseline_wer"] - 0.03
    losses = [line["loss"] for line in run_dir.read_lines(run / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_the_saved_adapter_gives_the_scores_of_the_run(run: Path, speech: Speech, tmp_path: Path) -> None:
    """Red when evaluation drops the adapter: on either side the WERs differ then."""
    judged = run_dir.read_json(run / "verdict.json")
    output = tmp_path / "eval"
    code = cli.main(
        ["eval", "--model-id", str(BASE), "--adapter-dir", str(run / "adapter_best"),
         "--manifest-path", str(speech.domain), "--output-dir", str(output)]
    )  # fmt: skip
    assert code == 0
    ours = run_dir.read_hypotheses(output / "hypotheses.jsonl")
    theirs = run_dir.read_hypotheses(run_dir.step_folder(run, judged["best_step"]) / "domain.jsonl")
    assert ours == theirs
    assert json.loads((output / "scores.json").read_text())["wer"] == judged["domain"]["tuned_wer"]


def test_domain_words_and_characters_are_told(run: Path) -> None:
    words = (run / "domain_words.txt").read_text().split()
    assert words == sorted(set(words))
    assert not {"the", "was", "under", "please"} & set(words)  # the general text has "the" and "was" only
    judged = run_dir.read_json(run / "verdict.json")
    folders = [run_dir.step_folder(run, step) for step in (0, judged["best_step"])]
    before, after = (run_dir.read_json(folder / "scores.json")["domain"] for folder in folders)
    assert before["domain_words"]["words"] == len(words)
    assert before["domain_words"]["occurrences"] == after["domain_words"]["occurrences"] > 100
    for folder, scores in zip(folders, (before, after), strict=True):
        lines = run_dir.read_hypotheses(folder / "domain.jsonl").values()
        pairs = ((line["reference"], line["hypothesis"]) for line in lines)
        found = keyword_recall.recall(pairs, frozenset(words))
        assert (scores["domain_words"]["recall"], scores["domain_words"]["hits"]) == (
            found.recall,
            found.hits,
        )
        assert 0 < found.hits < found.occurrences
    assert after["cer"] < after["wer"]


def test_the_best_step_is_kept_and_not_the_last(run: Path) -> None:
    judged = run_dir.read_json(run / "verdict.json")
    wers = {
        step: run_dir.read_json(run_dir.step_folder(run, step) / "scores.json")["domain"]["wer"]
        for step in (0, 12, 24)
    }
    assert wers[judged["best_step"]] == min(wers.values()) == judged["domain"]["tuned_wer"]
    assert judged["heldout"] is None
    assert judged["verdict"] != "accept"


def test_the_run_directory_holds_what_is_promised(run: Path) -> None:
    for name in ("run.json", "config.yaml", "metrics.jsonl", "verdict.json", "report.html"):
        assert (run / name).is_file()
    identity = run_dir.read_json(run / "run.json")
    assert identity["state"] == "complete"
    assert identity["fingerprint"]["audio"]["rms"] == 0.075
    assert len(run_dir.read_lines(run / "metrics.jsonl")) == 24
    line = run_dir.read_lines(run / "eval/step-000000/domain.jsonl")[0]
    assert set(line) == {
        "id", "reference", "hypothesis", "reference_raw", "hypothesis_raw",
        "substitutions", "deletions", "insertions", "words", "character_errors", "characters",
        "speaker", "duration",
    }  # fmt: skip
    assert list(run.glob("wandb/offline-run-*/*.wandb")), "W&B wrote nothing"
    assert identity["wandb_id"]


def test_the_verdict_is_the_same_from_the_files(run: Path) -> None:
    before = (run / "verdict.json").read_bytes()
    code = cli.main(["verdict", str(run)])
    assert code == {"accept": 0, "reject": 3, "inconclusive": 4}[json.loads(before)["verdict"]]
    assert (run / "verdict.json").read_bytes() == before


def test_transcribe_uses_the_adapter(run: Path, speech: Speech, capsys: pytest.CaptureFixture[str]) -> None:
    clip = json.loads(speech.domain.read_text().splitlines()[0])
    file = str(speech.domain.parent / clip["audio"])
    texts = []
    for words in (["--model-id", str(BASE)], ["--adapter-dir", str(run / "adapter_best")]):
        assert cli.main(["transcribe", file, *words]) == 0
        texts.append(capsys.readouterr().out.strip())
    assert all(texts)


@pytest.fixture(scope="module")
def few(speech: Speech) -> dict[str, Path]:
    """Settings for runs whose scores nobody looks at: a dozen utterances of each set."""
    settings = {"manifest_path": speech.domain, "safety_manifest_path": speech.heldout}
    for name, manifest in settings.items():
        settings[name] = manifest.with_name(f"dozen_{manifest.name}")
        settings[name].write_text("".join(manifest.read_text().splitlines(keepends=True)[:12]))
    return settings


def test_a_run_that_fails_is_recorded_with_the_reason(
    speech: Speech, few: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asrlora.models import objective

    honest = objective.summed_loss
    monkeypatch.setattr(objective, "summed_loss", lambda *args: honest(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match="3 steps in a row were not finite"):
        train.main(speech.flags(tmp_path / "run", max_steps=9, **few))
    identity = run_dir.read_json(tmp_path / "run" / "run.json")
    assert identity["state"] == "failed"
    assert "the last one step 3 (loss nan" in identity["reason"]
    steps = run_dir.read_lines(tmp_path / "run" / "nonfinite.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(len(set(step["utterances"])) == 8 for step in steps)


def test_a_wer_past_the_threshold_stops_the_run(speech: Speech, few: dict[str, Path], tmp_path: Path) -> None:
    settings = {"max_steps": 40, "eval_interval": 5, "learning_rate": 0.5, "wer_stop_threshold": 1.1, **few}
    assert train.main(speech.flags(tmp_path / "run", **settings)) == 0
    assert len(run_dir.read_lines(tmp_path / "run" / "metrics.jsonl")) < 40
    assert "passed 1.1 times its baseline" in run_dir.read_json(tmp_path / "run" / "run.json")["reason"]
    assert run_dir.read_json(tmp_path / "run" / "verdict.json")["best_step"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {
            "use_dora": True,
            "batch_size": None,
            "batch_seconds": 12,
            "gradient_checkpointing": True,
            "lr_scheduler_type": "cosine",
        },
        pytest.param(
            {
                "lora_targets": "attention",
                "lora_module_filter": "decoder",
                "init_lora_weights": "pissa_niter_4",
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dora", "pissa"],
)
def test_other_recipes_run_to_a_verdict(
    speech: Speech, few: dict[str, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    flags = speech.flags(
        tmp_path / "run", max_steps=2, eval_interval=2, learning_rate=1e-3, **few, **settings
    )
    assert train.main(flags) == 0
    assert (tmp_path / "run" / "verdict.json").is_file()
