"""How many CPUs and which GPUs this process may use, whoever has allotted them. Needs no torch.

A process that starts as many threads as the machine has cores is slow wherever it has only some of them: in
a container, under Slurm, beside another trial of the same sweep, as one of several ranks. So every number of
threads in this project comes from `of_process`.
"""

import contextlib
import itertools
import math
import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asrlora.errors import UserError

CPUS = "ASRLORA_CPUS"  # CPUs of a launch on this machine; `sweep run --jobs` sets it for each of its trials
LOADERS = 4  # threads that read ahead, at most; one reads some 3,000 audio-s/s
LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")  # as modules: python -m NAME
WAITING = {  # how threads of OpenMP wait for each other, unless the user says otherwise
    "OMP_WAIT_POLICY": "passive",
    # libgomp, torch's own: looks so often before it sleeps (some 50 µs), where its default is 300,000 times
    "GOMP_SPINCOUNT": "1000",
}


@dataclass(frozen=True)
class Allocation:
    """The CPUs of this process, what they are spent on, and why there are so many."""

    cpus: int
    torch_threads: int  # compute
    loader_threads: int  # read and decode batches while torch computes
    worker_threads: int  # build shards, one rank of a machine for all, while nothing computes
    reason: str

    def describe(self) -> str:
        return f"{self.torch_threads} to compute, {self.loader_threads} to read ({self.reason})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def of_process(
    on_gpu: bool = False,
    environment: Mapping[str, str] | None = None,
    affinity: Collection[int] | None = None,
    root: Path = Path("/"),
) -> Allocation:
    """What this process may use: the smallest of all limits, divided among the ranks of this machine.

    `on_gpu`: torch computes there, so that more threads can read. The other parameters stand for the machine
    (`root` holds proc/ and sys/). Raises UserError where a variable of the environment holds no number.
    """
    given = _as_the_launcher_was_started() if environment is None else environment
    environment = os.environ if environment is None else environment
    allowed = os.sched_getaffinity(0) if affinity is None else affinity
    limits = [*_jobs(environment), *_slurm(environment), *_quota(root), _cores(allowed, root)]
    everything, reason = min(limits, key=lambda limit: limit[0])
    ranks = _ranks(environment)
    cpus = max(1, everything // ranks)
    told = f"{_plural(everything, 'CPU')}: {reason}"
    if ranks > 1:
        told += f"; {ranks} ranks on this machine"
    loaders = min(LOADERS, max(1, cpus - 1 if on_gpu else cpus // 8))
    # on few CPUs a thread that reads is worth no CPU of its own: it needs 3 to 7 % of one
    computing = cpus - loaders if cpus >= 8 or (on_gpu and cpus > 1) else cpus
    users = _users_threads(given)
    if users is not None:
        computing, said = users
        told += f"; {said}: so many threads compute"
    return Allocation(cpus, computing, loaders, everything, told)


def wait_passively() -> None:
    """Lets threads that wait for each other sleep. To be called before torch is imported: OpenMP reads the
    environment when it is loaded. What the user has set stays.

    By default they spin for milliseconds, on cores that another process may need to get done.
    """
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)


def shares(
    jobs: int, processes: int = 1, use_gpus: bool = True, environment: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Environment variables for each of `jobs` trials that run at once, of `processes` processes each.

    Each gets its own part of the CPUs and GPUs. Raises UserError where there are GPUs, and too few.
    """
    if jobs == 1:
        return [{}]
    cpus = of_process(environment=environment).worker_threads
    found: list[dict[str, str]] = [{CPUS: str(max(1, cpus // jobs))} for _ in range(jobs)]
    devices = gpus(environment) if use_gpus else []
    if not devices:
        return found
    if len(devices) < jobs * processes:
        fit = len(devices) // processes
        advice = f"--jobs {fit} would fit" if fit else "not even one would fit"
        raise UserError(
            f"--jobs {jobs} needs {_plural(jobs * processes, 'GPU')}, {processes} a trial, and"
            f" {_plural(len(devices), 'is there', 'are there')} ({', '.join(devices)}); {advice}"
        )
    for slot, variables in enumerate(found):
        own = devices[slot * processes : (slot + 1) * processes]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return found


def gpus(environment: Mapping[str, str] | None = None) -> list[str]:
    """The GPUs that CUDA would see, as CUDA_VISIBLE_DEVICES names them: by number, or by UUID where it
    does so, and parts of a GPU (MIG) in its place. Asks nvidia-smi where nothing is set."""
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return list(_until_unknown(visible.split(",")))
    try:
        asked = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    return parse_devices(asked.stdout)


def parse_devices(told: str) -> list[str]:
    """The devices in the answer of `nvidia-smi -L`."""
    found: list[list[str]] = []
    for line in told.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            found.append([gpu[1]])
        elif (part := re.search(r"UUID: (MIG-[^)\s]+)", line)) and found:
            found[-1] = [one for one in found[-1] if one.startswith("MIG-")] + [part[1]]
    return [one for device in found for one in device]


def _until_unknown(names: Sequence[str]) -> Iterator[str]:
    """CUDA takes no device that stands behind one which it does not know, such as -1 or NoDevFiles."""
    for name in map(str.strip, names):
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            return
        yield name


# limits: a number of CPUs, and where it comes from

Limit = tuple[int, str]


def _jobs(environment: Mapping[str, str]) -> Iterator[Limit]:
    if CPUS in environment:
        count = _number(environment, CPUS)
        yield count, f"{CPUS}={count}, as `sweep run --jobs` sets it"


def _slurm(environment: Mapping[str, str]) -> Iterator[Limit]:
    """A batch script has the CPUs of all its tasks on this node, a task of srun has its own."""
    tasks = _slurm_tasks(environment)
    if "SLURM_CPUS_PER_TASK" in environment:
        each = _number(environment, "SLURM_CPUS_PER_TASK")
        if _is_batch_script(environment) and tasks > 1:
            yield each * tasks, f"SLURM_CPUS_PER_TASK={each} for {tasks} tasks of a batch script"
        else:
            yield each, f"SLURM_CPUS_PER_TASK={each}"
    if "SLURM_CPUS_ON_NODE" in environment:
        count = _number(environment, "SLURM_CPUS_ON_NODE")
        if _is_batch_script(environment) or tasks == 1:
            yield count, f"SLURM_CPUS_ON_NODE={count}"
        else:
            yield max(1, count // tasks), f"SLURM_CPUS_ON_NODE={count} for {tasks} tasks"


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    return environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Slurm's tasks on this node: its variables read like 2(x3),1, by node."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"):
        if name in environment:
            counts: list[int] = []
            for part in environment[name].split(","):
                match = re.fullmatch(r"\s*(\d+)(?:\(x(\d+)\))?\s*", part)
                if match is None or int(match[1]) < 1:
                    raise UserError(f"{name}={environment[name]}: not a number of tasks, such as 2(x3),1")
                counts += [int(match[1])] * int(match[2] or 1)
            node = environment.get("SLURM_NODEID", "0")
            return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else max(counts)
    return 1


def _ranks(environment: Mapping[str, str]) -> int:
    """The ranks that share this machine's part; 1 where each is a task of srun and has a part of its own."""
    ranks = _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 1
    by_launcher = "TORCHELASTIC_RUN_ID" in environment or "SLURM_STEP_ID" not in environment
    return ranks if by_launcher or _slurm_tasks(environment) != ranks else 1


def _quota(root: Path) -> Iterator[Limit]:
    """The smallest CPU quota of this process's control groups and those above them, of versions 1 and 2."""
    quotas = list(_quotas(root))
    if quotas:
        quota, path = min(quotas)
        yield max(1, math.floor(quota)), f"a quota of {quota:g} CPUs by {path}"


def _quotas(root: Path) -> Iterator[tuple[float, str]]:
    for mount, inside, kind in _mounts(root):
        group = _group(root, kind)
        if group is None:
            continue
        below = group.relative_to(inside) if group.is_relative_to(inside) else Path()
        for folder in (below, *below.parents):
            place = mount / folder
            with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
                if kind == "cgroup2":
                    path = place / "cpu.max"
                    quota, period = _text(root, path).split()
                else:
                    path = place / "cpu.cfs_quota_us"
                    quota, period = _text(root, path), _text(root, place / "cpu.cfs_period_us")
                if quota != "max" and int(quota) > 0:  # -1: none
                    yield int(quota) / int(period), str(path)


def _mounts(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Where control groups are mounted, from which of them on, and as which version."""
    with contextlib.suppress(OSError):
        for line in _text(root, Path("/proc/self/mountinfo")).splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.partition(" ")
            if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split()[-1].split(",")):
                inside, mount = before.split()[3:5]
                yield Path(mount), Path(inside), kind


def _group(root: Path, kind: str) -> Path | None:
    """The control group of this process that says how many CPUs it may use."""
    with contextlib.suppress(OSError):
        for line in _text(root, Path("/proc/self/cgroup")).splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" if kind == "cgroup2" else "cpu" in controllers.split(","):
                return Path(path)
    return None


def _cores(allowed: Collection[int], root: Path) -> Limit:
    """Physical cores: two threads of one core get in each other's way in matrix products."""
    cores = set()
    for number in allowed:
        core = str(number)
        with contextlib.suppress(OSError):
            core = _text(root, Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"))
        cores.add(core)
    return max(1, len(cores)), f"physical cores of the {_plural(len(allowed), 'CPU')} this process may run on"


# what the user has said


def _users_threads(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """OMP_NUM_THREADS, of its list the first number, as the user has set it."""
    if not environment.get("OMP_NUM_THREADS"):
        return None
    first = environment["OMP_NUM_THREADS"].split(",")[0]
    return _number({"OMP_NUM_THREADS": first}, "OMP_NUM_THREADS"), f"OMP_NUM_THREADS={first}"


def _as_the_launcher_was_started() -> Mapping[str, str]:
    """The environment as the user has set it.

    `accelerate launch` and torchrun give OMP_NUM_THREADS to their ranks by themselves, so there it is read
    from the launcher: what stands in /proc is what it was started with.
    """
    if not os.environ.keys() & {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"}:
        return os.environ
    import psutil

    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents():
            words = parent.cmdline()
            if not _is_launcher(words):
                continue
            threads = _flag(words, "num_cpu_threads_per_process")
            return {**parent.environ(), **({"OMP_NUM_THREADS": threads} if threads else {})}
    return {}  # it is gone, or not ours to look at: what it has set is no word of the user's


def _is_launcher(words: Sequence[str]) -> bool:
    names = [Path(word).name for word in words]
    return (
        any(one == "accelerate" and two == "launch" for one, two in itertools.pairwise(names))
        or "torchrun" in names[:2]
        or any(name in LAUNCHERS for name in names[:4])
    )


def _flag(words: Sequence[str], name: str) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            return value if equals else following
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={environment[name]}: must be a whole number above 0; correct or unset it")
    return int(text)


def _text(root: Path, path: Path) -> str:
    return (root / path.relative_to("/")).read_text().strip()


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
