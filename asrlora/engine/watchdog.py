"""Notices a process of the run that has stopped, and ends the run instead of waiting for it.

A process that dies is the launcher's to notice. One that is frozen (stopped, swapped out, on a machine that
hangs) or hangs in a piece of work of its own (a deadlock in a data source) holds all others in their next
collective, for half an hour by torch's default. So a thread of every rank looks at the work of its own main
thread, counts aloud in the store that the launcher keeps, and listens to the others. Where the launcher
itself is gone, nobody is left to end the others and to tell how it went: then the run ends too.
"""

import contextlib
import faulthandler
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

T = TypeVar("T")

BEAT = 1.0  # seconds between two counts
SILENCE = 15.0  # seconds; a thread counts while its process computes, so a living rank is not this late
HANG = 15.0  # seconds in one piece of work; or TIMES what the longest of its kind took, where that is more
TIMES = 10
LEFT = b"left"  # said by a rank that has ended its watch
FIRST = 600.0  # seconds for the first piece of its kind: it may compile, or fetch a shard


@dataclass
class Work:
    """What the main thread does by itself, without waiting for other ranks, and since when."""

    now: tuple[str, float] = ("", math.inf)  # what, and since when; one tuple, as another thread reads it
    longest: dict[str, float] = field(default_factory=dict)  # seconds, by what

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Around a piece of work without a collective in it."""
        start = time.monotonic()
        self.now = (what, start)
        try:
            yield
        finally:
            self.now = ("", math.inf)
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

    def hangs(self) -> str | None:
        """What the main thread hangs in, for the message that ends the run."""
        what, since = self.now
        limit = max(HANG, TIMES * self.longest[what]) if what in self.longest else FIRST
        spent = time.monotonic() - since
        return f"has hung for {spent:.0f} s while {what}" if spent > limit else None


def watch(rank: int, world_size: int, work: Work, on_silence: Callable[[str], None]) -> Callable[[], None]:
    """Starts the thread; returns a function that ends it.

    Where this rank hangs in its work, it writes the stacks of its threads to stderr and tells the other
    ranks. Where one of them has told so, or has not counted for SILENCE, or the launcher is gone: calls
    `on_silence` with a message that names the rank, and ends this process and, where it is on this machine,
    that rank.
    """
    store: Any = None
    if world_size > 1:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in torch's __all__
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"asrlora/{attempt}/alive/{peer}" for peer in range(world_size)]
    me: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "count": 0, "hangs": None}
    ended = threading.Event()

    def run() -> None:
        heard = {peer: (b"", time.monotonic()) for peer in range(world_size) if peer != rank}
        while not ended.wait(BEAT):
            me["count"] += 1
            me["hangs"] = work.hangs()
            if me["hangs"]:
                faulthandler.dump_traceback()
            if store is not None:
                store.set(keys[rank], json.dumps(me))
            if me["hangs"]:
                ended.wait(3 * BEAT)  # until the others have heard whom to name
                end_run(rank, me, me["hangs"])
            for peer, (last, since) in heard.items():
                said = store.get(keys[peer]) if store.check([keys[peer]]) else b""
                if said == LEFT:
                    continue
                if said and (reason := json.loads(said)["hangs"]):
                    end_run(peer, json.loads(said), reason)
                if said != last or not said:
                    heard[peer] = (said, time.monotonic())
                elif time.monotonic() - since > SILENCE:
                    end_run(peer, json.loads(said), f"has not answered for {SILENCE:g} s")

    def end_run(peer: int, its: dict[str, Any], reason: str) -> NoReturn:
        on_silence(f"rank {peer} (process {its['pid']} on {its['host']}) {reason}")
        if peer != rank and its["host"] == me["host"]:
            with contextlib.suppress(ProcessLookupError):  # it may have ended itself
                os.kill(its["pid"], signal.SIGKILL)
        os._exit(1)

    def guarded() -> None:
        try:
            run()
        except RuntimeError:
            if not ended.is_set():
                # With the store goes the launcher, which alone can end the others and say how all this
                # went; ranks that went on without it would write into the next attempt's files.
                on_silence("the launcher, which keeps the ranks' store, is gone")
                os._exit(1)

    def end() -> None:
        ended.set()
        thread.join()
        if store is not None:
            with contextlib.suppress(RuntimeError):  # it may be another rank's, which has ended before
                store.set(keys[rank], LEFT.decode())

    thread = threading.Thread(target=guarded, name="asrlora-watchdog", daemon=True)
    thread.start()
    return end
