import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import written
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache, reader
from asrlora.engine import evaluate, inference
from asrlora.models import objective, registry
from asrlora.models.family import IGNORED
from asrlora.record import judge, run_dir
from asrlora.score import text
from asrlora.score.scoring import Hypothesis
from conftest import BASE, Speech

ENGLISH = text.normaliser(None, "en")


@pytest.fixture(scope="module")
def heldout(speech: Speech) -> reader.Shards:
    return cache.cached(read_manifest(speech.heldout))


@pytest.mark.parametrize(("by", "drawn"), [("auto", "speaker"), ("utterance", "utterance")])
def test_scores_have_the_intervals_of_the_verdict(tmp_path: Path, by: str, drawn: str) -> None:
    """Of 25 speakers, as the run's record says: a resumed one keeps what it began with."""
    config = {"max_steps": 2, "resample_by": by}
    folder = written.write_run(tmp_path / "run", {"domain": written.better(75)}, **config)
    for file in (folder / "eval").rglob("domain.jsonl"):
        lines = enumerate(run_dir.read_lines(file))
        file.write_text(run_dir.to_lines([{**line, "speaker": f"s{i % 25}"} for i, line in lines]))
    evaluator = SimpleNamespace(
        selection=SimpleNamespace(metric="wer"), config=SimpleNamespace(output_dir=folder),
        recorder=SimpleNamespace(record=SimpleNamespace(identity=run_dir.read_run(folder))),
    )  # fmt: skip
    old, new = (run_dir.step_folder(folder, step) / "domain.jsonl" for step in (0, 2))
    expected = judge.compare_files(old, new, by)
    assert expected.resampled == drawn
    names = {one.name for one in dataclasses.fields(Hypothesis)}
    lines = [{k: v for k, v in line.items() if k in names} for line in run_dir.read_lines(new)]
    found = evaluate.Evaluator._intervals(evaluator, 2, "domain", [Hypothesis(**line) for line in lines])
    assert found["interval"] == pytest.approx(expected.tuned_interval, abs=1e-12)
    assert found["change_interval"] == pytest.approx(expected.change_interval, abs=1e-12)


def test_an_utterance_evaluated_twice_is_an_error(heldout: reader.Shards) -> None:
    pairs = [(sample.id, sample.text) for sample in heldout.samples]
    assert len(evaluate.assemble(heldout, pairs, ENGLISH)) == len(pairs)
    with pytest.raises(RuntimeError, match=f"evaluated twice, such as '{pairs[3][0]}'"):
        evaluate.assemble(heldout, [*pairs, pairs[3]], ENGLISH)


def test_a_missing_or_foreign_utterance_is_an_error(heldout: reader.Shards) -> None:
    pairs = [(sample.id, sample.text) for sample in heldout.samples]
    with pytest.raises(RuntimeError, match="missing or foreign"):
        evaluate.assemble(heldout, pairs[1:], ENGLISH)
    with pytest.raises(RuntimeError, match="missing or foreign"):
        evaluate.assemble(heldout, [*pairs[1:], ("stranger", "x")], ENGLISH)


def test_the_base_recognises_general_speech(speech: Speech, tmp_path: Path) -> None:
    """The whole path of `asrlora eval`, against `asrlora transcribe` on each file by itself."""
    scores = inference.evaluate_manifest(
        str(BASE), None, read_manifest(speech.heldout), tmp_path / "eval", 160.0
    )
    assert scores is not None
    assert scores.wer < 0.15
    assert scores.utterances == 48
    assert scores.fingerprint["text"]["name"] == "whisper-english"
    assert 0 < scores.cer < scores.wer
    for parts in (scores.by_duration, scores.by_speaker):
        assert sum(part.words for part in parts.values()) == scores.words
    assert set(scores.by_speaker) == {u.speaker for u in read_manifest(speech.heldout)}
    files = [u.audio for u in read_manifest(speech.heldout)]
    alone = {found.path: found.text for found in inference.transcribe_files(str(BASE), None, files)}
    from asrlora.record.run_dir import read_lines

    written = {line["id"]: line["hypothesis_raw"] for line in read_lines(tmp_path / "eval/hypotheses.jsonl")}
    assert written == {u.id: alone[u.audio] for u in read_manifest(speech.heldout)}
    assert scores.rtfx > 0
    assert (scores.empty, scores.runaway) == (0, 0)


def test_silence_is_an_empty_text(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (found,) = inference.transcribe_files(None, None, [tmp_path / "silent.wav"])
    assert (found.path, found.text, found.segments) == (tmp_path / "silent.wav", "", [])


def test_the_base_ships_in_transformers_own_format() -> None:
    from transformers import AutoProcessor, MoonshineForConditionalGeneration

    model = MoonshineForConditionalGeneration.from_pretrained(BASE)
    processor = AutoProcessor.from_pretrained(BASE)
    assert processor.tokenizer.decode(processor.tokenizer("ninety two").input_ids) == "ninety two"
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8_000_000
    assert torch.isfinite(model.model.encoder.conv1.weight).all()


def test_labels_end_with_the_end_token_and_pad_with_ignored() -> None:
    base = registry.load_base(str(BASE))
    labels = objective.pad_labels([base.label_ids(base, "abc"), base.label_ids(base, "a")])
    assert labels.shape == (2, objective.LABEL_QUANTUM)
    assert labels[1].tolist() == [4, 2, *[IGNORED] * 6]
