"""How text is normalised before it is scored."""

import functools
import importlib.metadata
from collections.abc import Callable

# The Open ASR leaderboard's: Whisper's English normaliser, from the package that carries it.
FINGERPRINT = {
    "name": "whisper-english",
    "version": importlib.metadata.version("whisper-normalizer"),
}


def normalise(text: str) -> str:
    """Lower case, no punctuation, numbers as digits, American spelling, contractions spelled out."""
    return _normaliser()(text).strip()


@functools.cache
def _normaliser() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser
