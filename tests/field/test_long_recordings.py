"""Recordings longer than a model takes at once, as users have them.

The demo's base takes 4 s. Each input is transcribed whole, or refused or reported by name; half of a
text without a word about it is what must not happen.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

import tiny
from asrlora import cli, train
from asrlora.data import audio, windows
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache
from asrlora.engine import longform
from asrlora.engine import runtime as runtimes
from asrlora.engine.evaluate import evaluate
from asrlora.errors import UserError
from asrlora.models import registry, vad
from asrlora.record.run_dir import read_lines
from asrlora.score import metric
from asrlora.score import text as texts
from conftest import BASE, Speech

RATE = audio.SAMPLE_RATE
LIMIT = 4 * RATE
Wave = np.ndarray


@dataclass(frozen=True)
class Talk:
    """Sentences that the demo's base reads well, and what is said in them."""

    clips: list[Wave]
    texts: list[str]
    alone: list[str]  # what the base writes for each clip by itself

    def wave(self, gap: float = 0.6) -> Wave:
        pause = np.zeros(round(gap * RATE), np.float32)
        return np.concatenate([part for clip in self.clips for part in (clip, pause)])


@pytest.fixture(scope="module")
def talk(speech: Speech) -> Talk:
    utterances = [u for u in read_manifest(speech.heldout) if u.duration > 1.5][:6]
    pcms = [audio.read_audio(u.audio) for u in utterances]
    base = registry.load_base(str(BASE))
    alone = [longform.transcribe(base.model, base, pcm, 160.0)[0][0].text for pcm in pcms]
    return Talk([audio.to_float(pcm) for pcm in pcms], [u.text for u in utterances], alone)


def errors(reference: str, hypothesis: str) -> float:
    return float(jiwer.wer(reference, hypothesis))


def transcribe(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["transcribe", str(path), *flags])
    out, err = capsys.readouterr()
    return code, out, err


