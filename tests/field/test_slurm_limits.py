"""Sweeps on a Slurm that takes only so much: arrays in parts, any piece of a grid, limits reported."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from asrlora import cli
from asrlora.errors import UserError
from asrlora.sweep import runner, slurm, sweep_file
from asrlora.sweep.slurm import Limits, Part
from asrlora.sweep.sweep_file import Sweep, Trial

FIXED = {"model_id": "m", "dataset_path": "t.jsonl", "manifest_path": "d.jsonl"}
CONFIG = "Configuration data as of 2026-11-25T12:00:00\nMaxArraySize   = {}\nMaxJobCount    = {}\n"
DATABASE = "AccountingStorageType   = accounting_storage/slurmdbd\n"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH, for stand-ins of Slurm's tools, in an environment without Slurm's names."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("scontrol", "sacctmgr"):
        tool(folder, name, "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def grid(folder: Path, count: int, **content: Any) -> Path:
    path = folder / "it's a sweep.yaml"
    everything = {"output_dir": str(folder / "trials"), "fixed": FIXED, "grid": {"seed": list(range(count))}}
    path.write_text(yaml.safe_dump({**everything, **content}))
    return path


def plan(file: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `sweep plan` prints behind the trials."""
    capsys.readouterr()
    assert cli.main(["sweep", "plan", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[max(n for n, line in enumerate(lines) if "--output-dir" in line) + 1 :]


@pytest.mark.parametrize(
    ("config", "count", "arrays", "expected"),
    [
        (None, 8, ["0-7%4"], ""),
        (None, 1002, ["0-1000%4", "0-0%4 --offset 1001"], "MaxArraySize 1001, Slurm's default"),
        (CONFIG.format(12, 10000), 12, ["0-11%4"], ""),
        (CONFIG.format(4, 10000), 9, ["0-3%4", "0-3%4 --offset 4", "0-0%4 --offset 8"], "(MaxArraySize 4; "),
        (CONFIG.format(1, 10000), 2, ["0-0%4", "0-0%4 --offset 1"], "MaxArraySize 1;"),
        (CONFIG.format(4001, 10000), 20, ["0-19%4"], ""),
        (CONFIG.format(4001, 5), 8, ["0-4%4", "0-2%4 --offset 5"], "of 8 trials this Slurm takes 5 at once"),
        ("MaxArraySize = unlimited", 8, ["0-7%4"], ""),
    ],
)
def test_a_long_grid_is_submitted_in_parts_that_slurm_takes(
    tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    config: str | None, count: int, arrays: list[str], expected: str,
) -> None:  # fmt: skip
    if config is not None:
        tool(tools, "scontrol", f"echo {shlex.quote(config)}")
    file = grid(tmp_path, count)
    lines = plan(file, capsys)
    name = shlex.quote(str(file))
    commands = [line for line in lines if "sbatch" in line and "FILE" not in line]
    for line, array in zip(commands, arrays, strict=True):
        numbers, _, offset = array.partition(" ")
        assert f"--array={numbers} slurm/sweep.sh {name}" in line
        assert line.removesuffix(")").endswith(offset or name)
    assert ["dependency" in line for line in commands] == [False] + [True] * (len(arrays) - 1)
    assert expected in " ".join(lines)
    capsys.readouterr()
    assert cli.main(["sweep", "plan", str(file), "--arrays"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"grid {a.replace(' --offset', '')}" for a in arrays]


@pytest.mark.parametrize(
    ("association", "qos", "environment", "submitted"),
    [
        ("speech|normal|5|", "normal|||", {}, (5, "MaxSubmitJobs of the account speech")),
        ("speech|normal|5|3", "normal|||", {}, (3, "GrpSubmitJobs of the account speech")),
        ("speech|normal,long||", "long|4||\nbig|1||", {}, (4, "MaxSubmitJobsPerUser of the QOS long")),
        ("speech|normal||", "normal|||\nbig|2||", {"SBATCH_QOS": "big"},
         (2, "MaxSubmitJobsPerUser of the QOS big")),
        ("speech|normal|5|\nother|normal|2|", "normal|||", {"SBATCH_ACCOUNT": "speech"},
         (5, "MaxSubmitJobs of the account speech")),
        ("", "", {}, (10000, "MaxJobCount, of all users together")),
    ],
)  # fmt: skip
def test_limits_on_submitted_jobs_are_read_and_reported(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    association: str, qos: str, environment: dict[str, str], submitted: tuple[int, str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tool(tools, "scontrol", f"echo {shlex.quote(CONFIG.format(1001, 10000) + DATABASE)}")
    answers = f'[[ "$3" == assoc ]] && echo {shlex.quote(association)} || echo {shlex.quote(qos)}'
    tool(tools, "sacctmgr", f'[[ "$1 $2" == "-nP show" ]] || exit 1; {answers}')
    assert slurm.limits() == Limits(1001, submitted)
    lines = plan(grid(tmp_path, 8), capsys)
    assert (submitted[1] in " ".join(lines)) == (submitted[0] < 8)


def test_a_tool_that_hangs_is_not_waited_for(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TOOL_TIMEOUT", 0.1)
    tool(tools, "scontrol", "exec sleep 60")
    assert slurm.limits() == Limits()


def test_a_slurm_without_arrays_is_named(
    tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool(tools, "scontrol", f"echo {shlex.quote(CONFIG.format(0, 10000))}")
    assert cli.main(["sweep", "plan", str(grid(tmp_path, 2))]) == 2
    assert "takes no job arrays (MaxArraySize 0" in capsys.readouterr().err


def test_parts_hold_every_trial_once() -> None:
    for count in range(1, 30):
        for size in range(1, 12):
            found = slurm.parts(count, Limits(size))
            assert [part.offset + n for part in found for n in range(part.count)] == list(range(count))
            assert max(part.count for part in found) <= size
    assert slurm.parts(1600, Limits()) == [Part(0, 1001), Part(1001, 599)]


@pytest.fixture
def faked(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials that end at once."""

    def command(loaded: Sweep, trial: Trial) -> list[str]:
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(runner, "command", command)
    return tmp_path


@pytest.mark.parametrize(
    ("array", "indices", "offset"),
    [("3", [3], 0), ("0-9:2", [4], 0), ("1,5", [1, 5], 0), ("0-9", [9], 0), ("0-1", [0, 1], 8)],
)
def test_any_piece_of_a_grid_runs(
    faked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    array: str, indices: list[int], offset: int,
) -> None:  # fmt: skip
    """As sbatch --array=ARRAY slurm/sweep.sh FILE [--offset N] runs its tasks."""
    file = grid(faked, 10)
    loaded = sweep_file.load(file)
    for index in indices:
        size = 10 if array == "0-9" else 5 if ":" in array else len(indices)
        for name, value in {
            "TASK_ID": index,
            "TASK_COUNT": size,
            "TASK_MIN": indices[0],
            "TASK_MAX": indices[-1],
        }.items():
            monkeypatch.setenv(f"SLURM_ARRAY_{name}", str(value))
        assert cli.main(["sweep", "run", str(file), "--offset", str(offset), "--trial", str(index)]) == 0
        shown = capsys.readouterr().out
        assert (f"this array has {size} of the sweep's 10 trials" in shown) == (size < 10)
    begun = [
        n
        for n, trial in enumerate(sweep_file.trials_of(loaded, loaded))
        if (trial.folder / "log.txt").exists()
    ]
    assert begun == [index + offset for index in indices]


@pytest.mark.parametrize(
    ("trial", "offset", "expected"),
    [
        ("10", "0", "--trial 10: "),
        ("9", "1", "--trial 9 --offset 1: "),
        ("0", "10", "--trial 0 --offset 10: "),
    ],
)
def test_an_index_behind_the_grid_is_refused_with_the_line_that_is_right(
    faked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    trial: str, offset: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", trial)
    file = grid(faked, 10)
    assert cli.main(["sweep", "run", str(file), "--trial", trial, "--offset", offset]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert "10 trials, 0 to 9" in shown
    assert f"sbatch --array=0-9%4 slurm/sweep.sh {shlex.quote(str(file))}" in shown


def test_a_negative_offset_is_refused(faked: Path) -> None:
    with pytest.raises(UserError, match="must be a whole number"):
        cli.parser().parse_args(["sweep", "run", str(grid(faked, 1)), "--trial", "0", "--offset", "-1"])
