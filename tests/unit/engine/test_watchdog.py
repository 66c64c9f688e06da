"""Which rank is named, from what heartbeats say. With real ranks and a store: tests/e2e/test_resume.py."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from asrlora.engine import heartbeats
from asrlora.engine.heartbeats import Activity, Heartbeat, Work
from asrlora.engine.watchdog import Failure, Watch

FAR = Heartbeat("far", 4711, count=9, position=5, kind="wait", what="summing gradients", at="step 3")
TIMEOUTS = (10.0, 100.0)


def watch(peers: dict[int, Heartbeat], mine: Heartbeat, silent: float = 0.0) -> Watch:
    """Rank 0 as it has listened; `mine` is what it does itself."""
    made = Watch(0, len(peers) + 1, Work(), *TIMEOUTS)
    made._me = replace(mine, host=made._me.host, pid=made._me.pid)
    for rank, beat in peers.items():
        made.peers[rank].beat, made.peers[rank].received, made.peers[rank].silent = beat, b"{}", silent
    return made


def waits(seconds: float = 200.0, **changes: object) -> Heartbeat:
    return replace(FAR, spent=seconds, **changes)  # type: ignore[arg-type]


BETWEEN = replace(
    FAR, position=4, kind="", what="after reading a batch", frame="x.py:3 f", spent=199.0, idle=198.0
)


@pytest.mark.parametrize(
    ("peers", "named"),
    [
        (
            {1: BETWEEN, 2: waits()},
            "rank 1 (process 4711 on far) hangs: it has not come to 'summing gradients'",
        ),
        # the one that is furthest behind, whoever waits for it at an earlier point
        ({1: waits(position=3), 2: replace(BETWEEN, position=2)}, "rank 2 (process 4711 on far) hangs"),
        # it has been at something long until a moment ago
        ({1: replace(BETWEEN, spent=5.0, idle=5.0)}, None),
        ({1: waits(5.0, position=6), 2: waits(5.0, position=6)}, None),
        ({1: waits(5.0), 2: waits()}, None),
        # it is importing something, say
        ({1: replace(BETWEEN, idle=1.0)}, None),
        # its own piece of work has its own limit; what the others wait for outside of collectives has none
        ({1: replace(BETWEEN, kind="work")}, None),
        ({1: replace(BETWEEN, kind="main")}, None),
        ({1: replace(FAR, kind="main", spent=1e6)}, None),
        # all are there: the one that is not inside of a library that communicates
        ({1: waits(library=False, frame="y.py:4 g"), 2: waits()}, "rank 1 (process 4711 on far) hangs"),
        ({1: waits(), 2: waits()}, "all ranks have waited for 200 s in summing gradients at step 3"),
        ({1: waits(library=False), 2: waits(library=False)}, "all ranks have waited"),
        (
            {1: waits(position=6), 2: waits(position=6)},
            "rank 0 (process {pid} on {host}) has waited for 200 s",
        ),
    ],
)
def test_the_cause_is_named_and_never_a_rank_that_waits_for_it(
    peers: dict[int, Heartbeat], named: str | None
) -> None:
    mine = waits(library=len(peers) == 1 or any(beat.library for beat in peers.values()))
    made = watch(peers, mine)
    found = made._behind()
    if named is None:
        assert found is None
    else:
        assert found is not None
        assert found.reason.startswith(named.format(pid=made._me.pid, host=made._me.host)), found.reason
    assert watch(peers, replace(mine, spent=99.0))._behind() is None, "it has not waited long enough"


def test_a_rank_on_another_machine_is_dead_when_its_heartbeat_is_late() -> None:
    assert watch({1: FAR}, waits(), silent=9.0)._dead() is None
    found = watch({1: FAR}, waits(), silent=11.0)._dead()
    assert found == Failure(
        1, "rank 1 (process 4711 on far) has sent no heartbeat for 11 s; it was summing gradients at step 3",
        stuck=True,
    )  # fmt: skip


@pytest.fixture
def busy() -> Iterator[psutil.Popen]:
    """A process that computes all the time."""
    process = psutil.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def here(process: psutil.Popen) -> Heartbeat:
    return replace(FAR, host=socket.gethostname(), pid=process.pid)


def computes(process: psutil.Popen, seconds: float) -> None:
    """Waits until it has used so much more of a processor."""
    before = sum(process.cpu_times()[:2])
    while sum(process.cpu_times()[:2]) < before + seconds:
        os.sched_yield()


def test_a_rank_of_this_machine_that_computes_without_a_heartbeat_is_waited_for(busy: psutil.Popen) -> None:
    """A call that holds Python's lock silences the thread: it has as long as any piece of work."""
    made = watch({1: here(busy)}, waits(), silent=9.0)
    assert made._dead() is None
    for silent, dead in ((15.0, False), (24.0, False), (33.0, False), (101.0, True)):
        computes(busy, 0.03)
        made.peers[1].silent = silent
        assert (made._dead() is not None) == dead, silent


