"""A headless Chromium for the tests, spoken to over a pipe in its own protocol.

No driver and no package: the DevTools protocol is JSON between NUL bytes on file
descriptors 3 and 4. Run as a script it takes pictures:
`python tests/report/browser.py report.html FOLDER`.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in one Chromium; `events` holds all that it reported."""

    def __init__(self) -> None:
        path = find_chromium()
        assert path, "no Chromium here"
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def connect() -> None:
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        # the shell's /usr/bin/chromium closes nothing above 2; dup2 lets 3, 4 through
        args = [path, "--headless", "--no-sandbox", "--remote-debugging-pipe"]
        args += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        args += [f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            args,
            pass_fds=(3, 4, to_read, to_write),
            preexec_fn=connect,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._last = b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, *, width: int = 1200, dark: bool = False) -> None:
        """Load a page and wait until it has loaded; `events` start anew."""
        self.events.clear()
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def js(self, expression: str) -> Any:
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def key(self, name: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    def picture(self, *, full: bool = True) -> bytes:
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=full
        )
        return base64.b64decode(shot["data"])

    def requests(self) -> list[str]:
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """Console messages, log entries (policy violations too) and exceptions."""
        kinds = ("Runtime.consoleAPICalled", "Log.entryAdded")
        kinds += ("Runtime.exceptionThrown",)
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _receive(self, patience: float = 60.0) -> dict[str, Any]:
        until = time.monotonic() + patience
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._read], [], [], max(0.0, left))
            if not ready:
                raise TimeoutError("Chromium said nothing for a minute")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise OSError("Chromium went away")
            self._buffer += data
        head, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(head)


def pictures(page: Path, folder: Path) -> None:
    """Full-page pictures: light, dark and phone width."""
    browser = Browser()
    try:
        views = {"light": (1200, False), "dark": (1200, True), "phone": (390, False)}
        for name, (width, dark) in views.items():
            browser.open(page.resolve().as_uri(), width=width, dark=dark)
            (folder / f"{name}.png").write_bytes(browser.picture())
    finally:
        browser.close()


if __name__ == "__main__":
    pictures(Path(sys.argv[1]), Path(sys.argv[2]))
