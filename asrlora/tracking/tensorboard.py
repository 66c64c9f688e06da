"""TensorBoard: scalars in the run directory, for `tensorboard --logdir`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asrlora.errors import UserError


def check_installed() -> None:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: uv sync --extra tensorboard")


class TensorBoardSink:
    """Writes into tensorboard/ of a run directory, as sinks.Tracker calls it."""

    takes_hypotheses = False

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(run / "tensorboard")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars alone; texts are left out."""
        for name, value in values.items():
            if not isinstance(value, str):
                self.writer.add_scalar(name, value, global_step=step)
        self.writer.flush()

    def log_hypotheses(self, *_: Any) -> None:
        """TensorBoard gets none."""

    def finish(self, *_: Any) -> bool:
        """Closes the file, which holds everything."""
        self.writer.close()
        return True
