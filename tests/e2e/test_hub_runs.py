"""A run on a base by name, and what is done with its adapter after the hub has moved on.

In processes of their own, as the hub's client reads its environment when it is imported.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_hub
import pytest
from fake_hub import Hub

from asrlora import cli, train
from asrlora.config import RunConfig, parse_run
from asrlora.data.audit.findings import Audit
from asrlora.data.plan import by_length
from asrlora.models import hub
from asrlora.report import groups
from conftest import BASE, Speech
from kill_resume import small

MANY = """
import json, sys
from asrlora import cli, train
from asrlora.errors import exit_code
for words in json.loads(sys.argv[1]):
    code = exit_code(lambda: train.main(words[1:]) if words[0] == "train" else cli.main(words))
    print("exit code", code, flush=True)
    if code:
        sys.exit(code)
"""
# the base that a run would be resumed on, and at which commit each part of it would be loaded
RESUMED = """
import sys
from asrlora import train
from asrlora.config import parse_run
print(train.check(parse_run(sys.argv[1:])).base)
"""


@dataclass
class Ran:
    hub: Hub
    cache: Path
    speech: Speech
    named: Path  # the run on a base by name
    local: Path  # the same on the folder
    first: str  # the commit that it was trained on
    flags: list[str]

    def do(self, *commands: list[Any], **more: str) -> str:
        """Runs commands one after another, and returns what they print."""
        done = self.hub.run(MANY, self.cache, json.dumps(commands, default=str), **more)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def ran(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Generator[Ran, None, None]:
    folder = tmp_path_factory.mktemp("hub")
    few = small(folder / "few", speech)
    settings = {"max_steps": 2, "eval_interval": 2, "learning_rate": 3e-3, "safety_manifest_path": None}
    with fake_hub.running() as started:
        first = started.add("me/model", BASE)
        flags = {
            name: few.flags(folder / name, model_id=model_id, **settings)
            for name, model_id in (("named", "me/model"), ("local", BASE))
        }
        found = Ran(started, folder / "cache", few, folder / "named", folder / "local", first, flags["named"])
        told = found.do(["train", *flags["named"]], ["train", *flags["local"]])
        assert f"base: me/model at commit {first}" in told
        # the hub moves on: the same weights with another vocabulary file, under the same name
        changed = {path.name: path.read_bytes() for path in BASE.iterdir() if path.is_file()}
        changed["tokenizer_config.json"] = changed["tokenizer_config.json"].replace(b"{", b'{"new": 1,', 1)
        assert started.add("me/model", changed) != first
        yield found


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_the_commit_is_on_record_and_the_weights_are_compared(ran: Ran) -> None:
    named, local = record(ran.named), record(ran.local)
    assert (named["base_commit"], local["base_commit"]) == (ran.first, None)
    assert named["fingerprint"] == local["fingerprint"]
    assert len(groups.grouped(groups.read_runs([ran.named, ran.local]))) == 1
    assert {"model_id", "base_commit"} <= set(
        groups.grouped(groups.read_runs([ran.named, ran.local]))[0].columns
    )


def test_the_adapter_names_its_commit(ran: Ran) -> None:
    def named(adapter: Path) -> list[Any]:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        base = json.loads((adapter / "base.json").read_text())
        return [settings["base_model_name_or_path"], settings["revision"], base.get("commit")]

    assert named(ran.named / "adapter_best") == ["me/model", ran.first, ran.first]
    assert named(ran.local / "adapter_best") == [str(BASE), None, None]
    base = json.loads((ran.local / "adapter_best" / "base.json").read_text())
    assert "commit" not in base  # as before


def test_what_uses_the_adapter_finds_its_commit(ran: Ran, tmp_path: Path) -> None:
    """From an empty cache, by the name in the adapter, and by the same name on the command line."""
    adapter, cache = ran.named / "adapter_best", {"HF_HUB_CACHE": str(tmp_path / "cache")}
    manifest = ["--manifest-path", ran.speech.domain]
    score = ["eval", "--adapter-dir", adapter, *manifest, "--output-dir"]
    audio = ran.speech.domain.parent / json.loads(ran.speech.domain.read_text().splitlines()[0])["audio"]
    ran.do(
        ["export", adapter, tmp_path / "exported"],
        ["transcribe", audio, "--adapter-dir", tmp_path / "exported"],
        [*score, tmp_path / "same", "--model-id", "me/model"],
        [*score, tmp_path / "main", "--model-id", "me/model@main"],
        [*score, tmp_path / "folder", "--model-id", BASE],
        **cache,
    )
    exported = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert (exported["base_model_name_or_path"], exported["revision"]) == ("me/model", ran.first)
    scores = {
        name: json.loads((tmp_path / name / "scores.json").read_text()) for name in ("same", "main", "folder")
    }
    second = ran.hub.repos["me/model"].refs["main"]
    assert [one["base_commit"] for one in scores.values()] == [ran.first, second, None]
    # what is compared does not know where the same weights came from
    assert scores["same"]["fingerprint"] == scores["main"]["fingerprint"] == scores["folder"]["fingerprint"]


def test_a_run_is_resumed_on_the_commit_that_it_began_with(ran: Ran, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(ran.named, begun)
    settings = {**record(begun), "state": "preempted"}
    settings["config"]["output_dir"] = str(begun)
    (begun / "run.json").write_text(json.dumps(settings))
    flags = [*ran.flags, "--resume", "auto", "--output-dir", str(begun)]
    done = ran.hub.run(RESUMED, ran.cache, *flags)
    assert done.stdout.strip() == f"me/model@{ran.first}", done.stderr
    second = ran.hub.repos["me/model"].refs["main"]
    done = ran.hub.run(RESUMED, ran.cache, *ran.flags, "--output-dir", str(tmp_path / "new"))
    assert done.stdout.strip() == f"me/model@{second}", done.stderr


def test_nothing_is_asked_of_the_hub_once_it_is_known_what_to_load(ran: Ran, tmp_path: Path) -> None:
    ran.hub.requests.clear()
    audio = ran.speech.domain.parent / json.loads(ran.speech.domain.read_text().splitlines()[0])["audio"]
    ran.do(["transcribe", audio, "--adapter-dir", ran.named / "adapter_best"])
    assert set(ran.hub.requests) <= {"GET /api/agent-harnesses"}  # of the client itself, whatever it is for


@pytest.mark.needs("ASRLORA_REAL")
def test_a_published_model_by_name_writes_what_its_folder_writes(speech: Speech, tmp_path: Path) -> None:
    published = Path(os.environ["ASRLORA_REAL"]) / "whisper-tiny.en"
    lines = speech.heldout.read_text().splitlines()[:4]
    audio = [str(speech.heldout.parent / json.loads(line)["audio"]) for line in lines]
    told = []
    with fake_hub.running() as started:
        sha = started.add("openai/whisper-tiny.en", published)
        for model_id in ("openai/whisper-tiny.en", f"openai/whisper-tiny.en@{sha}", str(published)):
            words = json.dumps([["transcribe", *audio, "--model-id", model_id]])
            done = started.run(MANY, tmp_path, words)
            assert done.returncode == 0, done.stderr
            told.append(done.stdout)
        assert started.count("GET", "model.safetensors") == 1
    assert len(set(told)) == 1
    assert len(" ".join(line.partition("\t")[2] for line in told[0].splitlines()).split()) > 4


def test_all_ranks_load_the_commit_of_rank_0(speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rank's cache, or its look at a branch, gave it another one."""
    loaded: list[str] = []

    def take(config: RunConfig, inputs: train.Inputs, runtime: Any) -> int:
        loaded.append(inputs.base)
        return 0

    others = SimpleNamespace(broadcast=lambda item: "me/model@0")
    started = SimpleNamespace(collectives=others, watched=lambda *seconds: contextlib.nullcontext())
    monkeypatch.setattr("asrlora.engine.runtime.start", lambda *settings: started)
    monkeypatch.setattr(train, "_train", take)
    config = parse_run(speech.flags(Path("out")))
    train.train(config, train.Inputs({}, Audit({}, []), by_length, "me/model@1"))
    assert loaded == ["me/model@0"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "me/model@v1"),
        (["--model-id", "me/model"], "me/model@v1"),
        (["--model-id", "me/model@main"], "me/model@main"),
        (["--model-id", str(BASE)], str(BASE)),
    ],
)
def test_a_rescue_of_an_adapter_loads_its_revision(
    given: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"base_model_name_or_path": "me/model", "revision": "v1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(hub, "find_model", Path)
    monkeypatch.setattr("asrlora.data.manifest.read_manifest", lambda *path: [])
    searched: list[str] = []

    def search(config: RunConfig, *more: Any) -> None:
        searched.append(config.base)

    monkeypatch.setattr("asrlora.engine.strength_search.search", search)
    manifests = ["--manifest-path", "x", "--safety-manifest-path", "y", "--output-dir", str(tmp_path / "run")]
    assert cli.main(["strength", str(tmp_path), *manifests, *given]) == 0
    assert searched == [expected]
