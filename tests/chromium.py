"""A page in headless Chromium over its debugging pipe: what it asks for, what it says, how it looks. Nothing but the browser is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe"),
)
# the browser reads commands from 3 and writes answers to 4, whichever numbers the ends have here
LAUNCH = (
    "import fcntl, os, sys\nends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]\n"
    "os.dup2(ends[0], 3)\nos.dup2(ends[1], 4)\nos.execvp(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser: SMALLVIEW_CHROMIUM, one on the path, or Playwright's."""
    known = [os.environ.get("SMALLVIEW_CHROMIUM"), *map(shutil.which, NAMES)]
    cache = Path.home() / ".cache" / "ms-playwright"
    known += [str(path) for path in sorted(cache.glob("chromium*/chrome-*/*")) if path.name in ("chrome", "headless_shell")]
    return next((path for path in known if path), None)


class Page:
    """One page; `events` is all that the browser told of it since the last `open`."""

    def __init__(self, browser: str, profile: Path) -> None:
        (theirs, ours), (read, write) = os.pipe(), os.pipe()
        command = [sys.executable, "-c", LAUNCH, str(theirs), str(write), browser, *FLAGS, f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=(theirs, write), stdout=quiet, stderr=quiet, stdin=quiet)
        os.close(theirs)
        os.close(write)
        self.to, self.since = os.fdopen(ours, "wb", buffering=0), os.fdopen(read, "rb", buffering=0)
        self.events: list[dict[str, Any]] = []
        self.waiting, self.number = b"", 0
        self.session: str | None = None

    def __enter__(self) -> Self:
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.to.close()
        self.since.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        told = {"id": self.number, "method": method, "params": parameters}
        self.to.write(json.dumps(told | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            message = self.next()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def next(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            more = os.read(self.since.fileno(), 1 << 20)
            assert more, "the browser is gone"
            self.waiting += more
        first, _, self.waiting = self.waiting.partition(b"\0")
        return dict(json.loads(first))

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(self.next())
        self.run("new Promise(done => setTimeout(done, 50))")

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def run(self, expression: str) -> Any:
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def picture(self, path: Path) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def print(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def requests(self) -> list[str]:
        """What the page asked for, but for itself and what lies in it."""
        urls = [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")][1:]

    def complaints(self) -> list[str]:
        """Console messages, uncaught errors, refusals."""
        entries = [event["entry"]["text"] for event in self.seen("Log.entryAdded")]
        thrown = [str(event["exceptionDetails"]) for event in self.seen("Runtime.exceptionThrown")]
        return entries + thrown + [str(event["args"]) for event in self.seen("Runtime.consoleAPICalled")]


KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Escape": 27}
