"""Manifests of strangers: refused with exit code 2 and one line, nothing opened outside, nothing run.

Every `open` of the process is watched by an audit hook, and so is every way to run a program.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrlora import cli, train
from asrlora.data import audio
from asrlora.data.manifest import read_manifest
from asrlora.errors import UserError, exit_code

WATCHED = {"open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
events: list[tuple[str, str]] = []
watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and (
        event in ("open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen")
    ):
        events.append((event, str(arguments[0]) if arguments else ""))


sys.addaudithook(_watch)  # cannot be taken away again; it only looks while `watching`


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    global watching
    events.clear()
    watching = True
    try:
        yield events
    finally:
        watching = False


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """home/ is the manifest's folder, with good audio a.wav; around it is what must not be touched."""
    home = tmp_path / "home"
    (home / "folder.wav").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (home / "a.wav", tmp_path / "outside/secret.wav", tmp_path / "home-too.wav"):
        soundfile.write(path, np.full(16_000, 0.1), 16_000)
    (tmp_path / "home2").mkdir()
    soundfile.write(tmp_path / "home2/b.wav", np.full(16_000, 0.1), 16_000)
    (home / "link.wav").symlink_to("../outside/secret.wav")
    (home / "absolute-link.wav").symlink_to(tmp_path / "outside/secret.wav")
    (home / "chain.wav").symlink_to("link.wav")
    (home / "linked").symlink_to("../outside")
    (home / "up").symlink_to("..")
    (home / "loop.wav").symlink_to("loop.wav")
    (home / "dangling.wav").symlink_to("../outside/gone.wav")
    (home / "null.wav").symlink_to("/dev/null")
    os.mkfifo(home / "fifo.wav")
    (home / "to-fifo.wav").symlink_to("fifo.wav")
    (home / "noise.raw").write_bytes(b"\1\2" * 100)
    (home / "-").write_bytes(b"no audio; libsndfile must not take it for standard input")
    (home / "script.py").write_text("raise SystemExit('run')")
    return home


OUTSIDE = {
    "climbs": "../outside/secret.wav",
    "climbs far": "../" * 30 + "etc/passwd",
    "climbs inside": "folder.wav/../../outside/secret.wav",
    "climbs through nothing": "gone/../../outside/secret.wav",
    "absolute": "{top}/outside/secret.wav",
    "absolute and dotted": "{top}/home/../outside/secret.wav",
    "a neighbour with our name in front": "{top}/home2/b.wav",
    "a file with our name in front": "../home-too.wav",
    "passwd": "/etc/passwd",
    "the process": "/proc/self/environ",
    "a link": "link.wav",
    "an absolute link": "absolute-link.wav",
    "a link to a link": "chain.wav",
    "a linked folder": "linked/secret.wav",
    "a linked folder above": "up/outside/secret.wav",
    "a dangling link": "dangling.wav",
    "a link to a device": "null.wav",
    "a device that never ends": "/dev/zero",
    "standard input": "/dev/stdin",
    "a descriptor": "/proc/self/fd/0",
    "two slashes": "//etc/passwd",
}
NO_AUDIO = {
    "a pipe URL": "pipe:cat /etc/passwd",
    "a command": "touch {top}/run; cat {top}/outside/secret.wav |",
    "a command in front": "| touch {top}/run",
    "a file URL": "file:///etc/passwd",
    "an HTTP URL": "http://127.0.0.1:9/a.wav",
    "an S3 URL": "s3://bucket/a.wav",
    "the shell": "$(touch {top}/run).wav",
    "backquotes": "`touch {top}/run`.wav",
    "home": "~/a.wav",
    "a variable": "$HOME/a.wav",
    "backslashes": "..\\outside\\secret.wav",
    "percent signs": "%2e%2e/outside/secret.wav",
    "NUL": "a.wav\0.txt",
    "only NUL": "\0",
    "half a surrogate": "\ud800.wav",
    "an escaped byte": "\udcff.wav",
    "control codes": "\x1b]0;owned\x07\n\nasrlora: done\n.wav",
    "a long name": "a" * 5000,
    "a deep name": "a/" * 5000 + "a.wav",
    "a folder": "folder.wav",
    "the folder itself": ".",
    "a file as a folder": "a.wav/",
    "a file as a folder below": "a.wav/b.wav",
    "a FIFO": "fifo.wav",
    "a link to a FIFO": "to-fifo.wav",
    "a loop": "loop.wav",
    "a dash": "-",
    "raw samples": "noise.raw",
    "a script": "script.py",
    "markup": "[/red][link=file:///etc]x",
    "empty": "",
}
LINES = {
    "nested lists": '{"audio": "a.wav", "text": "x", "extra": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"audio": "a.wav", "text": "x", "e": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    "unclosed lists": "[" * 200_000,
    "audio as a list": '{"audio": ["a.wav"], "text": "x"}',
    "audio as an object": '{"audio": {"__class__": "os.system"}, "text": "x"}',
    "a huge whole number": '{"audio": "a.wav", "text": "x", "offset": 1' + "0" * 400 + "}",
    "a number of 5,000 digits": '{"audio": "a.wav", "text": "x", "duration": ' + "9" * 5000 + "}",
    "infinite": '{"audio": "a.wav", "text": "x", "offset": 1e999}',
    "not a number": '{"audio": "a.wav", "text": "x", "offset": NaN}',
    "below zero": '{"audio": "a.wav", "text": "x", "offset": -1e-9}',
    "the largest sum": '{"audio": "a.wav", "text": "x", "offset": 0, "duration": 1.7e308}',
    "half a surrogate in the text": '{"audio": "a.wav", "text": "\\ud83d"}',
    "half a surrogate in a further key": '{"audio": "a.wav", "text": "x", "k\\udfff": 1}',
    "NUL bytes": "\0" * 100,
    "a pickle": "\x80\x04cos\nsystem\n",
}


