"""`asrlora strength`: the search of engine/rescue.py on a run that has ended, or on an adapter's folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from asrlora.config import RunConfig
from asrlora.data.manifest import Utterance
from asrlora.data.shards.reader import Shards
from asrlora.engine import launcher, rescue
from asrlora.engine import runtime as runtimes
from asrlora.engine.finish import keep_excerpts
from asrlora.engine.run import choose_domain_words
from asrlora.engine.runtime import Runtime
from asrlora.engine.training_set import cached
from asrlora.models import adapters
from asrlora.record import diagnosis, run_dir
from asrlora.record.judge import judge_run
from asrlora.record.schema import Verdict
from asrlora.report import page
from asrlora.score import keyword_recall, metric
from asrlora.storage import atomic_folder, write_atomic, write_json

NOT_COPIED = ("wandb", "logs", ".lock", "report*")
GIVEN = 1  # the step under which the adapter of a folder is evaluated


def search(
    config: RunConfig,
    utterances: Mapping[str, list[Utterance]],
    strengths: Sequence[float],
    source: Path,
) -> Verdict | None:
    """Collective. Rescues the run, or the adapter, in `source`; returns the verdict, on rank 0.

    In `config.output_dir`, which is the run itself, or a copy that is made of it. Of an adapter, it is a new
    run directory, and base and adapter are evaluated first. Only `strengths` are tried where some are given.
    """
    runtime = runtimes.start()
    runtimes.set_matmul_precision(config.matmul_precision)
    folder = config.output_dir
    with runtime.watched(config.heartbeat_timeout, config.work_timeout):
        sets = {name: cached(runtime, f"shards of {name}", of) for name, of in utterances.items()}
        if (source / "run.json").exists():
            if source != folder:
                runtime.collectives.on_main("copying the run", lambda: _copy(source, config))
            record = run_dir.RunDirectory.reopen(folder) if runtime.is_main else None
        else:
            record = _evaluate(runtime, config, source, sets)
        rescue.rescue_run(runtime, config, record, sets, strengths)
        runtime.collectives.on_main("the report", lambda: _end(folder, record, sets))
        runtime.close()
    return run_dir.read_verdict(folder) if runtime.is_main else None


def _copy(run: Path, config: RunConfig) -> None:
    """Only rank 0. The run again, in the new directory."""
    shutil.copytree(run, config.output_dir, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
    identity = run_dir.read_run(run)
    copied = identity.changed(
        run_id=config.output_dir.resolve().name,
        rescue_of=identity.run_id,
        config=config.model_dump(mode="json"),
    )
    write_json(config.output_dir / "run.json", copied.as_json())
    write_atomic(config.output_dir / "config.yaml", config.to_yaml())


def _evaluate(
    runtime: Runtime, config: RunConfig, adapter: Path, sets: Mapping[str, Shards]
) -> run_dir.RunDirectory | None:
    """Collective. Base and adapter on all sets, as steps 0 and 1 of a new run directory, and its verdict."""
    evaluations = rescue.Evaluations(runtime, config, config.output_dir, sets)
    base = evaluations.base()
    made: list[run_dir.RunDirectory] = []
    fingerprint = evaluations.fingerprint(base)

    def create() -> None:
        """Only rank 0."""
        chosen = metric.choose(config.metric, config.language)
        made.append(
            run_dir.RunDirectory.create(
                config.output_dir,
                command=launcher.command_as_typed(),
                config=config.model_dump(mode="json"),
                world_size=runtime.world_size,
                launch=runtime.strategy.name,
                threads=runtime.threads.as_json(),
                best_step=GIVEN,
                metric=chosen.name,
                fingerprint=fingerprint,
                base_commit=base.commit,
                training={"set": f"the adapter in {adapter}", "content": adapters.digest(adapter)},
            )
        )
        words = choose_domain_words(config, sets, chosen.name, evaluations.normaliser)
        write_atomic(config.output_dir / "config.yaml", config.to_yaml())
        write_atomic(config.output_dir / "domain_words.txt", keyword_recall.to_list(words))
        with atomic_folder(config.output_dir / "adapter_best") as aside:
            shutil.copytree(adapter, aside, dirs_exist_ok=True)

    evaluations.on_main("opening the run directory", create)
    model = base.model
    for step in (0, GIVEN):
        if step:
            model = adapters.load(base, config.output_dir / "adapter_best")
        name = run_dir.step_folder(config.output_dir, step).name
        for part, data in sets.items():
            evaluations.complete(base, model, name, part, {one.id for one in data.samples})
    evaluations.on_main("the verdict", lambda: judge_run(config.output_dir).verdict)
    return made[0] if made else None


def _end(folder: Path, record: run_dir.RunDirectory | None, sets: Mapping[str, Shards]) -> None:
    """Only rank 0. The report, and the end of the record."""
    judged = run_dir.read_verdict(folder)
    assert record is not None
    assert judged is not None
    keep_excerpts(folder, sets, judged)
    page.write_report(folder)
    record.update(diagnosis=diagnosis.of_run(folder))
    record.end("complete", record.identity.reason)
