"""How gradients become an update: in one process, by DDP, or by DeepSpeed's ZeRO-2.

Beside start-up (runtime.py) the only module that knows Accelerate and DeepSpeed.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from asrlora.engine.collectives import Collectives
from asrlora.engine.ema import Ema
from asrlora.engine.heartbeats import Work
from asrlora.errors import UserError

Tensors = dict[str, torch.Tensor]

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, under the names that torch gives them
MAX_GRAD_NORM = 1.0  # under DeepSpeed the ds_config holds the same number, checked in runtime.py


class GradientArrivals:
    """Which tensors of the adapter a gradient has come to; calls `complete` when the last has its own."""

    def __init__(self, model: Any, complete: Callable[[], None]) -> None:
        self.complete = complete
        self.missing: set[str] = set()
        self._hooks: dict[str, Any] = {}
        self._last = ""  # the tensor that a backward pass comes to last
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.missing.add(name)
                self._hooks[name] = parameter.register_hook(functools.partial(self._arrived, name))

    def _arrived(self, name: str, gradient: torch.Tensor) -> None:
        if name in self.missing:
            self.missing.discard(name)
            self._last = name
        if name == self._last and not self.missing:
            self.complete()

    def check(self) -> None:
        """At the first update of a run. An adapter that the model computes past would be saved, loaded and
        evaluated without a complaint, and never learn. Raises UserError."""
        if self.missing:
            raise UserError(
                f"{len(self.missing)} tensors of the adapter got no gradient in the first step, such as"
                f" {min(self.missing)}: the model computes past them; choose other --lora-targets"
            )
        for name in self._hooks.keys() - {self._last}:
            self._hooks.pop(name).remove()


class OneProcess:
    """Training in one process; what the other two ways share with it, too."""

    name = "one process"

    def __init__(self, accelerator: Accelerator, collectives: Collectives) -> None:
        self.accelerator, self.collectives = accelerator, collectives
        self.work: Work = collectives.work
        self.model: Any = None
        self.optimizer: Any = None
        self.updates = 0  # times that AdamW has changed the adapter; steps that were not finite are none
        self.nonfinite = 0  # steps in a row up to now whose loss or gradient was not finite
        self.ema: Ema | None = None
        self.arrivals: GradientArrivals
        self._adapter_norm: torch.Tensor  # on the device, before the update

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer, ema_decay: float | None = None) -> None:
        """Collective. Wraps model and optimizer for the way this run is launched."""
        self.arrivals = GradientArrivals(model, self.work.have_gradients)
        with self.work.waiting("wrapping the model"):
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if ema_decay is not None:
            self.ema = Ema(ema_decay, self.trained())

    def evaluated(self) -> contextlib.AbstractContextManager[None]:
        """Around evaluating and saving the adapter: with --ema that is the average."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def bare_model(self) -> Any:
        """The model without DDP's or DeepSpeed's wrapper, the adapter still active."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the adapter in order of their names, which no wrapper changes."""
        return dict(sorted((n, p) for n, p in self.bare_model().named_parameters() if p.requires_grad))

    def microbatch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward: gradients travel between ranks only in the last one."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Collective where `last`."""
        if last:
            self._adapter_norm = _norm(self._trained_here())
        with self.work.computing_gradients(shared=last):
            self._backward(loss, last)

    def update(self, *values: float | torch.Tensor) -> list[float]:
        """Collective. Applies the gradients; returns their norm before clipping, the adapter's norm before
        the update, and the sums of `values` over ranks.

        Where the gradients' norm is not finite, on any rank, no rank applies anything. Raises UserError when
        the first gradients did not reach all of the adapter. All that is returned comes from the device in
        one copy, the only time in a step that the host waits for it.
        """
        self.arrivals.check()
        with self.work.waiting("summing the loss over all ranks"):
            found = [self._clip(), self._adapter_norm, *self.collectives.sum_on_device(values)]
            device = self.collectives.device
            numbers: list[float] = torch.stack([one.to(device, torch.float64) for one in found]).tolist()
        finite = math.isfinite(numbers[0])
        self.updates += finite
        self.nonfinite = 0 if finite else self.nonfinite + 1
        self._apply(finite)
        if self.ema and finite:
            self.ema.update(self.updates)
        return numbers

    def state(self) -> tuple[Tensors, Tensors]:
        """Collective. The adapter, and AdamW's moments end to end in the order of the adapter's names:
        whole, in fp32, on the CPU, on every rank."""
        trained = self.trained()
        adapter = {name: _on_cpu(self._read(p)) for name, p in trained.items()}
        if self.updates == 0:  # AdamW makes its moments at the first update
            size = sum(p.numel() for p in trained.values())
            return adapter, {key: torch.zeros(size) for key in MOMENTS}
        moments = {
            key: torch.cat([_on_cpu(self._read_moment(p, key)).flatten() for p in trained.values()])
            for key in MOMENTS
        }
        return adapter, moments

    def restore(self, adapter: Tensors, moments: Tensors, updates: int, nonfinite: int = 0) -> None:
        """Puts back what `state` gave after so many updates, in a run of any world size."""
        self.updates, self.nonfinite = updates, nonfinite
        trained, device = self.trained(), self.collectives.device
        sizes = [parameter.numel() for parameter in trained.values()]
        shaped = {
            key: {
                name: part.view_as(trained[name]).clone().to(device)
                for name, part in zip(trained, torch.split(moments[key], sizes), strict=True)
            }
            for key in MOMENTS
        }
        for name, parameter in trained.items():
            parameter.data.copy_(adapter[name])
        self._restore_optimizer(adapter, shaped, torch.tensor(float(updates)))

    # --- what DDP or ZeRO-2 do in another way

    def _backward(self, loss: torch.Tensor, last: bool) -> None:
        torch.autograd.backward(loss)

    def _clip(self) -> torch.Tensor:
        """Clips the gradients; returns their norm before."""
        return torch.nn.utils.clip_grad_norm_(self._trained_here(), MAX_GRAD_NORM)

    def _apply(self, finite: bool) -> None:
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _read(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return parameter.detach()

    def _read_moment(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        moment: torch.Tensor = self.optimizer.state[parameter][key]
        return moment

    def _restore_optimizer(self, adapter: Tensors, moments: dict[str, Tensors], step: torch.Tensor) -> None:
        """`moments` are by key and name; `step` is the count of updates, a tensor as in torch's AdamW."""
        for name, parameter in self.trained().items():
            found = {key: moments[key][name] for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": step.clone(), **found}

    def _trained_here(self) -> list[torch.nn.Parameter]:
        """What is trained, as this rank holds it, in the order of the model."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class DDP(OneProcess):
    """torch's DistributedDataParallel: every rank holds all of the adapter."""

    name = "DDP"

    def microbatch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Without exchanging gradients, except around the last one."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)


class ZeRO2(OneProcess):
    """DeepSpeed's ZeRO-2: each rank holds a part of the fp32 weights and moments."""

    name = "ZeRO-2"

    def state(self) -> tuple[Tensors, Tensors]:
        """Collective, in every tensor: a rank that is gone by then breaks it on the others."""
        with self.work.waiting("gathering adapter and moments"):
            return super().state()

    def _backward(self, loss: torch.Tensor, last: bool) -> None:
        """In its last call DeepSpeed clips and applies the gradients; it skips that where they are not
        finite."""
        self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=last)

    def _clip(self) -> torch.Tensor:
        return torch.tensor(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm() or 0.0)

    def _apply(self, finite: bool) -> None: ...

    def _read(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        from deepspeed import utils as zero

        weights: torch.Tensor = zero.safe_get_full_fp32_param(parameter)
        return weights

    def _read_moment(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        from deepspeed import utils as zero

        moment: torch.Tensor = zero.safe_get_full_optimizer_state(parameter, key)
        return moment

    def _restore_optimizer(self, adapter: Tensors, moments: dict[str, Tensors], step: torch.Tensor) -> None:
        from deepspeed import utils as zero

        sharded = self.optimizer.optimizer
        for flat in sharded.single_partition_of_fp32_groups:
            empty = {key: torch.zeros_like(flat) for key in MOMENTS}
            sharded.optimizer.state[flat] = {"step": step.clone(), **empty}
        sharded._lazy_init_hp_params_optimizer_state()  # else the first step would do it, too late
        for name, parameter in self.trained().items():
            zero.safe_set_full_fp32_param(parameter, adapter[name].to(self.collectives.device))
            for key in MOMENTS:
                zero.safe_set_full_optimizer_state(parameter, moments[key][name], key)


def choose(accelerator: Accelerator, collectives: Collectives) -> OneProcess:
    """The strategy that the processes came up for."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZeRO2(accelerator, collectives)
    return (DDP if collectives.world_size > 1 else OneProcess)(accelerator, collectives)


def _norm(tensors: list[torch.nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all of them, on their device."""
    norm: torch.Tensor = torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm([p.detach() for p in tensors]))
    )
    return norm


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that later steps do not change."""
    return tensor.to("cpu", torch.float32, copy=True)