def refused(action: Callable[[], int], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was told. Nothing outside `place` was opened, and nothing run."""
    before = sorted(place.parent.rglob("*"))
    with watched() as seen:
        code = action()
    told = capsys.readouterr().err
    assert code == 2, told
    assert told.count("\n") == 1
    assert told.isprintable() or told[:-1].isprintable()
    opened = [name for event, name in seen if event == "open"]
    assert [event for event, _ in seen if event != "open"] == []
    for name in opened:
        assert "secret" not in name
        assert "fifo" not in name
        assert not name.startswith(("/etc/passwd", "/dev", "/proc"))
    assert sorted(place.parent.rglob("*")) == before
    return told


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [*OUTSIDE, *NO_AUDIO])
def test_hostile_names_are_refused(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = {**OUTSIDE, **NO_AUDIO}[kind].format(top=place.parent)
    manifest = place / "m.jsonl"
    manifest.write_text('{"audio": "a.wav", "text": "x"}\n' + json.dumps({"audio": name, "text": "x"}) + "\n")
    told = refused(lambda: cli.main(["manifest", "stats", str(manifest)]), place, capsys)
    assert "m.jsonl, line 2: " in told
    assert ("lies outside" in told and "--allow-outside" in told) == (kind in OUTSIDE), told


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", LINES)
def test_hostile_lines_are_refused(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "m.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n' + LINES[kind] + "\n")
    told = refused(lambda: cli.main(["manifest", "stats", str(place / "m.jsonl")]), place, capsys)
    assert "line 2: " in told
    assert len(told) < 500


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [*OUTSIDE, *NO_AUDIO])
@pytest.mark.parametrize("form", ["nemo", "kaldi", "tsv"])
def test_hostile_sources_are_not_imported(
    kind: str, form: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = {**OUTSIDE, **NO_AUDIO}[kind].format(top=place.parent)
    if form == "nemo":
        source = place / "nemo.json"
        source.write_text(json.dumps({"audio_filepath": name, "text": "x"}) + "\n")
    elif form == "kaldi":
        source = place
        (place / "wav.scp").write_text(f"u {name}\n", errors="surrogatepass")
        (place / "text").write_text("u hello\n")
    else:
        source = place / "in.tsv"
        source.write_text(f"path\tsentence\n{name}\thello\n", errors="surrogatepass")
    output = str(place / "out.jsonl")
    refused(lambda: cli.main(["manifest", "import", str(source), "--output", output]), place, capsys)


def test_text_files_of_a_source_do_not_lead_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A transcript that is a link to a secret would carry it into the manifest."""
    (place.parent / "secret.txt").write_text("my password")
    (place / "a.txt").symlink_to("../secret.txt")
    words = ["manifest", "import", str(place), "--format", "folder", "--output", str(place / "out.jsonl")]
    told = refused(lambda: cli.main(words), place, capsys)
    assert "a.txt lies outside" in told


@pytest.mark.parametrize("name", ["folder.wav", "fifo.wav", "/dev/zero"])
def test_a_manifest_is_a_regular_file(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(lambda: cli.main(["manifest", "stats", str(place / name)]), place, capsys)
    assert "is not a regular file" in told


@pytest.mark.parametrize("name", ["folder.wav", "fifo.wav", "to-fifo.wav", "/dev/zero", "gone.wav"])
def test_only_regular_files_are_decoded(name: str, place: Path) -> None:
    with pytest.raises(audio.AudioError, match=r"cannot be opened"):
        audio.read_audio(place / name)


def test_a_dash_is_a_name_and_not_standard_input(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(place / "dash.wav", np.full(8_000, 0.1), 16_000)
    (place / "dash.wav").rename(place / "-")
    (place / "m.jsonl").write_text('{"audio": "-", "text": "x"}\n')
    monkeypatch.chdir(place)
    (utterance,) = read_manifest(Path("m.jsonl"))
    assert utterance.duration == 0.5
    assert len(audio.read_audio(Path("-"))) == 8_000


@pytest.mark.parametrize("kind", OUTSIDE)
def test_leave_opens_the_fence_for_regular_files_only(kind: str, place: Path) -> None:
    name = OUTSIDE[kind].format(top=place.parent)
    (place / "m.jsonl").write_text(json.dumps({"audio": name, "text": "x"}) + "\n")
    if name.endswith(("secret.wav", "b.wav", "too.wav", "link.wav", "chain.wav")) and "gone/" not in name:
        assert read_manifest(place / "m.jsonl", allow_outside=True)[0].duration == 1.0
    else:
        with pytest.raises(UserError, match=r"line 1: the audio file .* (not a regular|cannot|not exist)"):
            read_manifest(place / "m.jsonl", allow_outside=True)


@pytest.mark.parametrize(
    "name", ["a.wav", "./a.wav", "folder.wav/../a.wav", "{home}/a.wav", "inner.wav", "sub/a.wav"]
)
def test_what_lies_inside_is_read_whatever_leads_there(name: str, place: Path) -> None:
    (place / "inner.wav").symlink_to("a.wav")
    (place / "sub").symlink_to(".")
    (place / "m.jsonl").write_text(json.dumps({"audio": name.format(home=place), "text": "x"}) + "\n")
    assert read_manifest(place / "m.jsonl")[0].duration == 1.0
    (place.parent / "other-way").symlink_to("home")
    assert read_manifest(place.parent / "other-way" / "m.jsonl")[0].duration == 1.0


@pytest.mark.parametrize("allowed", [False, True])
def test_every_door_has_the_flag(allowed: bool, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the flag each gets past the manifest, to another complaint or to its end."""
    manifest = str(place / "m.jsonl")
    (place / "m.jsonl").write_text('{"audio": "../outside/secret.wav", "text": "x"}\n')
    out = str(place / "o.jsonl")
    doors: list[Callable[[list[str]], int]] = [
        lambda f: cli.main(["manifest", "check", manifest, "--domain", manifest, *f]),
        lambda f: cli.main(["manifest", "merge", manifest, "--output", out, *f]),
        lambda f: cli.main(["manifest", "filter", manifest, "--output", out + "2", *f]),
        lambda f: cli.main(
            ["manifest", "split", manifest, "--parts", "a=1", "--output-dir", str(place / "d"), *f]
        ),
        lambda f: cli.main(["manifest", "import", manifest, "--output", out + "3", *f]),
        lambda f: cli.main(["shards", "build", manifest, str(place / "shards"), *f]),
        lambda f: cli.main(
            ["eval", "--model-id", "./no", "--manifest-path", manifest, "--output-dir", str(place / "e"), *f]
        ),
        lambda f: exit_code(
            lambda: train.main(
                [
                    "--dataset-path",
                    manifest,
                    "--manifest-path",
                    manifest,
                    "--output-dir",
                    str(place / "r"),
                    *f,
                ]
            )
        ),
    ]
    for door in doors:
        code = door(["--allow-outside"] if allowed else [])
        told = "".join(capsys.readouterr())
        assert ("lies outside" in told) == (not allowed)
        assert allowed or code == (3 if door is doors[0] else 2)  # the check collects all bad lines
