"""The example's page, in headless Chromium, says what Python says, and asks nobody else."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, is_installed
from processes import ENVIRONMENTS, free_ports, needs, running
from stations import SENTENCES, Stations

pytestmark = [pytest.mark.servers, pytest.mark.real, pytest.mark.browser]

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"

#: Seconds in which the model has to be loaded, or to have answered.
PATIENCE = 120

_TYPE = """(() => {
  const field = document.getElementById("sentence");
  field.value = %s;
  document.getElementById("state").textContent = "…";
  field.dispatchEvent(new Event("input"));
})()"""


@pytest.fixture(scope="module")
def address(stations: Stations, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the example as its page says, with a bundle and a local copy of the library."""
    if not is_installed():
        pytest.skip("chromium and chromedriver are not installed")
    needs(ENVIRONMENTS / "node")
    root = tmp_path_factory.mktemp("page")
    for name in ("index.html", "page.js"):
        shutil.copy(PAGE / name, root)
    (root / "node_modules").symlink_to(ENVIRONMENTS / "node" / "node_modules")
    (root / "models").mkdir()
    (root / "models" / "classifier").symlink_to(stations.bundle("transformers-js"))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port]
    url = f"http://127.0.0.1:{port}/"
    log = tmp_path_factory.mktemp("log") / "http.log"
    with running(command, ready=url, log=log, folder=root):
        yield url


def state(page: Browser, *, after: tuple[str, ...]) -> str:
    """Wait for what the page says after it has said other things."""
    until = time.monotonic() + PATIENCE
    while (said := page.evaluate('document.getElementById("state").textContent')) in after:
        assert time.monotonic() < until, f"the page still says {said!r}: {page.console()}"
        time.sleep(0.1)
    return str(said)


def test_what_is_typed_gets_pythons_label_and_score(
    address: str, stations: Stations, tmp_path: Path
) -> None:
    with browser(tmp_path) as page:
        page.open(address, height=500)
        assert state(page, after=("Loading the model …",)) == "Ready."
        for sentence, answer in zip(SENTENCES, stations.answers(), strict=True):
            page.evaluate(_TYPE % json.dumps(sentence))
            label, score = state(page, after=("…",)).rsplit(", ", 1)
            assert label == answer.label
            assert float(score) == pytest.approx(answer.score, abs=1e-4)
        page.evaluate(_TYPE % json.dumps(SENTENCES[0]))
        state(page, after=("…",))
        page.picture(tmp_path / "page.png")
        errors = [each for each in page.log("browser") if each["level"] == "SEVERE"]
        assert errors == []
        asked = [url for url in page.requests() if not url.startswith(("blob:", "data:"))]
        assert len(asked) > 5
        assert [url for url in asked if not url.startswith(address)] == []
