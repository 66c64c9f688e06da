"""Where a run's numbers go beside its own directory, as the engine calls it. Needs no torch.

Another service is a module like wandb.py or tensorboard.py, and a line in `start`. All that is sent is also
in the run directory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrlora.config import RunConfig
from asrlora.record.run_dir import RunDirectory, read_log
from asrlora.record.schema import Verdict
from asrlora.score.metric import Metric, tally
from asrlora.tracking import tensorboard, wandb

Line = Mapping[str, Any]  # a scored utterance
Pairs = Sequence[tuple[Line, Line]]  # the same utterance by the baseline and by the step shown
Waves = Mapping[str, tuple[Any, int]]  # samples and their rate, by utterance id
Sink = wandb.WandbSink | tensorboard.TensorBoardSink  # nothing that becomes of one may end the run


@dataclass
class Tracker:
    """The services of a run. Only rank 0 has any."""

    sinks: list[Sink] = field(default_factory=list)
    logged: int = -1  # steps up to here were sent by an earlier attempt

    @property
    def takes_hypotheses(self) -> bool:
        """Whether any service does."""
        return any(sink.takes_hypotheses for sink in self.sinks)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends the numbers of an optimizer step."""
        for sink in self.sinks:
            sink.log(step, values)

    def log_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of an evaluation: behind what was sent before, since W&B's steps only go up."""
        self.log(max(step, self.logged + 1), values)

    def log_hypotheses(self, step: int, name: str, pairs: Pairs, audio: Waves, metric: Metric) -> None:
        """Sends a set's hypotheses, and the audio of some."""
        for sink in self.sinks:
            sink.log_hypotheses(max(step, self.logged + 1), name, pairs, audio, metric)

    def finish(
        self, judged: Verdict | None = None, adapter: Path | None = None, failed: bool = False
    ) -> bool:
        """Ends them all; False where not all was sent."""
        sent = [sink.finish(judged, adapter, failed) for sink in self.sinks]
        return all(sent)


def check(config: RunConfig) -> None:
    """Raises UserError where the settings or the environment ask for what no run does."""
    wandb.check_environment(config.wandb_mode)
    if config.tensorboard:
        tensorboard.check_installed()


def start(config: RunConfig, run: RunDirectory, tags: Sequence[str]) -> Tracker:
    """The services that the settings ask for. Before steps are taken back, so that none is sent twice."""
    logged = max((line["step"] for line in read_log(run.folder / "metrics.jsonl")), default=-1)
    sinks: list[Sink] = []
    begun = wandb.start(config, run.identity, tags)
    if begun is not None:
        run.update(wandb_id=begun.id, wandb=wandb.place(config, begun))
        sinks.append(wandb.WandbSink(begun, logged))
    if config.tensorboard:
        sinks.append(tensorboard.TensorBoardSink(config.output_dir))
    return Tracker(sinks, logged)


def by_change(before: Sequence[Line], after: Sequence[Line], metric: Metric) -> list[tuple[Line, Line]]:
    """Scored lines of the same utterances, those first whose errors changed most."""
    old = {line["id"]: line for line in before}
    pairs = [(old[line["id"]], line) for line in after]

    def change(pair: tuple[Line, Line]) -> int:
        """Errors more than before."""
        return tally(pair[1], metric).errors - tally(pair[0], metric).errors

    return sorted(pairs, key=lambda pair: (-abs(change(pair)), pair[1]["id"]))
