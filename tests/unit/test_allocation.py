"""Threads and devices stay within every limit that is set for the process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asrlora import allocation
from asrlora.errors import UserError

EIGHT = range(8)


def machine(
    folder: Path,
    files: dict[str, str] | None = None,
    groups: str = "0::/",
    mounts: str = "",
    siblings: int = 1,
) -> Path:
    """A folder that stands for /: eight CPUs, `siblings` of them a core, and the files of control groups."""
    everything = {
        **{
            f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": ",".join(
                str(m) for m in range(8) if m // siblings == n // siblings
            )
            for n in range(8)
        },
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": mounts,
        **(files or {}),
    }
    for name, content in everything.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")
    return folder


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 32 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
)
DOCKER_V1 = "34 32 0:30 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cpus", "expected"),
    [
        ("0::/", V2, {"sys/fs/cgroup/cpu.max": "max 100000"}, 8, "physical cores"),
        ("0::/", V2, {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3, "quota of 3 CPUs"),
        ("0::/", V2, {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1, "quota of 0.5 CPUs"),
        ("0::/a/b", V2, {"sys/fs/cgroup/a/cpu.max": "200000 100000",
                         "sys/fs/cgroup/a/b/cpu.max": "700000 100000"}, 2, "/sys/fs/cgroup/a/cpu.max"),
        ("3:cpu,cpuacct:/slurm/job_7\n0::/", V1,
         {"sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "250000",
          "sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000"}, 2, "job_7/cpu.cfs_quota_us"),
        ("3:cpu:/\n2:memory:/docker/abc", V1, {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                     "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8, "physical cores"),
        ("3:cpu:/docker/abc", DOCKER_V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
                     "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 4, "quota of 4 CPUs"),
        ("nonsense", "nonsense", {}, 8, "physical cores"),
    ],
)  # fmt: skip
def test_the_quota_of_a_control_group_or_one_above_it_is_kept(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], cpus: int, expected: str
) -> None:
    root = machine(tmp_path, files, groups, mounts)
    found = allocation.of_process(environment={}, affinity=EIGHT, root=root)
    assert found.cpus == cpus
    assert expected in found.reason


@pytest.mark.parametrize(
    ("environment", "cpus"),
    [
        ({"SLURM_CPUS_ON_NODE": "4"}, 4),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4"}, 2),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1"}, 2),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"}, 4),
        # as Slurm 22.05 has them: `srun -n1` in a job of two tasks a node, which --exact narrows
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_TASKS_PER_NODE": "1",
          "SLURM_STEP_ID": "0", "ENVIRONMENT": "BATCH"}, 8),
        ({"SLURM_CPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "2", "SLURM_NTASKS_PER_NODE": "2",
          "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_ID": "0"}, 1),
        # a batch script is one process for all tasks of the node
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "3", "SLURM_TASKS_PER_NODE": "2",
          "ENVIRONMENT": "BATCH"}, 6),
        ({"SLURM_CPUS_ON_NODE": "16"}, 8),
        ({"ASRLORA_CPUS": "3", "SLURM_CPUS_ON_NODE": "4"}, 3),
        ({"ASRLORA_CPUS": "6", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        # ranks that a launcher has started within one task of srun, and ranks that are tasks of srun
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_ID": "0",
          "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, 3),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6", "SLURM_STEP_TASKS_PER_NODE": "2",
          "SLURM_STEP_ID": "0", "LOCAL_WORLD_SIZE": "2"}, 3),
    ],
)  # fmt: skip
def test_slurm_jobs_and_ranks_share(tmp_path: Path, environment: dict[str, str], cpus: int) -> None:
    assert allocation.of_process(False, environment, EIGHT, machine(tmp_path)).cpus == cpus


@pytest.mark.parametrize(("affinity", "siblings", "cpus"), [(EIGHT, 2, 4), ([0, 1, 2], 2, 2), ([5], 1, 1)])
def test_cores_that_the_process_may_run_on_count(
    tmp_path: Path, affinity: list[int], siblings: int, cpus: int
) -> None:
    assert allocation.of_process(False, {}, affinity, machine(tmp_path, siblings=siblings)).cpus == cpus


@pytest.mark.parametrize(
    ("on_gpu", "cpus", "threads"),
    [(False, 2, (2, 1)), (False, 8, (7, 1)), (True, 8, (4, 4)), (True, 1, (1, 1))],
)
def test_readers_are_part_of_the_sum(
    tmp_path: Path, on_gpu: bool, cpus: int, threads: tuple[int, int]
) -> None:
    found = allocation.of_process(on_gpu, {}, range(cpus), machine(tmp_path))
    assert (found.torch_threads, found.loader_threads) == threads


@pytest.mark.parametrize(("given", "threads"), [("5", 5), ("1", 1), ("3,2", 3), ("", 7)])
def test_the_users_number_wins_and_is_named(tmp_path: Path, given: str, threads: int) -> None:
    found = allocation.of_process(False, {"OMP_NUM_THREADS": given}, EIGHT, machine(tmp_path))
    assert found.torch_threads == threads
    assert found.cpus == found.worker_threads == 8, "data threads are not OpenMP's"
    assert (f"OMP_NUM_THREADS={given[:1]}" in found.reason) == bool(given)


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "ASRLORA_CPUS", "SLURM_CPUS_PER_TASK", "SLURM_TASKS_PER_NODE"]
)
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        allocation.of_process(False, {name: value}, EIGHT, machine(tmp_path))


LAUNCHER = """
import os, subprocess, sys
os.environ |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
subprocess.run([sys.executable, "-c", '''
import json
from asrlora import allocation
print(json.dumps(allocation.of_process().as_json()))
'''], check=True)
"""


@pytest.mark.parametrize(
    ("users", "flags", "expected"),
    [
        ({}, [], ""),
        ({"OMP_NUM_THREADS": "3"}, [], "OMP_NUM_THREADS=3"),
        ({"OMP_NUM_THREADS": "1"}, [], "OMP_NUM_THREADS=1"),
        ({"OMP_NUM_THREADS": "3"}, ["--num_cpu_threads_per_process=5"], "OMP_NUM_THREADS=5"),
        ({}, ["--num-cpu-threads-per-process", "5"], "OMP_NUM_THREADS=5"),
    ],
)
def test_a_launchers_number_is_not_the_users(
    tmp_path: Path, users: dict[str, str], flags: list[str], expected: str
) -> None:
    """`accelerate launch` sets OMP_NUM_THREADS for its ranks; what it was started with is the user's."""
    script = tmp_path / "accelerate"
    script.write_text(LAUNCHER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, script, "launch", *flags, "asrlora/train.py"],
        env={**environment, **users}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    reason = json.loads(done.stdout)["reason"]
    assert "2 ranks on this machine" in reason
    assert expected in reason
    assert ("OMP_NUM_THREADS" in reason) == bool(expected)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("0,1,5", ["0", "1", "5"]), ("GPU-8f7a, MIG-1c", ["GPU-8f7a", "MIG-1c"]), ("", []), ("-1", []),
        ("0,-1,1", ["0"]), ("NoDevFiles", []),
    ],
)  # fmt: skip
def test_visible_devices_are_read_as_cuda_reads_them(visible: str, devices: list[str]) -> None:
    assert allocation.gpus({"CUDA_VISIBLE_DEVICES": visible}) == devices


