import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from asrlora.data import audio
from asrlora.data.augment import Augment
from asrlora.data.loader import pad, read_batches
from asrlora.data.shards import reader, writer
from asrlora.errors import UserError
from benchmarks import data as bench
from benchmarks.common import report


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> reader.Shards:
    folder = tmp_path_factory.mktemp("batches")
    lengths = np.linspace(0.4, 2.0, 40)
    return writer.build(bench.write_corpus(folder / "wav", lengths, 16_000), folder / "shards")


def test_waves_and_mask_are_the_samples(built: reader.Shards) -> None:
    pcms = [built.read(0), built.read(30)]
    waves, mask = pad(pcms)
    assert waves.shape == mask.shape == (2, 32_000)
    for row, pcm in enumerate(pcms):
        assert torch.equal(waves[row, : len(pcm)], torch.from_numpy(audio.to_float(pcm)))
        assert waves[row, len(pcm) :].abs().sum() == 0
        assert mask[row].tolist() == [1] * len(pcm) + [0] * (32_000 - len(pcm))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_however_long_each_takes(built: reader.Shards, workers: int) -> None:
    """The first batch is held up until another thread has read the second."""
    plan = [(0, [39 - n, n]) for n in range(20)]
    second = threading.Event()

    def hold(pcm: audio.Pcm, identity: str, epoch: int) -> audio.Pcm:
        if identity == built.samples[0].id and workers > 1:
            assert second.wait(30)
        if identity == built.samples[1].id:
            second.set()
        return pcm

    read = list(read_batches(built, plan, hold, workers=workers))
    assert [[s.id for s in batch.samples] for batch in read] == [
        [built.samples[n].id for n in numbers] for _, numbers in plan
    ]
    assert all(batch.waited >= 0 for batch in read)


def test_an_error_is_raised_at_its_batch(built: reader.Shards) -> None:
    def fail(pcm: audio.Pcm, identity: str, epoch: int) -> audio.Pcm:
        if identity == built.samples[5].id:
            raise UserError("spoilt")
        return pcm

    batches = read_batches(built, [(0, [n]) for n in range(10)], fail, workers=2)
    for _ in range(5):
        next(batches)
    with pytest.raises(UserError, match="spoilt"):
        next(batches)


def test_the_plan_is_run_through_only_as_far_as_is_read_ahead(built: reader.Shards) -> None:
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield 0, [0]

    batches = read_batches(built, endless(), workers=2)
    for _ in range(3):
        next(batches)
    batches.close()
    assert len(asked) <= 3 + 4


def test_memory_holds_what_was_read_and_no_more_than_allowed(built: reader.Shards, monkeypatch) -> None:
    reopened = reader.open_shards(built.folder)
    memory = reader.Memory()
    memory.left = built.read(0).nbytes + built.read(1).nbytes
    monkeypatch.setattr(reader, "memory", memory)
    for _ in range(2):
        for number in range(4):
            assert np.array_equal(reopened.read(number), built.read(number))
    assert sorted(reopened.folders[0].kept) == [0, 1]
    assert memory.left == 0
    reader.forget(reopened)
    assert not reopened.folders[0].kept
    assert memory.left == built.read(0).nbytes + built.read(1).nbytes


ALL = Augment(3, speeds=(0.9, 1.0, 1.1), noise_snr=(10.0, 30.0), time_masks=2)


def test_augmentation_depends_on_seed_epoch_and_id_alone(built: reader.Shards) -> None:
    pcm = built.read(7)
    heard = ALL.apply(pcm, "a", 0)
    assert np.array_equal(ALL.apply(pcm, "a", 0), heard)
    for other in (ALL.apply(pcm, "b", 0), ALL.apply(pcm, "a", 1), Augment(4, (1.0,)).apply(pcm, "a", 0)):
        assert not np.array_equal(other, heard)
    assert np.array_equal(Augment(3).apply(pcm, "a", 0), pcm)


def test_planned_durations_are_those_heard(built: reader.Shards) -> None:
    speeds = Augment(1, speeds=(0.8, 0.9, 1.0, 1.15))
    chosen = set()
    for epoch in (0, 1):
        planned = speeds.durations(built, epoch)
        for number, sample in enumerate(built.samples):
            heard = len(speeds.apply(built.read(number), sample.id, epoch))
            assert heard == round(planned[number] * 16_000)
            chosen.add(round(sample.frames / heard, 2))
    assert chosen == {0.8, 0.9, 1.0, 1.15}


def test_noise_has_the_snr_asked_for_and_masks_silence(built: reader.Shards) -> None:
    pcm = built.read(39)
    clean = audio.to_float(pcm)
    noisy = audio.to_float(Augment(0, noise_snr=(10.0, 10.0)).apply(pcm, "a", 0))
    share = noisy @ clean / (clean @ clean)  # the level is set again, so the speech comes out scaled
    noise = noisy - share * clean
    assert 20 * np.log10(audio.rms(share * clean) / audio.rms(noise)) == pytest.approx(10.0, abs=0.3)
    masked = Augment(5, time_masks=4).apply(pcm, "a", 0)
    silenced = (masked == 0) & (pcm != 0)
    assert 0 < silenced.mean() <= 0.2


def test_ranks_leave_out_the_same_damaged_samples(built: reader.Shards, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in built.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = [3, 17, 18]
    for number in damaged:
        sample = built.samples[number]
        data = bytearray((folder / sample.shard).read_bytes())
        data[sample.offset + 30] ^= 4  # in a field that no decoder looks at: only the sha256 tells
        (folder / sample.shard).write_bytes(data)
    opened = reader.open_shards(folder)
    assert len(opened.samples) == 40
    sound = [sample.id for n, sample in enumerate(built.samples) if n not in damaged]
    for world in (1, 2, 4):
        everyone: list[tuple[int, str]] = []
        for rank in range(world):  # what gathering would bring together
            everyone += reader.damaged_samples(opened, range(rank, 40, world)).items()
        for rank in range(world):
            asked = []

            def together(found: list, asked: list = asked, everyone: list = everyone) -> list:
                asked.append(found)
                return everyone

            kept, told = reader.without_damage(opened, rank, world, together)
            assert [sample.id for sample in kept.samples] == sound
            assert len(told) == 3
            assert all(built.samples[n].id in message for n, message in zip(damaged, told, strict=True))
            assert [number for number, _ in asked[0]] == [n for n in damaged if n % world == rank]
    with pytest.raises(UserError, match=built.samples[3].id):
        opened.read(3)


@pytest.mark.slow
def test_the_bench_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 1)
    figures = bench.bench_data(0.002)
    report(figures, None)
    assert figures["damage"] == {"truncations noticed of 2": 2, "bit flips noticed of 2": 2}
    assert figures["loader"]["later epochs, on the CPU, times plain webdataset"] > 0
