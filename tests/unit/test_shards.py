import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from asrlora.data import audio, shards
from asrlora.data.manifest import read_manifest
from asrlora.demo.corpus import folder_digest
from asrlora.errors import UserError
from conftest import Speech


@pytest.fixture(scope="module")
def built(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> shards.Shards:
    out = tmp_path_factory.mktemp("shards") / "heldout"
    return shards.build(read_manifest(speech.heldout), out, workers=1)


def test_plain_webdataset_reads_the_same_samples(speech: Speech, built: shards.Shards) -> None:
    """The oracle: someone else's reader of the same format."""
    urls = [str(path) for path in sorted(built.folder.glob("*.tar"))]
    utterances = read_manifest(speech.heldout)
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == len(built.samples) == len(utterances)
    for index, (sample, utterance) in enumerate(zip(theirs, utterances, strict=True)):
        assert json.loads(sample["json"])["text"] == built.samples[index].text == utterance.text
        pcm, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert rate == 16_000
        assert np.array_equal(pcm, built.read(index))


def test_shards_hold_what_transcription_hears(speech: Speech, built: shards.Shards) -> None:
    """The predecessor trained on raw audio and transcribed normalised audio."""
    for index, utterance in enumerate(read_manifest(speech.heldout)[:10]):
        assert np.array_equal(built.read(index), audio.read_audio(utterance.audio))
        assert audio.rms(audio.to_float(built.read(index))) == pytest.approx(0.075, rel=0.01)


def test_same_bytes_whatever_the_number_of_workers(speech: Speech, tmp_path: Path) -> None:
    utterances = read_manifest(speech.train)
    assert len(utterances) >= shards.SMALL  # so that the workers are really used
    for workers in (1, 2):
        shards.build(utterances, tmp_path / str(workers), workers=workers)
    assert folder_digest(tmp_path / "1") == folder_digest(tmp_path / "2")


def copy(built: shards.Shards, to: Path) -> Path:
    to.mkdir()
    for path in built.folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("sample", [0, 20, 47])
def test_a_flipped_bit_is_found_and_named(built: shards.Shards, tmp_path: Path, sample: int) -> None:
    folder = copy(built, tmp_path / "copy")
    damaged = built.samples[sample]
    data = bytearray((folder / damaged.shard).read_bytes())
    data[damaged.offset + damaged.length // 2] ^= 1
    (folder / damaged.shard).write_bytes(data)
    assert shards.verify(folder) == [damaged.id]
    with pytest.raises(UserError, match=damaged.id):
        shards.open_shards(folder).read(sample)


def test_a_tar_cut_at_a_member_boundary_is_found(built: shards.Shards, tmp_path: Path) -> None:
    """Plain readers take such a tar for whole."""
    folder = copy(built, tmp_path / "copy")
    shard = folder / built.samples[0].shard
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[10].offset
    shard.write_bytes(shard.read_bytes()[:cut])
    assert len(shards.verify(folder)) == len(built.samples) - 5


def test_a_damaged_index_and_another_audio_path_are_refused(built: shards.Shards, tmp_path: Path) -> None:
    folder = copy(built, tmp_path / "copy")
    meta = json.loads((folder / shards.META).read_text())
    meta["fingerprint"]["audio"]["rms"] = 0.1
    (folder / shards.META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="another audio path"):
        shards.open_shards(folder)
    (folder / shards.INDEX).write_bytes((folder / shards.INDEX).read_bytes()[:-10])
    with pytest.raises(UserError, match=r"index\.jsonl is damaged"):
        shards.open_shards(folder)


def test_unreadable_audio_leaves_nothing_behind(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.flac", np.full(16_000, 0.1), 16_000)
    data = (tmp_path / "good.flac").read_bytes()
    (tmp_path / "bad.flac").write_bytes(data[:60] + b"\xff" * (len(data) - 60))
    lines = [{"audio": f"{name}.flac", "text": name} for name in ("good", "bad")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    utterances = read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"bad\.flac"):
        shards.build(utterances, tmp_path / "out" / "shards")
    assert list((tmp_path / "out").iterdir()) == []


def test_silence_is_left_out_and_counted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "tone.wav", np.full(16_000, 0.1), 16_000)
    lines = [{"audio": f"{name}.wav", "text": name} for name in ("silent", "tone")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = shards.build(read_manifest(tmp_path / "m.jsonl"), tmp_path / "out")
    assert [sample.text for sample in made.samples] == ["tone"]
    assert made.rejected == {"silent": 1}


def test_the_cache_is_found_again_and_a_changed_file_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ASRLORA_CACHE", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n')
    first = shards.cached(read_manifest(tmp_path / "m.jsonl"))
    assert shards.cached(read_manifest(tmp_path / "m.jsonl")).folder == first.folder
    soundfile.write(tmp_path / "a.wav", np.full(20_000, 0.1), 16_000)
    assert shards.cached(read_manifest(tmp_path / "m.jsonl")).folder != first.folder
