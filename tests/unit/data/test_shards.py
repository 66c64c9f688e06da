import io
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from asrlora.data import audio
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache, index, reader, writer
from asrlora.data.shards.folder import META, digest
from asrlora.errors import UserError
from benchmarks import data as bench
from conftest import Speech
from written import files


@pytest.fixture(scope="module")
def built(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> reader.Shards:
    out = tmp_path_factory.mktemp("shards") / "heldout"
    return writer.build(read_manifest(speech.heldout), out, workers=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 48 short clips at 16 kHz, for which no torch is imported."""
    folder = tmp_path_factory.mktemp("plain") / "wav"
    bench.write_corpus(folder, np.full(48, 0.3), 16_000)
    return folder / "manifest.jsonl"


def test_plain_webdataset_reads_the_same_samples(speech: Speech, built: reader.Shards) -> None:
    """The oracle: someone else's reader of the same format."""
    urls = [str(path) for path in sorted(built.folder.glob("*.tar"))]
    utterances = read_manifest(speech.heldout)
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == len(built.samples) == len(utterances)
    for number, (sample, utterance) in enumerate(zip(theirs, utterances, strict=True)):
        assert json.loads(sample["json"])["text"] == built.samples[number].text == utterance.text
        pcm, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert rate == 16_000
        assert np.array_equal(pcm, built.read(number))


def test_shards_hold_what_transcription_hears(speech: Speech, built: reader.Shards) -> None:
    """The predecessor trained on raw audio and transcribed normalised audio."""
    for number, utterance in enumerate(read_manifest(speech.heldout)[:10]):
        assert np.array_equal(built.read(number), audio.read_audio(utterance.audio))
        assert audio.rms(audio.to_float(built.read(number))) == pytest.approx(0.075, rel=0.01)


def test_same_bytes_whatever_the_number_of_workers_and_slices(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SAMPLES_PER_SHARD", 32)
    utterances = read_manifest(speech.train)
    for workers in (1, 2):
        writer.build(utterances, tmp_path / str(workers), workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    chunks = writer.cut(utterances)
    assert len(chunks) == 5
    out = tmp_path / "sliced"
    for number in (3, 1):
        writer.write_shards(chunks, out, part=(number, 3))
    with pytest.raises(UserError, match="build the slices 2/3"):
        writer.finish(out)
    writer.write_shards(chunks, out, part=(2, 3))
    writer.finish(out)
    assert files(out) == files(tmp_path / "1")


def copy(built: reader.Shards, to: Path) -> Path:
    to.mkdir()
    for path in built.folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("sample", [0, 20, 47])
def test_a_flipped_bit_is_found_and_named(built: reader.Shards, tmp_path: Path, sample: int) -> None:
    folder = copy(built, tmp_path / "copy")
    damaged = built.samples[sample]
    data = bytearray((folder / damaged.shard).read_bytes())
    data[damaged.offset + damaged.length // 2] ^= 1
    (folder / damaged.shard).write_bytes(data)
    assert reader.verify(folder) == [damaged.id]
    with pytest.raises(UserError, match=damaged.id):
        reader.open_shards(folder).read(sample)


def test_a_tar_cut_at_a_member_boundary_is_found(built: reader.Shards, tmp_path: Path) -> None:
    """Plain readers take such a tar for whole."""
    folder = copy(built, tmp_path / "copy")
    shard = folder / built.samples[0].shard
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[10].offset
    shard.write_bytes(shard.read_bytes()[:cut])
    assert len(reader.verify(folder)) == len(built.samples) - 5


def test_a_damaged_index_and_another_audio_path_are_refused(built: reader.Shards, tmp_path: Path) -> None:
    folder = copy(built, tmp_path / "copy")
    meta = json.loads((folder / META).read_text())
    meta["fingerprint"]["audio"]["rms"] = 0.1
    (folder / META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"shards\.json is damaged"):
        reader.open_shards(folder)
    write_meta(folder, meta)
    with pytest.raises(UserError, match="another audio path"):
        reader.open_shards(folder)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """As someone would who knows how the file protects itself."""
    meta.pop("sha256", None)
    (folder / META).write_text(json.dumps({**meta, "sha256": digest(meta)}))


def noticed(folder: Path) -> bool:
    try:
        return bool(reader.verify(folder))
    except UserError:
        return True


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(built: reader.Shards, tmp_path: Path) -> None:
    """In the tar, between its samples, in the index, in shards.json; a thousand by `asrlora bench data`."""
    folder = copy(built, tmp_path / "copy")
    assert reader.verify(folder) == []
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(8):
            broken = bytearray(whole)
            at = rng.integers(len(whole))
            broken[at] ^= 1 << rng.integers(8)
            for data in (broken, whole[:at]):
                path.write_bytes(data)
                assert noticed(folder), (path.name, at)
        path.write_bytes(whole)


def test_a_flipped_bit_of_the_index_is_found_when_the_sample_is_read(
    built: reader.Shards, tmp_path: Path
) -> None:
    """`verify` hashes the index; a run does not, and must notice all the same."""
    folder = copy(built, tmp_path / "copy")
    rng = np.random.default_rng(1)
    for name in (index.ROWS, index.TEXTS):
        whole = (folder / name).read_bytes()
        for _ in range(20):
            broken = bytearray(whole)
            broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(broken)
            opened = reader.open_shards(folder)
            assert len(reader.damaged_samples(opened, range(len(opened.samples)))) == 1
        (folder / name).write_bytes(whole)


def encodes(text: str) -> bool:
    """Manifests are UTF-8, which has no lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


facts = st.builds(
    index.Sample,
    id=st.text(min_size=1).filter(encodes), text=st.text().filter(encodes),
    duration=st.integers(0, 2**32 - 1).map(lambda n: n / 16_000),
    speaker=st.none() | st.text().filter(encodes), shard=st.integers(0, 10**6).map(index.shard_name),
    offset=st.integers(0, 2**40), length=st.integers(0, 2**31),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), level=st.floats(0, 1), clipped=st.floats(0, 1),
    rate=st.integers(1, 384_000), channels=st.integers(1, 64),
    dc=st.floats(0, 1), still=st.floats(0, 1e4), faults=st.integers(0, 255),
)  # fmt: skip


def test_who_writes_an_index_again_never_takes_it_from_its_readers(
    built: reader.Shards, tmp_path: Path
) -> None:
    """Tasks of an array build the same shards at once: one read an index that another was writing."""
    samples = list(built.samples)
    facts = index.write_index(tmp_path, samples)

    def meanwhile() -> Iterator[index.Sample]:
        for sample in samples:
            assert len(index.open_index(tmp_path, facts)) == len(samples)
            yield sample

    assert index.write_index(tmp_path, meanwhile()) == facts
    assert len(index.open_index(tmp_path, facts)) == len(samples)


@given(st.lists(facts, max_size=20))
def test_the_index_gives_back_what_was_written(samples: list[index.Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened = index.open_index(Path(folder), index.write_index(Path(folder), samples))
        assert list(opened) == samples
        assert opened.lengths["characters"].tolist() == [len(sample.text.strip()) for sample in samples]


def test_shards_are_filtered_by_length(built: reader.Shards) -> None:
    middle = float(np.median(built.durations))
    for low, high in ((0.1, 20.0), (middle, 20.0), (0.1, middle)):
        ours, reasons = reader.for_training(built, low, high)
        assert list(ours.samples) == [s for s in built.samples if low <= s.duration <= high]
        assert len(ours.samples) + reasons.total() == len(built.samples)


def test_two_folders_are_read_as_one(built: reader.Shards) -> None:
    both = built.subset([5, 3]).join(built.subset([7]))
    assert [s.id for s in both.samples] == [built.samples[i].id for i in (5, 3, 7)]
    assert np.array_equal(both.read(2), built.read(7))
    assert both.durations.tolist() == [built.samples[i].duration for i in (5, 3, 7)]


def test_a_killed_build_goes_on_and_a_spoilt_shard_is_made_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SAMPLES_PER_SHARD", 16)
    utterances = read_manifest(plain)
    out = tmp_path / "out"

    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from asrlora.data import manifest\n"
        "from asrlora.data.shards import writer\n"
        "writer.SAMPLES_PER_SHARD = 16\n"
        f"utterances = manifest.read_manifest(Path({str(plain)!r}))\n"
        "kill = lambda seconds: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"writer.build(utterances, Path({str(out)!r}), workers=1, progress=kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    work = writer.work_folder(out)
    first = (work / "shard-00000.tar").stat().st_ino
    assert len(list(work.glob("shard-*.tar.jsonl"))) < 3
    writer.write_shards(writer.cut(utterances), out)  # all three shards are there now
    assert (work / "shard-00000.tar").stat().st_ino == first
    (work / ".shard-00001.tar-half").write_bytes(b"what a kill leaves")
    spoilt = bytearray((work / "shard-00001.tar").read_bytes())
    spoilt[1000] ^= 1
    (work / "shard-00001.tar").write_bytes(spoilt)
    before = {name: (work / name).stat().st_ino for name in ("shard-00000.tar", "shard-00002.tar")}
    made = writer.build(utterances, out)
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert reader.verify(out) == []
    assert len(made.samples) == len(utterances)
    assert sorted(path.name for path in out.iterdir()) == sorted([META, *made.folders[0].record.files])


def test_the_source_is_described_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave = np.clip(rng.normal(0.1, 0.5, (22_050, 2)), -1, 1).astype(np.float32)
    wave[100:8_000] = 0.1
    soundfile.write(tmp_path / "a.wav", wave, 22_050, subtype="PCM_16")
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n')
    (sample,) = writer.build(read_manifest(tmp_path / "m.jsonl"), tmp_path / "out").samples
    assert (sample.rate, sample.channels) == (22_050, 2)
    assert sample.level == pytest.approx(wave.mean(axis=1).std(), rel=1e-3)
    assert sample.dc == pytest.approx(np.abs(wave.mean(axis=0)).max(), abs=1e-3)
    assert sample.still == pytest.approx(7_900 / 22_050, abs=1e-3)
    assert sample.clipped == pytest.approx((np.abs(wave) >= 1).any(axis=1).mean(), abs=1e-3)


def test_a_script_without_a_main_guard_starts_nothing_twice(plain: Path, tmp_path: Path) -> None:
    """Worker processes run such a script again, each; that has cost us a machine for 14 minutes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from asrlora.data import manifest\n"
        "from asrlora.data.shards import writer\n"
        f"print('started', flush=True)\n"
        f"writer.build(manifest.read_manifest(Path({str(plain)!r})), Path('out'), workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "started\n"


def test_unreadable_audio_makes_no_folder(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.flac", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    data = (tmp_path / "good.flac").read_bytes()  # a hole in the middle, which only decoding meets
    (tmp_path / "bad.flac").write_bytes(data[:9_000] + b"\xff" * 3_000 + data[12_000:])
    lines = [{"audio": f"{name}.flac", "text": name} for name in ("good", "bad")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    utterances = read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"line 2 of the manifest: .*bad\.flac is cut off or damaged"):
        writer.build(utterances, tmp_path / "out" / "shards")
    assert not (tmp_path / "out" / "shards").exists()


def test_silence_is_left_out_and_counted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "tone.wav", np.resize([0.1, 0.1, -0.1, -0.1], 16_000), 16_000)
    lines = [{"audio": f"{name}.wav", "text": name} for name in ("silent", "tone")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = writer.build(read_manifest(tmp_path / "m.jsonl"), tmp_path / "out")
    assert [sample.text for sample in made.samples] == ["tone"]
    assert made.rejected == {"silent": 1}


def test_the_cache_is_found_again_and_a_changed_file_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ASRLORA_CACHE", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "a.wav", np.resize([0.1, 0.1, -0.1, -0.1], 16_000), 16_000)
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n')
    first = cache.cached(read_manifest(tmp_path / "m.jsonl"))
    assert cache.cached(read_manifest(tmp_path / "m.jsonl")).folder == first.folder
    soundfile.write(tmp_path / "a.wav", np.resize([0.1, 0.1, -0.1, -0.1], 20_000), 16_000)
    assert cache.cached(read_manifest(tmp_path / "m.jsonl")).folder != first.folder
