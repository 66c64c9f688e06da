"""Manifests of other projects' formats: one line a format.

A reader is a function from a `Source` to an iterator of `Found` records (source.py). It is named as
module:function, so that a list of formats imports none of them.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asrlora.data.importers.source import Found, Source

READERS = {
    "jsonl": "readers:read_json",
    "kaldi": "kaldi:read_kaldi",
    "table": "readers:read_table",
    "librispeech": "readers:read_librispeech",
    "folder": "readers:read_folder",
    "hf": "readers:read_hf",
}


def reader_of(form: str) -> "Callable[[Source], Iterator[Found]]":
    """The function that reads a format, a key of READERS."""
    module, _, function = READERS[form].partition(":")
    found: Callable[[Source], Iterator[Found]] = getattr(
        importlib.import_module(f"{__name__}.{module}"), function
    )
    return found
