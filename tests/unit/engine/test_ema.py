"""The average that --ema evaluates and saves, against the recurrence in double precision."""

import contextlib
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from asrlora.engine import runtime as runtimes
from asrlora.engine.strategy import OneProcess


def prepared(decay: float | None, seed: int = 0) -> OneProcess:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    strategy = runtimes.build(Accelerator(cpu=True)).strategy
    strategy.prepare(model, torch.optim.AdamW(model.parameters(), 0.1), decay)
    return strategy


def step(strategy: OneProcess, number: int, factor: float = 1.0) -> np.ndarray:
    """One update, each of another gradient; the weight after it."""
    data = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
    strategy.backward((strategy.model(data) - number).square().sum() * factor, last=True)
    strategy.update(0.0)
    return strategy.model.weight.detach().double().numpy().copy()


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_it_is_the_average_of_the_recurrence(decay: float) -> None:
    """With the warm-up, which is all there is to see of 0.99 in twelve updates; a step without a finite loss
    is no update."""
    strategy = prepared(decay)
    assert strategy.ema is not None
    average = strategy.model.weight.detach().double().numpy().copy()
    for number in range(1, 13):
        weight = step(strategy, number)
        share = min(decay, (1 + number) / (10 + number))
        average = share * average + (1 - share) * weight
        found = strategy.ema.state()["weight"].numpy()
        assert np.allclose(found, average, rtol=0, atol=1e-6)
    step(strategy, 13, math.inf)
    assert np.array_equal(strategy.ema.state()["weight"].numpy(), found)
    assert np.abs(average - weight).max() > 0.01


def test_it_is_in_place_of_the_parameters_only_where_they_are_evaluated() -> None:
    strategy = prepared(0.9)
    assert strategy.ema is not None
    for number in (1, 2):
        weight = step(strategy, number)
    average = strategy.ema.state()["weight"]
    with contextlib.suppress(KeyboardInterrupt), strategy.evaluated():
        assert torch.equal(strategy.model.weight, average)
        assert not np.array_equal(strategy.model.weight.detach().numpy(), weight)
        raise KeyboardInterrupt
    assert np.array_equal(strategy.model.weight.detach().double().numpy(), weight)
    assert torch.equal(strategy.state()[0]["weight"], strategy.model.weight)
    plain = prepared(None)
    for number in (1, 2):
        assert np.array_equal(step(plain, number), weight) == (number == 2)  # training does not see it
    with plain.evaluated():
        assert np.array_equal(plain.model.weight.detach().double().numpy(), weight)


def test_it_goes_on_to_the_bit() -> None:
    whole, cut = prepared(0.5), prepared(0.5)
    for number in range(1, 8):
        step(whole, number)
        if number <= 4:
            step(cut, number)
    assert whole.ema is not None
    assert cut.ema is not None
    state, average = cut.state(), cut.ema.state()
    resumed = prepared(0.5, seed=1)
    assert resumed.ema is not None
    resumed.restore(*state, updates=4)
    resumed.ema.restore(average)
    for number in range(5, 8):
        step(resumed, number)
    for name, one in whole.ema.state().items():
        assert torch.equal(resumed.ema.state()[name], one)
