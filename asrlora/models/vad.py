"""Voice activity detection by silero-vad, whose model file is used without its Python code.

`import silero_vad` would lower torch's threads to one for the whole process, and its helpers need
torchaudio's decoders; the TorchScript model in the package needs torch alone.
"""

import functools
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrlora.data.audio import SAMPLE_RATE, Pcm, to_float
from asrlora.data.windows import FRAME, Probabilities

PACKAGE = "silero-vad"
# The model is recurrent. Rows of 20 s go through it side by side, eight times as fast as one after
# another; each is first given the 2 s before it.
ROW, WARM_UP = 20 * SAMPLE_RATE // FRAME, 2 * SAMPLE_RATE // FRAME


def available() -> bool:
    """Whether silero-vad is installed."""
    return _file() is not None


def fingerprint() -> dict[str, Any]:
    """All that decides what is found to be speech."""
    return {"name": PACKAGE, "version": importlib.metadata.version(PACKAGE), "row": ROW, "warm_up": WARM_UP}


@torch.inference_mode()
def speech_probabilities(pcm: Pcm) -> Probabilities:
    """int16 (T,) at 16 kHz to the probability of speech, float32 (ceil(T / FRAME),). On the CPU."""
    frames = -(-len(pcm) // FRAME)
    count = -(-frames // ROW)
    wave = np.zeros((count * ROW + WARM_UP) * FRAME, np.float32)
    wave[WARM_UP * FRAME :][: len(pcm)] = to_float(pcm)
    rows = torch.from_numpy(wave).unfold(0, (ROW + WARM_UP) * FRAME, ROW * FRAME)
    model = _model()
    model.reset_states()
    steps = [model(part, SAMPLE_RATE)[:, 0] for part in torch.split(rows, FRAME, dim=1)]
    found: Probabilities = torch.stack(steps[WARM_UP:], dim=1).flatten()[:frames].numpy()
    return found


@functools.cache
def _model() -> Any:
    path = _file()
    assert path is not None, "called before `available` was true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.load, by silero-vad's own loader too
        return torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]


def _file() -> Path | None:
    found = importlib.util.find_spec("silero_vad")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "data" / "silero_vad.jit"
        if path.is_file():
            return path
    return None
