from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peers
from conftest import BASE, Speech


@pytest.mark.slow
def test_both_sides_train_the_same(speech: Speech, tmp_path: Path) -> None:
    """In batches of one, since only ours keeps padding from having an effect."""
    work = peers.Work("tiny", Path(BASE), speech.train, batch_size=1, updates=4)
    found = peers.measure(work, tmp_path / "bench", 1)
    assert {way: len(turns) for way, turns in found.items()} == {way.name: 1 for way in peers.WAYS}
    for (turn,) in found.values():
        assert len(turn.losses) == len(turn.seconds) == len(turn.audio_seconds) == 4
        assert turn.peak_bytes > 2**28
        assert turn.first_update > 0
    ours, loop = (found[peers.WAYS[number].name][0] for number in (0, 3))
    assert ours.audio_seconds == pytest.approx(loop.audio_seconds, abs=0.01), "the same batches in turn"
    assert ours.losses[0] == pytest.approx(loop.losses[0], rel=1e-4), "the first is the loss of the base"
    assert "time of our DoRA by our LoRA's" in peers._table("tiny", found)

    found[peers.WAYS[3].name][0] = replace(loop, losses=[1.2 * loss for loss in loop.losses])
    with pytest.raises(RuntimeError, match="did not do the same work"):
        peers._check_losses(work, found)
