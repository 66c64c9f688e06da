"""Notices a rank that is dead or hangs, names it, and ends the run instead of waiting for ever.

A rank that dies, stops or hangs holds all others in their next collective. So a thread of every rank
publishes heartbeats (heartbeats.py) and reads those of the others:

- no heartbeat for `heartbeat_timeout` seconds: that rank is dead or stopped. On the same machine its process
  is looked at as well. One that no longer exists is named at once; one that computes is given `work_timeout`
  seconds, since a call that holds Python's lock stops the thread from publishing.
- one piece of its own work (reading a batch, computing a loss) for more than `work_timeout` seconds, or
  WORK_TIMEOUT_FACTOR what the longest of its kind took: that rank hangs. One whose main thread computes has
  WORK_TIMEOUT_FACTOR times as long.
- this rank waits for the others for more than `work_timeout` seconds: the rank that is furthest behind is the
  cause, and never one that waits as well.

The first failure that a rank declares in the store is the one that all report. Seconds are counted by a
rank's own heartbeats, not by a clock: neither a clock that is set nor a job that is suspended as a whole
looks like a rank that is late.
"""

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from asrlora.engine.heartbeats import (
    INTERVAL,
    LEFT,
    WORK_TIMEOUT_FACTOR,
    Activity,
    Heartbeat,
    Peer,
    Work,
    cpu_time,
    innermost,
    key,
    launcher_has_store,
    name_of,
    open_store,
    process_state,
)
from asrlora.errors import UserError

if TYPE_CHECKING:
    from asrlora.engine.recorder import Recorder

HEARTBEAT_TIMEOUT, WORK_TIMEOUT = 60.0, 600.0  # seconds; the first CUDA or NCCL call takes minutes on some
BUSY = 0.02  # share of a processor; a thread that waits uses less
MISSED = 2.5  # seconds without a heartbeat after which it is checked whether the process exists
SETTLE_TIME = 8.0  # seconds in which the cause of a broken connection shows


@dataclass(frozen=True)
class Failure:
    """Why the run ends. `rank` is None where no rank is the cause."""

    rank: int | None
    reason: str  # names rank, process and host
    code: int = 1  # the exit code of all ranks
    stuck: bool = False  # that rank must be killed