def noise(seconds: float, level: float, seed: int = 0) -> Wave:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def music(seconds: float) -> Wave:
    """Chords that change twice a second, each note with its overtones, dying away."""
    time = np.arange(round(seconds * RATE)) / RATE
    rng = np.random.default_rng(1)
    roots = rng.choice([220.0, 246.9, 261.6, 293.7, 329.6], len(time) // (RATE // 2) + 1)
    root = roots[(time * 2).astype(int)]
    notes = sum(
        np.sin(2 * np.pi * np.cumsum(root * step * k) / RATE) / k
        for step in (1, 1.26, 1.5)
        for k in (1, 2, 3)
    )
    return (0.1 * notes * np.exp(-3 * (time % 0.5))).astype(np.float32)


def resampled(wave: Wave, rate: int) -> Wave:
    import torch
    import torchaudio.functional as functions  # type: ignore[import-untyped]

    return functions.resample(torch.from_numpy(wave), RATE, rate).numpy()


@dataclass(frozen=True)
class Input:
    """How a talk is recorded; the WER may rise by `worse` over that of its sentences one by one. None: the
    base was never trained on such a sound, and only the number of words is looked at."""

    wave: Callable[[Talk], Wave]
    rate: int = RATE
    suffix: str = "wav"
    worse: float | None = 0.12


TALKS = {
    "with pauses": Input(lambda talk: talk.wave()),
    "twice as long": Input(lambda talk: np.tile(talk.wave(), 2)),
    "long pauses": Input(lambda talk: talk.wave(4.0)),
    "short pauses": Input(lambda talk: talk.wave(0.25), worse=0.3),
    "stereo": Input(lambda talk: np.stack([talk.wave()] * 2, axis=1)),
    "stereo with a dead channel": Input(lambda talk: np.stack([talk.wave(), 0 * talk.wave()], axis=1)),
    "telephone": Input(lambda talk: resampled(talk.wave(), 8_000), 8_000, worse=None),
    "studio": Input(lambda talk: resampled(talk.wave(), 48_000), 48_000, "flac"),
    "mp3": Input(lambda talk: talk.wave(), suffix="mp3", worse=0.3),
    "very quiet": Input(lambda talk: 0.02 * talk.wave(), worse=0.2),
    "half of it 26 dB quieter": Input(
        lambda talk: (
            talk.wave() * np.linspace(1, 0.05, len(talk.wave())).round(0).clip(0.05).astype(np.float32)
        )
    ),
    "after a minute of silence": Input(
        lambda talk: np.concatenate([np.zeros(60 * RATE, np.float32), talk.wave()])
    ),
    "a loud click in it": Input(
        lambda talk: np.concatenate([talk.wave(), 0.9 * np.sign(noise(0.005, 1)), np.zeros(RATE, np.float32)])
    ),
}


SLOW = {"twice as long", "studio", "after a minute of silence", "long pauses", "stereo with a dead channel"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TALKS]
)
def test_a_talk_is_written_whole(
    name: str, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = TALKS[name]
    wave = case.wave(talk)
    path = tmp_path / f"talk.{case.suffix}"
    soundfile.write(path, wave, case.rate)
    code, out, err = transcribe(capsys, path)
    assert code == 0, err
    times = 2 if name == "twice as long" else 1
    by_sentence = errors(" ".join(talk.texts), " ".join(talk.alone))
    whole = errors(" ".join(talk.texts * times), out.strip())
    if case.worse is None:
        assert len(out.split()) > 0.7 * len(" ".join(talk.texts).split())
    else:
        assert whole <= by_sentence + case.worse, (by_sentence, out)
    assert "longer than the 4 s that the model takes at once, cut at silence into" in err


def test_a_talk_without_any_pause_is_cut_within_speech_and_says_so(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voiced = [clip[np.abs(clip) > 0.004] for clip in talk.clips]  # no silence left between words either
    soundfile.write(tmp_path / "rush.wav", np.concatenate(voiced), RATE)
    code, out, err = transcribe(capsys, tmp_path / "rush.wav")
    assert code == 0
    assert len(out.split()) > 0.5 * len(" ".join(talk.texts).split())
    assert "of the cuts are within speech, for want of a pause" in err


@pytest.mark.parametrize(
    "wave",
    [noise(12, 0.05), noise(12, 0.0005), music(12), np.zeros(12 * RATE, np.float32)],
    ids=["loud noise", "faint noise", "music", "digital silence"],
)
def test_where_nobody_speaks_the_text_is_empty_and_that_is_reported(
    wave: Wave, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "nobody.wav", wave, RATE)
    code, out, err = transcribe(capsys, tmp_path / "nobody.wav")
    assert (code, out) == (0, "\n")
    assert "no speech was found in 1, whose text is empty" in err


def test_one_sentence_at_the_end_of_a_long_silence_is_found(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wave = np.concatenate([noise(40, 0.0003), talk.clips[0], noise(0.3, 0.0003)])
    soundfile.write(tmp_path / "end.wav", wave, RATE)
    code, out, err = transcribe(capsys, tmp_path / "end.wav", "--output-format", "jsonl")
    assert code == 0, err
    found = json.loads(out)
    assert found["text"]
    assert all(39.5 < one["start"] < one["end"] < len(wave) / RATE + 0.01 for one in found["segments"])


def test_two_sentences_far_apart_are_both_found(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wave = np.concatenate([talk.clips[0], np.zeros(300 * RATE, np.float32), talk.clips[1]])
    soundfile.write(tmp_path / "apart.flac", wave, RATE)
    code, out, err = transcribe(capsys, tmp_path / "apart.flac")
    assert code == 0, err
    assert errors(" ".join(talk.texts[:2]), out.strip()) <= 0.3


@pytest.mark.parametrize(("samples", "cut"), [(LIMIT - 1, False), (LIMIT, False), (LIMIT + 1, True)])
def test_what_just_fits_is_not_cut(
    samples: int, cut: bool, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "edge.wav", talk.wave()[:samples], RATE)
    code, out, err = transcribe(capsys, tmp_path / "edge.wav")
    assert code == 0
    assert out.strip()
    assert ("cut at silence" in err) == cut


@pytest.fixture
def without_vad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)  # as if it were not installed


@pytest.mark.usefixtures("without_vad")
def test_without_silero_vad_a_long_recording_is_refused_and_a_short_one_is_not(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", talk.wave(), RATE)
    soundfile.write(tmp_path / "short.wav", talk.clips[0], RATE)
    code, out, err = transcribe(capsys, tmp_path / "long.wav")
    assert (code, out) == (2, "")
    assert "long.wav" in err
    assert "longer than the 4 s" in err
    assert "install silero-vad" in err
    assert transcribe(capsys, tmp_path / "short.wav")[:2] == (0, talk.alone[0] + "\n")
    code, out, _ = transcribe(capsys, tmp_path / "short.wav", str(tmp_path / "long.wav"))
    assert (code, out) == (2, ""), "refused before anything is decoded"


def test_the_forms_of_output_have_the_times(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.wav"
    soundfile.write(path, talk.wave(), RATE)
    plain = transcribe(capsys, path)[1].strip()
    found = json.loads(transcribe(capsys, path, "--output-format", "jsonl")[1])
    assert found["text"] == plain == " ".join(one["text"] for one in found["segments"] if one["text"])
    starts = np.cumsum([0.0, *[len(clip) / RATE + 0.6 for clip in talk.clips[:-1]]])
    for one, start, clip in zip(found["segments"], starts, talk.clips, strict=True):
        assert one["start"] == pytest.approx(start, abs=0.1)
        assert one["end"] == pytest.approx(start + len(clip) / RATE, abs=0.1)
    srt = transcribe(capsys, path, "--output-format", "srt")[1]
    assert srt.startswith("1\n00:00:00,0")
    assert srt.count(" --> ") == sum(bool(one["text"]) for one in found["segments"])
    vtt = transcribe(capsys, path, "--output-format", "vtt")[1]
    assert vtt.startswith("WEBVTT\n\n00:00:00.0")
    assert cli.main(["transcribe", str(path), str(path), "--output-format", "srt"]) == 2
    assert "subtitles are of one file" in capsys.readouterr().err


@pytest.fixture
def manifest(talk: Talk, tmp_path: Path) -> Path:
    """A long utterance, a short one, and a long one in which nobody speaks."""
    soundfile.write(tmp_path / "talk.wav", talk.wave(), RATE)
    soundfile.write(tmp_path / "short.wav", talk.clips[0], RATE)
    soundfile.write(tmp_path / "noise.wav", noise(6, 0.05), RATE)
    said = {"talk": " ".join(talk.texts), "short": talk.texts[0], "noise": "nothing"}
    lines = [{"id": name, "audio": f"{name}.wav", "text": text} for name, text in said.items()]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "set.jsonl"


def test_eval_scores_what_transcribe_writes_and_counts_the_windows(
    manifest: Path, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-id", str(BASE), "--manifest-path", str(manifest)]
    assert cli.main(["eval", *flags, "--output-dir", str(tmp_path / "eval")]) == 0
    printed = capsys.readouterr().out
    assert "2 utterances are longer than the 4 s that the model takes at once, cut at silence into" in printed
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert (scores["windowed"], scores["without_speech"]) == (2, 1)
    assert scores["windows"] == len(talk.clips)
    assert scores["fingerprint"]["decode"]["windows"]["seconds"] == 4.0
    assert scores["fingerprint"]["decode"]["windows"]["vad"]["name"] == "silero-vad"
    written = {line["id"]: line["hypothesis_raw"] for line in read_lines(tmp_path / "eval/hypotheses.jsonl")}
    for name in ("talk", "short", "noise"):
        assert written[name] == transcribe(capsys, tmp_path / f"{name}.wav")[1].strip()


def test_scores_do_not_depend_on_ranks_or_batches(manifest: Path) -> None:
    base = registry.load_base(str(BASE))
    data = cache.cached(read_manifest(manifest))
    normaliser = texts.normaliser(None, "en")
    runtime = runtimes.start()
    wide, narrow = (evaluate(runtime, base.model, base, data, s, normaliser) for s in (160.0, 4.0))
    assert wide == narrow
    parts = longform.Parts(data, longform.cut_set(runtime, base, data))
    with pytest.raises(RuntimeError, match="windows of 'talk' are missing or were decoded twice"):
        parts.join([])


def test_a_set_in_which_nobody_speaks_has_empty_hypotheses(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", noise(6, 0.05), RATE)
    (tmp_path / "set.jsonl").write_text(json.dumps({"audio": "noise.wav", "text": "not so"}) + "\n")
    flags = ["--model-id", str(BASE), "--manifest-path", str(tmp_path / "set.jsonl")]
    assert cli.main(["eval", *flags, "--output-dir", str(tmp_path / "eval")]) == 0
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert (scores["wer"], scores["empty"], scores["without_speech"]) == (1.0, 1, 1)


@pytest.mark.usefixtures("without_vad")
def test_without_silero_vad_eval_refuses_a_long_utterance_by_name(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-id", str(BASE), "--manifest-path", str(manifest)]
    assert cli.main(["eval", *flags, "--output-dir", str(tmp_path / "eval")]) == 2
    err = capsys.readouterr().err
    assert "'talk' lasts" in err
    assert "(2 such recordings)" in err
    assert not (tmp_path / "eval").exists()


def test_a_short_manifest_has_no_windows_in_its_fingerprint(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "short.wav", talk.clips[0], RATE)
    (tmp_path / "set.jsonl").write_text(json.dumps({"audio": "short.wav", "text": talk.texts[0]}) + "\n")
    flags = ["--model-id", str(BASE), "--manifest-path", str(tmp_path / "set.jsonl")]
    assert cli.main(["eval", *flags, "--output-dir", str(tmp_path / "eval")]) == 0
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["windowed"] == 0
    assert "windows" not in scores["fingerprint"]["decode"]


@pytest.mark.parametrize(("rate", "close"), [(RATE, 4), (44_100, 400)])
def test_a_window_is_what_its_segment_in_a_manifest_is(
    rate: int, close: int, talk: Talk, tmp_path: Path
) -> None:
    """To rounding (and five times that where the window is as much quieter); at another rate, to the part
    of a sample by which a position in the file is rounded."""
    wave = resampled(talk.wave(), rate) if rate != RATE else talk.wave()
    wave = wave * np.linspace(0.2, 1, len(wave), dtype=np.float32) + np.float32(
        0.01
    )  # level and offset matter
    soundfile.write(tmp_path / "talk.wav", wave, rate, subtype="FLOAT")
    base = registry.load_base(str(BASE))
    pcm = audio.read_audio(tmp_path / "talk.wav")
    spans = longform.cut(base, pcm).spans
    assert len(spans) == len(talk.clips)
    for start, end in spans:
        ours = longform.window(pcm, (start, end)).astype(int)
        segment = audio.read_audio(tmp_path / "talk.wav", start / RATE, (end - start) / RATE).astype(int)
        length = min(len(ours), len(segment))
        assert abs(len(ours) - len(segment)) <= 1
        difference = (ours[:length] - segment[:length])[100 : length - 100]  # the resampler meets the edges
        assert np.sqrt(np.mean(difference**2)) <= close
        assert audio.rms(ours / 32768) == pytest.approx(audio.rms(segment / 32768), rel=0.01)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("moonshine", 6.0),
        ("moonshine_streaming", 4.0),
        ("whisper", 2.0),
        ("wav2vec2", 40.0),
        ("parakeet", 40.0),
    ],
)
def test_every_family_knows_how_much_it_takes_at_once(kind: str, seconds: float, tmp_path: Path) -> None:
    """The small models of the tests: Whisper with 2 s of features, decoders with 200 positions."""
    base = registry.load_base(tiny.save(kind, tmp_path / kind))
    assert base.max_seconds == seconds
    base.check(base, seconds, [])  # what is taken at once is never refused


def test_a_model_may_state_that_it_takes_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tiny.save("wav2vec2", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_audio_seconds": 12}))
    assert registry.load_base(str(folder)).max_seconds == 12.0
    (folder / "config.json").write_text(json.dumps({**config, "max_audio_seconds": "12 s"}))
    soundfile.write(tmp_path / "a.wav", noise(1, 0.1), RATE)
    assert transcribe(capsys, tmp_path / "a.wav", "--model-id", str(folder))[0] == 2


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (["a b", "c"], "a b c"),
        (["", "a", "", "b", ""], "a b"),
        ([], ""),
        (["你好。", "世界"], "你好。世界"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["今日は", "GPUです"], "今日は GPUです"),
        (["안녕", "하세요"], "안녕 하세요"),
    ],
)
def test_texts_are_joined_as_their_script_is_written(parts: list[str], joined: str) -> None:
    assert metric.join(parts) == joined


def test_looking_for_speech_leaves_torchs_threads_alone() -> None:
    """`import silero_vad` sets them to one, for everything that follows."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, again = (vad.speech_probabilities(np.zeros(RATE + 1, np.int16)) for _ in range(2))
        assert torch.get_num_threads() == 2
        assert np.array_equal(first, again)
        assert len(first) == -(-(RATE + 1) // windows.FRAME)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def run_flags(manifest: Path, speech: Speech, tmp_path: Path) -> list[str]:
    """The long recordings are made of heldout sentences, so another set has to be the guardrail."""
    sets = {"manifest_path": manifest, "safety_manifest_path": speech.domain}
    return speech.flags(tmp_path / "run", max_steps=1, eval_interval=1, **sets)


@pytest.mark.slow
def test_a_run_evaluates_long_utterances_in_windows(
    run_flags: list[str], talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(run_flags) == 0
    assert "domain: 2 of 3 utterances are longer than the 4 s" in capsys.readouterr().out
    for step in ("step-000000", "step-000001"):
        scores = json.loads((tmp_path / "run" / "eval" / step / "scores.json").read_text())
        assert scores["domain"]["windows"] == len(talk.clips)
        assert scores["heldout"]["windowed"] == 0
        assert scores["fingerprint"]["decode"]["windows"]["seconds"] == 4.0


@pytest.mark.usefixtures("without_vad")
def test_without_silero_vad_a_run_ends_before_its_first_step(run_flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'talk' lasts .* install silero-vad"):
        train.main(run_flags)
    assert not (tmp_path / "run" / "eval").exists()
