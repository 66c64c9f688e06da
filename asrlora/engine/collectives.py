"""What ranks exchange. All of them must call each of these, in the same order."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from asrlora.data.loader import to_device
from asrlora.engine.heartbeats import Work, key, open_store
from asrlora.errors import UserError

T = TypeVar("T")

STORE_TIMEOUT = 60.0  # seconds for one answer of the ranks' store


@dataclass
class Collectives:
    """This rank among the others. `work` shows the watchdog when it waits for them."""

    rank: int
    world_size: int
    local_rank: int  # its number on its machine
    device: torch.device
    work: Work
    _calls: int = 0  # of `on_main` and `first_of_machine`: all ranks make the same ones
    _store: Any = None

    def broadcast(self, item: T) -> T:
        """Rank 0's item on every rank."""
        if self.world_size == 1:
            return item
        box = [item]
        with self.work.waiting("receiving from rank 0"):
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, items: list[T]) -> list[T] | None:
        """All ranks' items on rank 0, None elsewhere."""
        if self.world_size == 1:
            return items
        parts: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        with self.work.waiting("gathering on rank 0"):
            dist.gather_object(items, parts)
        return None if parts is None else [item for part in parts for item in part]

    def all_gather(self, items: list[T]) -> list[T]:
        """All ranks' items on every rank."""
        return self.broadcast(self.gather(items) or [])

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sums over ranks, in double precision."""
        with self.work.waiting("summing over all ranks"):
            summed: list[float] = self.sum_on_device(values).tolist()
        return summed

    def sum_on_device(self, values: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """The sums over ranks, float64 (N,) on the device, without waiting for it."""
        tensors = [
            value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=torch.float64)
            for value in values
        ]
        tensor = torch.stack([to_device(one, self.device).double() for one in tensors])
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self, what: str = "the other ranks") -> None:
        """Waits until every rank has come here."""
        with self.work.waiting(what):
            if self.world_size > 1:
                dist.barrier(device_ids=[self.local_rank])

    def on_main(self, what: str, work: Callable[[], T]) -> T:
        """What rank 0 makes of `work`, on every rank.

        The others wait outside of any collective, however long it takes, as long as rank 0 lives: a process
        group's timeout would end a run that is only slow. Where rank 0 fails all ranks raise, a UserError as
        itself.
        """
        if self.world_size == 1:
            return work()
        made = self._first(what, self.rank == 0, work)
        return self.broadcast(made)  # type: ignore[return-value]  # None on other ranks, and not sent

    def first_of_machine(self, what: str, work: Callable[[], T]) -> T:
        """`work` on every rank: on each machine's first rank before the others.

        They wait as in `on_main`, and then find what it has left in a cache of that machine.
        """
        made = self._first(what, self.local_rank == 0, work)
        return work() if made is None else made

    def _first(self, what: str, first: bool, work: Callable[[], T]) -> T | None:
        """What `work` gives on a rank that is `first`, None elsewhere, when all such ranks are done."""
        if self.world_size == 1:
            return work()
        self._calls += 1
        if self._store is None:
            self._store = open_store(STORE_TIMEOUT)
        keys = [key("first", self._calls, rank) for rank in range(self.world_size)]
        made: T | None = None
        with self.work.waiting(what, "main" if first else "wait"):
            outcome = ""  # the error as JSON, if any
            try:
                made = work() if first else None
            except BaseException as error:
                outcome = json.dumps([isinstance(error, UserError), str(error) or type(error).__name__])
                raise
            finally:
                self._store.set(keys[self.rank], outcome)
        with self.work.waiting(f"{what}, on another rank"):
            failed = self._first_failure(keys)
        if failed is not None:
            users, message = json.loads(self._store.get(failed))
            if users:
                raise UserError(message)
            raise RuntimeError(f"rank {failed.rpartition('/')[2]} failed in {what}: {message}")
        return made

    def _first_failure(self, keys: list[str]) -> str | None:
        """Waits until all keys are there, or one of them holds an error; returns that one's."""
        pause = 0.01
        while True:
            complete = self._store.check(keys)
            for one in keys:
                if (complete or self._store.check([one])) and self._store.get(one):
                    return one
            if complete:
                return None
            time.sleep(pause)
            pause = min(0.1, 2 * pause)
