"""The page of `asrlora compare` in headless Chromium: what people click, and what they see."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import written
from asrlora.record.judge import judge_run
from asrlora.report import compare
from asrlora.report import groups as grouping
from browser import PATIENCE, Browser, browser
from sweeps import FINGERPRINT, write_run, write_sweep

pytestmark = pytest.mark.needs("Chromium")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_sweep(folder, 8)
    write_run(
        folder / HOSTILE,
        {"seed": 91, "learning_rate": 2e-4},
        state="failed",
        until=0.5,
        reason=f"why {HOSTILE}",
    )
    write_run(folder / "other", {}, fingerprint={**FINGERPRINT, "heldout manifest": "x" * 64})
    # a guardrail that is called like a column of the table
    sets = {"domain": written.better(), "heldout": written.same(), "why": written.worse()}
    judge_run(written.write_run(folder / "with guardrail", sets))
    groups = grouping.grouped(grouping.read_runs(grouping.find([folder])))
    compare.write_page(groups, folder / "compare.html")
    return folder / "compare.html"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile"), downloads) as opened:
        yield opened


def drawn(chromium: Browser) -> None:
    chromium.until("document.body.ariaBusy === 'false'")


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page with its first view; it is loaded once, which takes seconds."""
    if chromium.requests() != [page.as_uri()]:
        chromium.open(page.as_uri())
    chromium.run("location.hash = '', fromAddress(), openGroup()")
    drawn(chromium)
    yield chromium
    assert chromium.errors() == []
    assert chromium.requests() == [page.as_uri()], "the page asks the network for nothing"


def listed(chromium: Browser) -> list[str]:
    return list(
        chromium.run("[...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[0].innerText.trim())")
    )


def saved(path: Path) -> Path:
    """Chromium writes beside the name, and renames when all is there."""
    end = time.monotonic() + PATIENCE
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} was not saved"
        time.sleep(0.02)
    return path


def test_sorting_by_click_and_by_key(opened: Browser) -> None:
    head = "th[data-key=domain]"
    ranked = listed(opened)
    opened.click(f"{head} button")
    assert opened.run(f"document.querySelector('{head}').ariaSort") == "ascending"
    values = opened.run(
        "[...document.querySelectorAll('#runs tbody tr')].map(r => parseFloat(r.innerText.split('→')[1]))"
    )
    assert values == sorted(values)
    opened.run(f"document.querySelector('{head} button').focus()")
    opened.press("Enter", 13, "\r")
    assert opened.run(f"document.querySelector('{head}').ariaSort") == "descending"
    assert listed(opened) != ranked
    opened.press("Enter", 13, "\r")
    assert listed(opened) == ranked
    assert opened.run("document.querySelectorAll('[aria-sort]').length") == 0


def test_filtering_and_hiding_reach_table_plots_and_address(opened: Browser, page: Path) -> None:
    opened.click("#filter")
    opened.type("learning_rate=1e-5")
    assert len(listed(opened)) == 2
    opened.click("#runs tbody input")
    drawn(opened)
    count = "document.querySelector('#trade .plot').data.flatMap(t => t.customdata).length"
    assert opened.run(count) == 1
    assert opened.run("document.getElementById('count').innerText") == "2 of 9 runs listed, 1 drawn"
    address = opened.run("location.href")
    assert address != page.as_uri()
    seen = listed(opened)
    opened.open("about:blank")
    opened.open(address)
    drawn(opened)
    assert listed(opened) == seen
    assert opened.run(count) == 1
    assert opened.run("document.getElementById('filter').value") == "learning_rate=1e-5"
    opened.click("#show")
    drawn(opened)
    assert len(listed(opened)) == opened.run(count) == 9
    assert opened.requests() == [page.as_uri()]
    opened.open(page.as_uri())
    drawn(opened)


def test_guardrails_beside_heldout_have_columns_of_their_own(opened: Browser) -> None:
    opened.run("location.hash = 'g=2', fromAddress(), openGroup()")
    drawn(opened)
    keys = opened.run("[...document.querySelectorAll('#runs thead th')].map(h => h.dataset.key)")
    assert keys.index("guardrail-why") < keys.index("guardrail-why-change") < keys.index("why")
    cell = f"document.querySelector('#runs tbody tr').cells[{keys.index('guardrail-why-change')}].innerText"
    assert opened.run(cell).startswith("+")


def test_verdicts_are_switched_off_by_their_buttons(opened: Browser) -> None:
    opened.click("#states [data-state=failed]")
    assert HOSTILE not in listed(opened)
    assert opened.run("document.querySelector('#states [data-state=failed]').ariaPressed") == "false"
    opened.click("#reset")
    assert HOSTILE in listed(opened)


