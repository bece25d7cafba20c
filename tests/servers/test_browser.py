"""The example's page, in headless Chromium, says what Python says, and asks nobody else."""

import base64
import csv
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Browser, browser, is_installed
from processes import ENVIRONMENTS, free_ports, needs, running
from stations import SENTENCES, Stations
from tiny_images import CLASSES, SIZE, picture, save_vision

from mixout_export.bundling.plan import BundleOptions
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.predict import predict_file

pytestmark = [pytest.mark.servers, pytest.mark.browser]

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"

#: Seconds in which the model has to be loaded, or to have answered.
PATIENCE = 120

_DROP = """(() => {
  const bytes = Uint8Array.from(atob(%s), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
  document.getElementById("state").textContent = "…";
  const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
  document.getElementById("image").dispatchEvent(new DragEvent("drop", options));
})()"""

_TYPE = """(() => {
  const field = document.getElementById("sentence");
  field.value = %s;
  document.getElementById("state").textContent = "…";
  field.dispatchEvent(new Event("input"));
})()"""


@contextmanager
def served(bundle: Callable[[], Path], root: Path) -> Iterator[str]:
    """Serve the example as its page says, with a bundle and a local copy of the library."""
    if not is_installed():
        pytest.skip("chromium and chromedriver are not installed")
    needs(ENVIRONMENTS / "node")
    page = root / "page"
    page.mkdir()
    for name in ("index.html", "page.js"):
        shutil.copy(PAGE / name, page)
    (page / "node_modules").symlink_to(ENVIRONMENTS / "node" / "node_modules")
    (page / "models").mkdir()
    (page / "models" / "classifier").symlink_to(bundle())
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port]
    url = f"http://127.0.0.1:{port}/"
    with running(command, ready=url, log=root / "http.log", folder=page):
        yield url


@pytest.fixture(scope="module")
def address(stations: Stations, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(lambda: stations.bundle("transformers-js"), tmp_path_factory.mktemp("root")) as url:
        yield url


def state(page: Browser, *, after: tuple[str, ...]) -> str:
    """Wait for what the page says after it has said other things."""
    until = time.monotonic() + PATIENCE
    while (said := page.evaluate('document.getElementById("state").textContent')) in after:
        assert time.monotonic() < until, f"the page still says {said!r}: {page.console()}"
        time.sleep(0.1)
    return str(said)


def asks_nobody_else(page: Browser, address: str) -> None:
    errors = [each for each in page.log("browser") if each["level"] == "SEVERE"]
    # transformers.js also looks for a tokenizer, which a model of images does not have
    assert [each for each in errors if "tokenizer_config.json" not in each["message"]] == []
    asked = [url for url in page.requests() if not url.startswith(("blob:", "data:"))]
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(address)] == []


@pytest.mark.real
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
        asks_nobody_else(page, address)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_an_image_that_is_dropped_gets_pythons_label_and_score(kind: str, tmp_path: Path) -> None:
    labels = {"id2label": dict(enumerate(CLASSES))}
    model = save_vision(tmp_path / kind, kind, "ForImageClassification", **labels)
    export_onnx(model, tmp_path / "onnx", verify=False)

    def bundle() -> Path:
        options = BundleOptions("transformers-js", "classifier")
        return bundle_onnx(tmp_path / "onnx", tmp_path / "bundle", options).out

    # ConvNeXt's processor crops what it has enlarged, so no image is left as it is.
    size, tolerance = (SIZE, 1e-4) if kind == "vit" else (64, 2e-2)
    images = tmp_path / "images"
    images.mkdir()
    for seed, label in enumerate(CLASSES):
        picture(label, seed=seed, height=size, width=size).save(images / f"{label}.png")
    predict_file(model, images, tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    with served(bundle, tmp_path) as address, browser(tmp_path) as page:
        page.open(address, height=700)
        assert state(page, after=("Loading the model …",)) == "Ready."
        for row in rows:
            data = base64.b64encode((images / row["image"]).read_bytes()).decode()
            page.evaluate(_DROP % json.dumps(data))
            label, score = state(page, after=("…",)).rsplit(", ", 1)
            assert float(score) == pytest.approx(float(row["probability"]), abs=tolerance)
            assert label == row["predicted"]
        page.picture(tmp_path / "page.png")
        asks_nobody_else(page, address)
