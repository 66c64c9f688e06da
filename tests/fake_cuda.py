"""A CUDA device where there is none: tensors that know their device and shape, and hold no numbers.

torch's FakeTensorMode raises FakeTensorDeviceMismatchError where a computation mixes two devices, and
DataDependentOutputException where it asks the device for a number (.item(), .tolist(), bool(tensor)),
which on a GPU waits for all that was queued before. Forward only: a backward needs a driver.

    with fake_cuda.mode():
        fake_cuda.move(base.model)
        waves, mask, labels = fake_cuda.on_cuda(*batch)
        families.summed_loss(base.model, base, waves, mask, labels, lengths)  # brings constants there
        with fake_cuda.no_waits():
            families.summed_loss(base.model, base, waves, mask, labels, lengths)
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Waits(RuntimeError):
    """The host would wait for the device here."""


def mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


class no_waits(TorchDispatchMode):
    """Raises Waits where data goes between host and device by a copy that the host waits for, and where the
    device is asked for a number. Inside `mode()` not for what is brought to the device once. Outside it the
    CPU stands for the device: Transformers asks less of fake tensors than of real ones."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op is aten._local_scalar_dense.default:
            raise Waits("a tensor is asked for its value")
        out = op(*args, **kwargs)
        if op in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if op is aten.copy_.default else args[0]
            waits = not (kwargs.get("non_blocking") or args[2:] == (True,))
            if waits and source.device.type != out.device.type:
                raise Waits(f"a tensor of {tuple(out.shape)} is copied from {source.device} to {out.device}")
        return out


@contextlib.contextmanager
def bf16_autocast() -> Iterator[None]:
    """torch.autocast("cuda", torch.bfloat16), which asks for a driver."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def move(module: torch.nn.Module) -> None:
    """Inside `mode()`: does to parameters and buffers what module.to("cuda") does. Tensors that a module
    keeps as plain attributes stay where they are, as there."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                (made,) = on_cuda(parameter)
                part._parameters[name] = torch.nn.Parameter(made, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                (part._buffers[name],) = on_cuda(buffer)


def on_cuda(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Inside `mode()`: tensors of these shapes on the device."""
    return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in tensors)
