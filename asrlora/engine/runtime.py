"""Start-up: brings the processes up, and builds what a rank shares with the others."""

import contextlib
import ctypes
import datetime
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from asrlora import allocation
from asrlora.engine import strategy as strategies
from asrlora.engine.collectives import Collectives
from asrlora.engine.heartbeats import Work
from asrlora.engine.launcher import command_line
from asrlora.engine.signals import StopRequest
from asrlora.engine.strategy import MAX_GRAD_NORM, OneProcess
from asrlora.engine.watchdog import HEARTBEAT_TIMEOUT, WORK_TIMEOUT, Watch
from asrlora.errors import UserError


@dataclass
class Runtime:
    """One rank of a run: which it is, what it computes on, and what it shares with the others."""

    rank: int
    world_size: int
    device: torch.device
    threads: allocation.Allocation
    work: Work  # what the main thread does, for the watchdog
    collectives: Collectives
    strategy: OneProcess  # or DDP, or ZeRO2
    stop: StopRequest = field(default_factory=StopRequest)
    watch: Watch | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which keeps the record."""
        return self.rank == 0

    @contextlib.contextmanager
    def watched(
        self, heartbeat_timeout: float = HEARTBEAT_TIMEOUT, work_timeout: float = WORK_TIMEOUT
    ) -> Iterator[Watch]:
        """Around all that the ranks do together, `close` included: a rank that is dead, hangs or fails ends
        all of them, with a message that names it. See watchdog.py."""
        parent = os.getppid() if command_line() is not None else None
        self.watch = Watch(self.rank, self.world_size, self.work, heartbeat_timeout, work_timeout, parent)
        self.watch.start()
        try:
            yield self.watch
        except BaseException as error:
            raised = self.watch.fail(error)
            if raised is error:
                raise
            raise raised from error

    def close(self) -> None:
        """Collective. Ends the process group, so that no rank leaves another one waiting."""
        self.collectives.barrier("the end of all ranks")
        if self.watch is not None:
            self.watch.end()
        self.strategy.accelerator.end_training()


def build(accelerator: Accelerator, threads: allocation.Allocation | None = None) -> Runtime:
    """What this process is, once Accelerate has brought the processes up."""
    rank, world_size, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    work = Work()
    collectives = Collectives(rank, world_size, accelerator.local_process_index, device, work)
    return Runtime(
        rank,
        world_size,
        device,
        threads or allocation.of_process(),
        work,
        collectives,
        strategies.choose(accelerator, collectives),
    )


def device() -> torch.device:
    """Where this process computes: the GPU of its local rank, or the CPU of a machine without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def start(compiled: bool = False, work_timeout: float = WORK_TIMEOUT) -> Runtime:
    """Brings the processes up in the way that the launcher was asked for.

    Collectives wait for twice the `work_timeout`, in seconds: the watch finds the cause before that.
    `compiled`: the strategy's `prepare` puts torch.compile around the model; `bare_model`, which is
    evaluated and saved, is always the plain one.
    """
    # warnings about how one library uses another (Accelerate torch, PEFT Transformers)
    warnings.filterwarnings("ignore", category=FutureWarning)
    on_gpu = device().type == "cuda"
    if on_gpu:
        choose_gpu()
    else:
        keep_memory()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    group: dict[str, Any] = {"timeout": datetime.timedelta(seconds=2 * work_timeout)}
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if deepspeed and not on_gpu:
        # Without the two and cpu=False below, each rank believes it is process 0 of 1, or the run
        # becomes DDP.
        group["backend"] = "gloo"
        from deepspeed.ops import __compatible_ops__ as native_ops

        # its shared-memory collectives need a C++ compiler and a minute; gloo carries the gradients
        native_ops["deepspeed_shm_comm"] = False
    handlers.append(InitProcessGroupKwargs(**group))
    # mixed precision is ours (step.py), the same under DDP and DeepSpeed
    accelerator = Accelerator(
        cpu=not on_gpu and not deepspeed,
        mixed_precision="no",
        kwargs_handlers=handlers,
        dynamo_backend="inductor" if compiled else None,
    )
    set_matmul_precision("highest")  # Accelerate lowers it where it compiles
    runtime = build(accelerator, use_threads())
    _check_launch(runtime.strategy, deepspeed)
    return runtime


def set_matmul_precision(precision: str) -> None:
    """`highest`: fp32 products and convolutions are fp32. `high`: a GPU may round their factors to TF32's
    ten bits, several times faster. torch's own default is one for products and the other for cuDNN."""
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def check_bf16(mixed_precision: str) -> None:
    """Raises UserError where bf16 steps are asked for and this machine's GPU would imitate bf16."""
    if mixed_precision == "no" or not torch.cuda.is_available():
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"--mixed-precision bf16: {torch.cuda.get_device_name()} has no bf16 arithmetic; GPUs have it"
            " from compute capability 8.0 on (A100, RTX 30, H100): give --mixed-precision no"
        )


def use_threads() -> allocation.Allocation:
    """Lets torch compute on as many threads as this process may use, and returns what was decided."""
    threads = allocation.of_process(on_gpu=device().type == "cuda")
    torch.set_num_threads(threads.torch_threads)
    return threads


def _check_launch(strategy: OneProcess, deepspeed: bool) -> None:
    """Refuses a DeepSpeed launch that became plain DDP, and a ds_config that contradicts the run."""
    if deepspeed != isinstance(strategy, strategies.ZeRO2):
        raise UserError(
            f"the launcher was asked for DeepSpeed and the run came up as {strategy.name}; launch"
            " with --config_file accelerate_configs/cpu_zero2.yaml or gpu_zero2.yaml"
        )
    if not deepspeed:
        return
    settings = strategy.accelerator.deepspeed_plugin.deepspeed_config
    # step.py accumulates gradients itself, by boundaries
    for key, wanted in (("gradient_accumulation_steps", 1), ("gradient_clipping", MAX_GRAD_NORM)):
        if settings.get(key) != wanted:
            raise UserError(
                f"the DeepSpeed config sets {key} to {settings.get(key)!r}; asrlora needs {wanted:g}"
            )
    for key in ("bf16", "fp16"):
        if settings.get(key, {}).get("enabled"):
            raise UserError(
                f"the DeepSpeed config enables {key}, which casts the base; take it out and give"
                " --mixed-precision bf16"
            )
    if settings["zero_optimization"]["stage"] not in (0, 1, 2):
        raise UserError("the DeepSpeed config asks for a ZeRO stage other than 0, 1, 2")


def choose_gpu() -> None:
    """Makes this rank's own GPU the current one, before anything allocates or communicates: NCCL's first
    collective takes the current device, and with all ranks on GPU 0 it hangs or runs out of memory.

    Raises UserError where this machine has fewer GPUs than processes.
    """
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        raise UserError(
            f"local rank {local} has no GPU of its own: {there} can be seen on this machine"
            f" (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); set num_processes"
            " in the accelerate config to the number of GPUs"
        )
    torch.cuda.set_device(local)


def keep_memory() -> None:
    """Lets glibc keep freed blocks. A CPU step frees and takes the same large ones again and again;
    giving each back to the kernel costs up to a third of the step."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the heap
        libc.mallopt(-8, 1)  # M_ARENA_MAX: those of threads, which read audio, are trimmed all the same
