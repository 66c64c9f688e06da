"""Imports go down only, and each outside library has one room."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "asrlora"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}
# from the bottom up; a room may import rooms before it, and itself
FLOORS = """errors arguments storage allocation config console score data record launcher_hook sweep report
tracking models engine demo commands train cli""".split()
OUTSIDE = {
    "accelerate": ["asrlora.engine.runtime", "asrlora.engine.strategy"],
    "deepspeed": ["asrlora.engine.runtime", "asrlora.engine.strategy"],
    "transformers": ["asrlora.models"],
    "peft": ["asrlora.models"],
    "wandb": ["asrlora.tracking.wandb"],
}

WITHOUT_TORCH = """score.wer score.verdict score.text data.manifest data.plan data.audit.checks
data.audit.manifest_check data.audit.transcript_style data.shards.reader data.shards.indexing
data.importers.convert data.subsets score.power score.mapsswe score.keyword_recall score.scoring
score.bootstrap report.groups record.run_dir record.schema record.judge record.scores report.compare
report.publication_figures record.status allocation record.transcripts data.windows record.ledger
tracking.sinks tracking.wandb tracking.tensorboard report.page commands config sweep.sweep_file
sweep.slurm sweep.trials sweep.runner sweep.phases
models.registry models.hub models.key_terms train cli demo.corpus demo.demo""".split()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    if room(module) in ("", "__init__"):
        return
    floor = FLOORS.index(room(module))
    for name in imports(MODULES[module]):
        if name.startswith("asrlora.") and name in set(MODULES) | {"asrlora." + f for f in FLOORS}:
            assert FLOORS.index(room(name)) <= floor, f"{module} imports {name}, which is above it"
            assert room(name) not in ("train", "cli") or name == module, f"{module} imports a door, {name}"


@pytest.mark.parametrize("library", OUTSIDE)
def test_each_outside_library_has_one_room(library: str) -> None:
    for module, path in MODULES.items():
        if any(name.split(".")[0] == library for name in imports(path)):
            assert any(module == room or module.startswith(room + ".") for room in OUTSIDE[library]), (
                f"{module} imports {library}; only {OUTSIDE[library]} may"
            )


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_needs_no_torch(module: str) -> None:
    """What is told before a model loads must not wait for torch."""
    code = f"import sys, asrlora.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_import_torch_calls_imports_next_to_nothing() -> None:
    """It does so in every process of the environment, whatever that process is for."""
    code = "import sys, asrlora.launcher_hook; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    ours = {name for name in told.stdout.split() if name.startswith("asrlora")}
    assert ours == {"asrlora", "asrlora.errors", "asrlora.launcher_hook"}
    assert not {"psutil", "yaml", "pydantic", "numpy"} & set(told.stdout.split())


def test_no_module_shadows_a_library_when_train_runs_by_path() -> None:
    """`python asrlora/train.py` puts asrlora/ first on sys.path: a module `queue` there would win."""
    ours = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    theirs = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    assert not (ours - {"__init__", "__pycache__"}) & (theirs - {"asrlora"})
