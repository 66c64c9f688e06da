"""Kills a run at random moments, lets it go on, and compares it with one that nobody disturbed.

    uv run python tests/e2e/kill_resume.py --trials 200 --world 2

Each trial kills (SIGKILL) one rank or all of them at a random moment, saves and evaluations included, up to
three times, and starts them again with --resume auto until the run is complete. Then the best adapter, the
last checkpoint with AdamW's moments, the metrics with the digest of the utterances that each step read, and
every hypothesis must be the same to the byte. Ranks are forked from one process that has imported everything,
so a trial takes seconds.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import ROOT, Speech, speak

SETTINGS = {
    "max_steps": 12, "eval_interval": 6, "save_interval": 2, "learning_rate": 3e-3, "batch_size": 2,
    "gradient_accumulation_steps": 2, "resume": "auto", "wandb_mode": "disabled",
    "safety_manifest_path": None,
}  # fmt: skip
# Ranks are forked from a process that has imported this and run nothing: Accelerate's state, once it is
# there, says for ever how many processes there are, and pytest's process may have trained already.
PRELOAD = [
    "asrlora.engine.finish", "asrlora.engine.step", "matplotlib.pyplot",
    "transformers.models.moonshine.modeling_moonshine",
]  # fmt: skip
KILLS = 3  # at most, in one trial
PATIENCE = 5.0  # seconds that the others have to end by themselves when a rank was killed


def small(folder: Path, spoken: Speech | None = None) -> Speech:
    """A corpus whose evaluation takes a second, of what is spoken already, if anything is."""
    whole = Speech.of(shutil.copytree(spoken.train.parent, folder)) if spoken else speak(folder)
    whole.domain.write_text("".join(whole.domain.read_text().splitlines(keepends=True)[:6]))
    return whole


def _rank(
    rank: int, world: int, port: int, flags: list[str], log: Path, zero2: bool, change: Callable[[int], None]
) -> None:
    if zero2:  # as the launcher does
        os.environ |= {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "ds_configs" / "zero2.json"),
        }
    if world > 1 or zero2:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        }  # fmt: skip
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - open as long as the rank lives
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    from asrlora import train
    from asrlora.errors import exit_code

    sys.argv = ["asrlora/train.py", *flags]
    change(rank)
    code = exit_code(lambda: train.main(flags))
    sys.stdout.flush()
    os._exit(code)


def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _nothing(rank: int) -> None: ...


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(
    world: int,
    flags: list[str],
    log: Path,
    zero2: bool = False,
    change: Callable[[int], None] = _nothing,
) -> list[multiprocessing.Process]:
    """`change` is called in each rank, with its number, before the run."""
    port = free_port()
    given = (world, port, flags, log, zero2, change)
    ranks = [server().Process(target=_rank, args=(r, *given)) for r in range(world)]
    for rank in ranks:
        rank.start()
    return ranks


def before_step(step: int, what: Callable[[], None], rank: int) -> None:
    """A change for `start`: the last rank does `what` before step `step` of its attempt, fast or slow."""
    from asrlora.data import loader

    world, whole = int(os.environ.get("WORLD_SIZE", 1)), loader.read_batches

    def read(*args: Any, **settings: Any) -> Iterator[loader.Batch]:
        for number, batch in enumerate(whole(*args, **settings)):
            if number == (step - 1) * SETTINGS["gradient_accumulation_steps"] // world:
                what()
            yield batch

    if rank == world - 1:
        loader.read_batches = read


def to_itself(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def wait(ranks: list[multiprocessing.Process], seconds: float) -> list[int | None]:
    end = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    return [rank.exitcode for rank in ranks]


def result(run: Path) -> dict[str, str]:
    """sha256 of all that must not depend on interruptions."""
    files = [
        run / "adapter_best" / "adapter_model.safetensors", run / "verdict.json",
        *(run / "checkpoints").rglob("*"), *(run / "eval").rglob("*.jsonl"),
    ]  # fmt: skip
    found = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        for name in ("data_wait", "seconds", "memory_gib"):  # the machine's
            del line[name]
    return {**found, "metrics.jsonl": json.dumps(metrics)}


def undisturbed(
    speech: Speech, folder: Path, world: int, zero2: bool = False, **settings: object
) -> tuple[dict[str, str], float]:
    """An undisturbed run: its result, and the seconds that it took without the server's imports, so that
    kills at a random moment of it do hit a run."""
    first = server().Process(target=int)
    first.start()
    first.join()
    begin = time.monotonic()
    codes = wait(
        start(world, speech.flags(folder, **{**SETTINGS, **settings}), folder.with_suffix(".log"), zero2), 300
    )
    assert codes == [0] * world, folder.with_suffix(".log").read_text()[-3000:]
    return result(folder), time.monotonic() - begin


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def trial(
    number: int,
    speech: Speech,
    folder: Path,
    world: int,
    expected: dict[str, str],
    took: float,
    zero2: bool = False,
    kills: int = KILLS,
) -> list[str]:
    """One run with its kills; returns what was done to it. Raises AssertionError on a difference."""
    rng = random.Random(number)
    run, log, done = folder / f"trial-{number}", folder / f"trial-{number}.log", []
    flags = speech.flags(run, **SETTINGS)
    for _ in range(kills):
        ranks = start(world, flags, log, zero2)
        moment = rng.uniform(0.0, took)
        if any(code is not None for code in wait(ranks[:1], moment)):
            break  # it was faster than the kill
        chosen = ranks if rng.random() < 0.5 else [rng.choice(ranks)]
        for rank in chosen:
            if rank.pid is not None and rank.is_alive():
                os.kill(rank.pid, signal.SIGKILL)
        state = json.loads((run / "run.json").read_text())["state"] if (run / "run.json").exists() else "none"
        done.append(f"{len(chosen)} of {world} after {moment:.2f} s ({state})")
        wait(ranks, PATIENCE)
        for rank in ranks:  # as the launcher does with ranks that are left, waiting for one that is dead
            rank.kill()
        wait(ranks, 60)
    codes = wait(start(world, flags, log, zero2), 300)
    assert codes == [0] * world, f"trial {number}: {done}, then {codes}\n{log.read_text()[-3000:]}"
    odd = differences(result(run), expected)
    assert not odd, f"trial {number}: {done}; these files differ: {odd}\n{log.read_text()[-3000:]}"
    shutil.rmtree(run)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, which seeds it")
    parser.add_argument("--zero2", action="store_true", help="under DeepSpeed ZeRO-2")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    os.environ["ASRLORA_CACHE"] = str(folder / "cache")
    speech = small(folder / "speech")
    expected, took = undisturbed(speech, folder / "undisturbed", args.world, args.zero2)
    print(f"undisturbed: {took:.1f} s, {len(expected)} files", flush=True)
    kills = 0
    for number in range(args.first, args.first + args.trials):
        while True:
            begin = time.monotonic()
            done = trial(number, speech, folder, args.world, expected, took, args.zero2)
            if done:
                break
            # on a machine that has become faster, moments after the end would kill nothing
            took = min(took, time.monotonic() - begin)
        kills += len(done)
        print(f"trial {number}: {'; '.join(done)}: the same", flush=True)
    kind = f"world {args.world}{', ZeRO-2' if args.zero2 else ''}"
    print(f"{args.trials} of {args.trials} trials at {kind} ended the same, after {kills} kills")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
