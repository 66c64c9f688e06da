"""Headless Chromium for the tests of pages, by the DevTools protocol over a pipe: needs no driver."""

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parts import CHROMIUM

PATIENCE = 60.0  # seconds for one answer: two busy cores


class Browser:
    """One page. https://chromedevtools.github.io/devtools-protocol/ lists the methods of `call`."""

    def __init__(self, sending: int, hearing: int) -> None:
        self._sending, self._hearing = sending, hearing
        self._count, self._session, self._rest = 0, "", b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        while (heard := self._hear()).get("id") != self._count:
            self.events.append(heard)
        assert "error" not in heard, heard["error"]
        return dict(heard["result"])

    def _hear(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert select.select([self._hearing], [], [], max(0.0, end - time.monotonic()))[0], "no answer"
            self._rest += os.read(self._hearing, 1 << 20)
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A fresh page; an earlier one is left behind."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A real click, by mouse, on the middle of the element."""
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """Addresses asked for since `open`."""
        found = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in found if not url.startswith(("data:", "blob:"))]

    def errors(self) -> list[str]:
        """What the page's script got wrong since `open`."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
            or (event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
        ]


@contextmanager
def browser(profile: Path, downloads: Path) -> Iterator[Browser]:
    """Starts Chromium; what pages download arrives in `downloads`."""
    assert CHROMIUM is not None
    reading, sending = os.pipe()
    hearing, writing = os.pipe()
    # Chromium takes file descriptors 3 and 4; ours lie well above, so that neither is overwritten
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (reading, writing)]
    with subprocess.Popen(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
         "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=lambda: [os.dup2(fd, number) for fd, number in zip(theirs, (3, 4), strict=True)],
        pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        for fd in (reading, writing, *theirs):
            os.close(fd)
        opened = Browser(sending, hearing)
        try:
            opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
            yield opened
        finally:
            process.kill()
            os.close(sending)
            os.close(hearing)