class Watch:
    """The thread of one rank, and what the ranks agree on through the store."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        work: Work,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        work_timeout: float = WORK_TIMEOUT,
        launcher: int | None = None,
    ) -> None:
        """`launcher` is the process that started this rank, where that is an `accelerate launch`."""
        self.rank, self.world_size, self.work = rank, world_size, work
        self.heartbeat_timeout, self.work_timeout, self.launcher = heartbeat_timeout, work_timeout, launcher
        self.reporter: Recorder | None = None  # set once there is a record
        self.store: Any = None
        self.peers = {peer: Peer() for peer in range(world_size) if peer != rank}
        self._me = Heartbeat(socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._failing = threading.Lock()  # held by the thread that ends this process
        self._thread = threading.Thread(target=self._guarded, name="asrlora-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to publish and to read heartbeats."""
        if self.world_size > 1:
            self.store = open_store(self.heartbeat_timeout)
        self._thread.start()

    def end(self) -> None:
        """The rank ends as it should: no other rank misses its heartbeats."""
        self._ended.set()
        self._thread.join()
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # it may be another rank's, which has ended before
                self.store.set(key("alive", self.rank), LEFT.decode())

    # --- the main thread, where an error has come to it

    def fail(self, error: BaseException) -> BaseException:
        """Has recorded what ends this rank, and returns what to raise. Where another rank is the cause, this
        reports it and ends the process."""
        raised = self.reporter.explain(error) if self.reporter is not None else error
        users = isinstance(raised, UserError)
        # these concern the user's files, or all ranks find them alike
        anonymous = self.world_size == 1 or isinstance(raised, FloatingPointError)
        anonymous = anonymous or (users and self.rank == 0)
        named = "" if anonymous else f"{name_of(self.rank, self._me)}: "
        reason = f"{named}{type(raised).__name__}: {raised}"
        failure, ours = self._settle(raised, Failure(self.rank, reason, 2 if users else 1))
        if failure.rank != self.rank:
            self._report(failure, ours)
        elif self.reporter is not None:
            with contextlib.suppress(OSError):  # the run directory may be what has failed
                self.reporter.failed(failure, ours)
        if self.reporter is not None:
            self.reporter.end_tracking()
        self._linger()
        if failure.rank != self.rank:
            os._exit(failure.code)
        return raised

    def _settle(self, error: BaseException, failure: Failure) -> tuple[Failure, bool]:
        """What ends the run, after `error` has come to the main thread; and whether this rank declared it.

        Where it came out of a collective, another rank may be the cause, and this waits until that shows.
        Errors that all ranks find alike are rank 0's to declare. Else it is `failure`. The thread does
        nothing any more after that.
        """
        alike = self.rank != 0 and isinstance(error, UserError | FloatingPointError)
        wait = SETTLE_TIME if self.work.broken else 3 * INTERVAL if alike else 0.0
        until = time.monotonic() + wait
        while time.monotonic() < until and self.store is not None:
            try:
                if self.store.check([key("failure")]):
                    break
            except RuntimeError:
                failure = self._without_store()
                break
            if found := self._missing():
                failure = found
                break
            time.sleep(INTERVAL / 4)
        else:
            if self.work.broken:
                failure = self._missing() or self._timed_out(error) or failure
        self._failing.acquire()
        self._ended.set()
        return self._declare(failure)

    def _declare(self, failure: Failure) -> tuple[Failure, bool]:
        """The first failure that any rank has declared, and whether it is this one."""
        if self.store is None:
            return failure, True
        declared = json.dumps([self.rank, asdict(failure)])
        try:
            by, first = json.loads(self.store.compare_set(key("failure"), "", declared))
        except RuntimeError:
            return self._without_store(), True
        return Failure(**first), by == self.rank

    def _timed_out(self, error: BaseException) -> Failure | None:
        """Where a collective's own timeout was over before ours: the rank that has not come to it."""
        beats = self._beats()
        if not re.search(r"time[ds]?[ -]?out", str(error), re.IGNORECASE) or not beats:
            return None
        rank, last = min(beats.items(), key=lambda item: (item[1].position, item[0]))
        if last.position >= self.work.position:
            return None
        named = name_of(rank, last)
        reason = f"{named} has not come where others waited ({error}); it is {last.describe()}"
        return Failure(rank, reason, stuck=True)

    def _missing(self) -> Failure | None:
        """A rank that has ended without a message, after a connection to some rank broke."""
        for rank, beat in self._beats().items():
            peer, named = self.peers[rank], name_of(rank, beat)
            here = beat.host == self._me.host
            if here and process_state(beat.pid) is None:
                return Failure(rank, f"{named} {_gone(beat)}")
            if not here and peer.silent > 4 * INTERVAL:
                return Failure(rank, f"{named} is gone: connections broke, it {peer.late}")
        return None

    def _beats(self) -> dict[int, Heartbeat]:
        """The last heartbeats of the other ranks, but for those that have ended as they should."""
        peers = self.peers.items()
        return {rank: peer.beat for rank, peer in peers if peer.beat and peer.received != LEFT}

    # --- the thread

    def _guarded(self) -> None:
        try:
            self._run()
        except RuntimeError:
            if not self._ended.is_set():
                # With the store goes the launcher, which alone can end the others and report how all this
                # went; ranks that went on without it would write into the next attempt's files.
                self._end_run(self._without_store())

    def _without_store(self) -> Failure:
        if launcher_has_store():
            return Failure(None, "the launcher, which keeps the ranks' store, is gone")
        peer = self.peers.get(0)
        named = name_of(0, peer.beat) if peer is not None and peer.beat is not None else "rank 0"
        cause = "it was killed, or its machine failed"
        return Failure(0, f"{named} is gone, and with it the ranks' store; {cause}")

    def _run(self) -> None:
        doing, spent, last = self.work.now, 0.0, time.monotonic()
        idle, cpu = 0.0, cpu_time(self._main)
        self._publish(doing, spent, idle)  # at once: a rank killed in its first second is named too
        while not self._ended.wait(INTERVAL):
            # no more than two heartbeats: the rest of the time this process was stopped, and the others too
            passed, last = min(time.monotonic() - last, 2 * INTERVAL), time.monotonic()
            spent = spent + passed if self.work.now is doing else 0.0
            doing = self.work.now
            used, cpu = cpu_time(self._main) - cpu, cpu_time(self._main)
            idle = 0.0 if used > BUSY * passed else idle + passed
            self._publish(doing, spent, idle)
            if self.launcher is not None and os.getppid() != self.launcher:
                self._end_run(Failure(None, f"the launcher (process {self.launcher}) is gone"))
            if self.store is not None and self.store.check([key("failure")]):
                self._end_run(Failure(**json.loads(self.store.get(key("failure")))[1]))
            for rank, peer in self.peers.items():
                self._listen(rank, peer, passed)
            found = self._dead() or self._hangs() or self._behind()
            if found is not None and not self._ended.is_set():
                self._end_run(found)

    def _publish(self, doing: Activity, spent: float, idle: float) -> None:
        frame, library = innermost(self._main)
        self._me = replace(
            self._me,
            count=self._me.count + 1,
            position=self.work.position,
            kind=doing.kind,
            what=doing.what,
            at=self.work.at,
            spent=spent,
            idle=idle,
            frame=frame,
            library=library,
        )
        if self.store is not None:
            self.store.set(key("alive", self.rank), json.dumps(asdict(self._me)))

    def _listen(self, rank: int, peer: Peer, passed: float) -> None:
        assert self.store is not None
        received = self.store.get(key("alive", rank)) if self.store.check([key("alive", rank)]) else b""
        if received != peer.received:
            peer.received, peer.silent, peer.computed, peer.cpu = received, 0.0, 0.0, None
            if received != LEFT:
                peer.beat = Heartbeat(**json.loads(received))
        else:
            peer.silent += passed

    def _dead(self) -> Failure | None:
        """A rank without heartbeats whose process has ended, is stopped or does not compute."""
        for rank, peer in self.peers.items():
            if peer.received == LEFT or peer.silent <= MISSED:
                continue
            if peer.beat is None:  # it has come up with this one, and has never published anything
                if peer.silent > max(self.heartbeat_timeout, self.work_timeout):
                    return Failure(rank, f"rank {rank} has sent no heartbeat since the start")
                continue
            named, late = name_of(rank, peer.beat), peer.late
            if peer.beat.host == self._me.host:
                found = process_state(peer.beat.pid)
                if found is None:
                    return Failure(rank, f"{named} {_gone(peer.beat)}")
                state, cpu = found
                if peer.cpu is not None and cpu > peer.cpu:
                    peer.computed = peer.silent
                peer.cpu = cpu
                computes = peer.computed and peer.silent - peer.computed < self.heartbeat_timeout
                stopped = state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
                if computes and not stopped and peer.silent <= self.work_timeout:
                    continue
                if stopped:
                    late = f"is stopped, by SIGSTOP or a debugger: it {late}"
            if peer.silent > self.heartbeat_timeout:
                return Failure(rank, f"{named} {late}; it was {peer.beat.describe()}", stuck=True)
        return None

    def _hangs(self) -> Failure | None:
        """This rank, where a piece of its own work takes too long."""
        me, named = self._me, name_of(self.rank, self._me)
        if me.spent <= _limit(me, self.work.limit(self.work_timeout)):
            return None
        if me.kind == "work":
            return Failure(self.rank, f"{named} has hung for {me.spent:.0f} s while {me.describe()}")
        if me.kind == "wait" and self.store is None:
            return Failure(self.rank, f"{named} has waited for {me.spent:.0f} s: {me.describe()}")
        return None

    def _behind(self) -> Failure | None:
        """The rank for which this one has waited too long."""
        me = self._me
        if me.kind != "wait" or me.spent <= self.work_timeout:
            return None
        beats = self._beats()
        if not beats:
            return None
        waited = f"for {me.spent:.0f} s, while others wait for it there"
        rank, last = min(beats.items(), key=lambda item: (item[1].position, item[0]))
        if last.position < me.position:
            # work of its own has its own limit, or none; and it may have been at that until a moment ago
            if last.kind in ("work", "main") or last.spent <= _limit(last, self.work_timeout):
                return None
            hangs = f"{name_of(rank, last)} hangs: it has not come to {me.what!r} {waited}"
            return Failure(rank, f"{hangs}; it is {last.describe()}", stuck=True)
        if any(beat.kind != "wait" or beat.spent <= self.work_timeout for beat in beats.values()):
            return None
        there = {rank: beat for rank, beat in beats.items() if beat.position == me.position}
        since = f"waited for {me.spent:.0f} s in {me.describe()}"
        if len(there) < len(beats):
            left = f"{since}, which other ranks have left: look at the network between them"
            return Failure(self.rank, f"{name_of(self.rank, me)} has {left}")
        outside = {rank: beat for rank, beat in {**there, self.rank: me}.items() if not beat.library}
        if 0 < len(outside) <= len(there):  # not all: on a GPU everyone waits in a call of ours
            rank, beat = min(outside.items())
            return Failure(rank, f"{name_of(rank, beat)} hangs {waited}: {beat.describe()}", stuck=True)
        hosts = ", ".join(sorted({beat.host for beat in there.values()} | {me.host}))
        look = f"look at the network (between {hosts}) and the devices"
        return Failure(None, f"all ranks have {since}, and none of them is behind: {look}")

    def _end_run(self, failure: Failure) -> NoReturn:
        self._failing.acquire()  # never released: this process ends here, or in the thread that has it
        failure, ours = self._declare(failure)
        if failure.rank == self.rank:
            faulthandler.dump_traceback()
        peer = self.peers.get(failure.rank if failure.rank is not None else -1)
        if failure.stuck and peer and peer.beat and peer.beat.host == self._me.host:
            if peer.silent < 2 * INTERVAL:
                time.sleep(3 * INTERVAL)  # it may still write down where it hangs
            with contextlib.suppress(ProcessLookupError):
                os.kill(peer.beat.pid, signal.SIGKILL)
        self._report(failure, ours)
        self._linger()
        os._exit(failure.code)

    def _linger(self) -> None:
        """Lets the other ranks read why the run ends, where the store goes with this process."""
        if self.rank == 0 and self.store is not None and not launcher_has_store():
            time.sleep(3 * INTERVAL)

    def _report(self, failure: Failure, ours: bool) -> None:
        """Has the failure recorded, and prints it once on the terminal."""
        if self.reporter is not None:
            with contextlib.suppress(OSError):  # the run directory may be what has failed
                self.reporter.failed(failure, ours)
        if self.rank == 0 or (ours and failure.rank == 0):
            print(f"asrlora: error: {failure.reason}; the run ends", file=sys.stderr, flush=True)


def _limit(beat: Heartbeat, limit: float) -> float:
    """Seconds after which a rank hangs that does one thing: more, where its main thread computes."""
    return limit if beat.idle >= min(beat.spent, limit) else WORK_TIMEOUT_FACTOR * limit


def _gone(beat: Heartbeat) -> str:
    return f"is gone: it was killed, by the kernel for want of memory or by hand, while {beat.describe()}"
