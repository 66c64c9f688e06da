"""`asrlora mix`: what it writes is evaluated as any adapter is, and what it refuses it refuses at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import adapting
from asrlora import cli
from asrlora.engine import checkpoint
from asrlora.engine.checkpoint import Checkpoint, State
from asrlora.models import adapters, hub, registry
from asrlora.record import run_dir
from asrlora.record.schema import Scores
from conftest import BASE, Speech

RATES = {3: 0.4, 6: 0.2, 9: 0.3, 12: 0.5}  # the domain's, by step
CHOSEN_ON = {3: 0.5, 6: 0.4, 9: 0.1, 12: 0.3}  # on the utterances that may choose

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """The message with which a command line ends, exit code 2, before anything is written."""

    def refused(*words: object) -> str:
        flags = [] if "--output-dir" in words else ["--output-dir", str(tmp_path / "out")]
        assert cli.main(["mix", *map(str, words), *flags]) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    return refused


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of one base."""
    folders = [tmp_path_factory.mktemp("two") / name for name in "ab"]
    for seed, folder in enumerate(folders):
        base = registry.load_base(str(BASE))
        model = adapting.attach(base, seed, lora_targets="attention", use_dora=seed == 0)
        adapting.train_on_noise(model, base)
        adapters.save(model, folder, None, base)
    return folders


@pytest.fixture(scope="module", params=["default", "pissa"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with four checkpoints; the step before the last was not evaluated."""
    folder: Path = tmp_path_factory.mktemp("runs") / "run"
    config = adapting.config(
        model_id=str(BASE), output_dir=folder, lora_targets="attention", init_lora_weights=request.param
    )
    base = registry.load_base(str(BASE))
    written = run_dir.RunDirectory.create(
        folder, command="train", config=config.model_dump(mode="json"), fingerprint={"base": base.sha256}
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    model = adapters.attach(base, config)
    adapters.save_initial(model, folder / checkpoint.INITIAL)
    initial = folder / checkpoint.INITIAL if request.param == "pissa" else None
    adapters.save(model, folder / "adapter_best", initial, base)
    (folder / "checkpoints").mkdir()
    for step in (3, 6, 9, 11, 12):
        adapting.train_on_noise(model, base)
        tensors = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        checkpoint.save(folder / "checkpoints", Checkpoint(State(step, 0, 1.0), tensors, {}), keep=9)
        if step in RATES:
            sets = {"domain": {"wer": RATES[step]}, "domain_chosen_on": {"wer": CHOSEN_ON[step]}}
            written.write_evaluation(step, {}, Scores.model_validate({"step": step, **sets}))
    written.lock.close()
    return folder


def test_a_mix_is_evaluated_and_exported_as_any_adapter(
    two: list[Path], speech: Speech, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By eval, without a word that it is one; what went in stays with it."""
    few = speech.domain.with_name("mixed.jsonl")
    few.write_text("".join(speech.domain.read_text().splitlines(keepends=True)[:4]))
    mixed, weights = tmp_path / "new" / "mixed", ["--weights", "1.0", "0.0"]
    assert cli.main(["mix", *map(str, two), *weights, "--output-dir", str(mixed)]) == 0
    assert "a DoRA adapter of rank 8" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["export", str(mixed), str(tmp_path / "exported")]) == 0
    recorded = hub.trained_on(tmp_path / "exported")["made_from"]
    assert recorded["method"] == "cat"
    for source, folder, weight in zip(recorded["adapters"], two, (1.0, 0.0), strict=True):
        sha256 = hub.trained_on(folder)[adapters.SHA256_KEY]
        assert source == {"folder": str(folder), "weight": weight, adapters.SHA256_KEY: sha256}
    texts = []
    for number, adapter in enumerate((mixed, two[0], two[1])):
        output = tmp_path / f"eval{number}"
        flags = ["--manifest-path", str(few), "--output-dir", str(output)]
        assert cli.main(["eval", "--model-id", str(BASE), "--adapter-dir", str(adapter), *flags]) == 0
        texts.append([line["hypothesis_raw"] for line in run_dir.read_lines(output / "hypotheses.jsonl")])
    assert texts[0] == texts[1] != texts[2]  # the first adapter alone, by its weights


@pytest.mark.parametrize(
    ("average", "steps"),
    [("last:2", [11, 12]), ("last:5", [3, 6, 9, 11, 12]), ("best:1", [9]), ("best:3", [6, 9, 12])],
)
def test_an_average_of_checkpoints_is_an_adapter(
    run: Path, average: str, steps: list[int], tmp_path: Path
) -> None:
    """Against the merged weights of an adapter to which the mean of the checkpoints' parameters is given."""
    assert cli.main(["mix", str(run), "--average", average, "--output-dir", str(tmp_path / "out")]) == 0
    recorded = hub.trained_on(tmp_path / "out")["made_from"]
    assert recorded["run"] == str(run)
    assert [one["step"] for one in recorded["checkpoints"]] == steps
    files = [run / "checkpoints" / f"step-{step:06d}" / checkpoint.ADAPTER for step in steps]
    hashes = [json.loads(file.with_name("state.json").read_text())["sha256"] for file in files]
    assert [one["sha256"] for one in recorded["checkpoints"]] == [one[checkpoint.ADAPTER] for one in hashes]
    config, fresh = run_dir.read_run(run).config, registry.load_base(str(BASE))
    pissa = config.as_json()["init_lora_weights"] == "pissa"
    chosen = adapting.config(lora_targets="attention", init_lora_weights="pissa" if pissa else "default")
    wanted = adapters.attach(fresh, chosen, run / checkpoint.INITIAL if pissa else None)
    loaded = [load_file(file) for file in files]
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            if name in loaded[0]:
                parameter.copy_(sum(one[name] for one in loaded) / len(loaded))
    mixed = adapters.load(registry.load_base(str(BASE)), tmp_path / "out")
    found = dict(mixed.merge_and_unload().named_parameters())
    for name, weight in wanted.merge_and_unload().named_parameters():
        assert torch.allclose(found[name], weight, atol=1e-6), name


def test_a_run_that_moved_or_changed_is_named(run: Path, refuse: Refuse, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    words = [moved, "--average", "last:5"]
    record = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**record, "fingerprint": {"base": "other"}}))
    assert f"{moved} was trained on a base with weights of sha256 other, and that of" in refuse(*words)
    (moved / "run.json").write_text(json.dumps({**record, "fingerprint": {"audio": {"version": 1}}}))
    assert f"{moved} was trained by another audio path" in refuse(*words)
    (moved / "run.json").write_text(json.dumps(record))
    path = moved / "checkpoints" / "step-000006" / checkpoint.ADAPTER
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert "step-000006 is damaged (the sha256 of its tensors differs)" in refuse(*words)
    if record["config"]["init_lora_weights"] == "pissa":
        shutil.rmtree(moved / checkpoint.INITIAL)
        told = refuse(moved, "--average", "last:1")
        assert f"{moved / checkpoint.INITIAL} is missing, without which a pissa run" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--average", "last:6"], "5 checkpoints are there (3, 6, 9, 11, 12); average fewer, or train with"),
        (["--average", "best:5"], "4 checkpoints are there (3, 6, 9, 12); average fewer"),
        (["--average", "5"], "--average 5: give last:N or best:N, such as last:5"),
        (["--average", "last:0"], "--average last:0: give last:N or best:N"),
        (["--average", "last:2", "--weights", "1"], "--weights is of adapters that are mixed, not of"),
        (["--average", "last:2", "--seed", "0"], "--seed is of adapters that are mixed, not of"),
        ([".", "--average", "last:2"], "checkpoints of one run; 2 folders are given"),
    ],
)
def test_averages_that_are_not_there_are_refused(
    words: list[str], told: str, run: Path, refuse: Refuse
) -> None:
    assert told in refuse(run, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--weights: give 2 finite numbers, one for each adapter, not none"),
        (["--weights", "1"], "--weights: give 2 finite numbers, one for each adapter, not 1"),
        (["--weights", "1", "nan"], "--weights: give 2 finite numbers, one for each adapter, not 1 nan"),
        (["--weights", "1", "1", "--method", "mean"], "invalid choice: 'mean'"),
        (["--weights", "1", "1", "--rank", "4"], "--rank is of methods that end in svd, not of cat"),
        (["--weights", "1", "1", "--density", "0.5"], "--density is of ties, dare_linear, dare_ties, magni"),
        (["--weights", "1", "1", "--seed", "4"], "--seed is of dare, not of cat"),
        (["--weights", "1", "1", "--method", "ties"], "--method ties needs a --density above 0 and up to 1"),
        (["--weights", "1", "1", "--method", "ties_svd", "--density", "0"], "needs a --density above 0"),
        (["--weights", "1", "1", "--method", "svd"], "is a DoRA adapter: --method svd would lose its"),
    ],
)
def test_mixes_that_cannot_be_made_are_refused(
    words: list[str], told: str, two: list[Path], refuse: Refuse
) -> None:
    assert told in refuse(*two, *words)


