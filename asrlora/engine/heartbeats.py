"""What every rank publishes about its main thread, once a second, in the store that the launcher keeps.

The watchdog reads the heartbeats of the other ranks and finds the cause where one of them is dead or hangs.
"""

import contextlib
import os
import sys
import time
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import torch.distributed as dist

T = TypeVar("T")

INTERVAL = 1.0  # seconds between two heartbeats
LEFT = b"left"  # the last heartbeat of a rank that has ended as it should
GRADIENTS = "computing gradients"
WORK_TIMEOUT_FACTOR = 10  # a piece of work may take so many times the longest one of its kind
PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "deepspeed", "accelerate")  # a rank that waits for others is inside one of these

# work: its own, limited; main: its own, not limited, while the others wait; wait: for others; else between
Kind = Literal["work", "main", "wait", ""]


@dataclass(frozen=True)
class Activity:
    """What a main thread does. A new object for every change, as another thread reads it."""

    kind: Kind = ""
    what: str = "starting"


@dataclass
class Work:
    """What the main thread does, for its heartbeats."""

    now: Activity = field(default_factory=Activity)
    position: int = 0  # points of synchronisation that it has come to; all ranks come to the same ones
    at: str = ""  # where in the run, such as "step 12"
    broken: bool = False  # an exception came out of a collective, so another rank may be its cause
    longest: dict[str, float] = field(default_factory=dict)  # seconds, by piece of work
    _gradients_since: float = 0.0

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Around a piece of work without a collective in it."""
        start = time.monotonic()
        before, self.now = self.now, Activity("work", what)
        try:
            yield
        finally:
            self._return_to(before, what)
            self._measured(what, start)

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
        before, self.now = self.now, Activity(kind, what)
        try:
            yield
        except BaseException:
            self.broken = kind == "wait"
            raise
        finally:
            self._return_to(before, what)

    @contextlib.contextmanager
    def computing_gradients(self, shared: bool) -> Iterator[None]:
        """Around a backward pass; where it is `shared`, `have_gradients` marks when it begins to wait."""
        self.now, self._gradients_since = Activity("work", GRADIENTS), time.monotonic()
        position = self.position
        try:
            yield
            if shared:
                self.have_gradients()  # unless it was called already
        except BaseException:
            self.broken = self.position > position
            raise
        finally:
            if self.now.what == GRADIENTS:
                self._measured(GRADIENTS, self._gradients_since)
            self.now = Activity("", f"after {GRADIENTS}")

    def have_gradients(self) -> None:
        """This rank's part of a shared backward pass is done: from here on it waits for the others."""
        if self.now.what == GRADIENTS:
            self._measured(GRADIENTS, self._gradients_since)
            self.position += 1
            self.now = Activity("wait", "summing gradients over all ranks")

    def limit(self, timeout: float) -> float:
        """Seconds that the present piece of work may take."""
        return max(timeout, WORK_TIMEOUT_FACTOR * self.longest.get(self.now.what, 0.0))

    def _return_to(self, before: Activity, what: str) -> None:
        self.now = Activity(before.kind, before.what if before.kind else f"after {what}")

    def _measured(self, what: str, start: float) -> None:
        self.longest[what] = max(self.longest.get(what, 0.0), time.monotonic() - start)


@dataclass(frozen=True)
class Heartbeat:
    """What a rank publishes every INTERVAL."""

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
        at = f" at {self.at}" if self.at else ""
        return self.what + at + (f", in {self.frame}" if self.frame else "")


@dataclass
class Peer:
    """What this rank knows of another one."""

    received: bytes = b""
    beat: Heartbeat | None = None
    silent: float = 0.0  # seconds without a new heartbeat, by this rank's own heartbeats
    cpu: float | None = None  # its CPU time at the last look, seconds
    computed: float = 0.0  # `silent` when its CPU time last grew

    @property
    def late(self) -> str:
        """For how long no heartbeat has come."""
        return f"has sent no heartbeat for {self.silent:.0f} s"


def name_of(rank: int, beat: Heartbeat) -> str:
    """A rank as messages name it, with its process and host."""
    return f"rank {rank} (process {beat.pid} on {beat.host})"


def process_state(pid: int) -> tuple[str, float] | None:
    """The state of a process of this machine, as psutil calls it, and its CPU time in seconds; None where it
    has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        state, times = process.status(), process.cpu_times()
        if state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return state, times.user + times.system
    return None


def open_store(seconds: float) -> Any:
    """A client of the store that the launcher, or rank 0, keeps; for one thread. `seconds`: its timeout."""
    return dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in torch's __all__
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
    )


def launcher_has_store() -> bool:
    """Whether the launcher keeps the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def key(*parts: object) -> str:
    """A key in the store, of this attempt alone: a launcher that restarts its ranks keeps the store."""
    return "/".join(["asrlora", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), *map(str, parts)])


def cpu_time(thread: int | None) -> float:
    """Seconds of processor time that a thread has used; 0 on systems without such clocks."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread or 0))
    except (AttributeError, OSError):
        return 0.0


def innermost(thread: int | None) -> tuple[str, bool]:
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
