"""What utterances cost a model, and the plans, figures and audit that weigh by it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import tiny
from adapting import config
from asrlora.data import loader, plan
from asrlora.data.audit import checks
from asrlora.data.augment import Augment
from asrlora.data.manifest import Utterance
from asrlora.errors import UserError
from asrlora.models import objective, registry
from conftest import BASE

LENGTHS = np.random.default_rng(0).uniform(1.0, 20.0, 2_000)


def model(folder: Path, **settings: object) -> str:
    """A folder that is a model to whoever reads its config.json."""
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def whisper(tmp_path: Path) -> plan.Cost:
    return registry.cost_of(model(tmp_path, model_type="whisper", max_source_positions=1500))


def test_whisper_costs_its_window_and_other_models_the_audio(whisper: plan.Cost, tmp_path: Path) -> None:
    assert whisper(np.array([0.3, 4.0, 30.0])).tolist() == [30.0, 30.0, 30.0]
    for kind in set(registry.FAMILIES) - {"whisper"}:
        assert registry.cost_of(model(tmp_path, model_type=kind))(LENGTHS) is LENGTHS
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        registry.cost_of(str(tmp_path))


@pytest.mark.parametrize(("budget", "utterances"), [(160.0, 5), (60.0, 2), (20.0, 1)])
def test_a_budget_of_seconds_holds_whole_windows(budget: float, utterances: int, whisper: plan.Cost) -> None:
    """By their seconds alone some 15 would share a batch of 160 s, which is one of 450 s to Whisper."""
    planned = plan.plan_epoch(
        LENGTHS, seed=1, epoch=0, microbatches_per_step=1, batch_seconds=budget, cost=whisper
    )
    sizes = [len(batch) for step in planned for batch in step]
    assert max(sizes) == utterances
    assert sum(sizes) == len(LENGTHS)
    evaluation = plan.plan_evaluation([str(i) for i in range(len(LENGTHS))], LENGTHS, budget, whisper)
    assert {len(batch) for batch in evaluation} == {utterances}
    assert sorted(i for batch in evaluation for i in batch) == list(range(len(LENGTHS)))


def test_padding_is_a_share_of_what_is_computed_on(whisper: plan.Cost) -> None:
    pcms = [np.ones(16_000 * seconds, np.int16) for seconds in (6, 3)]
    batch = loader.Batch([], *loader.pack(pcms))
    assert loader.padding([batch]) == pytest.approx(1 - 9 / 12)
    assert loader.padding([batch], whisper) == pytest.approx(1 - 9 / 60)
    planned = plan.plan_epoch(LENGTHS, seed=1, epoch=0, microbatches_per_step=1, batch_size=8, cost=whisper)
    assert plan.padding(planned, LENGTHS, whisper) == pytest.approx(1 - LENGTHS.mean() / 30)


def test_starvation_is_told_by_the_models_cost(whisper: plan.Cost, tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    train = [Utterance(str(i), tmp_path / "a.wav", "some words", 5.0) for i in range(64)]
    settings = config(batch_seconds=160, gradient_accumulation_steps=1, max_steps=64)
    for one, seconds in ((plan.by_length, 5), (whisper, 30)):
        epochs = checks.quick(train, {}, settings, one).sets["train"]["epochs"]
        assert epochs == pytest.approx(64 / (64 * seconds / 160), rel=0.01)


def test_the_family_of_a_loaded_model_says_the_same(tmp_path: Path) -> None:
    base = registry.load_base(tiny.save("whisper", tmp_path))
    seconds = base.extractor.n_samples / 16_000
    assert base.cost(LENGTHS).tolist() == [seconds] * len(LENGTHS)
    assert registry.load_base(str(BASE)).cost is plan.by_length


class Two:
    """Shards of two utterances of 1.5 and 1 s, as far as Augment asks."""

    lengths = np.array([(1, 24_000), (2, 16_000)], [("key", np.uint64), ("frames", np.uint32)])
    durations = lengths["frames"] / 16_000


@pytest.mark.parametrize(
    ("kind", "speeds", "text", "told"),
    [
        ("whisper", (0.7, 1.0), "be", r"at --augment-speed 0.7 lasts 2.14 s, .* at most 2 s"),  # of 1.5 s
        ("whisper", (0.8, 2.0), "be", None),
        ("wav2vec2", (1.0, 2.0), "ab" * 30, "at --augment-speed 2 has a text of 60 tokens"),
        ("wav2vec2", (0.5, 1.0), "ab" * 15, None),
        ("whisper", (), "be", None),
    ],
)
def test_speeds_that_take_audio_past_the_models_limits_are_told_before_the_first_step(
    kind: str, speeds: tuple[float, ...], text: str, told: str | None, tmp_path: Path
) -> None:
    base = registry.load_base(tiny.save(kind, tmp_path))
    shards = Two()
    played = Augment(42, speeds).extremes(shards)  # type: ignore[arg-type]
    for epoch in range(20):  # the extremes are what the plan draws from
        drawn = Augment(42, speeds).durations(shards, epoch)  # type: ignore[arg-type]
        assert (drawn <= np.max(list(played.values()), 0)).all()
        assert (drawn >= np.min(list(played.values()), 0)).all()
    labels, findings = objective.label(base, {"a": text, "b": "be"}, played)
    assert set(labels) == ({"a", "b"} if told is None else {"b"})
    assert [finding.stops for finding in findings] == [True] * (told is not None)
    assert told is None or re.search(told, findings[0].message)
