"""Sweep files, trial ids, states, selection, pruning, and the runner, with a fake training program."""

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asrlora import cli
from asrlora.config import parse_run
from asrlora.errors import UserError
from asrlora.record import run_dir
from asrlora.record.schema import Verdict
from asrlora.storage import Lease
from asrlora.sweep import pruning, runner, slurm, sweep_file, trials
from asrlora.sweep.sweep_file import Criteria, Pruning, Sweep, Trial
from conftest import ROOT

FIXED = {"model_id": "a b'c", "dataset_path": "t.jsonl", "manifest_path": "d.jsonl"}


def make(folder: Path, **content: Any) -> Sweep:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "trials"), "fixed": FIXED, **content}))
    return sweep_file.load(path)


def test_a_grid_times_a_list_each_trial_once(tmp_path: Path) -> None:
    loaded = make(
        tmp_path, grid={"learning_rate": [1e-4, "1e-4", 1e-5]}, trials=[{}, {"use_dora": True}]
    )  # fmt: skip
    found = sweep_file.trials_of(loaded, loaded)
    assert len({trial.id for trial in found}) == len(found) == 4
    assert found[2].own == {"use_dora": True, "learning_rate": 1e-4}


def test_ids_are_of_what_settings_mean() -> None:
    one = sweep_file.trial_id({**FIXED, "learning_rate": 1e-4})
    assert one == sweep_file.trial_id({"learning_rate": "1e-4", **FIXED, "seed": 42, "wandb_mode": "offline"})
    assert one != sweep_file.trial_id({**FIXED, "learning_rate": 1e-4, "seed": 43})


def test_a_command_survives_the_shell_and_says_what_the_trial_is(tmp_path: Path) -> None:
    settings = {"use_dora": False, "augment_speed": [0.9, 1.0], "replay_path": None}
    loaded = make(tmp_path, trials=[settings])
    trial = sweep_file.trials_of(loaded, loaded)[0]
    words = shlex.split(sweep_file.typed(sweep_file.command(loaded, trial)))
    assert words[:4] == ["uv", "run", "python", str(sweep_file.from_here(ROOT / "asrlora" / "train.py"))]
    config = parse_run(words[4:])
    assert (config.model_id, config.augment_speed, config.use_dora) == ("a b'c", (0.9, 1.0), False)
    assert (config.output_dir, config.resume) == (trial.folder, "auto")


def test_the_criteria_of_a_sweep_are_those_of_its_trials(tmp_path: Path) -> None:
    """A trial picks its best step by the guardrail, so it has to know it; others are other trials."""
    plain = make(tmp_path)
    loaded = make(tmp_path, criteria={"min_domain_reduction": 0.01, "max_heldout_regression": 0.01})
    (trial,), (other,) = sweep_file.trials_of(loaded, loaded), sweep_file.trials_of(plain, plain)
    config = parse_run(shlex.split(sweep_file.typed(sweep_file.command(loaded, trial)))[4:])
    assert config.max_heldout_regression == 0.01
    assert trial.id != other.id
    assert trial.own == {}
    same = make(tmp_path, criteria={"max_heldout_regression": 0.002})
    assert sweep_file.trials_of(same, same)[0].id == other.id


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"fixed": {**FIXED, "max_heldout_regression": 0.1}}, "one of the sweep's criteria"),
        ({"grids": {}}, "key grids"),
        ({"grid": {"learning_rate": []}}, "grid.learning_rate"),
        ({"phases": [{"name": "a"}, {"name": "a"}]}, "a name of its own"),
        ({"phases": [{"name": "a"}], "trials": [{}]}, "in them, not beside them"),
        ({"grid": {"output_dir": ["x"]}}, "output_dir is set by the sweep"),
        ({"grid": {"learning_rat": [1]}}, "did you mean learning_rate"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        sweep_file.sizes(make(tmp_path, **content))


@pytest.mark.parametrize("name", ["sweep", "programme", "programme_demo"])
def test_the_files_that_ship_are_sound(name: str) -> None:
    loaded = sweep_file.load(ROOT / "slurm" / f"{name}.yaml")
    assert all(sweep_file.sizes(loaded).values())


def test_the_default_array_fits_the_default_grid() -> None:
    loaded = sweep_file.load(ROOT / "slurm" / "sweep.yaml")
    lines = slurm.sbatch_lines(loaded, Path("slurm/sweep.yaml"), slurm.Limits())
    assert lines == ["sbatch --array=0-7%4 slurm/sweep.sh slurm/sweep.yaml"]
    assert "#SBATCH --array=0-7%4\n" in (ROOT / "slurm" / "sweep.sh").read_text()


def test_no_script_holds_a_setting_of_a_site() -> None:
    for script in (ROOT / "slurm").glob("*.sh"):
        if script.name != "site.sh":
            lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
            odd = [line for line in lines if any(f"--{w}=" in line for w in ("partition", "account", "time"))]
            assert not odd, script


# a stand-in for training: it writes a record as a run does, and ends as its seed says
TRAIN = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run, seed = pathlib.Path(flags["--output-dir"]), int(flags["--seed"])
started = (run / "starts").read_text() if (run / "starts").exists() else ""
(run / "starts").write_text(started + "x")
share = [os.environ.get(n) for n in ("CUDA_VISIBLE_DEVICES", "ASRLORA_CPUS")]
(run / "share").write_text(json.dumps(share))
(run / "names").write_text(str([os.environ.get("ASRLORA_" + n) for n in ("SWEEP", "PHASE")]))
if seed == 2:
    sys.exit("asrlora: error: no such model")
if seed == 3 and not started:
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    (run / "ready").write_text("")
    time.sleep(60)
part = {"baseline_wer": 0.3, "tuned_wer": 0.3 - seed / 100,
        "tuned_interval": [0, 1], "interval": [0.0, 0.1], "reduction": seed / 100,
        "utterances": 2}
criteria = {"min_domain_reduction": 0.01, "max_heldout_regression": 0.002}
(run / "verdict.json").write_text(json.dumps(
    {"verdict": "inconclusive", "criteria": criteria, "domain": part, "heldout": None, "best_step": 4,
     "reason": "made up"}))
(run / "run.json").write_text(json.dumps(
    {"state": "complete", "reason": None, "config": {"max_steps": 4}, "run_id": run.name, "started": "",
     "command": ""}))
"""


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "train.py"
    program.write_text(TRAIN)

    def command(loaded: Sweep, trial: Trial) -> list[str]:
        return [sys.executable, str(program), *sweep_file.flags(trial)]

    monkeypatch.setattr(runner, "command", command)
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    return tmp_path


def starts(trial: Trial) -> int:
    return len((trial.folder / "starts").read_text()) if (trial.folder / "starts").exists() else 0


def test_trials_run_two_at_once_and_what_is_complete_is_not_run_again(faked: Path) -> None:
    loaded = make(faked, grid={"seed": [1, 2, 4]})
    found = sweep_file.trials_of(loaded, loaded)
    assert runner.run(loaded, loaded, found, found, 2) == 1
    states = [trials.read_status(trial, loaded.criteria) for trial in found]
    assert [one.state for one in states] == ["complete", "failed", "complete"]
    assert states[1].why == "no such model"
    assert runner.run(loaded, loaded, found, found, 2) == 1
    assert [starts(trial) for trial in found] == [1, 2, 1]
    assert (found[0].folder / "names").read_text() == "['trials', None]", "W&B's group and job type"
    assert runner.run(loaded, loaded, found, found[1:2], 1) == 1


def test_trials_at_once_see_devices_and_cpus_of_their_own(
    faked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setenv("ASRLORA_CPUS", "2")
    loaded = make(faked, grid={"seed": [1, 4, 5]})
    file, found = str(faked / "sweep.yaml"), sweep_file.trials_of(loaded, loaded)
    assert cli.main(["sweep", "run", file, "--jobs", "3"]) == 2
    assert "--jobs 3 needs 3 GPUs, 1 a trial, and 2 are there (GPU-a, GPU-b); --jobs 2 would fit" in (
        capsys.readouterr().err
    )
    assert not any(starts(trial) for trial in found), "nothing was begun"
    assert cli.main(["sweep", "run", file, "--jobs", "2"]) == 0
    seen = [json.loads((trial.folder / "share").read_text()) for trial in found]
    assert {devices for devices, _ in seen} == {"GPU-a", "GPU-b"}
    assert {cpus for _, cpus in seen} == {"1"}


@pytest.mark.parametrize(
    ("launch", "needs", "told"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 2}, (2, True), "--jobs 1 would fit"),
        ({"distributed_type": "MULTI_GPU", "use_cpu": True, "num_processes": 8}, (8, False), ""),
        ({"distributed_type": "DEEPSPEED", "num_processes": 2, "num_machines": 2}, (1, True), ""),
        ({"distributed_type": "NO", "num_processes": 8}, (1, True), ""),
        ({"distributed_type": "NO", "gpu_ids": "0"}, (1, True), r"the GPUs 0 \(gpu_ids\); write all there"),
        (None, (1, True), ""),
    ],
)
def test_a_trial_needs_what_its_launch_file_says(
    faked: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: dict[str, Any] | None,
    needs: tuple[int, bool],
    told: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    path = faked / "launch.yaml"
    path.write_text(yaml.safe_dump(launch))
    loaded = make(faked, grid={"seed": [1, 2]}, launch=str(path) if launch else None)
    assert sweep_file.demand(loaded) == needs
    if told:
        with pytest.raises(UserError, match=told):
            sweep_file.check_jobs(loaded, 2)
    else:
        sweep_file.check_jobs(loaded, 2)


def test_a_launch_file_that_is_not_there_is_named(faked: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file nowhere\.yaml"):
        sweep_file.check_jobs(make(faked, launch="nowhere.yaml"), 1)


def test_a_signal_reaches_the_trial_and_the_next_run_goes_on(faked: Path) -> None:
    loaded = make(faked, grid={"seed": [3, 1]})
    found = sweep_file.trials_of(loaded, loaded)
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from asrlora.sweep import runner, sweep_file
loaded = sweep_file.load(Path({str(faked / "sweep.yaml")!r}))
runner.command = lambda l, t: [sys.executable, {str(faked / "train.py")!r}, *sweep_file.flags(t)]
found = sweep_file.trials_of(loaded, loaded)
sys.exit(runner.run(loaded, loaded, found, found, 1))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        end = time.monotonic() + 60
        while not (found[0].folder / "ready").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert trials.read_status(found[0], loaded.criteria).state == "running"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 75
    states = [trials.read_status(trial, loaded.criteria).state for trial in found]
    assert states == ["preempted", "waiting"]
    assert runner.run(loaded, loaded, found, found, 1) == 0
    attempts = json.loads((found[0].folder / "trial.json").read_text())["attempts"]
    assert [one["cause"] for one in attempts] == ["preempted", "complete"]


def test_a_task_that_was_stopped_too_often_says_so(faked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asrlora.record import run_dir

    assert run_dir.gave_up() is None
    monkeypatch.setenv("ASRLORA_MAX_RESTARTS", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert run_dir.gave_up() is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert run_dir.gave_up() == "given up after 3 restarts (ASRLORA_MAX_RESTARTS)"


def test_an_attempt_without_a_sign_of_life_is_lost_and_a_living_one_is_left_alone(faked: Path) -> None:
    loaded = make(faked, grid={"seed": [1]})
    found = sweep_file.trials_of(loaded, loaded)
    claim = Lease(found[0].folder / trials.LEASE)
    assert claim.acquire("job 7_0 on n1")
    (found[0].folder / trials.ATTEMPTS).write_text(
        json.dumps({"attempts": [{"owner": "job 7_0 on n1", "ended": None, "cause": None}]})
    )
    assert not claim.acquire("job 8_0 on n2")
    assert runner.run(loaded, loaded, found, found, 1) == 0
    assert starts(found[0]) == 0
    told = {"owner": "job 7_0 on n1", "ended": None, "cause": "cancelled", "told": ""}
    (found[0].folder / trials.ATTEMPTS).write_text(json.dumps({"attempts": [told]}))
    assert trials.read_status(found[0], loaded.criteria).state == "cancelled", (
        "it may be killed while it saves"
    )
    (found[0].folder / trials.ATTEMPTS).write_text(json.dumps({"attempts": [{**told, "cause": None}]}))
    old = time.time() - 60
    os.utime(claim.path, (old, old))
    one = trials.read_status(found[0], loaded.criteria)
    assert one.state == "lost"
    assert "job 7_0 on n1" in one.why
    assert runner.run(loaded, loaded, found, found, 1) == 0
    attempts = json.loads((found[0].folder / "trial.json").read_text())["attempts"]
    assert [one["cause"] for one in attempts] == ["lost", "complete"]


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        ({"JobState": "COMPLETING", "Reason": "TimeLimit"}, "timed out"),
        ({"JobState": "COMPLETING", "Reason": "None"}, "cancelled"),
        ({"JobState": "PREEMPTED", "Reason": "None"}, "preempted"),
        (
            {"JobState": "COMPLETING", "Reason": "None", "TimeLimit": "00:05:00",
             "StartTime": "2026-11-22T11:54:59"},
            "timed out",
        ),
        (
            {"JobState": "COMPLETING", "Reason": "None", "TimeLimit": "1-00:05:00",
             "StartTime": "2026-11-22T11:54:59"},
            "cancelled",
        ),
    ],
)  # fmt: skip
def test_ends_by_slurm_are_told_apart(told: dict[str, str], cause: str) -> None:
    assert runner.slurm_cause(told, datetime.datetime(2026, 11, 22, 12, 0)) == cause


def status(tmp_path: Path, name: str, domain: float, heldout: float, seconds: float) -> trials.TrialStatus:
    folder = tmp_path / name
    folder.mkdir()
    made = {"run_id": name, "state": "complete", "started": "", "command": "", "config": {"max_steps": 1}}
    (folder / "run.json").write_text(json.dumps({**made, "trained_parameters": 5}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "audio_seconds": seconds}) + "\n")
    lines = [
        {"id": i, "substitutions": int(i < 1000 * domain), "deletions": 0, "insertions": 0, "words": 1}
        for i in range(1000)
    ]
    (folder / "eval" / "step-000001").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "eval" / "step-000001" / "domain.jsonl").write_text(text)
    return trials.TrialStatus(
        Trial(name, {}, {}, folder), "complete", 1, 1, {"domain": 0.3, "heldout": 0.05},
        {"domain": domain, "heldout": heldout}, Verdict.model_validate({
            "best_step": 1, "verdict": "reject", "heldout": None, "criteria": {},
            "domain": {"baseline_wer": 0.3, "tuned_wer": domain, "reduction": 0.3 - domain,
                       "interval": [0.0, 0.2], "tuned_interval": [domain - 0.03, domain + 0.03]},
        }),
    )  # fmt: skip


def test_the_guardrail_comes_before_the_domain(tmp_path: Path) -> None:
    low, safe = status(tmp_path, "low", 0.10, 0.08, 1), status(tmp_path, "safe", 0.20, 0.05, 1)
    selection = trials.select([low, safe], Criteria())
    assert selection is not None
    assert selection.best is safe
    assert "1 of 2 hold the guardrail" in selection.why
    assert trials.select([replace(low, judged=None)], Criteria()) is None


def test_ties_within_the_interval_go_to_the_cheaper(tmp_path: Path) -> None:
    dear, cheap = status(tmp_path, "dear", 0.200, 0.05, 900), status(tmp_path, "cheap", 0.202, 0.05, 100)
    worse = status(tmp_path, "worse", 0.25, 0.05, 1)
    selection = trials.select([dear, cheap, worse], Criteria())
    assert selection is not None
    assert selection.best is cheap
    assert "ties with the lowest, 20.00%" in selection.why


def test_ties_are_by_speakers_where_both_verdicts_are(tmp_path: Path) -> None:
    """25 speakers who err in all or in nothing: by them 0.20 and 0.24 tie, by their 1,000 utterances not."""

    def chosen(by: str) -> str:
        folder = tmp_path / by
        folder.mkdir()
        made = [status(folder, "low", 0.20, 0.05, 900), status(folder, "cheap", 0.24, 0.05, 100)]
        for one in made:
            file = one.trial.folder / "eval" / "step-000001" / "domain.jsonl"
            lines = [{**line, "speaker": f"s{line['id'] // 40}"} for line in run_dir.read_lines(file)]
            file.write_text(run_dir.to_lines(lines))
        drawn = [one.judged.domain.changed(resampled={"by": by, "units": 25}) for one in made if one.judged]
        sides = zip(made, drawn, strict=True)
        judged = [
            replace(one, judged=one.judged.changed(domain=domain)) for one, domain in sides if one.judged
        ]
        selection = trials.select(judged, Criteria())
        assert selection is not None
        return selection.best.trial.id

    assert (chosen("utterance"), chosen("speaker")) == ("low", "cheap")


def write_scores(run: Path, step: int, domain: float, heldout: float) -> None:
    folder = run / "eval" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"domain": {"wer": domain}, "heldout": {"wer": heldout}}))


def test_pruning_says_why_and_is_off_without_rules(tmp_path: Path) -> None:
    mine, peers = (
        Trial("mine", {}, {}, tmp_path / "mine"),
        [Trial(n, {}, {}, tmp_path / n) for n in ("p1", "p2")],
    )
    for step, heldout in ((0, 0.05), (50, 0.07)):
        write_scores(mine.folder, step, 0.3, heldout)
        for peer, wer in zip(peers, (0.2, 0.25), strict=True):
            write_scores(peer.folder, step, wer, 0.05)
    ask = (50, 100, 50)
    assert pruning.reason(mine.folder, *ask) is None
    pruning.write_rules(Pruning(heldout_margin=0.02), Criteria(), mine, peers)
    assert pruning.reason(mine.folder, *ask) is None
    pruning.write_rules(Pruning(heldout_margin=0.01), Criteria(), mine, peers)
    told = pruning.reason(mine.folder, *ask) or ""
    assert told.startswith("pruned at step 50: heldout WER is up by 2.00 points")
    pruning.write_rules(Pruning(halving=2), Criteria(), mine, peers)
    assert "number 3 of 3 trials" in (pruning.reason(mine.folder, *ask) or "")
    pruning.write_rules(Pruning(loss_factor=2.0), Criteria(), mine, peers)
    losses = [1.0] * 20 + [3.0] * 20
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (mine.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "loss rose to 3.0 times" in (pruning.reason(mine.folder, *ask) or "")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True), st.integers(2, 4))
def test_halving_never_drops_the_best_and_keeps_the_share(wers: list[float], share: int) -> None:
    kept = [
        wer for i, wer in enumerate(wers)
        if pruning.halving(wer, wers[:i] + wers[i + 1 :], share) is None
    ]  # fmt: skip
    assert min(wers) in kept
    assert len(kept) == (len(wers) if len(wers) < share else -(-len(wers) // share))


def test_the_commands_print_the_plan_and_the_table(faked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = make(faked, grid={"seed": [1, 2]})
    file = str(faked / "sweep.yaml")
    assert cli.main(["sweep", "plan", file, "--arrays"]) == 0
    assert capsys.readouterr().out == "grid 0-1%4\n"
    assert cli.main(["sweep", "run", file]) == 1
    capsys.readouterr()
    assert cli.main(["sweep", "status", file]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("seed=1", "inconclusive")), "nothing is cut off"
    assert f"\n{sweep_file.trials_of(loaded, loaded)[1].id}: no such model\n" in shown
    told = json.loads((faked / "trials" / "outcome.json").read_text())
    first = sweep_file.trials_of(loaded, loaded)[0]
    assert told["phases"][0]["winner"] == first.id
    assert told["verdict"] == "inconclusive"
    assert told["in_the_way"] == ["made up"]
    assert cli.main(["sweep", "run", file, "--trial", "5"]) == 2
