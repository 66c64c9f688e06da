"""A stand-in of the Hugging Face hub and of its CDN, on this machine, for what uses the network.

It answers as the hub does: a revision by its commit; small files through a redirect to another path of the
hub, with the git sha1 as ETag; weights through a redirect to the CDN, another host, with the sha256 as ETag.
Both hosts answer ranges. `requests` lists what was asked for, as "GET /me/model/resolve/SHA/config.json".

The client reads its environment when it is imported: tests run it in a process of its own, `Hub.run`.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IN_LFS = (".safetensors", ".parquet", ".bin")  # what the hub leaves to its CDN
TOKEN = "hf_of_somebody_who_accepted_the_terms"


@dataclass
class Repo:
    """A model "OWNER/NAME", or a data set "datasets/OWNER/NAME"."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha: files
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags
    gated: bool = False  # only for TOKEN

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """What the two servers hold and what they were asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)  # of files, as "model.safetensors bytes=4096-"
    tokens: set[tuple[str, str]] = field(default_factory=set)  # (host, Authorization), as they came
    break_after: dict[str, list[int]] = field(default_factory=dict)  # file: bytes of its next answers
    together: int = 1  # processes that must have asked about a file before the first one gets it
    status: int | None = None  # the answer to everything: the hub is down
    endpoint: str = ""
    cdn: str = ""
    asked: threading.Condition = field(default_factory=threading.Condition)

    def add(self, name: str, source: Path | Mapping[str, bytes], *refs: str) -> str:
        """A commit with these files, which `refs` (main) then point to; returns its sha."""
        if isinstance(source, Path):
            source = {path.name: path.read_bytes() for path in sorted(source.iterdir()) if path.is_file()}
        repo = self.repos.setdefault(name, Repo())
        content = "".join(f"{path} {_etag(path, data)}\n" for path, data in sorted(source.items()))
        sha = hashlib.sha1(f"{name} {len(repo.commits)}\n{content}".encode()).hexdigest()
        repo.commits[sha] = dict(source)
        repo.refs |= dict.fromkeys(refs or ("main",), sha)
        return sha

    def count(self, method: str, file: str) -> int:
        """How often a file's bytes were asked for, on whichever host."""
        asked = Counter((line.split()[0], line.rpartition("/")[2]) for line in self.requests)
        return asked[method, file]

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """For a process that takes this for the hub, and has nothing in its cache but what is in `cache`."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(cache),
            "HF_HOME": str(cache),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "ASRLORA_CACHE": str(cache / "asrlora"),
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def run(self, code: str, cache: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs Python code in such a process."""
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True, text=True, timeout=300, cwd=ROOT, env=self.environment(cache, **more),
        )  # fmt: skip