def test_one_adapter_a_folder_without_one_and_an_output_that_exists_are_refused(
    two: list[Path], refuse: Refuse, tmp_path: Path
) -> None:
    assert "one adapter is no mix; give two or more, or --average" in refuse(two[0], "--weights", "1")
    weights = ["--weights", "1", "1"]
    assert f"{tmp_path}: holds no adapter_config.json" in refuse(two[0], tmp_path, *weights)
    assert f"{two[0]} exists; give a new folder" in refuse(*two, *weights, "--output-dir", two[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "0"), ("weights", "nf4"), ("matmul_precision", "high"), ("audio", {"version": 1})],
)
@pytest.mark.parametrize("first", [True, False])
def test_adapters_of_different_bases_or_audio_are_refused(
    key: str, value: object, first: bool, two: list[Path], refuse: Refuse, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(two[1], other)
    recorded = json.loads((other / "base.json").read_text())
    (other / "base.json").write_text(json.dumps({**recorded, key: value}))
    words = [other, two[0]] if first else [two[0], other]
    assert f"different bases or audio: {key} of base.json is" in refuse(*words, "--weights", "1", "1")


def test_adapters_of_other_trainers_are_of_one_base_by_its_name(
    two: list[Path], refuse: Refuse, tmp_path: Path
) -> None:
    """Without base.json there is nothing else to go by; --model-id says that two names are one model."""
    foreign, twin = tmp_path / "foreign", tmp_path / "twin"
    shutil.copytree(two[1], foreign)
    (foreign / "base.json").unlink()
    shutil.copytree(BASE, twin)
    settings = json.loads((foreign / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(twin)
    (foreign / "adapter_config.json").write_text(json.dumps(settings))
    words = [two[0], foreign, "--weights", "1", "1"]
    assert f"{foreign} names {twin}; if both are the same model, give it by --model-id" in refuse(*words)
    flags = ["--model-id", BASE, "--output-dir", tmp_path / "out"]
    assert cli.main(["mix", *map(str, [*words, *flags])]) == 0
