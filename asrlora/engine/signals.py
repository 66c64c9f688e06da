"""Whether this process was asked to stop: by SIGTERM, by SIGUSR1, or by the end of its time."""

import math
import signal
import time
import types
from dataclasses import dataclass

from asrlora.engine.launcher import process_age
from asrlora.launcher_hook import STOP_SIGNALS


@dataclass
class StopRequest:
    """A request to stop after the present step. Ranks agree before they act: see step.py, evaluate.py."""

    signalled: bool = False
    deadline: float = math.inf  # by time.monotonic()
    reserve: float = 10.0  # seconds that one more step and a save take; measured during the run

    def listen(self, max_minutes: float | None) -> None:
        """From here on SIGTERM, SIGUSR1 or the end of `max_minutes`, since the process started, are requests.

        A second one changes nothing.
        """

        def request(number: int, frame: types.FrameType | None) -> None:
            """The handler of these signals."""
            self.signalled = True

        for number in STOP_SIGNALS:
            signal.signal(number, request)
        if max_minutes is not None:
            self.deadline = time.monotonic() + 60 * max_minutes - process_age()

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signalled or time.monotonic() + self.reserve > self.deadline
