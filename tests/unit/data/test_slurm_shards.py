"""slurm/shards.sh against a fake sbatch that runs each task at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from asrlora.data.shards import reader, writer
from benchmarks import data as bench

ROOT = Path(__file__).parents[3]
SBATCH = """#!/usr/bin/env bash
# runs the job at once, every task of an array, and prints a job's number
set -euo pipefail
echo "$*" >> "$FAKE_LOG"
slices=0
while [[ "${1:-}" == -* ]]; do
    case $1 in --array=1-*) slices=${1#--array=1-} ;; esac
    shift
done
export SLURM_SUBMIT_DIR=$PWD SLURM_ARRAY_TASK_COUNT=$slices SLURM_CPUS_ON_NODE=1
if (( slices == 0 )); then bash "$@" >&2; fi
for ((task = 1; task <= slices; task++)); do SLURM_ARRAY_TASK_ID=$task bash "$@" >&2; done
echo "17;cluster"
"""


def test_slices_and_merge_make_what_one_build_makes(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "uv").write_text(f'#!/usr/bin/env bash\nshift 2\nexec {sys.executable} -m asrlora.cli "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    utterances = bench.write_corpus(tmp_path / "wav it's", np.full(3, 0.3), 16_000)
    out = tmp_path / "out; echo foo"
    subprocess.run(
        [ROOT / "slurm" / "shards.sh", tmp_path / "wav it's" / "manifest.jsonl", out, "2", "--partition=cpu"],
        check=True, timeout=120, cwd=ROOT,
        env={
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "FAKE_LOG": str(tmp_path / "log"),
            "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    assert reader.verify(out) == []
    assert reader.open_shards(out).content == writer.build(utterances, tmp_path / "one").content
    array, merge = (tmp_path / "log").read_text().splitlines()
    assert "--array=1-2" in array
    assert "--partition=cpu" in array
    assert "--dependency=afterok:17 " in merge
