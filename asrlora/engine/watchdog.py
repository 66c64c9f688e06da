"""Notices a process of the run that has stopped, and ends the run instead of waiting for it.

A process that dies is the launcher's to notice. One that is frozen (stopped, swapped out, on a machine that
hangs) holds all others in their next collective, for half an hour by torch's default. So a thread of every
rank counts aloud in the store that the launcher keeps, and listens to the others. Where the launcher itself
is gone, nobody is left to end the others and to tell how it went: then the run ends too.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

BEAT = 1.0  # seconds between two counts
SILENCE = 15.0  # seconds; a thread counts while its process computes, so a living rank is not this late


def watch(rank: int, world_size: int, on_silence: Callable[[str], None]) -> Callable[[], None]:
    """Starts the thread; returns a function that ends it.

    After SILENCE without a count from some rank, calls `on_silence` with a message that names it, and ends
    this process and, where it is on this machine, that rank.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in torch's __all__
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"asrlora/{attempt}/alive/{peer}" for peer in range(world_size)]
    ended = threading.Event()

    def run() -> None:
        heard = {peer: (b"", time.monotonic()) for peer in range(world_size) if peer != rank}
        count = 0
        while not ended.wait(BEAT):
            count += 1
            store.set(keys[rank], f"{socket.gethostname()} {os.getpid()} {count}")
            for peer, (last, since) in heard.items():
                said = store.get(keys[peer]) if store.check([keys[peer]]) else b""
                if said == b"left":
                    continue
                if said != last or not said:
                    heard[peer] = (said, time.monotonic())
                elif time.monotonic() - since > SILENCE:
                    host, pid, _ = said.decode().split()
                    on_silence(f"rank {peer} (process {pid} on {host}) has not answered for {SILENCE:g} s")
                    if host == socket.gethostname():
                        os.kill(int(pid), signal.SIGKILL)
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
        with contextlib.suppress(RuntimeError):  # the store may be another rank's, which has ended before
            store.set(keys[rank], "left")

    thread = threading.Thread(target=guarded, name="asrlora-watchdog", daemon=True)
    thread.start()
    return end
