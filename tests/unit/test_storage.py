"""Leases: one process has the work at a time, whichever died before and however many ask at once."""

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from asrlora.storage import LEASE_TIMEOUT, Lease

PROCESSES, ROUNDS = 4, 150


def acquire_in_turns(folder: Path, barrier: Barrier, results: Any, number: int) -> None:
    """Takes the same lease as the others in every round; its last owner has died before each of them."""
    for turn in range(ROUNDS):
        path = folder / f"{turn}.lock"
        if number == 0:
            path.write_text("who died\n")
            old = time.time() - 3 * LEASE_TIMEOUT
            os.utime(path, (old, old))
        barrier.wait(60)
        taken = Lease(path).acquire(f"process {number}")
        results.put((turn, number, taken))
        barrier.wait(60)


def test_one_of_several_processes_takes_what_a_dead_one_had(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(PROCESSES), fork.Queue()
    processes = [
        fork.Process(target=acquire_in_turns, args=(tmp_path, barrier, results, number))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(PROCESSES * ROUNDS)]
    for process in processes:
        process.join(60)
    winners = {turn: [n for t, n, taken in found if t == turn and taken] for turn in range(ROUNDS)}
    assert {turn: who for turn, who in winners.items() if len(who) != 1} == {}
    assert all(Lease(tmp_path / f"{t}.lock").owner() == f"process {who[0]}" for t, who in winners.items())


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    return Lease(tmp_path / "trial" / "running.lock")


def test_who_was_stopped_for_too_long_touches_nothing_of_the_next_owner(lease: Lease) -> None:
    assert lease.acquire("job 1")
    assert lease.renew()
    _age(lease, LEASE_TIMEOUT + 1)
    assert lease.owner() is None
    other = Lease(lease.path)
    assert other.acquire("job 2")
    assert not lease.renew()
    lease.release()
    assert other.owner() == "job 2"
    assert not lease.acquire("job 1")
    other.release()
    assert lease.acquire("job 1")


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_was_set_does_not_keep_a_dead_owner_alive(lease: Lease, hours: int) -> None:
    """Set back, its last heartbeat lies ahead."""
    assert lease.acquire("job 1")
    _age(lease, 3600 * hours)
    assert lease.owner() is None
    assert Lease(lease.path).acquire("job 2")


def test_the_owner_that_is_known_to_be_dead_is_the_one_who_loses_it(lease: Lease) -> None:
    assert lease.acquire("process 2 on n1")
    lease.revoke("process 1 on n1")
    assert lease.owner() == "process 2 on n1"
    lease.revoke("process 2 on n1")
    assert lease.owner() is None


def _age(lease: Lease, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(lease.path, (then, then))
