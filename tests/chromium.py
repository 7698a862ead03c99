"""A headless Chromium that tests look at pages with, by its debugging pipe: no driver is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
    *("--remote-debugging-pipe", "--disable-background-networking", "--disable-dev-shm-usage"),
)


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One tab. ``complaints`` are console errors and warnings, and scripts' exceptions, so far."""

    def __init__(self, path: str, profile: Path) -> None:
        commands, self._to = os.pipe()  # it reads commands from descriptor 3
        self._from, answers = os.pipe()  # and writes answers to descriptor 4
        # Above 4, so that no duplication overwrites a descriptor which is still needed.
        ends = [_high(end) for end in (commands, answers)]
        script = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", path, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        self._unread, self._last, self._session = b"", 0, None
        self.complaints: list[str] = []
        self.events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol; its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path) -> None:
        """Load a file, images and all."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._read()

    def resize(self, width: int, height: int = 800) -> None:
        """Make the window so large (CSS pixels)."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """The value of a script's expression in the page, awaited if it is a promise."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        # As who debugs: the page's own policy is not asked.
        found = self.call("Runtime.evaluate", **given, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise RuntimeError("Chromium has ended")
            self._unread += piece
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        self.events.append(message.get("method", ""))
        self._listen(message)
        return message

    def _listen(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                address = told["request"]["url"]
                if not address.startswith(("file:", "data:", "about:", "blob:")):
                    self.complaints.append(f"asks for {address}")


def _high(end: int) -> int:
    import fcntl

    high = fcntl.fcntl(end, fcntl.F_DUPFD, 10)
    os.close(end)
    return high
