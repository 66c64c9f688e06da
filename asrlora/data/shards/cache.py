"""Shards of a manifest, built once and found again by fingerprint."""

import hashlib
import json
from collections.abc import Sequence

from asrlora.console import progress
from asrlora.data.manifest import Utterance
from asrlora.data.shards import writer
from asrlora.data.shards.reader import Shards, open_shards
from asrlora.data.shards.remote import cache_root
from asrlora.errors import UserError


def cached(utterances: Sequence[Utterance], what: str | None = None) -> Shards:
    """The shards of these utterances, built at the first call, in $ASRLORA_CACHE, else ~/.cache/asrlora.

    Shows the progress of `what`, unless None. Raises UserError as `writer.write_shards` does.
    """
    chunks = writer.cut(utterances)
    identity = json.dumps(writer.describe(chunks), sort_keys=True)
    folder = cache_root() / "shards" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not folder.exists():
        try:
            with progress(what or "", sum(chunk.seconds for chunk in chunks), what is not None) as advance:
                writer.write_shards(chunks, folder, progress=advance)
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