def test_names_and_reasons_are_text_and_not_markup(opened: Browser) -> None:
    assert HOSTILE in listed(opened)
    opened.run(f"change({{pick: {json.dumps(HOSTILE)}, x: 'seed', a: {json.dumps(HOSTILE)}}})")
    drawn(opened)
    assert HOSTILE in opened.run("document.getElementById('detail').innerText")
    assert opened.run("document.querySelectorAll('img').length") == 0


def test_a_picked_run_stands_out_and_is_described(opened: Browser) -> None:
    opened.click("#runs tbody .name button")
    drawn(opened)
    name = listed(opened)[0]
    assert opened.run("document.querySelector('tr.picked').cells[0].innerText.trim()") == name
    assert "uv run python asrlora/train.py" in opened.run("document.getElementById('detail').innerText")
    sizes = opened.run("Object.fromEntries(document.querySelector('#trade .plot').data.flatMap("
                       "t => t.customdata.map((n, i) => [n, t.marker.size[i]])))")  # fmt: skip
    assert [n for n, size in sizes.items() if size == max(sizes.values())] == [name]


def test_two_runs_are_compared_either_way_round(opened: Browser, page: Path) -> None:
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])["groups"][0]
    opened.run("change({a: group.paired[3], b: group.paired[1]})")
    drawn(opened)
    there = opened.run("pair('domain', group.paired[3], group.paired[1])")
    back = opened.run("pair('domain', group.paired[1], group.paired[3])")
    # of the pairs 0-1 0-2 0-3 ... the row of 1 begins after those of 0
    expected = data["pairs"]["domain"][len(data["paired"]) - 1 + 1]
    assert [back["change"], *back["interval"]] == expected
    assert [there["change"], *there["interval"]] == [-expected[0], -expected[2], -expected[1]]
    text = opened.run("document.getElementById('pair').innerText")
    assert f"{100 * abs(expected[0]):.2f}" in text
    opened.click("#swap")
    drawn(opened)
    assert opened.run("[document.getElementById('a').value, view.b]") == [
        data["paired"][1],
        data["paired"][3],
    ]


def test_other_fingerprints_stand_in_their_own_group(opened: Browser) -> None:
    assert "other" not in listed(opened)
    opened.click("#groups button:nth-child(2)")
    drawn(opened)
    assert listed(opened) == ["other"]
    told = opened.run("document.getElementById('differs').innerText")
    assert "heldout manifest" in told
    assert "x" * 64 in told


def test_figures_and_table_are_saved(opened: Browser, downloads: Path) -> None:
    opened.click("#trade button[aria-label*=PNG]")
    assert saved(downloads / "trade.png").read_bytes().startswith(b"\x89PNG")
    opened.click("#sweep-domain button[aria-label*=CSV]")
    with open(saved(downloads / "sweep-domain.csv")) as file:
        lines = list(csv.DictReader(file))
    assert {float(line["learning_rate"]) for line in lines} >= {1e-5, 1e-3}
    opened.click("#table-csv")
    with open(saved(downloads / "runs.csv")) as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    assert rows[HOSTILE]["why"] == f"why {HOSTILE}"
    assert float(rows[listed(opened)[0]]["domain_change_interval_low"]) < 0


def test_everything_is_named_for_a_screen_reader(opened: Browser) -> None:
    nameless = opened.run(
        "[...document.querySelectorAll('button, select, input')].filter(e => !(e.innerText || e.ariaLabel ||"
        " e.labels?.length || e.closest('label'))).map(e => e.outerHTML)"
    )
    assert nameless == []
    figures = opened.run(
        "[...document.querySelectorAll('figure:not([hidden]) .plot')].map(p => [p.role, p.ariaLabel])"
    )
    assert len(figures) == 7
    assert all(role == "img" and len(label) > 30 for role, label in figures)
    assert opened.run("[...document.querySelectorAll('#runs thead th')].every(t => t.scope === 'col')")


def test_the_focus_shows(opened: Browser) -> None:
    opened.run("document.getElementById('filter').focus()")
    opened.press("Tab", 9)
    assert opened.run("document.activeElement.dataset.state")
    assert opened.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_one_way_only_in_light_and_dark(chromium: Browser, page: Path, dark: bool) -> None:
    chromium.open(page.as_uri(), width=390, height=800, dark=dark)
    drawn(chromium)
    assert chromium.run("document.documentElement.scrollWidth") == 390
    paper, plot = (
        chromium.run("getComputedStyle(document.body).backgroundColor"),
        chromium.run("document.querySelector('#trade .plot')._fullLayout.paper_bgcolor"),
    )
    assert paper == ("rgb(22, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert plot in ("#16181d", "#fff", "rgb(22, 24, 29)", "rgb(255, 255, 255)")
    assert chromium.errors() == []
