"""The scripts of slurm/ on a real Slurm of two nodes on this host, all jobs at once."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

import tiny
from asrlora.record import run_dir
from asrlora.sweep import phases, sweep_file
from asrlora.sweep.trials import read_status
from benchmarks import together as bench_together
from conftest import ROOT, speak

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("Slurm", "root"),
    pytest.mark.timeout(1800),
]
FOR_EVER = 1_000_000  # steps of a run that only ends when it is stopped


@dataclass(frozen=True)
class Cluster:
    root: Path  # of Slurm's own files
    folder: Path  # its name holds a space and a quote
    fixed: dict[str, Any]

    def slurm(self, *words: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words: str | Path) -> str:
        log = self.folder / "logs" / "%x-%A_%a.log"
        return self.slurm("sbatch", "--parsable", f"--output={log}", *words).strip()

    def write(self, name: str, **content: Any) -> tuple[Path, sweep_file.Sweep]:
        path = self.folder / f"{name}.yaml"
        everything = {"output_dir": str(self.folder / name), "fixed": self.fixed, **content}
        path.write_text(yaml.safe_dump(everything))
        return path, sweep_file.load(path)

    def logs(self) -> str:
        return "\n".join(
            f"== {path}\n{path.read_text()[-1500:]}"
            for path in [*self.folder.glob("logs/*"), *self.folder.rglob("log.txt")]
        )

    def until(self, what: str, holds: Callable[[], bool], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what} has not come about\n{self.logs()}"
            time.sleep(0.05)

    def ended(self, job: str) -> bool:
        return not self.slurm("squeue", "-h", "-j", job, "-t", "PD,R,CG,CF,S").strip()


def steps(run: Path) -> int:
    return len(run_dir.read_log(run / "metrics.jsonl"))


def causes(trial: sweep_file.Trial) -> list[str | None]:
    """Why each attempt of a trial ended; None while it goes on."""
    return [attempt["cause"] for attempt in run_dir.read_json(trial.folder / "trial.json")["attempts"]]


def adapter(run: Path) -> bytes:
    return (run / "adapter_best" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm") / "it's here"
    (folder / "logs").mkdir(parents=True)
    speech = speak(folder / "speech")
    for path, count in ((speech.train, 24), (speech.domain, 6), (speech.heldout, 6)):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    model = tiny.save("moonshine", folder / "model")
    site = folder / "site.sh"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    site.write_text(
        f"run=(env PATH={shlex.quote(path)} PYTHONPATH={ROOT} OMP_NUM_THREADS=1)\n"
        "export GLOO_SOCKET_IFNAME=lo ASRLORA_MAX_RESTARTS=3 ASRLORA_PROCESSES_PER_NODE=1\n"
    )
    before = dict(os.environ)
    root = Path(os.environ.get("TMPDIR", "/tmp")) / f"asrlora-slurm-{os.getpid()}"
    script = str(ROOT / "tests" / "slurm" / "cluster.sh")
    subprocess.run([script, "up", str(root)], check=True, timeout=120)
    os.environ |= {"SLURM_CONF": str(root / "etc" / "slurm.conf"), "ASRLORA_SITE": str(site)}
    fixed = {
        "model_id": model, "dataset_path": str(speech.train), "manifest_path": str(speech.domain),
        "safety_manifest_path": str(speech.heldout), "wandb_mode": "disabled", "batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "max_steps": 300, "eval_interval": 300,
        "save_interval": 20,
    }  # fmt: skip
    try:
        yield Cluster(root, folder, fixed)
    finally:
        subprocess.run([script, "down", str(root)], timeout=120)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class Jobs:
    """What was submitted, and the trials of the array and of the job whose node dies."""

    array: str
    trials: list[sweep_file.Trial]
    two_nodes: Path
    undisturbed: Path
    programme: Path
    lost: sweep_file.Trial
    loaded: sweep_file.Sweep


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Jobs:
    """Everything at once, since most of it is waiting for `import torch`."""
    missing = {"model_id": str(cluster.folder / "no such model")}
    trials = [{"seed": 1}, {"seed": 2, **missing}, {"seed": 3, "max_steps": 40, "eval_interval": 40}]
    file, loaded = cluster.write("sweep", trials=trials)
    array = cluster.submit("--array=0-2%2", "--nodelist=n1", "slurm/sweep.sh", file)
    found = sweep_file.trials_of(loaded, loaded)

    run = cluster.folder / "two nodes"
    flags = {**cluster.fixed, "max_steps": 20, "output_dir": run, "eval_interval": 20}
    words = [
        word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))
    ]  # fmt: skip
    training = cluster.submit("--nodes=2", "--cpus-per-task=1", "slurm/train.sh", "cpu", *words)

    lost_file, lost_sweep = cluster.write("lost", trials=[{"max_steps": FOR_EVER, "eval_interval": FOR_EVER}])
    lost = sweep_file.trials_of(lost_sweep, lost_sweep)[0]
    dying = cluster.submit("--array=0-0", "--nodelist=n2", "slurm/sweep.sh", lost_file)

    phases = [{"name": "one", "grid": {"seed": [1, 2]}}, {"name": "two"}]
    programme, _ = cluster.write("programme", fixed={**cluster.fixed, **missing}, phases=phases)
    cluster.submit("slurm/programme.sh", programme)

    same, _ = cluster.write("undisturbed", trials=trials)
    program = [sys.executable, "-m", "asrlora.cli", "sweep", "run", str(same), "--trial", "0"]
    with subprocess.Popen(program, cwd=ROOT) as alone:
        cluster.until("step 30 of trial 0", lambda: steps(found[0].folder) >= 30)
        cluster.slurm("scancel", "--batch", "--signal=USR1", f"{array}_0")
        cluster.until("the training on two nodes", lambda: cluster.ended(training))
        cluster.until("step 30 of the trial that is lost", lambda: steps(lost.folder) >= 30)
        _kill_node("n2")
        cluster.until("the loss", lambda: read_status(lost, lost_sweep.criteria).state == "lost", 300)
        # it was asked for by name, so that the array beside it is not hit
        cluster.until(
            "the requeue", lambda: "PENDING" in cluster.slurm("squeue", "-h", "-j", dying, "-o", "%T")
        )
        cluster.slurm("scontrol", "update", f"JobId={dying}", "ReqNodeList=n1")
        assert alone.wait(600) == 0
    cluster.until("the array", lambda: cluster.ended(array))

    def attempts() -> list[dict[str, Any]]:
        return list(run_dir.read_json(lost.folder / "run.json")["attempts"])

    cluster.until("the second attempt", lambda: len(attempts()) == 2)
    after = attempts()[1]["from_step"]
    cluster.until("further steps", lambda: steps(lost.folder) > after + 5)
    cluster.slurm("scancel", dying)
    cluster.until("the end of the programme", lambda: (cluster.folder / "programme/outcome.json").exists())
    cluster.until("the end", lambda: cluster.ended(dying))
    return Jobs(
        array, found, run, sweep_file.trials_of(loaded, loaded)[0].folder.parent.parent / "undisturbed",
        cluster.folder / "programme", lost, loaded,
    )  # fmt: skip


def _kill_node(name: str) -> None:
    """As if the power had gone: first the daemons, lest they tell that the job has ended, then the job."""
    daemons, steps_, rest = list[psutil.Process](), list[psutil.Process](), list[psutil.Process]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_CONF") != os.environ["SLURM_CONF"]:
                continue
            if process.name() == "slurmd" and name in process.cmdline():
                daemons.append(process)
            elif environment.get("SLURMD_NODENAME") == name:
                rest.append(process)
                steps_ += [parent for parent in process.parents() if parent.name() == "slurmstepd"]
    assert daemons
    assert steps_
    for process in [*daemons, *steps_, *rest]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def test_a_preempted_task_requeues_itself_and_ends_in_the_same_adapter(jobs: Jobs) -> None:
    trial = jobs.trials[0]
    attempts = run_dir.read_json(trial.folder / "trial.json")["attempts"]
    assert causes(trial) == ["preempted", "complete"]
    assert [one["restart"] for one in attempts] == [0, 1]
    assert all(one["owner"].startswith(f"job {jobs.array}_0 on n1") for one in attempts)
    begun = [one["from_step"] for one in run_dir.read_json(trial.folder / "run.json")["attempts"]]
    assert begun[0] == 0
    assert 30 <= begun[1] < 300
    assert adapter(trial.folder) == adapter(jobs.undisturbed / trial.id)


def test_a_task_that_fails_leaves_the_others_alone(jobs: Jobs) -> None:
    states = [read_status(trial, jobs.loaded.criteria) for trial in jobs.trials]
    assert [one.state for one in states] == ["complete", "refused", "complete"]
    assert "no such model" in states[1].why
    assert states[2].judged is not None


def test_the_array_keeps_its_limit(cluster: Cluster, jobs: Jobs) -> None:
    assert "ArrayTaskThrottle=2" in cluster.slurm("scontrol", "show", "job", jobs.array)


def test_a_grid_longer_than_an_array_may_be_is_submitted_in_parts(cluster: Cluster) -> None:
    """By the lines that `sweep plan` prints; and a task behind the grid is refused with the right line."""
    missing = {**cluster.fixed, "model_id": str(cluster.folder / "no such model")}
    file, loaded = cluster.write("twelve", fixed=missing, grid={"seed": list(range(12))})
    plan = cluster.slurm(sys.executable, "-m", "asrlora.cli", "sweep", "plan", file)
    assert "12 trials are more than one array takes (MaxArraySize 10;" in plan
    lines = [line for line in plan.splitlines() if "--array=" in line]
    assert [line.split("--array=")[1].split()[0] for line in lines] == ["0-9%4", "0-1%4"]
    logs = f"export SBATCH_OUTPUT={shlex.quote(str(cluster.folder / 'logs' / '%x-%A_%a.log'))}"
    job = cluster.slurm("bash", "-euc", "\n".join([logs, *lines, "echo $job"])).strip()
    cluster.until("the end of the second part", lambda: cluster.ended(job))
    found = sweep_file.trials_of(loaded, loaded)
    assert [causes(trial) for trial in found] == [["refused"]] * 12
    assert "this array has 2 of the sweep's 12 trials (indices 0 to 1)" in (
        (cluster.folder / "logs" / f"asrlora-sweep-{job}_1.log").read_text()
    )

    again = cluster.submit("--array=3", "slurm/sweep.sh", file)
    small, _ = cluster.write("three", fixed=missing, grid={"seed": [1, 2, 3]})
    behind = cluster.submit("--array=5", "slurm/sweep.sh", small)
    cluster.until("the ends", lambda: cluster.ended(again) and cluster.ended(behind))
    assert [len(causes(trial)) for trial in found] == [2 if n == 3 else 1 for n in range(12)]
    log = (cluster.folder / "logs" / f"asrlora-sweep-{behind}_5.log").read_text()
    assert f"sbatch --array=0-2%4 slurm/sweep.sh {shlex.quote(str(small))}" in log


CORES = psutil.cpu_count(logical=False) or 1
ALLOCATION = (
    "import json; from asrlora import allocation; print(json.dumps(allocation.of_process().as_json()))"
)


@pytest.mark.parametrize("flags", [["--ntasks=2"], ["--ntasks=2", "--cpus-per-task=1"]])
def test_two_tasks_of_one_node_share_its_cpus(cluster: Cluster, flags: list[str]) -> None:
    """On a host of two cores or more, on which Slurm binds nothing: only its variables tell."""
    told = cluster.slurm("srun", "--nodes=1", *flags, sys.executable, "-c", ALLOCATION).splitlines()
    assert [json.loads(line)["worker_threads"] for line in told] == [1, 1]
    assert all("SLURM_CPUS" in json.loads(line)["reason"] for line in told)


def test_the_bench_runs_two_trials_as_two_tasks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it runs, and that each task computes on its own part; how long it takes is for a quiet machine."""
    monkeypatch.setattr(bench_together, "UTTERANCES", dict.fromkeys(bench_together.UTTERANCES, 16))
    figures = bench_together.bench_together(cluster.folder / "speech", 1, bench_together.SLURM)
    (found,) = figures.values()
    assert found["at once over the sum of both alone"] > 0
    threads = [int(count) for count in found["torch threads of each at once"].split(", ")]
    assert len(threads) == 2
    assert sum(threads) <= max(2, CORES)


