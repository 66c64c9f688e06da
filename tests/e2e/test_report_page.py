"""The report in a real browser: on a phone, in light and dark, by its own text alternatives, with sound."""

import functools
import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrlora.data import audio
from asrlora.record import run_dir
from asrlora.record.judge import judge_run
from asrlora.report import alignment, page
from parts import CHROMIUM
from written import better, draws, same, write_run

pytestmark = pytest.mark.slow

needs_chromium = pytest.mark.needs("Chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a long name, long words, and markup in what is heard."""
    folder = tmp_path_factory.mktemp("page") / f"run-{'long' * 20}"
    sets = {"domain": better(450), "heldout": same(60), "far-field": (draws(0.1, 60, 7), draws(0.12, 60, 8))}
    write_run(folder, sets, report_manifest="auto")
    path = run_dir.step_folder(folder, 2) / "domain.jsonl"
    lines = path.read_text().replace(
        "wrong wrong wrong", "<b>wrong</b> " + "donaudampfschifffahrt" * 4 + " &amp;"
    )
    path.write_text(lines)
    judged = judge_run(folder)
    tone = (3_000 * np.sin(np.arange(32_000) / 9)).astype(np.int16)
    for name, ids in page.shown(folder, judged).items():
        for one in ids:
            run_dir.write_atomic(alignment.excerpt(folder, name, one), audio.encode_mp3(tone))
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {2 / i}}}\n' for i in range(1, 60))
    )
    page.write_report(folder)
    return folder


def chromium(folder: Path, *words: str) -> list[str]:
    assert CHROMIUM
    return [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", *words,
    ]  # fmt: skip


def look(run: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    """What look.html finds and posts, in a browser that reads the run directory from a server of ours."""
    found: queue.Queue[bytes] = queue.Queue()
    shutil.copy(Path(__file__).with_name("look.html"), run)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            found.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(run))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/look.html"
        browser = subprocess.Popen(
            chromium(tmp_path, *words, "--remote-debugging-port=0", address),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            return dict(json.loads(found.get(timeout=120)))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_on_a_phone(run: Path, tmp_path: Path, dark: bool) -> None:
    found = look(run, tmp_path, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert (found["width"], found["wide"]) == (360, []), "it scrolls sideways"
    assert found["dark"] == dark
    assert (sum(found["paper"][:3]) < 150) == dark
    assert found["faint"] == [], "text with a contrast below 4.5"
    assert found["seconds"] == pytest.approx(2.0, abs=0.2), "the audio does not play"
    assert found["sounds"] > 5
    assert found["unnamed"] == 0
    assert found["headings"][0] == 1
    assert found["headings"].count(1) == 1
    assert all(b - a <= 1 for a, b in zip(found["headings"], found["headings"][1:], strict=False))
    assert len(found["pictures"]) >= 9
    assert all(re.match(r"img .{30}", told) for told in found["pictures"])
    assert all(found["tables"]), "a table without headers"
    assert len(set(found["ids"])) == len(found["ids"])
    assert {link.removeprefix("#") for link in found["links"]} <= set(found["ids"])
    assert found["fetched"] == [], "the page is not self-contained"


@needs_chromium
def test_the_page_can_be_printed(run: Path, tmp_path: Path) -> None:
    words = chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{run}/report.html")
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_what_was_heard_is_text_and_no_markup(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<b>wrong" not in page
    assert "&lt;b&gt;wrong" in page
    assert "&amp;amp;" in page
