"""The end of a run: its verdict, its report, and what W&B gets of them."""

from collections.abc import Mapping
from pathlib import Path

from asrlora.config import RunConfig
from asrlora.console import console
from asrlora.data import audio
from asrlora.data.audio import Pcm
from asrlora.data.shards.reader import Shards
from asrlora.engine import rescue
from asrlora.engine.run import Run
from asrlora.engine.runtime import Runtime
from asrlora.record import diagnosis, run_dir
from asrlora.record.judge import judge_run
from asrlora.record.schema import Verdict
from asrlora.report import alignment, page
from asrlora.storage import write_atomic
from asrlora.tracking import sinks

AUDIO_EXAMPLES = 8  # utterances of each set whose audio goes to W&B, the most changed ones


def finish(config: RunConfig, run: Run, runtime: Runtime) -> bool:
    """Collective. Judges the run from its files, rescues it where that is asked for, writes the report, and
    ends the record.

    False where a rank was asked to stop during a rescue. Raises RuntimeError where training has changed the
    base, or the best adapter does not reload.
    """
    on_main = runtime.collectives.on_main
    on_main("the verdict", lambda: _judge(config, run))
    if config.rescue == "auto":
        record = run.recorder.record if runtime.is_main else None
        if not rescue.rescue_run(runtime, config, record, run.evaluator.sets):
            return False
    on_main("the report", lambda: _report(config, run))
    return True


def _judge(config: RunConfig, run: Run) -> None:
    """Only rank 0, as all below."""
    if not rescue.is_rescued(config.output_dir):  # by an attempt that did not come to its end
        run.checkpoints.check_best()
        judge_run(config.output_dir)
    run.recorder.book("verdict")


def _report(config: RunConfig, run: Run) -> None:
    recorder, folder = run.recorder, config.output_dir
    judged = run_dir.read_verdict(folder)
    assert judged is not None
    if config.rescue == "auto":
        recorder.book("rescue")
    stages = {name: round(seconds, 1) for name, seconds in recorder.stages.items()}
    recorder.record.update(stage_seconds=stages, diagnosis=diagnosis.of_run(folder))
    recorder.message(f"verdict: {judged.verdict}. {judged.reason}")
    if config.report_audio:
        keep_excerpts(folder, run.evaluator.sets, judged)
    recorder.message(f"report: {page.write_report(folder)}")
    if command := diagnosis.next_command(folder, judged):
        recorder.message(f"next: {command}")
    if recorder.tracker.takes_hypotheses:
        for name, data in run.evaluator.sets.items():
            _track_hypotheses(config, run, name, data, run_dir.shown_evaluation(folder, judged))
    recorder.finish_tracking(judged, run.checkpoints.best if config.wandb_artifact else None)
    recorder.record.end("complete", run.selection.stopped)  # last: a resumed attempt would stop here


def keep_excerpts(folder: Path, sets: Mapping[str, Shards], judged: Verdict) -> None:
    """The audio that the report of a run plays: a report drawn again later has no shards at hand."""
    if not audio.writes_mp3():
        console.print("the report is without audio: libsndfile cannot write MP3 here")
        return
    for name, ids in page.shown(folder, judged).items():
        for identity, pcm in _read(sets[name], ids).items():
            path = alignment.excerpt(folder, name, identity)
            write_atomic(path, audio.encode_mp3(pcm[: page.EXCERPT_SECONDS * audio.SAMPLE_RATE]))


def _track_hypotheses(config: RunConfig, run: Run, name: str, data: Shards, evaluation: Path) -> None:
    """Sends a set's hypotheses of step 0 and of another evaluation to W&B, and the audio of some."""
    folders = run_dir.step_folder(config.output_dir, 0), evaluation
    old, new = (run_dir.read_lines(folder / f"{name}.jsonl") for folder in folders)
    metric, recorder = run.selection.metric, run.recorder
    pairs = sinks.by_change(old, new, metric)
    audible = _read(data, [line["id"] for _, line in pairs[:AUDIO_EXAMPLES]])
    waves = {identity: (pcm, audio.SAMPLE_RATE) for identity, pcm in audible.items()}
    recorder.tracker.log_hypotheses(recorder.progress.values.step, name, pairs, waves, metric)


def _read(data: Shards, ids: list[str]) -> dict[str, Pcm]:
    """The audio of some utterances, by id: int16 (T,) at 16 kHz."""
    numbers = {sample.id: number for number, sample in enumerate(data.samples)}
    return {identity: data.read(numbers[identity]) for identity in ids}
