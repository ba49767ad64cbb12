"""A browser for tests: headless Chromium through ChromeDriver's own protocol (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS_MOST = 120.0  # before a test gives up; the machine may be busy and draws on its processor
FLAGS = [
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--force-device-scale-factor=1",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist", "--force-prefers-reduced-motion",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's identifier


def missing_browser() -> str:
    """Why there is no browser for tests; empty where there is one."""
    if shutil.which("chromedriver") is None:
        return "chromedriver is not installed (apt install chromium chromium-driver)"
    if not any(map(shutil.which, BROWSERS)):
        return "chromium is not installed (apt install chromium chromium-driver)"
    return ""


class Browser:
    """One window of one browser."""

    def __init__(self, port: int, width: int, height: int, profile: str) -> None:
        self._base = f"http://127.0.0.1:{port}"
        binary = next(path for path in map(shutil.which, BROWSERS) if path)
        options = {
            "binary": binary,
            "args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options,
                  "goog:loggingPrefs": {"browser": "ALL"}}  # fmt: skip
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{made['sessionId']}"
        most = int(1000 * SECONDS_MOST)
        self._ask("POST", "/timeouts", {"script": most, "pageLoad": most})

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, expression: str, *arguments: object) -> Any:
        """What a promise comes to; its failure fails the test."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"Promise.resolve({expression}).then(value => done([value ?? null, null]),"
            " error => done([null, String(error.stack || error)]));"
        )
        value, error = self._ask("POST", "/execute/async", {"script": script, "args": arguments})
        assert error is None, error
        return value

    def wait_for(self, expression: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + SECONDS_MOST
        while True:
            value = self.run(f"return {expression}")
            if value:
                return value
            assert time.monotonic() < end, f"{expression} did not come true: {self.log()}"
            time.sleep(0.05)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def click(self, selector: str) -> None:
        """Click the middle of an element, which must be there to click."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[ELEMENT]}/click", {})

    def keys(self, *pressed: str) -> None:
        """Press and release keys, one after the other."""
        actions = [{"type": kind, "value": key} for key in pressed for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": actions})

    def drag(self, *paths: Sequence[tuple[int, int]], kind: str = "mouse") -> None:
        """Pointers at once, each from its first point over the others; `kind` may be touch."""
        sources = []
        for number, ((x, y), *others) in enumerate(paths):
            steps: list[dict[str, Any]] = [
                {"type": "pointerMove", "duration": 0, "x": x, "y": y},
                {"type": "pointerDown", "button": 0},
            ]
            steps += [{"type": "pointerMove", "duration": 50, "x": x, "y": y} for x, y in others]
            steps.append({"type": "pointerUp", "button": 0})
            sources.append(
                {
                    "type": "pointer",
                    "id": f"{kind}{number}",
                    "parameters": {"pointerType": kind},
                    "actions": steps,
                }
            )
        self._act(*sources)

    def scroll(self, x: int, y: int, delta: int) -> None:
        """Turn the wheel over a point."""
        step = {"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": delta, "duration": 0}
        self._act({"type": "wheel", "id": "wheel", "actions": [step]})

    @contextmanager
    def phone(self, width: int, height: int) -> Iterator[None]:
        """Pages within are laid out for a screen of so many pixels, narrower than a window gets."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._tools("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self._tools("Emulation.clearDeviceMetricsOverride", {})

    def log(self) -> list[str]:
        """What the browser's console got since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def quit(self) -> None:
        """Close the browser."""
        with suppress(OSError, AssertionError):
            self._ask("DELETE", "")

    @contextmanager
    def motion(self) -> Iterator[None]:
        """Pages within see a person who did not ask for less motion; all others one who did."""
        wish = {"name": "prefers-reduced-motion", "value": "no-preference"}
        self._tools("Emulation.setEmulatedMedia", {"features": [wish]})
        try:
            yield
        finally:
            self._tools("Emulation.setEmulatedMedia", {"features": []})

    def _tools(self, command: str, parameters: Mapping[str, object]) -> None:
        """A command of Chromium's developer tools."""
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _act(self, *sources: dict[str, Any]) -> None:
        self._ask("POST", "/actions", {"actions": sources})
        self._ask("DELETE", "/actions")

    def _ask(self, method: str, path: str, document: object = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            self._base + path, body, {"Content-Type": "application/json"}, method=method
        )
        try:
            with _OPENER.open(request, timeout=SECONDS_MOST + 30) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise AssertionError(f"{method} {path}: {said[:2000]}") from None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


@contextmanager
def browser(width: int, height: int) -> Iterator[Browser]:
    """A window of so many pixels, with a driver and a profile of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "driver.log"
        command = ["chromedriver", f"--port={port}", f"--log-path={log}"]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_until_ready(driver, port)
            window = Browser(port, width, height, str(Path(folder) / "profile"))
            try:
                yield window
            finally:
                window.quit()
        finally:
            driver.terminate()
            driver.wait(30)


def _wait_until_ready(driver: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + SECONDS_MOST
    while True:
        assert driver.poll() is None, f"chromedriver ended with {driver.returncode}"
        try:
            with _OPENER.open(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
                if json.loads(answer.read())["value"]["ready"]:
                    return
        except OSError:
            pass
        assert time.monotonic() < end, "chromedriver does not answer"
        time.sleep(0.05)