def test_a_rank_that_is_stopped_or_sleeps_is_not(busy: psutil.Popen) -> None:
    made = watch({1: here(busy)}, waits(), silent=9.0)
    busy.send_signal(signal.SIGSTOP)
    while busy.status() != psutil.STATUS_STOPPED:
        os.sched_yield()
    assert made._dead() is None
    made.peers[1].silent = 11.0
    found = made._dead()
    assert found is not None
    assert "is stopped, by SIGSTOP or a debugger: it has sent no heartbeat for 11 s" in found.reason
    with subprocess.Popen(["sleep", "60"]) as asleep:
        found = watch({1: replace(here(busy), pid=asleep.pid)}, waits(), silent=11.0)._dead()
        asleep.kill()
    assert found is not None
    assert "rank 1" in found.reason


def test_a_process_of_this_machine_that_is_no_more_is_named_at_once(busy: psutil.Popen) -> None:
    beat = here(busy)
    busy.kill()
    while heartbeats.process_state(busy.pid) is not None:  # a zombie is none: its parent has not looked yet
        os.sched_yield()
    found = watch({1: beat}, waits(), silent=3.0)._dead()
    assert found is not None
    assert found.reason.startswith(f"rank 1 (process {busy.pid} on {beat.host}) is gone: it was killed")
    assert watch({1: beat}, waits(), silent=1.0)._dead() is None, "it may end as it should"


def test_a_piece_of_work_has_the_work_timeout_or_ten_times_its_longest() -> None:
    made = watch({}, replace(FAR, kind="work", what="reading a batch", spent=101.0, idle=101.0))
    made.work.now = Activity("work", "reading a batch")
    found = made._hangs()
    assert found is not None
    assert "has hung for 101 s while reading a batch at step 3" in found.reason
    made.work.longest["reading a batch"] = 11.0
    assert made._hangs() is None
    made.work.longest.clear()
    made._me = replace(made._me, idle=1.0)
    assert made._hangs() is None, "it computes"
    made._me = replace(made._me, spent=1001.0)
    assert made._hangs() is not None


def test_what_a_rank_does_is_said_from_inside_out() -> None:
    work = Work()
    with work.waiting("saving a checkpoint", "main"):
        assert (work.now.kind, work.position) == ("main", 1)
        with work.on("writing"):
            assert work.now == Activity("work", "writing")
        assert work.now == Activity("main", "saving a checkpoint")
    assert work.now == Activity("", "after saving a checkpoint")
    with work.computing_gradients(shared=True):
        assert (work.now.kind, work.position) == ("work", 1)
        work.have_gradients()
        work.have_gradients()
        assert (work.now.kind, work.position) == ("wait", 2)
    with work.computing_gradients(shared=False):
        pass
    assert work.position == 2
    with pytest.raises(ValueError, match="x"), work.waiting("y"):
        raise ValueError("x")
    assert work.broken


def test_the_place_of_a_thread_is_its_own_frame_and_this_package_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "PACKAGE", Path(__file__).parent)
    named, library = heartbeats.innermost(threading.main_thread().ident)
    assert "from test_watchdog.py:" in named
    assert not library
