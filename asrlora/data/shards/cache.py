"""Shards of a manifest, built once and found again by fingerprint."""

import hashlib
import json
from collections.abc import Callable, Sequence

from asrlora.data.manifest import Utterance
from asrlora.data.shards import writer
from asrlora.data.shards.reader import Shards, open_shards
from asrlora.data.shards.remote import cache_root
from asrlora.errors import UserError


def cached(
    utterances: Sequence[Utterance], progress: Callable[[float], None] = lambda seconds: None
) -> Shards:
    """The shards of these utterances, built at the first call, in $ASRLORA_CACHE, else ~/.cache/asrlora.

    `progress` gets the audio-seconds that are done. Raises UserError as `writer.write_shards` does.
    """
    chunks = writer.cut(utterances)
    identity = json.dumps(writer.describe(chunks), sort_keys=True)
    folder = cache_root() / "shards" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not folder.exists():
        try:
            writer.write_shards(chunks, folder, progress=progress)
            writer.finish(folder)
        except (OSError, UserError) as error:
            # another process built the same folder meanwhile, and removed ours; its bytes are the same
            if not folder.exists():
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"shards cannot be written to {folder} ({error}); set ASRLORA_CACHE"
                ) from None
    return open_shards(folder)
