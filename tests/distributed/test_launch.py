"""Real `accelerate launch`, real gloo ranks, real DeepSpeed: the same run in every way of running it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from asrlora import cli
from conftest import BASE, ROOT, Speech

ACCELERATE = str(Path(sys.executable).parent / "accelerate")
WAYS = {
    "one": [sys.executable],
    "ddp": [ACCELERATE, "launch", "--config_file", "accelerate_configs/cpu.yaml"],
    "zero2": [ACCELERATE, "launch", "--config_file", "accelerate_configs/cpu_zero2.yaml"],
}
SETTINGS = {
    "max_steps": 16, "eval_interval": 16, "learning_rate": 1e-3, "batch_size": 2,
    "gradient_accumulation_steps": 4,
}  # fmt: skip


def launch(way: list[str], flags: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*way, "asrlora/train.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def until_first_step(run: Path, launcher: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists():
        assert launcher.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def shorter(manifest: Path, count: int) -> Path:
    """Its first `count` utterances, in a file beside it."""
    few = manifest.with_name(f"first_{count}_{manifest.name}")
    few.write_text("".join(manifest.read_text().splitlines(keepends=True)[:count]))
    return few


@pytest.fixture(scope="module")
def runs(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    few = {"manifest_path": shorter(speech.domain, 12), "safety_manifest_path": shorter(speech.heldout, 12)}
    for name, way in WAYS.items():
        done = launch(way, speech.flags(folder / name, **SETTINGS, **few))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {name: folder / name for name in WAYS}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_processes_that_were_asked_for_came_up(runs: dict[str, Path]) -> None:
    identities = {name: json.loads((run / "run.json").read_text()) for name, run in runs.items()}
    assert {name: (i["world_size"], i["launch"]) for name, i in identities.items()} == {
        "one": (1, "one process"),
        "ddp": (2, "DDP"),
        "zero2": (2, "ZeRO-2"),
    }
    assert identities["ddp"]["command"].startswith(
        "uv run accelerate launch --config_file accelerate_configs/cpu.yaml asrlora/train.py --model-id"
    )
    assert identities["one"]["command"].startswith("uv run python asrlora/train.py --model-id")
    for identity in identities.values():  # conftest's OMP_NUM_THREADS, which the launcher does not hide
        threads = identity["threads"]
        assert threads == identity["attempts"][0]["threads"]
        given = os.environ["OMP_NUM_THREADS"]
        assert threads["torch_threads"] == int(given)
        assert f"OMP_NUM_THREADS={given}" in threads["reason"]


def test_the_other_rank_has_a_log_of_its_own(runs: dict[str, Path]) -> None:
    assert [len(list((run / "logs").glob("rank-1.log"))) for run in runs.values()] == [0, 1, 1]


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_baseline_scores_and_hypotheses_equal_those_of_one_process(runs: dict[str, Path], name: str) -> None:
    for file in ("domain.jsonl", "heldout.jsonl"):
        path = Path("eval/step-000000") / file
        assert (runs[name] / path).read_bytes() == (runs["one"] / path).read_bytes()


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_losses_equal_those_of_one_process(runs: dict[str, Path], name: str) -> None:
    """Ragged lengths: a mean of microbatch means would differ by 1e-2."""
    assert losses(runs[name]) == pytest.approx(losses(runs["one"]), abs=1e-4)


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_adapters_equal_those_of_one_process(runs: dict[str, Path], name: str) -> None:
    """Of the last step. By tensor, since AdamW divides by the root of its second moment: the rounding of a
    tiny gradient, which is another one on each processor, shows in single elements."""
    last = f"checkpoints/step-{SETTINGS['max_steps']:06d}/adapter.safetensors"
    ours, one = (load_file(runs[way] / last) for way in (name, "one"))
    assert ours.keys() == one.keys()
    for key in one:
        assert one[key].abs().max() > 0, "it was not trained, and shows no difference"
        assert (ours[key] - one[key]).norm() < 1e-2 * one[key].norm(), key


@pytest.mark.parametrize(
    ("way", "settings", "told"),
    [
        # accelerate 1.15 silently starts one process here
        (["--cpu", "--num_processes", "2"], {}, "asked for 2 processes and 1 came up"),
        (
            ["--config_file", "accelerate_configs/cpu.yaml"],
            {"gradient_accumulation_steps": 3},
            "cannot be divided evenly among 2 processes",
        ),
    ],
)
def test_a_launch_that_is_not_what_was_asked_for_is_refused(
    speech: Speech, tmp_path: Path, way: list[str], settings: dict[str, int], told: str
) -> None:
    done = launch([ACCELERATE, "launch", *way], speech.flags(tmp_path / "run", **settings))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def evaluation(speech: Speech, output: Path) -> list[str]:
    words = ["eval", "--model-id", BASE, "--manifest-path", shorter(speech.domain, 24)]
    return [*map(str, words), "--output-dir", str(output), "--eval-batch-seconds", "10"]


def evaluate_by_ranks(name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [*WAYS[name], "asrlora/cli.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("name", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_an_evaluation_by_ranks_writes_what_one_process_writes(
    speech: Speech, tmp_path: Path, name: str
) -> None:
    assert cli.main(evaluation(speech, tmp_path / "one")) == 0
    done = evaluate_by_ranks(name, evaluation(speech, tmp_path / "ranks"))
    assert done.returncode == 0, done
    assert done.stdout.count("substitutions") == 1
    scores = [json.loads((tmp_path / way / "scores.json").read_text()) for way in ("one", "ranks")]
    assert all(one.pop("seconds") > 0 and one.pop("rtfx") > 0 for one in scores)
    given = int(os.environ["OMP_NUM_THREADS"])  # by conftest.py, or by variants.py
    assert [one.pop("threads")["torch_threads"] for one in scores] == [given, given]
    assert scores[0] == scores[1]
    hypotheses = [(tmp_path / way / "hypotheses.jsonl").read_bytes() for way in ("one", "ranks")]
    assert hypotheses[0] == hypotheses[1]


@pytest.mark.slow
def test_ranks_refuse_a_folder_with_another_evaluation_once(speech: Speech, tmp_path: Path) -> None:
    words = evaluation(speech, tmp_path)
    assert cli.main(words) == 0
    again = evaluate_by_ranks("ddp", words)
    assert again.returncode == 2
    assert again.stderr.count("holds another evaluation") == 1
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_its_ranks_with_a_checkpoint(speech: Speech, tmp_path: Path) -> None:
    """The launcher alone is told, as by a scheduler; it ends with 75 when its ranks have saved."""
    run = tmp_path / "run"
    flags = speech.flags(run, **{**SETTINGS, "max_steps": 5000, "eval_interval": 5000})
    del flags[flags.index("--safety-manifest-path") : flags.index("--safety-manifest-path") + 2]
    with subprocess.Popen([*WAYS["ddp"], "asrlora/train.py", *flags], cwd=ROOT, text=True) as launcher:
        until_first_step(run, launcher)
        launcher.send_signal(signal.SIGUSR1)
        assert launcher.wait(100) == 75
    identity = json.loads((run / "run.json").read_text())
    assert identity["state"] == "preempted"
    assert len(list((run / "checkpoints").glob("step-*/state.json"))) == 1


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(speech: Speech, tmp_path: Path) -> None:
    """Else they would write into the files of the attempt that goes on with the run."""
    run = tmp_path / "run"
    flags = speech.flags(run, **{**SETTINGS, "max_steps": 5000, "eval_interval": 5000})
    with subprocess.Popen([*WAYS["ddp"], "asrlora/train.py", *flags], cwd=ROOT, text=True) as launcher:
        until_first_step(run, launcher)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
    gone, left = psutil.wait_procs(ranks, timeout=30)
    for rank in left:
        rank.kill()
    assert len(gone) >= 2
    assert not left
    identity = json.loads((run / "run.json").read_text())
    # the first rank that notices ends; another one may learn it from their broken connection
    assert identity["state"] == "failed"
    assert "launcher" in identity["reason"] or "Connection closed" in identity["reason"]


@pytest.mark.slow
def test_a_killed_rank_is_named_with_its_signal(speech: Speech, tmp_path: Path) -> None:
    """Only the launcher, its parent, knows which signal it was."""
    run = tmp_path / "run"
    flags = speech.flags(run, **{**SETTINGS, "max_steps": 5000, "eval_interval": 5000})
    words = [*WAYS["ddp"], "asrlora/train.py", *flags]
    with subprocess.Popen(words, cwd=ROOT, text=True, stderr=subprocess.PIPE) as launcher:
        until_first_step(run, launcher)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        (killed,) = [one for one in ranks if one.environ().get("RANK") == "1"]
        killed.kill()
        _, message = launcher.communicate(timeout=100)
    assert launcher.returncode not in (0, 2, 75)
    identity = json.loads((run / "run.json").read_text())
    assert identity["state"] == "failed"
    for text in (message, identity["reason"]):
        assert f"rank 1 (process {killed.pid}" in text
        assert "was killed by SIGKILL" in text
