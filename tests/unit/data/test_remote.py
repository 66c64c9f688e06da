"""Shards at an address: a real HTTP server, and fsspec's file system in memory for what S3 would be."""

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from asrlora.data.shards import reader, remote, writer
from asrlora.data.shards.folder import META
from asrlora.errors import UserError
from benchmarks import data as bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two."""
    root = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAMPLES_PER_SHARD", 2)
        writer.build(bench.write_corpus(root / "wav", np.full(6, 0.5), 16_000), root / "shards")
    return root / "shards"


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(Path(self.path).name)
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Quiet,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASRLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remote"


def held(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/shard-*.tar"))


def test_http_shards_are_fetched_once_and_are_the_same(folder: Path, served: tuple[str, list[str]]) -> None:
    url, asked = served
    local = reader.open_shards(folder)
    for _ in range(2):
        opened = reader.open_shards(url)
        assert list(opened.samples) == list(local.samples)
        assert opened.content == local.content
        for number in (0, 1, 4):
            assert np.array_equal(opened.read(number), local.read(number))
    assert sorted(asked) == sorted([
        META, META, "lengths.bin", "rows.bin", "texts.bin", "shard-00000.tar",
        "shard-00002.tar",
    ])  # fmt: skip


def test_the_longest_unused_shard_makes_room(
    folder: Path, served: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max((folder / f"shard-0000{n}.tar").stat().st_size for n in range(3))
    monkeypatch.setenv("ASRLORA_CACHE_BYTES", str(2 * size))
    opened = reader.open_shards(served[0]).folders[0]
    opened.read(0)
    opened.read(2)
    opened.read(1)  # the first shard again
    opened.read(4)
    assert held(cache) == ["shard-00000.tar", "shard-00002.tar"]
    opened.read(2)
    assert held(cache) == ["shard-00001.tar", "shard-00002.tar"]


def test_what_is_not_what_shards_json_says_is_refused(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket", recursive=True)
    good = store.cat("/bucket/shard-00001.tar")
    opened = reader.open_shards("memory://bucket")
    for bad in (good[:-1], good + b"x", b"", bytes([good[0] ^ 1]) + good[1:]):
        store.pipe("/bucket/shard-00001.tar", bad)
        with pytest.raises(UserError, match=r"shard-00001\.tar is damaged"):
            opened.read(2)
        assert held(cache) == []
    store.rm("/bucket/shard-00001.tar")
    with pytest.raises(UserError, match="cannot be fetched"):
        opened.read(2)
    store.pipe("/bucket/shard-00001.tar", good)
    assert np.array_equal(opened.read(2), reader.open_shards(folder).read(2))


@pytest.mark.parametrize(
    "url", ["pipe://x", "pipe:touch canary", "simplecache::file:///etc", "zip://a::file:///etc", "ftp://x/y"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="addresses only"):
        remote.mirror(url, Path("never"))


def test_processes_share_the_cache(folder: Path, served: tuple[str, list[str]]) -> None:
    url, asked = served
    code = (
        "from asrlora.data.shards import reader\n"
        f"opened = reader.open_shards({url!r})\n"
        "[opened.read(n) for n in range(6)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(name for name in asked if name.endswith(".tar")) == [f"shard-0000{n}.tar" for n in range(3)]
