"""A run that forgot, rescued at its end and afterwards; hypotheses are written for each strength."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asrlora import cli, train
from asrlora.engine import evaluate, rescue
from asrlora.models import adapters, strength
from asrlora.record import run_dir
from asrlora.score.selection import second_half
from conftest import BASE, Speech

SETTINGS = {"max_steps": 4, "eval_interval": 2, "learning_rate": 3e-3, "batch_size": 2, "use_dora": True}
# share of utterances without any hypothesis, by set: of the base, and by the strength of the adapter
BASELINE = {"domain": 0.9, "heldout": 0.5}
FORGETS = {
    1.0: {"domain": 0.1, "heldout": 0.9},
    0.75: {"domain": 0.2, "heldout": 0.8},
    0.625: {"domain": 0.3, "heldout": 0.7},
    0.5: {"domain": 0.4, "heldout": 0.0},
}


class Scripted:
    """Hypotheses as FORGETS has them, for whatever adapter is evaluated."""

    def __init__(self, shares: dict[float, dict[str, float]]) -> None:
        self.shares, self.strength, self.first = shares, 1.0, {"domain", "heldout"}
        self.evaluated: list[tuple[float, str, int]] = []  # strength, set, utterances
        self.fail_at: float | None = None
        self._assemble, self._set = evaluate.assemble, strength.set_strength

    def assemble(self, shards: Any, pairs: Any, *more: Any) -> Any:
        texts = {sample.id: sample.text for sample in shards.samples}
        name = "domain" if min(texts).startswith("domain") else "heldout"
        share = BASELINE[name] if name in self.first else self.shares[self.strength][name]
        self.first.discard(name)
        self.evaluated.append((self.strength, name, len(texts)))
        wrong = set()
        for side in (True, False):  # as large a share of both halves
            half = sorted(second_half(texts) if side else texts.keys() - second_half(texts))
            wrong |= set(half[: round(share * len(half))])
        return self._assemble(shards, [(i, "" if i in wrong else text) for i, text in texts.items()], *more)

    def set_strength(self, layers: Any, at: float) -> None:
        if self.fail_at == at:
            raise KeyboardInterrupt
        self.strength = at
        self._set(layers, at)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    script = Scripted(FORGETS)
    monkeypatch.setattr(evaluate, "assemble", script.assemble)
    monkeypatch.setattr(strength, "set_strength", script.set_strength)
    return script


def verdict(run: Path) -> dict[str, Any]:
    return run_dir.read_json(run / "verdict.json")


@pytest.mark.slow
def test_a_rejected_run_becomes_an_accepted_one_and_its_adapter_is_the_weaker_one(
    speech: Speech, tmp_path: Path, scripted: Scripted
) -> None:
    plain = tmp_path / "plain"
    assert train.main(speech.flags(plain, **SETTINGS)) == 0
    assert verdict(plain)["verdict"] == "reject"
    before = (plain / "adapter_best" / adapters.WEIGHTS).read_bytes()

    # afterwards, in a new directory
    scripted.evaluated.clear()
    assert cli.main(["strength", str(plain), "--output-dir", str(tmp_path / "new")]) == 0
    judged = verdict(tmp_path / "new")
    assert (judged["verdict"], judged["best_step"], judged["rescue"]["strength"]) == ("accept", 4, 0.5)
    assert [at for at, _, _ in scripted.evaluated] == [0.5, 0.5, 0.75, 0.625, 0.5, 0.5]
    # 0.75 and 0.625 break the guardrail, so the domain is not evaluated; then the other halves of 0.5
    assert [name for _, name, _ in scripted.evaluated] == [
        "heldout", "domain", "heldout", "heldout", "domain", "heldout",
    ]  # fmt: skip
    counts = {at: n for at, _, n in scripted.evaluated}
    assert judged["heldout"]["utterances"] == judged["rescue"]["judging"]["heldout"] == counts[0.5]
    assert sum(judged["rescue"][side]["domain"] for side in ("choosing", "judging")) == 64
    assert verdict(plain)["verdict"] == "reject"
    assert (plain / "adapter_best" / adapters.WEIGHTS).read_bytes() == before

    # the adapter is the checkpoint's, at half its strength, for anybody who loads it
    ours = load_file(tmp_path / "new" / "adapter_best" / adapters.WEIGHTS)
    assert run_dir.read_json(tmp_path / "new" / "adapter_best" / "base.json")["made_from"]["strength"] == 0.5
    scaled = tmp_path / "scaled"
    rescue_scratch(plain, scaled, 0.5)
    theirs = load_file(scaled / adapters.WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "new" / "before_rescue" / "adapter_best" / adapters.WEIGHTS).read_bytes() == before
    assert "strength 0.5" in (tmp_path / "new" / "report.html").read_text()

    # judged again, it is the same; and a rescue of an accepted run tries nothing
    kept = (tmp_path / "new" / "verdict.json").read_bytes()
    assert cli.main(["verdict", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "verdict.json").read_bytes() == kept
    scripted.evaluated.clear()

    # at the end of a run: the same verdict, and an interrupted one goes on where it stood
    auto = tmp_path / "auto"
    scripted.first = {"domain", "heldout"}
    scripted.strength, scripted.fail_at = 1.0, 0.625
    with pytest.raises(KeyboardInterrupt):
        train.main(speech.flags(auto, **SETTINGS, rescue="auto"))
    assert run_dir.read_run(auto).state != "complete"
    scripted.fail_at = None
    scripted.evaluated.clear()
    assert train.main(speech.flags(auto, **SETTINGS, rescue="auto", resume="auto")) == 0
    assert [at for at, _, _ in scripted.evaluated] == [0.625, 0.5, 0.5]
    ended = verdict(auto)
    assert ended == {**judged, "fingerprint": ended["fingerprint"]}
    assert run_dir.read_run(auto).state == "complete"
    found = run_dir.read_json(auto / "rescue.json")
    assert (found["installed"], found["evaluations"]) == ("strength-0.5-step-000004", 3)


def rescue_scratch(run: Path, folder: Path, at: float) -> None:
    """The last checkpoint of a run at a strength, by the parts that the search is made of."""
    from asrlora.config import validate
    from asrlora.engine import checkpoint
    from asrlora.models import registry

    config = validate(str(run / "config.yaml"), {})
    tensors = checkpoint.read(run / "checkpoints" / "step-000004").adapter
    checkpoint.as_adapter(registry.load_base(str(BASE)), config, tensors, run, folder / "full")
    base = registry.load_base(str(BASE))
    model = adapters.load(base, folder / "full")
    strength.set_strength(strength.trained(model), at)
    adapters.save(model, folder, None, base)


@pytest.mark.slow
def test_what_learns_nothing_is_not_accepted_by_a_rescue(
    speech: Speech, tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.shares = {
        at: {"domain": 0.9, "heldout": 0.5 + at / 2} for at in (1.0, 0.75, 0.625, 0.5, 0.25, 0.125)
    }
    run = tmp_path / "run"
    assert train.main(speech.flags(run, **SETTINGS, rescue="auto", keep_checkpoints=1)) == 0
    judged = verdict(run)
    assert judged["verdict"] != "accept"
    assert "rescue" not in judged
    found = run_dir.read_json(run / "rescue.json")
    assert found["installed"] is None
    assert "none of" in found["outcome"]
    assert not (run / rescue.KEPT).exists()
    assert len(found["tried"]) - 1 <= 8
    assert "rescue: none of" in capsys.readouterr().out


def test_what_cannot_be_rescued_is_refused_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(BASE)}))
    run = tmp_path / "run"
    run.mkdir()
    record = {"run_id": "r", "state": "failed", "started": "", "command": "", "config": {"max_steps": 1}}
    (run / "run.json").write_text(json.dumps(record))
    for words, message in (
        ([str(run)], "the run is failed; continue it with --resume auto"),
        ([str(adapter)], "give --manifest-path, --safety-manifest-path, --output-dir"),
        ([str(tmp_path / "nothing")], "holds no adapter_config.json"),
        ([str(run), "--strength", "0"], "'0' is not above 0 and at most 1.5"),
        ([str(run), "--strength", "half"], "'half' is not above 0"),
        ([str(run), "--model-id", "x"], "--model-id is for an adapter's folder"),
    ):
        assert cli.main(["strength", *words]) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(run)
