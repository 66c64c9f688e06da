"""Links resolve, and commands in README and docs are ones that exist."""

import contextlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from asrlora import cli, errors
from asrlora.config import RunConfig, read_yaml, validate
from asrlora.score import verdict
from asrlora.sweep import sweep_file

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(p for f in ("docs", "recipes") for p in sorted((ROOT / f).rglob("*.md"))),
]
by_path = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """What `#…` may name in a page: its headings as GitHub writes them, and ids of its own."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@by_path
def test_links_resolve(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        linked = (page.parent / target) if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"


def test_pages_named_in_code_exist() -> None:
    """Messages, comments and scripts name pages by their path."""
    folders = ("asrlora", "tests", "tools", "slurm", "launch", "shards", "accelerate_configs", "ds_configs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    written = "docs/archive_legacy_results.md"  # by `asrlora ledger archive`
    for path in [ROOT / "Makefile", *files]:
        if path.suffix in {".py", ".sh", ".yaml", ".json", ""}:
            for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text(errors="replace")):
                assert name == written or (ROOT / name).is_file(), f"{path.relative_to(ROOT)}: {name}"


def test_pages_name_source_files_that_exist() -> None:
    for page in PAGES:
        if page.name != "experiment_plan.md":  # quotes commands of the past
            for name in re.findall(r"`((?:asrlora|tests|tools|slurm)/[\w/.]+\.\w+)`", page.read_text()):
                assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)} names {name}"


def test_the_index_lists_every_page_once() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    listed = re.findall(r"^(?:- |\d+\. )\[[^\]]+\]\(([^)#]+\.md)\)", index, re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    recipes = {f"../{page.relative_to(ROOT)}" for page in (ROOT / "recipes").rglob("README.md")}
    assert sorted(listed) == sorted(pages | recipes)


def test_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, page in reference.PAGES.items():
        current = (reference.FOLDER / name).read_text() == page()
        assert current, f"docs/reference/{name} is old; run `uv run python tools/reference.py`"


def test_every_setting_is_described() -> None:
    assert not [name for name, field in RunConfig.model_fields.items() if not field.description]


def test_the_keys_of_a_sweep_file_are_documented() -> None:
    page = (ROOT / "docs" / "guide" / "sweeps.md").read_text()
    table = page.partition("| key of the file |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(sweep_file.Sweep.model_fields)


def test_the_files_of_recipes_hold_settings_that_exist() -> None:
    """Sweep files have phases or a grid; what else is YAML there is a run's."""
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        if {"grid", "trials", "phases"} & read_yaml(path).keys():
            sweep = sweep_file.load(path)
            assert all(sweep_file.trials_of(sweep, phase) for phase in sweep_file.phases_of(sweep)), path
        else:
            validate(str(path), {"output_dir": "."})


def test_exit_codes_are_documented() -> None:
    page = (ROOT / "docs" / "reference" / "exit_codes.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    codes = {*verdict.EXIT_CODES.values(), errors.USER_ERROR, errors.PREEMPTED, 1}
    assert codes == listed


@by_path
def test_commands_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^\s*(?:[A-Z_]+=\S+ )*(uv run [^\n#|]+)", text, re.MULTILINE):
        words = shlex.split(line)[2:]
        if words[0] == "asrlora":
            with contextlib.suppress(SystemExit):
                cli.parser().parse_args(words[1:])
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file(), line
        if "asrlora/cli.py" in words:
            cli.parser().parse_args(words[words.index("asrlora/cli.py") + 1 :])
        elif "asrlora/train.py" in words:
            flags = words[words.index("asrlora/train.py") + 1 :]
            for flag in flags:
                if flag.startswith("--") and flag != "--config":
                    name = flag[2:].removeprefix("no-").replace("-", "_")
                    assert name in RunConfig.model_fields, f"{page.name}: {flag}"


def test_the_makefile_holds_what_the_readme_promises() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_pins_stand_in_both_places_and_name_no_address() -> None:
    """constraints.txt is what people read and pip takes; [tool.uv] is what plain `uv run` obeys."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert project["tool"]["uv"]["constraint-dependencies"] == pins
    assert len(pins) > 60
    assert all("==" in pin and "://" not in pin and "@" not in pin for pin in pins)
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
