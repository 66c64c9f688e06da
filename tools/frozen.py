"""Records what the commands do, so that moving code can be seen to change nothing.

    uv run python tools/frozen.py record FOLDER [helps messages runs families commands]    # before, and after
    uv run python tools/frozen.py compare ONE OTHER

Recorded: help texts, messages of bad input, the files of a run that was killed and resumed (alone, with DDP,
with ZeRO-2), what three families write, what the commands on manifests, shards, sweeps and runs print. Times,
versions and the commit are masked. Floats are compared to the bit: both records must come from one machine.
"""

import contextlib
import difflib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "WANDB_MODE": "offline"}

import kill_resume  # noqa: E402
import tiny  # noqa: E402
from conftest import BASE, Speech, speak  # noqa: E402

WORK = Path(tempfile.mkdtemp(prefix="asrlora-frozen-"))
COMMANDS = {
    "": "",
    "demo": "corpus",
    "manifest": "check import merge split filter restyle stats",
    "shards": "build merge verify",
    "bench": "data engine verdict eval together",
    "eval": "",
    "verdict": "",
    "compare": "",
    "status": "",
    "track": "sync workspace",
    "transcribe": "",
    "export": "",
    "ledger": "archive verify",
    "sweep": "plan run status",
}
BAD = {
    "no command": ["nonsense"],
    "eval without a manifest": ["eval", "--model-id", "x"],
    "eval of two things": ["eval", "--hypotheses", "h", "--adapter-dir", "a", "--manifest-path", "m",
                           "--output-dir", "o"],
    "transcribe a missing file": ["transcribe", "gone.wav"],
    "transcribe without a base": ["transcribe", "{domain}", "--adapter-dir", "gone"],
    "verdict of nothing": ["verdict", "gone"],
    "shards of nothing": ["shards", "verify", "gone"],
    "check of nothing": ["manifest", "check", "gone.jsonl", "--domain", "d.jsonl"],
    "filter by a bad expression": ["manifest", "filter", "{domain}", "--output", "f.jsonl", "--match", "("],
    "split into bad parts": ["manifest", "split", "{domain}", "--output-dir", "s", "--parts", "a=2"],
    "restyle nothing": ["manifest", "restyle", "{domain}", "--output", "r.jsonl"],
    "export of nothing": ["export", "gone", "out"],
    "compare nothing": ["compare"],
    "sweep of nothing": ["sweep", "plan", "gone.yaml"],
    "status of nothing": ["status", "gone"],
    "import of nothing": ["manifest", "import", "gone", "--output", "i.jsonl"],
}  # fmt: skip
BAD_RUNS = {
    "dataset_path": "gone.jsonl", "manifest_path": "{broken}", "safety_manifest_path": "{no_audio}",
    "model_id": "no/such-model", "output_dir": "{taken}", "batch_size": "-1", "unknown_flag": "1",
    "text_normaliser": "wisper", "domain_words": "{no_audio}", "general_text": "gone.txt",
    "augment_speed": "3", "init_lora_weights": "pizza", "metric": "per", "resample_by": "room",
}  # fmt: skip
RUN = {"max_steps": 12, "eval_interval": 6, "save_interval": 2, "learning_rate": 3e-3, "batch_size": 2,
       "resume": "auto"}  # fmt: skip
VOLATILE = re.compile(
    r'"(started|ended|seconds|rtfx|data_wait|memory_gib|git_commit|versions|stage_seconds|sha256_of_page'
    r'|seconds_left|rate|step_seconds|updated|heartbeat|pid|host)": ?(\{[^{}]*\}|\[[^][]*\]|"[^"]*"|[^,}\n]*)'
)
SPEED = re.compile(r"[\d,.]+ (audio-s/s|s left|s,|s\b)|\d+:\d\d:\d\d of")


def masked(text: str) -> str:
    return SPEED.sub("TIME", VOLATILE.sub(r'"\1": MASKED', text.replace(str(WORK), "WORK")))


def printed(words: Sequence[str]) -> str:
    """What a command prints, and its exit code."""
    from asrlora import cli

    return output(lambda: cli.main(list(words)))


def output(call: Callable[[], int]) -> str:
    from asrlora import console

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        console.console.file = console.stderr.file = text
        try:
            code: Any = call()
        except SystemExit as end:
            code = end.code
    return masked(text.getvalue()) + f"\nexit code {code}\n"


def record_helps(folder: Path) -> None:
    from asrlora import train

    for command, steps in COMMANDS.items():
        for words in ([command], *([command, step] for step in steps.split())):
            write(folder / f"{' '.join(words) or 'asrlora'}.txt", printed([*filter(None, words), "--help"]))
    write(folder / "train.txt", output(lambda: train.main(["--help"])))


def record_messages(folder: Path, speech: Speech) -> None:
    from asrlora import train
    from asrlora.errors import exit_code

    places = {name: WORK / f"{name}.jsonl" for name in ("broken", "no_audio")}
    places["broken"].write_text('{"audio": \n')
    places["no_audio"].write_text('{"audio": "gone.wav", "text": "x"}\n')
    places |= {"taken": WORK / "taken", "domain": speech.domain}
    (WORK / "taken").mkdir()
    (WORK / "taken" / "run.json").write_text('{"state": "complete"}')
    for name, words in BAD.items():
        write(folder / f"{name}.txt", printed([word.format(**places) for word in words]))
    for name, value in BAD_RUNS.items():
        flags = speech.flags(**{"output": WORK / "new", name: value.format(**places)} if name != "output_dir"
                             else {"output": places["taken"]})  # fmt: skip
        write(folder / f"run {name}.txt", output(lambda flags=flags: exit_code(lambda: train.main(flags))))