def test_phases_run_one_after_another_and_end_with_what_stands_in_the_way(jobs: Jobs) -> None:
    told = json.loads((jobs.programme / "outcome.json").read_text())
    assert [phase["name"] for phase in told["phases"]] == ["one", "two"]
    assert {state for phase in told["phases"] for state in phase["trials"].values()} == {"refused"}
    assert told["in_the_way"] == ["no trial has a verdict"]


def test_a_node_that_fails_loses_an_attempt_and_not_the_run(jobs: Jobs) -> None:
    attempts = run_dir.read_json(jobs.lost.folder / "trial.json")["attempts"]
    assert [one["cause"] for one in attempts] == ["lost", "cancelled"]
    assert attempts[0]["owner"].endswith("n2")
    assert attempts[1]["owner"].endswith("n1")
    assert run_dir.read_json(jobs.lost.folder / "run.json")["attempts"][1]["from_step"] >= 20


def test_scancel_is_told_from_other_ends(jobs: Jobs) -> None:
    assert read_status(jobs.lost, jobs.loaded.criteria).state == "cancelled"
    assert run_dir.read_json(jobs.lost.folder / "run.json")["state"] == "preempted", "it was saved"


def test_a_run_on_two_nodes_is_one_run(jobs: Jobs) -> None:
    identity = run_dir.read_json(jobs.two_nodes / "run.json")
    assert (identity["state"], identity["world_size"], identity["launch"]) == ("complete", 2, "DDP")
    assert load_file(jobs.two_nodes / "adapter_best" / "adapter_model.safetensors")


