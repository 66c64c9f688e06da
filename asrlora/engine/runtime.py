"""Processes, devices and gradients: the only module that knows Accelerate and DeepSpeed."""

import contextlib
import ctypes
import datetime
import functools
import json
import math
import os
import signal
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType

from asrlora import allocation
from asrlora.data.loader import to_device
from asrlora.engine import watchdog
from asrlora.engine.launcher import command_line, process_age
from asrlora.errors import UserError
from asrlora.launcher_hook import STOP_SIGNALS

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, under the names that torch gives them
STORE_TIMEOUT = 60.0  # seconds for one answer of the ranks' store
MAX_GRAD_NORM = 1.0  # under DeepSpeed the ds_config holds the same number, checked in `start`


class Reporter(Protocol):
    """Who keeps the record of a run."""

    def explain(self, error: BaseException) -> BaseException:
        """A UserError in place of an error whose cause is the user's to remove; else the error."""

    def failed(self, failure: watchdog.Failure, ours: bool) -> None:
        """Records why the run ends; `ours`: this rank was the first to say so. From any thread."""

    def end_tracking(self) -> None:
        """Ends what may take seconds, in the main thread."""


@dataclass
class Runtime:
    """What the processes of a run share. Collectives are marked: all ranks must call them."""

    accelerator: Accelerator
    threads: allocation.Allocation = field(default_factory=allocation.of_process)
    model: Any = None
    optimizer: Any = None
    signalled: bool = False
    deadline: float = math.inf  # by time.monotonic()
    reserve: float = 10.0  # seconds that one more step and a save take; measured as the run goes on
    work: watchdog.Work = field(default_factory=watchdog.Work)
    watch: watchdog.Watch | None = None
    reporter: Reporter | None = None
    updates: int = 0  # times that AdamW has changed the adapter; steps that were not finite are none
    unreached: set[str] = field(default_factory=set)  # adapter tensors that no gradient has come to yet
    _marks: dict[str, Any] = field(default_factory=dict)  # the hooks that find that out, by tensor
    _last: str = ""  # the tensor that a backward pass comes to last
    _calls: int = 0  # of `on_main` and `first_of_machine`: all ranks make the same ones
    _store: Any = None
    _adapter_norm: Any = None  # on the device, as the step's last microbatch found the adapter

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def kind(self) -> str:
        return "ZeRO-2" if self.is_deepspeed else "DDP" if self.world_size > 1 else "one process"

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Collective. Wraps model and optimizer for the way this run is launched."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.unreached.add(name)
                self._marks[name] = parameter.register_hook(functools.partial(self._mark, name))
        with self.work.waiting("wrapping the model"):
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def _mark(self, name: str, gradient: torch.Tensor) -> None:
        if name in self.unreached:
            self.unreached.discard(name)
            self._last = name
        if name == self._last and not self.unreached:
            self.work.have_gradients()

    def _check_reached(self) -> None:
        """At the first update of a run. An adapter that the model computes past would be saved, loaded
        and evaluated without a complaint, and never learn."""
        if self.unreached:
            raise UserError(
                f"{len(self.unreached)} tensors of the adapter got no gradient in the first step, such as"
                f" {min(self.unreached)}: the model computes past them; choose other --lora-targets"
            )
        for name in self._marks.keys() - {self._last}:
            self._marks.pop(name).remove()

    def bare_model(self) -> Any:
        """The model without DDP's or DeepSpeed's wrapper, the adapter still active."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @contextlib.contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        """Around forward and backward: gradients travel between ranks only in the last one."""
        if last or self.is_deepspeed:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Collective where `last`. DeepSpeed clips, updates and clears gradients in its last call."""
        if last:
            self._adapter_norm = _norm(self._trained_here())
        with self.work.computing_gradients(shared=last):
            if self.is_deepspeed:
                self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=last)
            else:
                torch.autograd.backward(loss)

    def update(self, *values: float | torch.Tensor) -> list[float]:
        """Collective. Applies the gradients; returns their norm before clipping, the adapter's norm before
        the update, and the sums of `values` over ranks.

        Where the gradients' norm is not finite, on any rank, no rank applies anything. Raises UserError when
        the first gradients did not reach all of the adapter. All that is returned comes from the device in
        one copy, the only time in a step that the host waits for it.
        """
        self._check_reached()
        with self.work.waiting("summing the loss over all ranks"):
            told = self._norms_and_sums(values)
        applied = math.isfinite(told[0])
        self.updates += applied
        if not self.is_deepspeed:
            if applied:
                self.optimizer.step()
            self.optimizer.zero_grad()
        return told

    def _norms_and_sums(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        if self.is_deepspeed:  # `backward` has clipped and applied them, and skips such a step by itself
            norm = torch.tensor(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm() or 0.0)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self._trained_here(), MAX_GRAD_NORM)
        found = [norm, self._adapter_norm, *self._sums(values)]
        told: list[float] = torch.stack([one.to(self.device, torch.float64) for one in found]).tolist()
        return told

    def _trained_here(self) -> list[torch.nn.Parameter]:
        """What is trained, as this rank holds it, in the order of the model."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the adapter in order of their names, which no wrapper changes."""
        return dict(sorted((n, p) for n, p in self.bare_model().named_parameters() if p.requires_grad))

    def state(self) -> tuple[Tensors, Tensors]:
        """Collective. The adapter, and AdamW's moments end to end in the order of the adapter's names:
        whole, in fp32, on the CPU, on every rank."""
        if self.is_deepspeed:
            from deepspeed import utils as zero

            # each rank holds a part of the fp32 weights and moments
            read, read_moment = zero.safe_get_full_fp32_param, zero.safe_get_full_optimizer_state
        else:
            read, read_moment = torch.Tensor.detach, lambda p, key: self.optimizer.state[p][key]
        trained = self.trained()
        adapter = {name: _on_cpu(read(p)) for name, p in trained.items()}
        if self.updates == 0:  # AdamW makes its moments at the first update
            size = sum(p.numel() for p in trained.values())
            return adapter, {key: torch.zeros(size) for key in MOMENTS}
        moments = {
            key: torch.cat([_on_cpu(read_moment(p, key)).flatten() for p in trained.values()])
            for key in MOMENTS
        }
        return adapter, moments

    def restore(self, adapter: Tensors, moments: Tensors, updates: int) -> None:
        """Puts back what `state` gave after so many updates, in a run of any world size."""
        self.updates = updates
        taken = torch.tensor(float(updates))  # as torch's AdamW counts its steps
        trained = self.trained()
        sizes = [parameter.numel() for parameter in trained.values()]
        apart = {key: dict(zip(trained, torch.split(moments[key], sizes), strict=True)) for key in MOMENTS}

        def moment(key: str, name: str) -> torch.Tensor:
            return torch.clone(apart[key][name].view_as(trained[name])).to(self.device)

        for name, parameter in trained.items():
            parameter.data.copy_(adapter[name])
        if not self.is_deepspeed:
            for name, parameter in trained.items():
                found = {key: moment(key, name) for key in MOMENTS}
                self.optimizer.state[parameter] = {"step": taken.clone(), **found}
            return
        from deepspeed import utils as zero

        sharded = self.optimizer.optimizer
        for flat in sharded.single_partition_of_fp32_groups:
            empty = {key: torch.zeros_like(flat) for key in MOMENTS}
            sharded.optimizer.state[flat] = {"step": taken.clone(), **empty}
        sharded._lazy_init_hp_params_optimizer_state()  # else the first step would do it, too late
        for name, parameter in trained.items():
            zero.safe_set_full_fp32_param(parameter, adapter[name].to(self.device))
            for key in MOMENTS:
                zero.safe_set_full_optimizer_state(parameter, moment(key, name), key)

    def memory(self) -> int:
        """Bytes at most allocated on this rank's GPU so far, or held by its process without one."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return int(psutil.Process().memory_info().rss)

    def tensorboard(self, folder: Path) -> Any:
        """Accelerate's tracker, with log(values, step) and finish(); call it on rank 0 alone."""
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker("tensorboard", folder)
        tracker.start()
        return tracker

    def sum(self, *values: float) -> list[float]:
        """Collective. The sums over ranks, in double precision."""
        with self.work.waiting("summing over all ranks"):
            summed: list[float] = self._sums(values).tolist()
        return summed

    def _sums(self, values: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """Collective. The same on the device, float64 (N,), without waiting for it."""
        tensors = [
            value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=torch.float64)
            for value in values
        ]
        tensor = torch.stack([to_device(one, self.device).double() for one in tensors])
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, items: list[T]) -> list[T] | None:
        """Collective. All ranks' items on rank 0, None elsewhere."""
        if self.world_size == 1:
            return items
        parts: list[Any] | None = [None] * self.world_size if self.is_main else None
        with self.work.waiting("gathering on rank 0"):
            dist.gather_object(items, parts)
        return None if parts is None else [item for part in parts for item in part]

    def from_main(self, item: T) -> T:
        """Collective. Rank 0's item on every rank."""
        if self.world_size == 1:
            return item
        box = [item]
        with self.work.waiting("receiving from rank 0"):
            dist.broadcast_object_list(box)
        return box[0]

    def wait(self, what: str = "the other ranks") -> None:
        """Collective."""
        with self.work.waiting(what):
            self.accelerator.wait_for_everyone()

    def on_main(self, what: str, work: Callable[[], T]) -> T:
        """Collective. What rank 0 makes of `work`, on every rank.

        The others wait outside of any collective, however long it takes, as long as rank 0 lives: a process
        group's patience ends after minutes. Where rank 0 fails all ranks raise, a UserError as itself.
        """
        if self.world_size == 1:
            return work()
        return self.from_main(self._first(what, self.is_main, work))  # type: ignore[return-value]

    def first_of_machine(self, what: str, work: Callable[[], T]) -> T:
        """Collective. `work` on every rank: on each machine's first before the others, which wait as above
        and then find what it has left in a cache of that machine."""
        first = bool(self.accelerator.is_local_main_process)
        made = self._first(what, first, work)
        return work() if made is None else made

    def _first(self, what: str, first: bool, work: Callable[[], T]) -> T | None:
        """Collective. What `work` gives on a rank that is `first`, None elsewhere, when all such are done."""
        if self.world_size == 1:
            return work()
        self._calls += 1
        if self._store is None:
            self._store = watchdog.open_store(STORE_TIMEOUT)
        keys = [watchdog.key("first", self._calls, rank) for rank in range(self.world_size)]
        made: T | None = None
        with self.work.waiting(what, "main" if first else "wait"):
            told = ""
            try:
                made = work() if first else None
            except BaseException as error:
                told = json.dumps([isinstance(error, UserError), str(error) or type(error).__name__])
                raise
            finally:
                self._store.set(keys[self.rank], told)
        with self.work.waiting(f"{what}, on another rank"):
            pause = 0.01
            while not self._store.check(keys):
                if failed := [key for key in keys if self._store.check([key]) and self._store.get(key)]:
                    break
                time.sleep(pause)
                pause = min(0.1, 2 * pause)
            else:
                failed = [key for key in keys if self._store.get(key)]
        if failed:
            users, told = json.loads(self._store.get(failed[0]))
            if users:
                raise UserError(told)
            raise RuntimeError(f"rank {failed[0].rpartition('/')[2]} failed in {what}: {told}")
        return made

    def stop_on_signals(self, max_minutes: float | None) -> None:
        """From here on SIGTERM, SIGUSR1 or the end of `max_minutes` ask for an end at the next step.

        A second request changes nothing.
        """

        def request(number: int, frame: types.FrameType | None) -> None:
            self.signalled = True

        for number in STOP_SIGNALS:
            signal.signal(number, request)
        if max_minutes is not None:
            self.deadline = time.monotonic() + 60 * max_minutes - process_age()

    @property
    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop; the ranks agree on it at the end of a step."""
        return self.signalled or time.monotonic() + self.reserve > self.deadline

    @contextlib.contextmanager
    def watched(
        self,
        heartbeat_timeout: float = watchdog.HEARTBEAT_TIMEOUT,
        work_timeout: float = watchdog.WORK_TIMEOUT,
    ) -> Iterator[None]:
        """Around all that the ranks do together, `close` included: a rank that is dead, hangs or fails ends
        all of them, with a message that names it. See watchdog.py."""
        parent = os.getppid() if command_line() is not None else None
        self.watch = watchdog.Watch(
            self.rank, self.world_size, self.work, heartbeat_timeout, work_timeout, parent
        )
        self.watch.start()
        try:
            yield
        except BaseException as error:
            told = self._fail(error)
            if told is error:
                raise
            raise told from error

    def report_to(self, reporter: Reporter) -> None:
        """From here on `reporter` records why a run ends."""
        self.reporter = reporter
        if self.watch is not None:
            self.watch.on_failure = reporter.failed

    def _fail(self, error: BaseException) -> BaseException:
        """Has recorded what ends this rank, and returns what to raise. Where another rank is the cause, this
        says so and ends the process."""
        assert self.watch is not None
        told = self.reporter.explain(error) if self.reporter is not None else error
        users = isinstance(told, UserError)
        # these concern the user's files, or all ranks find them alike
        anonymous = self.world_size == 1 or isinstance(told, FloatingPointError) or (users and self.is_main)
        reason = ("" if anonymous else f"{self.watch.name}: ") + f"{type(told).__name__}: {told}"
        failure, ours = self.watch.settle(told, watchdog.Failure(self.rank, reason, 2 if users else 1))
        if failure.rank != self.rank:
            self.watch.report(failure, ours)
        elif self.reporter is not None:
            with contextlib.suppress(OSError):  # the run directory may be what has failed
                self.reporter.failed(failure, ours)
        if self.reporter is not None:
            self.reporter.end_tracking()
        self.watch.linger()
        if failure.rank != self.rank:
            os._exit(failure.code)
        return told

    def close(self) -> None:
        """Collective. Ends the process group, so that no rank leaves another one waiting."""
        self.wait("the end of all ranks")
        if self.watch is not None:
            self.watch.end()
        self.accelerator.end_training()


def device() -> torch.device:
    """Where this process computes: the GPU of its local rank, or the CPU of a machine without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def start(compiled: bool = False, work_timeout: float = watchdog.WORK_TIMEOUT) -> Runtime:
    """Brings the processes up in the way that the launcher was asked for.

    Collectives wait for twice the `work_timeout`, in seconds: the watch knows before which rank is the cause.
    `compiled`: `prepare` puts torch.compile around the model; `bare_model`, which is evaluated and
    saved, is always the plain one."""
    # libraries' notes to each other (Accelerate's use of torch, PEFT's of Transformers)
    warnings.filterwarnings("ignore", category=FutureWarning)
    on_gpu = device().type == "cuda"
    if on_gpu:
        choose_gpu()
    else:
        keep_memory()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    waits: dict[str, Any] = {"timeout": datetime.timedelta(seconds=2 * work_timeout)}
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if deepspeed and not on_gpu:
        # Without the two and cpu=False below, each rank believes it is process 0 of 1, or the run
        # becomes DDP.
        waits["backend"] = "gloo"
        from deepspeed.ops import __compatible_ops__ as native_ops

        # its shared-memory collectives want a C++ compiler and a minute; gloo has carried the gradients
        native_ops["deepspeed_shm_comm"] = False
    handlers.append(InitProcessGroupKwargs(**waits))
    # mixed precision is ours (step.py), the same under DDP and DeepSpeed
    accelerator = Accelerator(
        cpu=not on_gpu and not deepspeed, mixed_precision="no", kwargs_handlers=handlers,
        dynamo_backend="inductor" if compiled else None,
    )  # fmt: skip
    set_matmul_precision("highest")  # Accelerate lowers it where it compiles
    runtime = Runtime(accelerator, use_threads())
    _check_launch(runtime, deepspeed)
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


def _check_launch(runtime: Runtime, deepspeed: bool) -> None:
    """Refuses a DeepSpeed launch that became plain DDP, and a ds_config that contradicts the run."""
    if deepspeed != runtime.is_deepspeed:
        raise UserError(
            "the launcher was asked for DeepSpeed and the run came up as"
            f" {runtime.kind}; launch with --config_file accelerate_configs/cpu_zero2.yaml or gpu_zero2.yaml"
        )
    if deepspeed:
        settings = runtime.accelerator.deepspeed_plugin.deepspeed_config
        for key, wanted in (
            ("gradient_accumulation_steps", 1),  # step.py accumulates, by boundaries
            ("gradient_clipping", MAX_GRAD_NORM),
        ):
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


def _norm(tensors: list[torch.nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all of them, on their device."""
    norm: torch.Tensor = torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm([p.detach() for p in tensors]))
    )
    return norm


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that later steps do not change."""
    return tensor.to("cpu", torch.float32, copy=True)


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