def record_runs(folder: Path, speech: Speech) -> None:
    """A run, and one that is killed before step 9 and resumed: alone, by DDP on two ranks, under ZeRO-2."""
    few = kill_resume.small(WORK / "few", speech)
    killed = partial(kill_resume.before_step, 9, partial(kill_resume.to_itself, signal.SIGKILL))
    for name, world, zero2 in (("alone", 1, False), ("ddp", 2, False), ("zero2", 2, True)):
        out, log = WORK / name, WORK / f"{name}.log"
        flags = few.flags(out, **RUN)
        first = kill_resume.start(world, flags, log, zero2, killed)
        kill_resume.wait(first[-1:], 300)
        kill_resume.wait(first, 20)
        for rank in first:
            rank.kill()
        codes = kill_resume.wait(kill_resume.start(world, flags, log, zero2), 300)
        assert codes == [0] * world, log.read_text()[-3000:]
        write(folder / name / "hashes.json", json.dumps(kill_resume.result(out), indent=1))
        keep_files(out, folder / name)


def keep_files(run: Path, folder: Path) -> None:
    for path in sorted(run.rglob("*.json*")) + sorted(run.glob("*.yaml")) + sorted(run.glob("*.txt")):
        if path.is_file() and ".lock" not in path.name:
            write(folder / path.relative_to(run), masked(path.read_text()))
    write(folder / "files.txt", "\n".join(sorted(str(p.relative_to(run)) for p in run.rglob("*"))) + "\n")


def record_commands(folder: Path, speech: Speech) -> None:
    run = WORK / "alone"
    sweep = WORK / "sweep.yaml"
    paths = {"model_id": BASE, "dataset_path": speech.train, "manifest_path": speech.domain}
    fixed = {**{name: str(path) for name, path in paths.items()}, "max_steps": 4}
    grid = {"learning_rate": [1e-4, 1e-3], "lora_r": [4, 8]}
    sweep.write_text(json.dumps({"output_dir": str(WORK / "sweep"), "fixed": fixed, "grid": grid}))
    wav = sorted(speech.domain.parent.glob("domain/*"))[0]
    for name, words in {
        "check": ["manifest", "check", speech.train, "--domain", speech.domain, "--heldout", speech.heldout,
                  "--output", folder / "check.json"],
        "stats": ["manifest", "stats", speech.train],
        "split": ["manifest", "split", speech.train, "--output-dir", WORK / "split", "--parts", "a=0.8,b=0.2",
                  "--allow-outside"],
        "build": ["shards", "build", speech.domain, WORK / "shards"],
        "verify": ["shards", "verify", WORK / "shards"],
        "verdict": ["verdict", run],
        "status": ["status", run],
        "compare": ["compare", run, WORK / "ddp", "--output", WORK / "compare.html"],
        "plan": ["sweep", "plan", sweep],
        "sweep status": ["sweep", "status", sweep],
        "transcribe": ["transcribe", wav, "--model-id", BASE, "--output-format", "jsonl"],
        "transcribe adapter": ["transcribe", wav, "--adapter-dir", run / "adapter_best"],
        "export": ["export", run / "adapter_best", WORK / "merged", "--merge"],
    }.items():  # fmt: skip
        write(folder / f"{name}.txt", printed([str(word) for word in words]))
    keep_files(WORK / "shards", folder / "shards")


def record_families(folder: Path, speech: Speech) -> None:
    for kind in ("moonshine", "whisper", "wav2vec2"):
        torch_seeded = tiny.save(kind, WORK / "models" / kind)
        out = WORK / "eval" / kind
        words = [
            "eval",
            "--model-id",
            torch_seeded,
            "--manifest-path",
            str(speech.domain),
            "--output-dir",
            str(out),
        ]
        write(folder / f"{kind}.txt", printed(words))
        keep_files(out, folder / kind)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def record(folder: Path, wanted: Sequence[str]) -> None:
    os.environ["ASRLORA_CACHE"] = str(WORK / "cache")
    os.chdir(WORK)
    speech = speak(WORK / "speech")
    parts = {
        "helps": lambda: record_helps(folder / "helps"),
        "messages": lambda: record_messages(folder / "messages", speech),
        "runs": lambda: record_runs(folder / "runs", speech),
        "families": lambda: record_families(folder / "families", speech),
        "commands": lambda: record_commands(folder / "commands", speech),  # after runs
    }
    for name in wanted or parts:
        shutil.rmtree(folder / name, ignore_errors=True)
        parts[name]()
    shutil.rmtree(WORK)


def same_place(text: str) -> str:
    """Without the folders of the two checkouts, and without the times and hashes that follow from them."""
    text = re.sub(r"/[^\s\"']*?/asrlora/", "ROOT/asrlora/", text)
    return re.sub(r'"(written|manifest)": [^,\n]+', r'"\1": MASKED', text)


def compare(one: Path, other: Path) -> int:
    """Prints what differs; returns 1 where something does."""
    both = {path.name for path in one.iterdir()} & {path.name for path in other.iterdir()}
    files = [p.relative_to(top) for top in (one, other) for p in top.rglob("*") if p.is_file()]
    names = sorted({str(path) for path in files if path.parts[0] in both})
    differing = 0
    for name in names:
        paths = (one / name, other / name)
        texts = [same_place(path.read_text()).splitlines() if path.exists() else [] for path in paths]
        lines = list(difflib.unified_diff(*texts, *map(str, paths), lineterm="", n=0))
        differing += bool(lines)
        print("\n".join(lines[:40]), end="\n" if lines else "")
    print(f"{differing} of {len(names)} files differ")
    return 1 if differing else 0


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    if what == "compare":
        sys.exit(compare(Path(first), Path(rest[0])))
    record(Path(first).absolute(), rest)