def test_eight_trials_with_two_preemptions_and_a_lost_node_end_as_without_faults(cluster: Cluster) -> None:
    """After the others, which leave n2 dead."""
    if "n2" in cluster.slurm("sinfo", "-h", "-N", "-t", "down", "-o", "%N"):
        subprocess.run([ROOT / "tests" / "slurm" / "cluster.sh", "node", cluster.root, "n2"], check=True)
    cluster.until("two nodes", lambda: cluster.slurm("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")
    content = {"grid": {"max_steps": [300, 100], "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2]}}
    content["fixed"] = {**cluster.fixed, "eval_interval": 100}
    calm_file, calm = cluster.write("calm", **content)
    program = [sys.executable, "-m", "asrlora.cli", "sweep", "run", str(calm_file), "--jobs", "2"]
    subprocess.run(program, cwd=ROOT, check=True, timeout=1200)

    file, loaded = cluster.write("eight", **content)
    found = sweep_file.trials_of(loaded, loaded)
    # two CPUs a trial, so that two run on each node
    array = cluster.submit("--array=0-7%4", "--cpus-per-task=2", "slurm/sweep.sh", file)
    for number in (0, 1):
        cluster.until(f"step 25 of trial {number}", lambda trial=found[number]: steps(trial.folder) >= 25)
        # Slurm 22.05 delivers the signal, but answers "try again later" while other tasks of the array
        # pend: scancel would go on for 95 s, and hit the requeued task
        words = ["scancel", "--batch", "--signal=USR1", f"{array}_{number}"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as scancel:
            cluster.until("the preemption", lambda trial=found[number]: "preempted" in causes(trial))
            scancel.kill()

    def on_n2() -> bool:
        """Whether a trial there is under way, with something to lose."""
        for trial in found:
            with contextlib.suppress(FileNotFoundError):
                attempt = run_dir.read_json(trial.folder / "trial.json")["attempts"][-1]
                if attempt["ended"] is None and attempt["owner"].endswith("n2") and steps(trial.folder) >= 25:
                    return True
        return False

    cluster.until("a trial on n2", on_n2)
    _kill_node("n2")
    cluster.until("the end of the array", lambda: cluster.ended(array), 1200)

    ends = [cause for trial in found for cause in causes(trial)]
    assert ends.count("complete") == 8, ends
    assert ends.count("preempted") == 2, ends
    assert ends.count("lost") >= 1, ends
    outcomes = [phases.write_outcome(one).phases[0].winner for one in (loaded, calm)]
    assert outcomes[0] == outcomes[1]
    for trial, other in zip(found, sweep_file.trials_of(calm, calm), strict=True):
        assert adapter(trial.folder) == adapter(other.folder)