def _etag(path: str, data: bytes) -> str:
    if path.endswith(IN_LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        url = urllib.parse.urlsplit(self.path)
        with self.hub.asked:
            self.hub.requests.append(f"{self.command} {urllib.parse.unquote(url.path)}")
            self.hub.asked.notify_all()
        if authorization := self.headers.get("Authorization"):
            self.hub.tokens.add((type(self).__name__, authorization))
        if self.hub.status is not None:
            self._error(self.hub.status, "", "the hub is down")
        else:
            self.route([urllib.parse.unquote(part) for part in url.path.split("/")[1:]], body)

    def route(self, parts: Sequence[str], body: bytes) -> None:
        """Answers a request; the hub and its storage each do so in their own way."""
        raise NotImplementedError

    # --- answers

    def _send(self, status: int, headers: Mapping[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, found: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, {**headers, "X-Error-Message": message}, json.dumps({"error": message}).encode())

    def _file(self, name: str, data: bytes, headers: Mapping[str, str]) -> None:
        """The bytes of a file, or the range that was asked for; as many of them as `break_after` says."""
        if self.command == "GET" and self.hub.together > 1:
            with self.hub.asked:
                self.hub.asked.wait_for(lambda: self.hub.count("HEAD", name) >= self.hub.together, timeout=60)
        start, end, status, more = 0, len(data), 200, {"Accept-Ranges": "bytes", **headers}
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            start, end = int(first), min(int(last) + 1, end) if last else end
            self.hub.ranges.append(f"{name} {asked}")
            status, more["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(data)}"
        limits = self.hub.break_after.get(name, [])
        if self.command == "HEAD" or not limits:
            self._send(status, more, data[start:end])
            return
        self.send_response(status)
        for key, value in {**more, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[start : min(start + limits.pop(0), end)])
        self.wfile.flush()
        self.close_connection = True


class _Hub(_Handler):
    def route(self, parts: Sequence[str], body: bytes) -> None:
        """/api/models/OWNER/NAME/…, /OWNER/NAME/resolve/REVISION/FILE; data sets have "datasets" in front."""
        if parts[0] == "api" and parts[1] == "resolve-cache":
            self._cached(parts[2:])
            return
        asked = parts[1:] if parts[0] == "api" else parts
        kind = asked[0] if asked[0] in ("models", "datasets") else "models"
        asked = asked[1:] if asked[0] in ("models", "datasets") else asked
        name = "/".join((["datasets"] if kind == "datasets" else []) + list(asked[:2]))
        what, revision = [*asked[2:4], "", ""][:2]
        if (given := self.headers.get("Authorization")) not in (None, f"Bearer {TOKEN}"):
            self._error(401, "", "Invalid credentials in Authorization header")
        elif (repo := self.hub.repos.get(name)) is None:
            known = (404, "Repository not found") if given else (401, "Invalid username or password.")
            self._error(known[0], "RepoNotFound", known[1])
        elif (sha := repo.resolve(revision or "main")) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "resolve":
            self._resolve(name, repo, sha, "/".join(asked[4:]))
        else:
            self._api(name, repo, sha, what, "/".join(asked[4:]), body)

    def _api(self, name: str, repo: Repo, sha: str, what: str, folder: str, body: bytes) -> None:
        files = repo.commits[sha]
        if what == "tree":
            self._json(_listing(files, folder, "recursive=true" in self.path.lower()))
        elif what == "paths-info":
            asked = json.loads(body)["paths"]
            self._json([_entry(path, files[path]) for path in asked if path in files])
        elif what in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            gated = "manual" if repo.gated else False
            self._json(
                {"id": name.removeprefix("datasets/"), "sha": sha, "private": False, "gated": gated,
                 "disabled": False, "tags": [], "siblings": siblings}
            )  # fmt: skip
        else:
            self._error(404, "EntryNotFound", f"no such address: {self.path}")

    def _resolve(self, name: str, repo: Repo, sha: str, path: str) -> None:
        headers = {"X-Repo-Commit": sha}
        if repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "GatedRepo", f"Access to model {name} is restricted. Please log in.")
        elif path not in repo.commits[sha]:
            self._send(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"Entry not found")
        elif path.endswith(IN_LFS):
            data = repo.commits[sha][path]
            linked = {"X-Linked-ETag": f'"{_etag(path, data)}"', "X-Linked-Size": str(len(data))}
            place = f"{self.hub.cdn}/{name}/{sha}/{urllib.parse.quote(path)}?Signature=made-for-an-hour"
            self._send(302, {**headers, **linked, "Location": place})
        else:
            place = f"/api/resolve-cache/{name}/-/{sha}/{urllib.parse.quote(path)}"
            self._send(307, {**headers, "Location": place})

    def _cached(self, parts: Sequence[str]) -> None:
        """The hub's own cache of small files, on another path."""
        cut = parts.index("-")
        name, sha, path = "/".join(parts[:cut]), parts[cut + 1], "/".join(parts[cut + 2 :])
        data = self.hub.repos[name].commits[sha][path]
        self._file(path, data, {"X-Repo-Commit": sha, "ETag": f'"{_etag(path, data)}"'})


class _Cdn(_Handler):
    def route(self, parts: Sequence[str], body: bytes) -> None:
        """/OWNER/NAME/SHA/FILE, as the hub has signed it; no token is asked for."""
        number = next(i for i, part in enumerate(parts) if len(part) == 40)
        path = "/".join(parts[number + 1 :])
        data = self.hub.repos["/".join(parts[:number])].commits[parts[number]][path]
        self._file(path, data, {"ETag": '"of-the-cdn-itself"'})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in the listing of a repository."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": _etag(path, data)}
    if path.endswith(IN_LFS):
        pointer = hashlib.sha1(data).hexdigest()
        entry |= {"oid": pointer, "lfs": {"oid": _etag(path, data), "size": len(data), "pointerSize": 134}}
    return entry


def _listing(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What is in a folder, or anywhere below it; "" is the repository."""
    prefix = f"{folder}/" if folder else ""
    below = {path: data for path, data in files.items() if path.startswith(prefix)}
    entries = [_entry(p, data) for p, data in below.items() if recursive or "/" not in p.removeprefix(prefix)]
    folders = {prefix + p.removeprefix(prefix).split("/")[0] for p in below if "/" in p.removeprefix(prefix)}
    return entries + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in sorted(folders)]


@contextmanager
def running() -> Generator[Hub, None, None]:
    """A hub without any repository. The CDN is another host, as a browser and a client see it."""
    hub = Hub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type(kind.__name__, (kind,), {"hub": hub}))
        for kind in (_Hub, _Cdn)
    ]
    hub.endpoint = f"http://127.0.0.1:{servers[0].server_port}"
    hub.cdn = f"http://localhost:{servers[1].server_port}"
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
