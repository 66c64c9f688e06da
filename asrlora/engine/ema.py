"""An exponential moving average of the adapter, which is evaluated and saved in its place (`--ema`)."""

import contextlib
from collections.abc import Iterator, Mapping

import torch

Tensors = dict[str, torch.Tensor]


class Ema:
    """The average of the adapter's parameters over its updates, fp32, on their device.

    Every rank holds all of it and computes the same numbers, since every rank has all of the adapter after
    an update. Averaging of parameters: Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, decay: float, trained: Mapping[str, torch.nn.Parameter]) -> None:
        """`trained` are the parameters by name; the average begins as they are."""
        self.decay = decay
        self._trained = dict(trained)
        self._average = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the parameters after so many updates; the first ones weigh more than the decay says."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self._average.values()), list(self._trained.values()), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are the average inside the block, and as they were after it, to the bit."""
        held = {name: p.detach().clone() for name, p in self._trained.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(held)

    def state(self) -> Tensors:
        """The average by parameter name, on the CPU; later updates do not change it."""
        return {name: one.to("cpu", copy=True) for name, one in self._average.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `state` gave."""
        for name, one in self._average.items():
            one.copy_(state[name])

    def _copy(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.data.copy_(values[name])
