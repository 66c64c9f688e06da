"""What an utterance costs a model, in seconds of audio that it computes on.

Batches are planned by it: their budgets, their padding, and how often a run goes through its training
set. By config.json alone, so that plans can be checked before torch is imported or weights are there.
"""

import functools

import numpy as np

from asrlora.data.plan import Cost, Seconds, by_length
from asrlora.models.hub import read_config

POSITION = 0.02  # seconds: a Whisper encoder makes one frame of two hops of 160 samples


def of(model_id: str) -> Cost:
    """The cost of utterances (N,) to a model, of which a batch costs the longest one's times their number.

    Whisper computes on its whole window (30 s) whatever is in it; the others on what there is. Raises
    UserError where there is no such model.
    """
    config = read_config(model_id)
    if config.get("model_type") == "whisper":
        return functools.partial(_window, POSITION * float(config.get("max_source_positions", 1500)))
    return by_length


def _window(window: float, seconds: Seconds) -> Seconds:
    return np.full(len(seconds), window)
