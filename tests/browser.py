"""A headless Chromium for tests, spoken to by DevTools' protocol over two pipes: no library, no port.

Chromium is no part of batchd. Where none is installed its tests are skipped; with REQUIRE_CHROMIUM in the
environment, as where CI has installed it, they fail.
"""

from __future__ import annotations

import base64
import itertools
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT_S = 60.0


def find() -> str:
    """Where Chromium is; skips the test that asks where it is not."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found:
        return found
    reason = "no Chromium is installed here: apt-get install chromium"
    if os.environ.get("REQUIRE_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


class Browser:
    """One Chromium with one page, for `with`.

    Attributes:
        problems: what the console said, and scripts that failed.
        requests: addresses that were asked for since it was opened.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._folder = folder
        self._numbers = itertools.count(1)
        self._received = b""
        self._session: str | None = None

    def __enter__(self) -> Browser:
        program = find()
        read_here, theirs_out = os.pipe()
        theirs_in, write_here = os.pipe()
        self._read, self._write = read_here, write_here
        # It reads from descriptor 3 and writes to 4.
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._folder / 'profile'}", "about:blank"),
        ]
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.ask("Browser.close")
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._read)
            os.close(self._write)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol answers."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, orjson.dumps(message) + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        """The next message, which is noted if it is an event of interest."""
        ends_at = time.monotonic() + LIMIT_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends_at - time.monotonic()))
            assert ready, "Chromium says nothing"
            content = os.read(self._read, 1 << 20)
            assert content, "Chromium has ended"
            self._received += content
        raw, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = orjson.loads(raw)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.problems.append(str(parameters))
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
        return message

    def open(self, file: Path, width: int, height: int, *, is_dark: bool = False) -> None:
        """Show a file in a window of this size, in CSS pixels."""
        self.problems.clear()
        self.requests.clear()
        is_phone = width < 600
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=file.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """What a script on the page comes to."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the page, from its top to its end if it is to be whole."""
        picture = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(picture["data"])
