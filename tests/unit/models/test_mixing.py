"""Mixes of adapters, against the weights that PEFT itself merges into the base."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import adapting
from asrlora.commands import mix as command
from asrlora.errors import UserError
from asrlora.models import adapters, hub, mixing, registry
from asrlora.models.mixing import Method
from conftest import BASE

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "dora": {"use_dora": True},
    "other": {"lora_r": 6, "lora_alpha": 3, "lora_targets": "q_proj,fc1", "lora_module_filter": "encoder"},
    "other_dora": {"use_dora": True, "use_rslora": True, "lora_r": 3, "lora_targets": "q_proj,fc1"},
}
WEIGHTS = [0.5, -0.3]

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A trained adapter of this kind; two names of one kind, such as lora and lora2, are two adapters."""
    root = tmp_path_factory.mktemp("adapters")

    def made(name: str) -> Path:
        folder, settings = root / name, KINDS[name.rstrip("2")]
        if not folder.exists():
            base = registry.load_base(str(BASE))
            model = adapting.attach(base, sum(map(ord, name)), **{"lora_targets": "attention", **settings})
            initial = root / f"{name}_initial" if "init_lora_weights" in settings else None
            if initial:
                adapters.save_initial(model, initial)
            adapting.train_on_noise(model, base)
            adapters.save(model, folder, initial, base)
        return folder

    return made


