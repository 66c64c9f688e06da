import json
import re
from pathlib import Path

import pytest

from asrlora import train
from asrlora.config import RunConfig, parse_run
from asrlora.data.manifest import Utterance
from asrlora.errors import UserError

REQUIRED = ["--dataset-path", "t.jsonl", "--manifest-path", "d.jsonl", "--output-dir", "out"]
HISTORY = Path(__file__).parents[2] / "docs" / "experiment_plan.md"


def test_defaults_keep_the_history_of_the_project() -> None:
    config = parse_run(REQUIRED)
    assert config.model_id == "UsefulSensors/moonshine-tiny"
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert config.microbatch == {"batch_size": 1}
    assert (config.gradient_accumulation_steps, config.max_steps, config.learning_rate) == (8, 200, 1e-5)
    assert (config.max_seconds, config.seed) == (20.0, 42)
    assert (config.lr_scheduler_type, config.warmup_ratio) == ("linear", 0.1)


def test_a_setting_that_an_older_run_did_not_have_was_at_its_default() -> None:
    config = parse_run(REQUIRED)
    older = config.model_dump(mode="json")
    del older["max_heldout_regression"]
    assert config.differences(older) == []
    changed = parse_run([*REQUIRED, "--max-heldout-regression", "0.01"])
    assert changed.differences(older) == ["--max-heldout-regression is 0.01 and was 0.002"]


def test_a_run_that_drew_utterances_by_default_can_be_resumed() -> None:
    """It keeps drawing them, as its run.json says. What was asked for by name must not change."""
    config = parse_run(REQUIRED)
    recorded = config.model_dump(mode="json")
    assert config.resample_by == "auto"
    assert config.differences({**recorded, "resample_by": "utterance"}) == []
    told = config.differences({**recorded, "resample_by": "speaker"})
    assert told == ["--resample-by is 'auto' and was 'speaker'"]
    by_utterance = parse_run([*REQUIRED, "--resample-by", "utterance"])
    assert by_utterance.differences(recorded) == ["--resample-by is 'utterance' and was 'auto'"]


def test_a_resume_with_other_settings_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """The manifests do not exist: it is not they that are missed."""
    flags = ["--dataset-path", "no.jsonl", "--manifest-path", "no.jsonl", "--output-dir", str(tmp_path)]
    config = parse_run(flags).model_dump(mode="json")
    identity = {"run_id": "r", "state": "preempted", "started": "2026", "command": "x", "config": config}
    (tmp_path / "run.json").write_text(json.dumps(identity))
    with pytest.raises(UserError, match=r"--lora-r is 4 and was 8\); give the same ones, or start another"):
        train.main([*flags, "--resume", "auto", "--lora-r", "4"])
    (tmp_path / "run.json").write_text(json.dumps({**identity, "state": "complete"}))
    with pytest.raises(UserError, match="--lora-r is 4 and was 8"):
        train.main([*flags, "--resume", "auto", "--lora-r", "4"])
    assert train.main([*flags, "--resume", "auto", "--keep-checkpoints", "4"]) == 0


