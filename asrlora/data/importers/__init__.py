"""Manifests of other projects' formats: one line a format.

A reader is a function from a `Source` to an iterator of `Found` records (source.py). It is named as
module:function, so that a list of formats imports none of them.
"""

READERS = {
    "jsonl": "readers:read_json",
    "kaldi": "kaldi:read_kaldi",
    "table": "readers:read_table",
    "librispeech": "readers:read_librispeech",
    "folder": "readers:read_folder",
    "hf": "readers:read_hf",
}