def merged(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the base with an adapter, merged by PEFT, in double precision."""
    model = PeftModel.from_pretrained(registry.load_base(str(BASE)).model, str(folder)).merge_and_unload()
    return {name: p.detach().double() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def untouched() -> dict[str, torch.Tensor]:
    model = registry.load_base(str(BASE)).model
    return {name: p.detach().double() for name, p in model.named_parameters()}


def apart(
    found: Mapping[str, torch.Tensor], untouched: Mapping[str, torch.Tensor], folders: list[Path]
) -> float:
    """How far `found` is from W + sum w_i dW_i: the norm of the difference over that of all w_i dW_i."""
    parts = [merged(folder) for folder in folders]
    difference = size = 0.0
    for name, weight in untouched.items():
        terms = torch.stack([w * (part[name] - weight) for w, part in zip(WEIGHTS, parts, strict=True)])
        difference += float((found[name] - weight - terms.sum(0)).square().sum())
        size += float(terms.square().sum())
    return float((difference / size) ** 0.5)


@pytest.mark.parametrize(
    "names",
    [("lora", "lora2"), ("rslora", "lora"), ("lora", "rslora"), ("pissa", "olora"), ("lora", "other"),
     ("other", "lora"), ("dora", "dora2"), ("dora", "lora"), ("lora", "dora"), ("dora", "other_dora"),
     ("pissa", "other_dora")],
    ids="+".join,
)  # fmt: skip
def test_concatenation_is_the_weighted_sum(
    names: tuple[str, str], make: Make, untouched: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """PEFT 0.21.2 itself is off by sqrt(rank) - 1 where the first is rsLoRA, and by 0.26 for DoRA."""
    folders, base = [make(name) for name in names], registry.load_base(str(BASE))
    model, difference = mixing.mix(base, folders, WEIGHTS, tmp_path / "mix", made_from={"method": "cat"})
    assert difference < 1e-6
    assert apart(merged(tmp_path / "mix"), untouched, folders) < 1e-5
    assert adapters.check_saved(model, base, tmp_path / "mix") < 1e-5
    files = sorted(path.name for path in (tmp_path / "mix").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    recorded = hub.trained_on(tmp_path / "mix")
    assert recorded["sha256"] == base.sha256
    assert recorded["made_from"] == {"method": "cat"}


def test_svd_of_full_rank_is_the_weighted_sum_and_of_a_small_one_the_nearest(
    make: Make, untouched: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folders = [make("lora"), make("rslora")]
    for rank, low, high in ((8, 0.0, 1e-5), (2, 0.1, 0.9)):
        base = registry.load_base(str(BASE))
        output = tmp_path / str(rank)
        _, told = mixing.mix(base, folders, WEIGHTS, output, Method("svd", rank=rank))
        difference = apart(merged(output), untouched, folders)
        assert low <= difference <= high
        assert told == pytest.approx(difference, abs=1e-5)
    # Eckart and Young: what a truncation leaves out is the singular values beyond its rank
    parts, squares, sizes = [merged(folder) for folder in folders], 0.0, 0.0
    for name, weight in untouched.items():
        if weight.dim() == 2:
            terms = torch.stack([w * (part[name] - weight) for w, part in zip(WEIGHTS, parts, strict=True)])
            squares += float(torch.linalg.svdvals(terms.sum(0))[2:].square().sum())
            sizes += float(terms.square().sum())
    assert difference == pytest.approx((squares / sizes) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("method", [m for m in command.METHODS if m not in ("cat", "svd")])
def test_every_method_is_pefts_and_is_reloaded_as_it_was_made(
    method: str, make: Make, tmp_path: Path
) -> None:
    folders, base = [make("lora"), make("lora2")], registry.load_base(str(BASE))
    how = Method(method, density=None if method == "linear" else 0.5, seed=3)
    model, difference = mixing.mix(base, folders, WEIGHTS, tmp_path / "mix", how)
    assert 1e-3 < difference < 10  # neither the exact sum, nor something without a measure
    assert adapters.check_saved(model, base, tmp_path / "mix") < 1e-5
    again = [3, 4] if method.startswith("dare") else [3]
    written = load_file(tmp_path / "mix" / adapters.WEIGHTS)
    for seed in again:
        base = registry.load_base(str(BASE))
        mixing.mix(base, folders, WEIGHTS, tmp_path / "again", replace(how, seed=seed))
        found = load_file(tmp_path / "again" / adapters.WEIGHTS)
        assert all(torch.equal(found[name], written[name]) for name in written) == (seed == 3)


def test_a_pruned_mix_of_density_1_is_the_linear_one(make: Make, tmp_path: Path) -> None:
    folders = [make("lora"), make("lora2")]
    found = []
    for how in (Method("linear"), Method("dare_linear", density=1.0), Method("magnitude_prune", density=1.0)):
        mixing.mix(registry.load_base(str(BASE)), folders, WEIGHTS, tmp_path / how.name, how)
        found.append(load_file(tmp_path / how.name / adapters.WEIGHTS))
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)


@pytest.mark.parametrize(
    ("names", "method", "told"),
    [
        (("lora", "other"), Method("linear"), "adapters of one rank, and these have 4, 6; take cat, or"),
        (("lora", "lora2"), Method("svd", rank=10_000), r"--rank 10000: the smallest side of .* is \d+"),
    ],
)
def test_ranks_that_do_not_go_with_a_method_are_refused(
    names: tuple[str, str], method: Method, told: str, make: Make, tmp_path: Path
) -> None:
    base, folders = registry.load_base(str(BASE)), [make(name) for name in names]
    with pytest.raises(UserError, match=told):
        mixing.mix(base, folders, WEIGHTS, tmp_path / "mix", method)
    assert not (tmp_path / "mix").exists()


@pytest.mark.parametrize(
    ("changes", "method", "told"),
    [
        ({"use_dora": True}, "svd", "is a DoRA adapter: --method svd would lose its magnitudes"),
        ({"bias": "all"}, "cat", "sets bias; only LoRA and DoRA adapters of linear layers"),
        ({"modules_to_save": ["proj_out"]}, "cat", "sets modules_to_save"),
        ({"of_a_later_peft": 1}, "cat", "sets of_a_later_peft"),
        ({"peft_type": "LOHA"}, "cat", "is of type LOHA"),
        ({"init_lora_weights": "pissa"}, "cat", r"its initialisation \(pissa\) has changed"),
    ],
)
def test_what_a_mix_would_lose_is_refused(
    changes: dict[str, Any], method: str, told: str, make: Make, tmp_path: Path
) -> None:
    settings = json.loads((make("lora") / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    mixing.check_kinds([tmp_path, make("dora"), make("pissa")], "cat")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
    with pytest.raises(UserError, match=told):
        mixing.check_kinds([make("lora"), tmp_path], method)


def test_adapters_that_cancel_are_no_fault(
    make: Make, untouched: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    base = registry.load_base(str(BASE))
    _, difference = mixing.mix(base, [make("dora"), make("dora")], [1.0, -1.0], tmp_path / "mix")
    assert difference < 1e-6
    for name, weight in merged(tmp_path / "mix").items():
        assert torch.allclose(weight, untouched[name], atol=1e-5)


def test_a_mix_that_is_not_the_sum_is_noticed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PEFT would make it of DoRA."""
    monkeypatch.setattr(mixing, "_mix_magnitudes", lambda *args: None)
    with pytest.raises(RuntimeError, match=r"is not the weighted sum of its adapters: .*e-0\d of it differs"):
        mixing.mix(registry.load_base(str(BASE)), [make("dora"), make("dora2")], WEIGHTS, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


def test_an_adapter_of_convolutions_is_refused_by_the_layers_name(make: Make, tmp_path: Path) -> None:
    settings = json.loads((make("lora") / "adapter_config.json").read_text())
    base = registry.load_base(str(BASE))
    name, layer = next((n, m) for n, m in base.model.named_modules() if isinstance(m, torch.nn.Conv1d))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": [name], "r": 2}))
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.ones(2, layer.in_channels, *layer.kernel_size),
        f"base_model.model.{name}.lora_B.weight": torch.ones(layer.out_channels, 2, 1),
    }
    save_file(tensors, tmp_path / adapters.WEIGHTS)
    with pytest.raises(UserError, match=f"the adapters change .*{name}; only adapters of linear layers"):
        mixing.mix(base, [make("lora"), tmp_path], WEIGHTS, tmp_path / "mix")
