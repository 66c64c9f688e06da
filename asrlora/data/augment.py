"""Speed, noise and silenced stretches, for training only.

Every draw is a function of (seed, epoch, utterance id): neither resuming nor the number of processes
changes the audio. Speed changes durations, so the plan asks for `durations` before any audio is read.
Torch is imported where audio is changed: planning needs none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asrlora.data import audio
from asrlora.data.shards import index
from asrlora.data.shards.reader import Shards

MASKED = 0.05  # the longest silenced stretch, as a share of the utterance


@dataclass(frozen=True)
class Augment:
    """What to do to the training set; empty values do nothing."""

    seed: int
    speeds: tuple[float, ...] = ()
    noise_snr: tuple[float, ...] = ()  # lowest and highest, dB
    time_masks: int = 0

    def durations(self, shards: Shards, epoch: int) -> npt.NDArray[np.float64]:
        """Seconds (N,) of the utterances as they will be played in this epoch."""
        if not self.speeds:
            return shards.durations
        rates = np.array([_rate(speed) for speed in self.speeds])[self._choose(shards.lengths["key"], epoch)]
        return _played(shards, rates)

    def extremes(self, shards: Shards) -> dict[float, npt.NDArray[np.float64]]:
        """Seconds (N,) of the utterances at the slowest and the fastest of the speeds, by speed."""
        if not self.speeds:
            return {1.0: shards.durations}
        return {speed: _played(shards, _rate(speed)) for speed in {min(self.speeds), max(self.speeds)}}

    def apply(self, pcm: audio.Pcm, identity: str, epoch: int) -> audio.Pcm:
        """int16 (T,) to int16 (T',), at RMS 0.075 again."""
        if not (self.speeds or self.noise_snr or self.time_masks):
            return pcm
        import torch
        from torchaudio import functional

        key = index.key(identity)
        rng = np.random.default_rng([self.seed, epoch, key])
        wave = torch.from_numpy(audio.to_float(pcm))
        if self.speeds:
            speed = self.speeds[int(self._choose(np.array([key], np.uint64), epoch)[0])]
            wave, _ = functional.speed(wave, audio.SAMPLE_RATE, _rate(speed) / audio.SAMPLE_RATE)
        if self.noise_snr:
            noise = torch.from_numpy(rng.standard_normal(len(wave), dtype=np.float32))
            wave = functional.add_noise(
                wave, noise, torch.tensor(rng.uniform(self.noise_snr[0], self.noise_snr[1]))
            )
        changed = wave.numpy()
        for _ in range(self.time_masks):
            length = rng.integers(int(MASKED * len(changed)) + 1)
            start = rng.integers(len(changed) - length + 1)
            changed[start : start + length] = 0.0
        return audio.normalise(changed, audio.SAMPLE_RATE)

    def _choose(self, keys: npt.NDArray[np.uint64], epoch: int) -> npt.NDArray[Any]:
        """Which speed each utterance has in this epoch: splitmix64 of its key, alone or among all."""
        salt = np.random.default_rng([self.seed, epoch]).integers(2**63, dtype=np.uint64)
        mixed = keys + salt
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(len(self.speeds))


def _played(shards: Shards, rates: npt.NDArray[np.int64] | int) -> npt.NDArray[np.float64]:
    """Seconds (N,) where the audio is played at one rate, or each utterance at its own (N,)."""
    frames = -(-shards.lengths["frames"].astype(np.int64) * audio.SAMPLE_RATE // rates)
    return np.asarray(frames / audio.SAMPLE_RATE, np.float64)


def _rate(speed: float) -> int:
    """Speed is changed by playing at another rate: so many samples become 16,000, in 100 Hz steps."""
    return round(speed * audio.SAMPLE_RATE / 100) * 100
