"""Speaks text with espeak-ng, through the library that the package espeakng-loader carries.

Half a dozen C functions by ctypes; no system package is needed. API: espeak-ng's speak_lib.h.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

SAMPLE_RATE = 22_050  # espeak-ng's own, in Hz
_SYNCHRONOUS, _UTF8, _RATE, _PITCH, _RANGE = 2, 1, 1, 3, 4  # enumerations of speak_lib.h


@dataclass(frozen=True)
class Voice:
    """How espeak-ng speaks."""

    name: str  # language, accent and variant as espeak-ng names them: "en-gb-scotland+m2"
    words_per_minute: int = 170
    pitch: int = 50  # 0 to 100
    pitch_range: int = 50


class Speaker:
    """One per process: espeak-ng keeps its state in globals.

    That state (such as the phase of its flutter) remains between sentences, so the bytes of a
    sentence depend on what the process said before. Whoever needs the same bytes again speaks the
    same list in the same order in a fresh process, as corpus.py does.
    """

    def __init__(self) -> None:
        import espeakng_loader  # here, so that what needs only the texts does without

        self._espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        self._chunks: list[Any] = []
        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback_type(self._collect)  # kept alive as long as the library calls it
        rate = self._espeak.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng did not start (it answered {rate} Hz)")
        self._espeak.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns float32 samples (T,) at 22,050 Hz."""
        if self._espeak.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in (
            (_RATE, voice.words_per_minute),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
        ):
            self._espeak.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode() + b"\0"
        self._espeak.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None)
        self._espeak.espeak_Synchronize()
        return np.concatenate(self._chunks).astype(np.float32) / 32768.0
