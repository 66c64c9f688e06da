"""The same hypotheses, to the byte, on one, two and three real processes."""

import random
from pathlib import Path

from kill_resume import start, wait

from conftest import Speech


def test_hypotheses_are_the_same_on_any_number_of_processes(speech: Speech, tmp_path: Path) -> None:
    """With other batches each time, a shuffled manifest, and a set too small to give each rank a batch."""
    folder = speech.domain.parent
    lines = speech.domain.read_text().splitlines(keepends=True)[:16]
    small = folder / "two.jsonl"
    small.write_text("".join(speech.heldout.read_text().splitlines(keepends=True)[:2]))
    written = []
    for world, seconds in ((1, 160.0), (2, 9.0), (3, 3.0)):
        random.Random(world).shuffle(lines)
        mixed = folder / f"mixed-{world}.jsonl"
        mixed.write_text("".join(lines))
        flags = speech.flags(
            tmp_path / str(world), max_steps=1, batch_size=1, gradient_accumulation_steps=6,
            eval_batch_seconds=seconds, manifest_path=mixed, safety_manifest_path=small,
        )  # fmt: skip
        log = tmp_path / f"{world}.log"
        assert wait(start(world, flags, log), 300) == [0] * world, log.read_text()[-3000:]
        step = tmp_path / str(world) / "eval" / "step-000000"
        written.append([(step / f"{name}.jsonl").read_bytes() for name in ("domain", "heldout")])
    assert written[0] == written[1] == written[2]
    assert [len(found.splitlines()) for found in written[0]] == [16, 2]
