"""Notices a rank that is dead or hangs, names it, and ends the run instead of waiting for ever.

A rank that dies, stops or hangs holds all others in their next collective. So a thread of every rank
publishes a heartbeat in the store that the launcher keeps: what its main thread does, since when, and how
many points of synchronisation it has come to. The same thread reads the heartbeats of the others:

- no heartbeat for `heartbeat_timeout` seconds: that rank is dead or stopped. On the same machine its process
  is looked at as well. One that no longer exists is named at once; one that computes is given `work_timeout`
  seconds, since a call that holds Python's lock silences the thread.
- one piece of its own work (reading a batch, computing a loss) for more than `work_timeout` seconds, or TIMES
  what the longest of its kind took: that rank hangs. One whose main thread computes has TIMES as long.
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
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch.distributed as dist

from asrlora.errors import UserError

T = TypeVar("T")

BEAT = 1.0  # seconds between two heartbeats
HEARTBEAT_TIMEOUT, WORK_TIMEOUT = 60.0, 600.0  # seconds; the first CUDA or NCCL call takes minutes on some
BUSY = 0.02  # share of a processor; a thread that waits uses less
TIMES = 10  # times the longest piece of its kind, where that is more than the work timeout
GONE = 2.5  # seconds without a heartbeat after which it is asked whether the process exists
SETTLE = 8.0  # seconds in which the cause of a broken connection shows
GRADIENTS = "computing gradients"
LEFT = b"left"  # the last heartbeat of a rank that has ended as it should
PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "deepspeed", "accelerate")  # a rank that waits for others is inside of these

# work: its own, limited; main: its own, not limited, while the others wait; wait: for others; else between
Kind = Literal["work", "main", "wait", ""]


@dataclass(frozen=True)
class Doing:
    """What a main thread does. A new one for every change, as another thread reads it."""

    kind: Kind = ""
    what: str = "starting"


@dataclass
class Work:
    """What the main thread does, for its heartbeats."""

    now: Doing = field(default_factory=Doing)
    position: int = 0  # points of synchronisation that it has come to; all ranks come to the same ones
    at: str = ""  # where in the run, such as "step 12"
    broken: bool = False  # an exception came out of a collective, so another rank may be its cause
    longest: dict[str, float] = field(default_factory=dict)  # seconds, by piece of work
    _gradients_since: float = 0.0

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Around a piece of work without a collective in it."""
        start = time.monotonic()
        before, self.now = self.now, Doing("work", what)
        try:
            yield
        finally:
            self.now = Doing(before.kind, before.what if before.kind else f"after {what}")
            self._book(what, start)

    def _book(self, what: str, start: float) -> None:
        self.longest[what] = max(self.longest.get(what, 0.0), time.monotonic() - start)

    def each(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """The items; getting each of them is a piece of work."""
        iterator = iter(items)
        while True:
            with self.on(what):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextlib.contextmanager
    def waiting(self, what: str, kind: Kind = "wait") -> Iterator[None]:
        """Around a point of synchronisation, to which every rank comes. `kind` is "main" on the rank that
        works there while the others wait."""
        self.position += 1
        before, self.now = self.now, Doing(kind, what)
        try:
            yield
        except BaseException:
            self.broken = kind == "wait"
            raise
        finally:
            self.now = Doing(before.kind, before.what if before.kind else f"after {what}")

    @contextlib.contextmanager
    def computing_gradients(self, shared: bool) -> Iterator[None]:
        """Around a backward pass; where it is `shared`, `have_gradients` says when it begins to wait."""
        self.now, self._gradients_since, position = Doing("work", GRADIENTS), time.monotonic(), self.position
        try:
            yield
            if shared:
                self.have_gradients()  # if nobody has said so
        except BaseException:
            self.broken = self.position > position
            raise
        finally:
            if self.now.what == GRADIENTS:
                self._book(GRADIENTS, self._gradients_since)
            self.now = Doing("", f"after {GRADIENTS}")

    def have_gradients(self) -> None:
        """This rank's part of a shared backward pass is done: from here on it waits for the others."""
        if self.now.what == GRADIENTS:
            self._book(GRADIENTS, self._gradients_since)
            self.position += 1
            self.now = Doing("wait", "summing gradients over all ranks")

    def limit(self, timeout: float) -> float:
        """Seconds that the piece of work may take."""
        return max(timeout, TIMES * self.longest.get(self.now.what, 0.0))


@dataclass(frozen=True)
class Heartbeat:
    """What a rank publishes every BEAT."""

    host: str
    pid: int
    count: int = 0
    position: int = 0
    kind: Kind = ""
    what: str = ""
    at: str = ""
    spent: float = 0.0  # seconds that it has been doing so, by its own heartbeats
    idle: float = 0.0  # seconds since its main thread used a processor
    frame: str = ""  # the innermost Python frame of its main thread
    library: bool = True  # that frame is of a library that communicates

    def describe(self) -> str:
        """ "computing a loss at step 12, in families.py:172 summed_loss" """
        return (
            self.what + (f" at {self.at}" if self.at else "") + (f", in {self.frame}" if self.frame else "")
        )


@dataclass(frozen=True)
class Failure:
    """Why the run ends. `rank` is None where no rank is the cause."""

    rank: int | None
    reason: str  # names rank, process and host
    code: int = 1  # the exit code of all ranks
    stuck: bool = False  # that rank does not end by itself


def name_of(rank: int, beat: Heartbeat) -> str:
    return f"rank {rank} (process {beat.pid} on {beat.host})"


def process_state(pid: int) -> tuple[str, float] | None:
    """The state letter of a process of this machine as /proc has it, and its CPU time in seconds.

    None where it has ended; ("?", 0.0) where this system does not tell. See proc_pid_stat(5).
    """
    if not Path("/proc/self/stat").exists():
        return ("?", 0.0)
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ticks = int(words[11]) + int(words[12])
    return None if words[0] in "ZXx" else (words[0], ticks / os.sysconf("SC_CLK_TCK"))


@dataclass
class _Peer:
    """What this rank knows of another one."""

    said: bytes = b""
    beat: Heartbeat | None = None
    silent: float = 0.0  # seconds without a new heartbeat, by this rank's own heartbeats
    cpu: float | None = None  # its CPU time at the last look, seconds
    computed: float = 0.0  # `silent` when its CPU time last grew


class Watch:
    """The thread of one rank, and what the ranks agree on through the store."""

    def __init__(
        self, rank: int, world_size: int, work: Work, heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        work_timeout: float = WORK_TIMEOUT, launcher: int | None = None,
    ) -> None:  # fmt: skip
        """`launcher` is the process that started this rank, where that is an `accelerate launch`."""
        self.rank, self.world_size, self.work = rank, world_size, work
        self.heartbeat_timeout, self.work_timeout, self.launcher = heartbeat_timeout, work_timeout, launcher
        # set by who keeps the record; also told whether this rank was the first to say so
        self.on_failure: Callable[[Failure, bool], None] = lambda failure, ours: None
        self.store: Any = None
        self.peers = {peer: _Peer() for peer in range(world_size) if peer != rank}
        self._me = Heartbeat(socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._failing = threading.Lock()  # held by the thread that ends this process
        self._thread = threading.Thread(target=self._guarded, name="asrlora-watchdog", daemon=True)

    def start(self) -> None:
        if self.world_size > 1:
            self.store = open_store(self.heartbeat_timeout)
        self._thread.start()

    @property
    def name(self) -> str:
        return name_of(self.rank, self._me)

    def end(self) -> None:
        """The rank ends as it should: nobody misses its heartbeats any more."""
        self._ended.set()
        self._thread.join()
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # it may be another rank's, which has ended before
                self.store.set(key("alive", self.rank), LEFT.decode())

    def declare(self, failure: Failure) -> tuple[Failure, bool]:
        """The first failure that any rank has declared, and whether it is this one."""
        if self.store is None:
            return failure, True
        told = json.dumps([self.rank, asdict(failure)])
        try:
            by, first = json.loads(self.store.compare_set(key("failure"), "", told))
        except RuntimeError:
            return self._without_store(), True
        return Failure(**first), by == self.rank

    def settle(self, error: BaseException, failure: Failure) -> tuple[Failure, bool]:
        """What ends the run, after `error` has come to the main thread; and whether this rank declared it.

        Where it came out of a collective, another rank may be the cause, and this waits until that shows.
        Errors that all ranks find alike are rank 0's to declare. Else it is `failure`. The thread does
        nothing any more after that.
        """
        alike = self.rank != 0 and isinstance(error, UserError | FloatingPointError)
        until = time.monotonic() + (SETTLE if self.work.broken else 3 * BEAT if alike else 0.0)
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
            time.sleep(BEAT / 4)
        else:
            if self.work.broken:
                failure = self._missing() or self._timed_out(error) or failure
        self._failing.acquire()
        self._ended.set()
        return self.declare(failure)

    def _timed_out(self, error: BaseException) -> Failure | None:
        """Where a collective's own patience was over before ours: the rank that has not come to it."""
        beats = {rank: peer.beat for rank, peer in self.peers.items() if peer.beat and peer.said != LEFT}
        if not re.search(r"time[ds]?[ -]?out", str(error), re.IGNORECASE) or not beats:
            return None
        rank, last = min(beats.items(), key=lambda item: (item[1].position, item[0]))
        if last.position >= self.work.position:
            return None
        named = name_of(rank, last)
        reason = f"{named} has not come where others waited ({error}); it is {last.describe()}"
        return Failure(rank, reason, stuck=True)

    def _missing(self) -> Failure | None:
        """A rank that has ended without a word, after a connection to some rank broke."""
        for rank, peer in self.peers.items():
            if peer.beat is None or peer.said == LEFT:
                continue
            here = peer.beat.host == self._me.host
            if here and process_state(peer.beat.pid) is None:
                return Failure(rank, f"{name_of(rank, peer.beat)} {gone(peer.beat)}")
            if not here and peer.silent > 4 * BEAT:
                return Failure(
                    rank, f"{name_of(rank, peer.beat)} is gone: connections broke, it {_late(peer)}"
                )
        return None

    # --- the thread

    def _guarded(self) -> None:
        try:
            self._run()
        except RuntimeError:
            if not self._ended.is_set():
                # With the store goes the launcher, which alone can end the others and say how all this
                # went; ranks that went on without it would write into the next attempt's files.
                self._end_run(self._without_store())

    def _without_store(self) -> Failure:
        if _launcher_has_store():
            return Failure(None, "the launcher, which keeps the ranks' store, is gone")
        peer = self.peers.get(0)
        named = name_of(0, peer.beat) if peer is not None and peer.beat is not None else "rank 0"
        return Failure(
            0, f"{named} is gone, and with it the ranks' store; it was killed, or its machine failed"
        )

    def _run(self) -> None:
        doing, spent, last = self.work.now, 0.0, time.monotonic()
        idle, cpu = 0.0, _cpu_time(self._main)
        while not self._ended.wait(BEAT):
            # no more than two heartbeats: the rest of the time this process was stopped, and the others too
            passed, last = min(time.monotonic() - last, 2 * BEAT), time.monotonic()
            spent = spent + passed if self.work.now is doing else 0.0
            doing = self.work.now
            used, cpu = _cpu_time(self._main) - cpu, _cpu_time(self._main)
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

    def _publish(self, doing: Doing, spent: float, idle: float) -> None:
        frame, library = _innermost(self._main)
        beat = Heartbeat(
            self._me.host, self._me.pid, self._me.count + 1, self.work.position, doing.kind, doing.what,
            self.work.at, spent, idle, frame, library,
        )  # fmt: skip
        self._me = beat
        if self.store is not None:
            self.store.set(key("alive", self.rank), json.dumps(asdict(beat)))

    def _listen(self, rank: int, peer: _Peer, passed: float) -> None:
        assert self.store is not None
        said = self.store.get(key("alive", rank)) if self.store.check([key("alive", rank)]) else b""
        if said != peer.said:
            peer.said, peer.silent, peer.computed, peer.cpu = said, 0.0, 0.0, None
            if said != LEFT:
                peer.beat = Heartbeat(**json.loads(said))
        else:
            peer.silent += passed

    def _dead(self) -> Failure | None:
        for rank, peer in self.peers.items():
            if peer.said == LEFT or peer.silent <= GONE:
                continue
            if peer.beat is None:  # it has come up with this one, and has never said anything
                if peer.silent > max(self.heartbeat_timeout, self.work_timeout):
                    return Failure(rank, f"rank {rank} has sent no heartbeat since the start")
                continue
            named, late = name_of(rank, peer.beat), _late(peer)
            if peer.beat.host == self._me.host:
                found = process_state(peer.beat.pid)
                if found is None:
                    return Failure(rank, f"{named} {gone(peer.beat)}")
                state, cpu = found
                if peer.cpu is not None and cpu > peer.cpu:
                    peer.computed = peer.silent
                peer.cpu = cpu
                computes = peer.computed and peer.silent - peer.computed < self.heartbeat_timeout
                if computes and state not in "Tt" and peer.silent <= self.work_timeout:
                    continue
                if state in "Tt":
                    late = f"is stopped, by SIGSTOP or a debugger: it {late}"
            if peer.silent > self.heartbeat_timeout:
                return Failure(rank, f"{named} {late}; it was {peer.beat.describe()}", stuck=True)
        return None

    def _hangs(self) -> Failure | None:
        me = self._me
        limit = self._patience(me, self.work.limit(self.work_timeout))
        if me.kind == "work" and me.spent > limit:
            return Failure(self.rank, f"{self.name} has hung for {me.spent:.0f} s while {me.describe()}")
        if me.kind == "wait" and self.store is None and me.spent > limit:
            return Failure(self.rank, f"{self.name} has waited for {me.spent:.0f} s: {me.describe()}")
        return None

    def _patience(self, beat: Heartbeat, limit: float) -> float:
        """Seconds after which a rank hangs that is at one thing: more, where its main thread computes."""
        return limit if beat.idle >= min(beat.spent, limit) else TIMES * limit

    def _behind(self) -> Failure | None:
        """The rank for which this one has waited too long."""
        me = self._me
        if me.kind != "wait" or me.spent <= self.work_timeout:
            return None
        beats = {rank: peer.beat for rank, peer in self.peers.items() if peer.beat and peer.said != LEFT}
        if not beats:
            return None
        waited = f"for {me.spent:.0f} s, while others wait for it there"
        rank, last = min(beats.items(), key=lambda item: (item[1].position, item[0]))
        if last.position < me.position:
            # work of its own has its own limit, or none; and it may have been at that until a moment ago
            if last.kind in ("work", "main") or last.spent <= self._patience(last, self.work_timeout):
                return None
            return Failure(
                rank, f"{name_of(rank, last)} hangs: it has not come to {me.what!r} {waited}; it is"
                f" {last.describe()}", stuck=True,
            )  # fmt: skip
        if any(beat.kind != "wait" or beat.spent <= self.work_timeout for beat in beats.values()):
            return None
        there = {rank: beat for rank, beat in beats.items() if beat.position == me.position}
        if len(there) < len(beats):
            return Failure(
                self.rank, f"{self.name} has waited for {me.spent:.0f} s in {me.describe()}, which other"
                " ranks have left: look at the network between them"
            )  # fmt: skip
        odd = {rank: beat for rank, beat in {**there, self.rank: me}.items() if not beat.library}
        if 0 < len(odd) <= len(there):  # not all: on a GPU everyone waits in a call of ours
            rank, beat = min(odd.items())
            return Failure(rank, f"{name_of(rank, beat)} hangs {waited}: {beat.describe()}", stuck=True)
        hosts = ", ".join(sorted({beat.host for beat in there.values()} | {me.host}))
        return Failure(
            None, f"all ranks have waited for {me.spent:.0f} s in {me.describe()}, and none of them is"
            f" behind: look at the network (between {hosts}) and the devices"
        )  # fmt: skip

    def _end_run(self, failure: Failure) -> NoReturn:
        self._failing.acquire()  # never released: this process ends here, or in the thread that has it
        failure, ours = self.declare(failure)
        if failure.rank == self.rank:
            faulthandler.dump_traceback()
        peer = self.peers.get(failure.rank if failure.rank is not None else -1)
        here = peer is not None and peer.beat is not None and peer.beat.host == self._me.host
        if failure.stuck and here:
            assert peer is not None
            assert peer.beat is not None
            if peer.silent < 2 * BEAT:
                time.sleep(3 * BEAT)  # it may still write down where it hangs
            with contextlib.suppress(ProcessLookupError):
                os.kill(peer.beat.pid, signal.SIGKILL)
        self.report(failure, ours)
        self.linger()
        os._exit(failure.code)

    def linger(self) -> None:
        """Lets the other ranks read why the run ends, where the store goes with this process."""
        if self.rank == 0 and self.store is not None and not _launcher_has_store():
            time.sleep(3 * BEAT)

    def report(self, failure: Failure, ours: bool) -> None:
        """Has the failure recorded, and says it once on the terminal."""
        with contextlib.suppress(OSError):  # the run directory may be what has failed
            self.on_failure(failure, ours)
        if self.rank == 0 or (ours and failure.rank == 0):
            print(f"asrlora: error: {failure.reason}; the run ends", file=sys.stderr, flush=True)


def open_store(seconds: float) -> Any:
    """A client of the store that the launcher, or rank 0, keeps; for one thread."""
    return dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in torch's __all__
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
    )  # fmt: skip


def _launcher_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def key(*parts: object) -> str:
    """A name in the store, of this attempt alone: a launcher that restarts its ranks keeps the store."""
    return "/".join(["asrlora", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), *map(str, parts)])


def gone(beat: Heartbeat) -> str:
    return f"is gone: it was killed, by the kernel for want of memory or by hand, while {beat.describe()}"


def _late(peer: _Peer) -> str:
    return f"has sent no heartbeat for {peer.silent:.0f} s"


def _cpu_time(thread: int | None) -> float:
    """Seconds of processor time that a thread has used; 0 where this system does not tell."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread or 0))
    except (AttributeError, OSError):
        return 0.0


def _innermost(thread: int | None) -> tuple[str, bool]:
    """Where a thread is, and whether that is inside of a library that communicates.

    The innermost Python frame, and the innermost one of this package: "threading.py:327 wait, from
    shards.py:91 read".
    """
    frame = sys._current_frames().get(thread or -1)
    if frame is None:
        return "", True
    path = Path(frame.f_code.co_filename)
    named, library = _place(frame), any(library in path.parts for library in LIBRARIES)
    while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    ours = _place(frame) if frame is not None else named
    return (named if ours == named else f"{named}, from {ours}"), library


def _place(frame: types.FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