def test_nvidia_smi_is_asked_where_nothing_is_set(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\n"
        "echo 'GPU 0: NVIDIA A100 (UUID: GPU-aa)'\n"
        "echo '  MIG 3g.20gb     Device  0: (UUID: MIG-one)'\n"
        "echo '  MIG 3g.20gb     Device  1: (UUID: MIG-two)'\n"
        "echo 'GPU 1: NVIDIA A100 (UUID: GPU-bb)'\n"
    )
    fake.chmod(0o755)
    assert allocation.gpus({"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == ["MIG-one", "MIG-two", "1"]
    assert allocation.gpus({"PATH": str(tmp_path / "nowhere")}) == []


def test_trials_at_once_get_parts_of_their_own() -> None:
    eight = {"ASRLORA_CPUS": "8", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
    parts = allocation.shares(2, 2, environment=eight)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in parts] == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    whole = allocation.of_process(environment=eight).worker_threads
    assert {one["ASRLORA_CPUS"] for one in parts} == {str(max(1, whole // 2))}
    assert allocation.shares(1, environment=eight) == [{}], "alone, a trial has everything"
    assert "CUDA_VISIBLE_DEVICES" not in allocation.shares(8, use_gpus=False, environment=eight)[0]


@pytest.mark.parametrize(
    ("jobs", "processes", "expected"),
    [(4, 1, "--jobs 4 needs 4 GPUs, 1 a trial, and 2 are there (0, 1); --jobs 2 would fit"),
     (2, 2, "--jobs 1 would fit"), (2, 8, "not even one would fit")],
)  # fmt: skip
def test_too_few_gpus_are_refused_with_what_would_fit(jobs: int, processes: int, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        allocation.shares(jobs, processes, environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert expected in str(refused.value)


def test_threads_that_wait_sleep_unless_the_user_has_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocation.WAITING:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    allocation.wait_passively()
    assert {name: os.environ[name] for name in allocation.WAITING} == allocation.WAITING
    for name in allocation.WAITING:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    allocation.wait_passively()
    assert "GOMP_SPINCOUNT" not in os.environ
