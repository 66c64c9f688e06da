"""A base model by name, as a user with a network loads it, from a stand-in of the hub."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import TOKEN, Hub

from asrlora.config import parse_run
from asrlora.errors import UserError
from asrlora.models import hub as finding
from conftest import BASE, ROOT

WEIGHTS = "model.safetensors"
# Prints the folder of a model, as a command finds it: a mistake is one message and exit code 2. The client's
# waiting between attempts shows nothing.
FIND = """
import sys, time
time.sleep = lambda seconds: None
from asrlora.errors import exit_code
from asrlora.models import hub
sys.exit(exit_code(lambda: print(hub.find_model(sys.argv[1])) or 0))
"""
DISK_FULL = """
import errno, huggingface_hub.file_download as client
def fail(*given, **named):
    raise {error}
client.http_get = fail
"""


@pytest.fixture
def hub() -> Generator[Hub, None, None]:
    with fake_hub.running() as started:
        started.add("me/model", BASE)
        yield started


def found(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one message; what the client itself says of its attempts is no second one."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("asrlora: error: --model-id ")
    assert done.stderr.count("asrlora: error") == 1
    return last


def test_a_model_is_downloaded_once_through_both_redirects(hub: Hub, tmp_path: Path) -> None:
    folder = found(hub.run(FIND, tmp_path, "me/model"))
    sha = hub.repos["me/model"].refs["main"]
    assert folder.name == sha
    names = [path.name for path in BASE.iterdir() if path.suffix in (".json", ".safetensors")]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: (BASE / name).read_bytes() for name in names
    }
    assert f"GET /me/model/{sha}/{WEIGHTS}" in hub.requests  # the CDN's path
    assert f"GET /api/resolve-cache/me/model/-/{sha}/config.json" in hub.requests
    hub.requests.clear()
    assert found(hub.run(FIND, tmp_path, "me/model")) == folder
    assert not [line for line in hub.requests if "resolve" in line or "/tree/" in line]


def test_without_a_network_the_cache_serves(hub: Hub, tmp_path: Path) -> None:
    folder = found(hub.run(FIND, tmp_path, "me/model"))
    hub.requests.clear()
    assert found(hub.run(FIND, tmp_path, "me/model", HF_HUB_OFFLINE="1")) == folder
    assert found(hub.run(FIND, tmp_path, "me/model", HF_ENDPOINT="http://127.0.0.1:9")) == folder
    assert not hub.requests
    hub.status = 503
    assert found(hub.run(FIND, tmp_path, "me/model")) == folder


def test_a_branch_a_tag_or_a_commit(hub: Hub, tmp_path: Path) -> None:
    first = hub.repos["me/model"].refs["main"]
    hub.repos["me/model"].refs["v1"] = first
    changed = {path.name: path.read_bytes() for path in BASE.iterdir()} | {"vocab.txt": b"new"}
    second = hub.add("me/model", changed, "main", "refs/pr/1")
    for revision, sha in (("main", second), ("refs/pr/1", second), ("v1", first), (first, first)):
        folder = found(hub.run(FIND, tmp_path, f"me/model@{revision}"))
        assert (folder.name, (folder / "vocab.txt").exists()) == (sha, sha == second)
    assert hub.count("GET", WEIGHTS) == 1  # the same bytes in both commits


def test_a_token_opens_a_gated_model_and_stays_with_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/model"].gated = True
    found(hub.run(FIND, tmp_path, "me/model", HF_TOKEN=TOKEN))
    assert hub.tokens == {("_Hub", f"Bearer {TOKEN}")}


def test_a_connection_that_breaks_off_is_resumed(hub: Hub, tmp_path: Path) -> None:
    """From what was written: the client writes pieces of 10 MiB."""
    piece = 10 * 2**20
    data = hashlib.sha256().digest() * (25 * 2**20 // 32)
    hub.add("me/large", {"config.json": b"{}", WEIGHTS: data})
    hub.break_after[WEIGHTS] = [12_000_000, 0, 11_000_000]
    folder = found(hub.run(FIND, tmp_path, "me/large"))
    assert (folder / WEIGHTS).read_bytes() == data
    assert hub.ranges == [f"{WEIGHTS} bytes={at}-" for at in (piece, piece, 2 * piece)]


def test_two_processes_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    """As the ranks of one machine do; both know what to get before one has got it, and have a whole model."""
    hub.together = 2
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIND, "me/model"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=hub.environment(tmp_path, LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]  # fmt: skip
    folders = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    (folder,) = folders
    assert (Path(folder) / WEIGHTS).read_bytes() == (BASE / WEIGHTS).read_bytes()
    assert hub.count("GET", WEIGHTS) == 1


@pytest.mark.parametrize(
    ("model_id", "environment", "expected"),
    [
        ("me/modle", {}, "nor model on {endpoint}: check the spelling"),
        ("me/modle", {"HF_TOKEN": TOKEN}, "nor model on {endpoint}: check the spelling"),
        ("me/model@v9", {}, "no branch, tag or commit v9"),
        ("me/model@" + "0" * 40, {}, "no branch, tag or commit 0000"),
        ("me/gated", {}, "accept its terms on {endpoint}/me/gated, and set HF_TOKEN"),
        ("me/model", {"HF_TOKEN": "hf_expired"}, "refuses the token (401): set HF_TOKEN"),
        ("me/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1:9 cannot be reached"),
        ("me/model", {"HF_HUB_OFFLINE": "1"}, "is not asked (HF_HUB_OFFLINE=1)"),
        ("me/empty", {}, "holds no config.json"),
        ("me/pickled", {}, "holds no *.safetensors file"),
        ("me/model@x/../../y", {}, "it is no hub name"),
        ("me/model@v1@v2", {}, "it is no hub name"),
    ],
)
def test_one_message_says_what_is_wrong(
    hub: Hub, tmp_path: Path, model_id: str, environment: dict[str, str], expected: str
) -> None:
    hub.add("me/gated", BASE)
    hub.repos["me/gated"].gated = True
    hub.add("me/empty", {"README.md": b"soon"})
    hub.add("me/pickled", {"config.json": b"{}", "pytorch_model.bin": b"old"})
    message = refusal(hub.run(FIND, tmp_path, model_id, **environment))
    assert f"--model-id {model_id}: " in message
    assert expected.format(endpoint=hub.endpoint) in message


def test_a_hub_that_is_down_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.status = 503
    assert f"{hub.endpoint} answered 503" in refusal(hub.run(FIND, tmp_path, "me/model"))


def test_a_connection_that_breaks_off_for_good(hub: Hub, tmp_path: Path) -> None:
    hub.break_after[WEIGHTS] = [1_000_000] + 20 * [0]
    message = refusal(hub.run(FIND, tmp_path, "me/model"))
    assert "the download broke off" in message
    hub.break_after.clear()
    hub.requests.clear()
    found(hub.run(FIND, tmp_path, "me/model"))
    assert hub.count("GET", WEIGHTS) == 1
    assert hub.count("GET", "tokenizer.json") == 0  # it was complete, and was kept


@pytest.mark.parametrize(
    "error",
    [
        "OSError(errno.ENOSPC, 'as the system says it')",
        "OSError(errno.EDQUOT, 'as the system says it')",
        "OSError(errno.EROFS, 'as the system says it')",
        "RuntimeError('Data processing error: No space left on device (os error 28)')",  # as hf-xet does
    ],
)
def test_a_full_disk_or_one_that_cannot_be_written(hub: Hub, tmp_path: Path, error: str) -> None:
    message = refusal(hub.run(DISK_FULL.format(error=error) + FIND, tmp_path, "me/model"))
    assert f"{tmp_path / 'hub'} is full or cannot be written to" in message
    assert "set HF_HUB_CACHE" in message


def test_half_a_model_in_the_cache_is_none(hub: Hub, tmp_path: Path) -> None:
    """`pin` fetches config.json alone."""
    pin = FIND.replace("hub.find_model", "hub.pin")
    done = hub.run(pin, tmp_path, "me/model")
    sha = hub.repos["me/model"].refs["main"]
    assert done.stdout.strip() == f"me/model@{sha}", done.stderr
    assert hub.count("GET", WEIGHTS) == 0
    message = refusal(hub.run(FIND, tmp_path, f"me/model@{sha}", HF_HUB_OFFLINE="1"))
    assert "has not all of it" in message


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    with pytest.raises(UserError, match=r"--model-revision v1: leave it out; --model-id .*base is a folder"):
        finding.find_model(f"{tmp_path / 'base'}@v1")
    odd = tmp_path / "base@v1"  # a folder may be called so
    shutil.copytree(BASE, odd)
    assert finding.find_model(str(odd)) == odd
    assert finding.pin(str(odd)) == str(odd)
    assert finding.commit_of(str(odd), odd) is None


def test_a_revision_is_a_setting() -> None:
    flags = ["--dataset-path", "x", "--manifest-path", "y", "--output-dir", "z", "--model-id", "me/model"]
    assert parse_run(flags).base == "me/model"
    assert parse_run([*flags, "--model-revision", "v1"]).base == "me/model@v1"
