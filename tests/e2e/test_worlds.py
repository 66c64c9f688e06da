"""The same hypotheses, to the byte, on one, two and three real processes."""

import json
import multiprocessing
import os
import random
import socket
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from asrlora.data.manifest import read_manifest
from asrlora.data.shards import reader, writer
from asrlora.errors import UserError
from asrlora.score import text
from conftest import BASE, Speech
from kill_resume import PRELOAD, wait


def evaluate_on(rank: int, world: int, port: int, folders: list[Path], seconds: float, output: Path) -> None:
    """A rank of its own process. Rank 0 writes all hypotheses to `output`."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip
    from asrlora.engine import evaluate, runtime
    from asrlora.models import registry

    started, base = runtime.start(), registry.load_base(str(BASE))
    lines = []
    for folder in folders:
        opened = reader.open_shards(folder)
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
    writer.build(read_manifest(speech.heldout)[:2], small)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    written = []
    for world, seconds in ((1, 160.0), (2, 9.0), (3, 4.0)):
        random.Random(world).shuffle(lines)
        mixed = speech.domain.with_name(f"mixed-{world}.jsonl")
        mixed.write_text("".join(lines))
        writer.build(read_manifest(mixed), tmp_path / mixed.stem)
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


def wait_for_rank_0(rank: int, port: int, output: Path) -> None:
    """A rank whose process group has a timeout of two seconds, while rank 0 works for longer."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    from asrlora.engine import runtime

    started = runtime.start(work_timeout=1.0)

    def long() -> str:
        time.sleep(4)  # the work itself
        (output / "made").touch()
        return f"by rank {rank}"

    def refuse() -> None:
        raise UserError("no such file")

    said = []
    with started.watched(work_timeout=1.0):
        said.append(started.collectives.on_main("long work", long))
        (output / "made").unlink(missing_ok=True)
        started.collectives.barrier()

        def first() -> bool:
            there = (output / "made").exists()
            (output / "made").touch()
            return there

        said.append(str(started.collectives.first_of_machine("building", first)))
        with pytest.raises(UserError, match="no such file"):
            started.collectives.on_main("a mistake", refuse)
        with pytest.raises(ValueError if rank == 0 else RuntimeError, match="only here"):
            started.collectives.on_main("an error", lambda: int("only here"))
        started.close()
    (output / str(rank)).write_text(" ".join(said))


def test_rank_0_works_for_longer_than_a_collective_waits(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [server.Process(target=wait_for_rank_0, args=(rank, port, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    assert wait(ranks, 120) == [0, 0]
    assert (tmp_path / "0").read_text() == "by rank 0 False"
    assert (tmp_path / "1").read_text() == "by rank 0 True"
