"""The same hypotheses, to the byte, on one, two and three real processes."""

import json
import multiprocessing
import os
import random
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
from kill_resume import PRELOAD, wait

from asrlora.data import shards
from asrlora.data.manifest import read_manifest
from asrlora.score import text
from conftest import BASE, Speech


def evaluate_on(rank: int, world: int, port: int, folders: list[Path], seconds: float, output: Path) -> None:
    """A rank of its own process. Rank 0 writes all hypotheses to `output`."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip
    from asrlora.engine import evaluate, runtime
    from asrlora.models import families

    started, base = runtime.start(), families.load_base(str(BASE))
    lines = []
    for folder in folders:
        opened = shards.open_shards(folder)
        found = evaluate.evaluate(started, base.model, base, opened, seconds, text.normaliser(None, "en"))
        assert found is not None
        lines += [json.dumps(asdict(hypothesis)) + "\n" for hypothesis in found.hypotheses]
    if started.is_main:
        output.write_text(f"{started.world_size}\n" + "".join(lines))
    else:
        assert lines == []
    started.close()


@pytest.mark.slow
def test_hypotheses_are_the_same_on_any_number_of_processes(speech: Speech, tmp_path: Path) -> None:
    """With other batches each time, a shuffled manifest, and a set too small to give each rank a batch."""
    lines = speech.domain.read_text().splitlines(keepends=True)[:16]
    small = tmp_path / "small"
    shards.build(read_manifest(speech.heldout)[:2], small)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    written = []
    for world, seconds in ((1, 160.0), (2, 9.0), (3, 4.0)):
        random.Random(world).shuffle(lines)
        mixed = speech.domain.with_name(f"mixed-{world}.jsonl")
        mixed.write_text("".join(lines))
        shards.build(read_manifest(mixed), tmp_path / mixed.stem)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        output = tmp_path / f"{world}.jsonl"
        settings = (world, port, [tmp_path / mixed.stem, small], seconds, output)
        ranks = [server.Process(target=evaluate_on, args=(rank, *settings)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        assert wait(ranks, 300) == [0] * world
        came_up, *found = output.read_text().splitlines()
        assert int(came_up) == world
        written.append(found)
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == 18