def test_flags_win_over_the_file_and_the_saved_file_repeats_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("max_steps: 7\nlearning_rate: 1e-4\nuse_dora: true\n")  # YAML reads 1e-4 as text
    config = parse_run([*REQUIRED, "--config", str(file), "--max-steps", "9", "--no-use-dora"])
    assert (config.max_steps, config.learning_rate, config.use_dora) == (9, 1e-4, False)
    file.write_text(config.to_yaml())
    assert parse_run(["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max-stepz", "3"], "--max-stepz"),
        (["--max-steps", "three"], "--max-steps: .*three"),
        (["--max-steps", "0"], "--max-steps: .*0"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--batch-size", "2", "--batch-seconds", "8"], "exclude each other"),
        (["--replay-ratio", "0.3", "--replay-share", "0.3", "--replay-path", "r"], "exclude each other"),
        (["--replay-share", "0.3"], "replay_share is a share of --replay-path"),
        (["--min-seconds", "30"], "below max_seconds"),
        (["--use-dora", "--init-lora-weights", "pissa"], "do not combine"),
        (["--use-dora", "--init-lora-weights", "olora"], "do not combine"),
        (["--load-in-4bit", "--init-lora-weights", "olora"], "rewrites the base"),
        (["--language", "German"], "--language"),
        (["--init-lora-weights", "magic"], "--init-lora-weights"),
        (["--mixed-precision", "fp8"], "--mixed-precision"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_run([*REQUIRED, *flags])


def test_an_unknown_key_of_the_file_is_an_error_that_guesses(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("max_step: 7\n")
    with pytest.raises(UserError, match=r"run.yaml: key max_step .*did you mean max_steps"):
        parse_run([*REQUIRED, "--config", str(file)])


def test_a_missing_flag_is_named() -> None:
    with pytest.raises(UserError, match="--output-dir is required"):
        parse_run(REQUIRED[:4])


def test_the_predecessors_commands_work_with_the_script_replaced() -> None:
    """The ten rows of history are commands for this project's train.py too."""
    commands = re.findall(r"`uv run python src/lora/runners/experiment\.py ([^`]+)`", HISTORY.read_text())
    assert len(commands) == 10
    for command in commands:
        config = parse_run(command.split())
        assert config.seed == 42
        assert config.max_seconds == 20
    assert isinstance(json.loads(config.model_dump_json()), dict)
    assert RunConfig.model_validate(config.model_dump()) == config


def test_one_safety_manifest_is_recorded_as_it_always_was(tmp_path: Path) -> None:
    one = parse_run([*REQUIRED, "--safety-manifest-path", "h.jsonl"])
    assert one.model_dump(mode="json")["safety_manifest_path"] == "h.jsonl"
    assert parse_run(REQUIRED).model_dump(mode="json")["safety_manifest_path"] is None
    assert one.guardrails == {"heldout": Path("h.jsonl")}
    assert one.differences({**one.model_dump(mode="json"), "safety_manifest_path": "h.jsonl"}) == []


def test_several_guardrails_have_names_of_their_own(tmp_path: Path) -> None:
    paths = ["clean.jsonl", "a/far field.jsonl", "b/far field.jsonl", "domain.jsonl", "heldout.jsonl"]
    several = parse_run([*REQUIRED, "--safety-manifest-path", ",".join(paths)])
    assert dict(zip(several.guardrails, map(str, several.guardrails.values()), strict=True)) == dict(
        zip(["heldout", "far-field", "far-field-2", "domain-2", "heldout-2"], paths, strict=True)
    )
    file = tmp_path / "run.yaml"
    file.write_text(several.to_yaml())
    assert parse_run(["--config", str(file)]) == several
    file.write_text("safety_manifest_path: ['with, comma.jsonl', other.jsonl]\n")
    listed = parse_run([*REQUIRED, "--config", str(file)])
    assert [str(path) for path in listed.safety_manifest_path] == ["with, comma.jsonl", "other.jsonl"]


@pytest.mark.parametrize("paths", ["", "a.jsonl,", ",a.jsonl", "a.jsonl, ,b.jsonl"])
def test_an_empty_path_is_no_missing_guardrail(paths: str) -> None:
    with pytest.raises(UserError, match=r"--safety-manifest-path: an empty path is no manifest.*, not '"):
        parse_run([*REQUIRED, "--safety-manifest-path", paths])


def test_a_report_manifest_is_a_word_or_a_file() -> None:
    assert parse_run(REQUIRED).report_manifest == "auto"
    assert parse_run([*REQUIRED, "--report-manifest", "none"]).report_manifest == "none"
    assert parse_run([*REQUIRED, "--report-manifest", "r.jsonl"]).report_manifest == Path("r.jsonl")


def test_a_wer_in_per_cent_is_no_fraction() -> None:
    with pytest.raises(UserError, match=r"--expect-baseline: .*less than 5, not '11.68'"):
        parse_run([*REQUIRED, "--expect-baseline", "11.68"])


def test_speakers_are_asked_for_before_anything_starts() -> None:
    config = parse_run([*REQUIRED, "--resample-by", "speaker"])
    utterances = [Utterance(f"u{i}", Path("a.wav"), "x", 1.0, speaker=f"s{i // 2}") for i in range(40)]
    train._check_scores(config, {"domain": utterances})
    with pytest.raises(UserError, match="the heldout manifest names no speaker of 1 utterances, such as 'c'"):
        train._check_scores(
            config,
            {"domain": utterances, "heldout": [*utterances, Utterance("c", Path("a.wav"), "x", 1.0)]},
        )
    with pytest.raises(UserError, match="has 19 speakers, and an interval from fewer than 20"):
        train._check_scores(config, {"domain": utterances[:38]})
