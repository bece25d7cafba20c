"""Headless Chromium, driven through chromedriver's own HTTP interface (W3C WebDriver)."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds to wait for an answer; starting on a busy machine takes a while.
PATIENCE = 120

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
)


def is_installed() -> bool:
    return None not in (_chromium(), shutil.which("chromedriver"))


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def _ask(url: str, method: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=PATIENCE) as answer:
        return json.load(answer)["value"]


class Browser:
    """One tab."""

    def __init__(self, session: str) -> None:
        self._session = session

    def _post(self, path: str, **body: Any) -> Any:
        return _ask(f"{self._session}/{path}", "POST", body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._post("goog/cdp/execute", cmd=command, params=parameters)

    def leave_new_tab_page(self) -> None:
        """Go to an empty page, and forget what the browser's own asked for."""
        self._post("url", url="about:blank")
        self.console()
        self.requests()

    def open(
        self, page: Path | str, *, width: int = 1200, height: int = 900, scheme: str = "light"
    ) -> None:
        """Open a file or an address in a window of a size, for who prefers light or dark."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media="", features=features)
        self._post("url", url=page if isinstance(page, str) else page.resolve().as_uri())

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript is on the page."""
        return self._post("execute/sync", script=f"return {expression}", args=[])

    def picture(self, path: Path) -> None:
        """Save the whole page as a PNG file."""
        size = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = self.devtools("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Return the page as it is printed, a PDF file."""
        return base64.b64decode(self.devtools("Page.printToPDF")["data"])

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what was logged since the last call."""
        return _ask(f"{self._session}/se/log", "POST", {"type": kind})

    def console(self) -> list[str]:
        """Return what the console said."""
        return [entry["message"] for entry in self.log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for, whether or not they were let through."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def _driver() -> Iterator[str]:
    command = [shutil.which("chromedriver") or "chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ports = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
            port = next(found[1] for found in ports if found)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile lies in a folder, which is new."""
    options = {
        "binary": _chromium(),
        "args": [*_FLAGS.split(), f"--user-data-dir={folder / 'profile'}"],
    }
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    with _driver() as address:
        capabilities = {"capabilities": {"alwaysMatch": wanted}}
        started = _ask(f"{address}/session", "POST", capabilities)
        session = f"{address}/session/{started['sessionId']}"
        try:
            tab = Browser(session)
            tab.leave_new_tab_page()
            yield tab
        finally:
            _ask(session, "DELETE")
