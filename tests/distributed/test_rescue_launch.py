"""`asrlora strength` on one process and on two, as a launcher starts it: the same files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asrlora import train
from conftest import ROOT, Speech

ACCELERATE = str(Path(sys.executable).parent / "accelerate")
WAYS = {
    "one": [sys.executable],
    "two": [ACCELERATE, "launch", "--config_file", "accelerate_configs/cpu.yaml"],
    "zero2": [ACCELERATE, "launch", "--config_file", "accelerate_configs/cpu_zero2.yaml"],
}


@pytest.mark.slow
def test_a_rescue_is_the_same_on_any_number_of_processes(speech: Speech, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"max_steps": 16, "eval_interval": 8, "learning_rate": 3e-3, "use_dora": True}
    assert train.main(speech.flags(run, **settings)) == 0
    found = {}
    for name, way in WAYS.items():
        words = [*way, "asrlora/cli.py", "strength", str(run), "--output-dir", str(tmp_path / name)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode in (0, 3, 4), done.stdout[-3000:] + done.stderr[-3000:]
        folder = tmp_path / name
        files = sorted(folder.glob("eval/strength-*/*.jsonl"))
        assert files
        rescue = json.loads((folder / "rescue.json").read_text())
        found[name] = (
            done.returncode,
            {str(path.relative_to(folder)): path.read_bytes() for path in files},
            (folder / "adapter_best" / "adapter_model.safetensors").read_bytes(),
            {**rescue, "seconds": None},
            (folder / "verdict.json").read_bytes(),
        )
        assert json.loads((folder / "run.json").read_text())["state"] == "complete"
    assert found["one"] == found["two"] == found["zero2"]
