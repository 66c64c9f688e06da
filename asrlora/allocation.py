"""How many CPUs and which GPUs this process may use, by every limit that is set for it.

A process that starts as many threads as the machine has cores is slow where it has only some of them: in a
container, under Slurm, beside another trial of the same sweep, as one of several ranks. So every number of
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
LAUNCHERS = {"torchrun", "torch.distributed.run", "torch.distributed.launch"}  # or accelerate launch
WAITING = {  # how threads of OpenMP wait for each other, unless the user says otherwise
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",  # of libgomp, torch's own: some 50 µs before a thread sleeps; default 300,000
}


@dataclass(frozen=True)
class Allocation:
    """The CPUs of this process, what they are used for, and which limit decided."""

    cpus: int
    torch_threads: int  # compute
    loader_threads: int  # read and decode batches while torch computes
    worker_threads: int  # build shards, one rank of a machine for all, while nothing computes
    reason: str

    def describe(self) -> str:
        """The numbers of threads, and the reason, as a run prints them."""
        return f"{self.torch_threads} to compute, {self.loader_threads} to read ({self.reason})"

    def as_json(self) -> dict[str, Any]:
        """The fields, as run.json has them."""
        return asdict(self)


def of_process(
    on_gpu: bool = False,
    environment: Mapping[str, str] | None = None,
    affinity: Collection[int] | None = None,
    root: Path = Path("/"),
) -> Allocation:
    """What this process may use: the smallest of all limits, divided among the ranks of this machine.

    With `on_gpu` torch computes there, so more threads can read. The other parameters replace the machine's
    own in tests (`root` holds proc/ and sys/). Raises UserError where a variable of the environment holds no
    number.
    """
    users = _users_environment() if environment is None else environment
    environment = os.environ if environment is None else environment
    allowed = os.sched_getaffinity(0) if affinity is None else affinity
    limits = [*_jobs(environment), *_slurm(environment), *_quota(root), _cores(allowed, root)]
    everything, reason = min(limits, key=lambda limit: limit[0])
    ranks = _ranks(environment)
    cpus = max(1, everything // ranks)
    reason = f"{_plural(everything, 'CPU')}: {reason}"
    if ranks > 1:
        reason += f"; {ranks} ranks on this machine"
    loaders = min(LOADERS, max(1, cpus - 1 if on_gpu else cpus // 8))
    # on few CPUs a thread that reads gets no CPU of its own: it needs 3 to 7 % of one
    computing = cpus - loaders if cpus >= 8 or (on_gpu and cpus > 1) else cpus
    if threads := users.get("OMP_NUM_THREADS", "").split(",")[0]:  # a list is by level of nesting
        computing = _number({"OMP_NUM_THREADS": threads}, "OMP_NUM_THREADS")
        reason += f"; OMP_NUM_THREADS={threads}: so many threads compute"
    return Allocation(cpus, computing, loaders, everything, reason)


def wait_passively() -> None:
    """Lets threads that wait for each other sleep, unless the user has set it.

    By default they spin for milliseconds, on cores that another process may need. To be called before torch
    is imported: OpenMP reads the environment when it is loaded.
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
    """The GPUs (or parts, MIG) that CUDA would see, by number or UUID as in CUDA_VISIBLE_DEVICES.

    Where that variable is not set, those that nvidia-smi lists.
    """
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return list(_until_unknown(visible.split(",")))
    try:
        asked = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    return parse_devices(asked.stdout)


def parse_devices(listing: str) -> list[str]:
    """The devices that `nvidia-smi -L` has listed."""
    found: list[list[str]] = []
    for line in listing.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            found.append([gpu[1]])
        elif (part := re.search(r"UUID: (MIG-[^)\s]+)", line)) and found:
            found[-1] = [one for one in found[-1] if one.startswith("MIG-")] + [part[1]]
    return [one for device in found for one in device]


def _until_unknown(names: Sequence[str]) -> Iterator[str]:
    """CUDA ignores all devices after one that it does not know, such as -1 or NoDevFiles."""
    for name in map(str.strip, names):
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            return
        yield name


Limit = tuple[int, str]  # a number of CPUs, and where it comes from


def _jobs(environment: Mapping[str, str]) -> Iterator[Limit]:
    if CPUS in environment:
        count = _number(environment, CPUS)
        yield count, f"{CPUS}={count}, as `sweep run --jobs` sets it"


def _slurm(environment: Mapping[str, str]) -> Iterator[Limit]:
    """A batch script has the CPUs of all its tasks on this node; a task of srun has its own."""
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
    """The ranks that share the limit; 1 where each is a task of srun, with a limit of its own."""
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


def _users_environment() -> Mapping[str, str]:
    """The environment as the user has set it.

    `accelerate launch` and torchrun set OMP_NUM_THREADS for their ranks, so there it is the launcher's own:
    /proc has the one that it was started with.
    """
    if not os.environ.keys() & {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"}:
        return os.environ
    import psutil

    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents():
            words = parent.cmdline()
            if not _is_launcher(words):
                continue
            threads = flag_value(words, "num_cpu_threads_per_process")
            return {**parent.environ(), **({"OMP_NUM_THREADS": threads} if threads else {})}
    return {}  # no launcher is left to be read, and what it has set is not the user's


def _is_launcher(words: Sequence[str]) -> bool:
    names = [Path(word).name for word in words]
    return ("accelerate", "launch") in itertools.pairwise(names) or not LAUNCHERS.isdisjoint(names[:4])


def flag_value(words: Sequence[str], name: str) -> str | None:
    """What a command line gives the flag --NAME, the last time; None where it does not."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            found = value if equals else following
    return found


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={environment[name]}: must be a whole number above 0; correct or unset it")
    return int(text)


def _text(root: Path, path: Path) -> str:
    return (root / path.relative_to("/")).read_text().strip()


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
