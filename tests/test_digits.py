"""`examples/digits.py` on generated images, and its page."""

import csv
import gzip
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_theory import load_example

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "digits"
RESULTS = ROOT / "docs" / "results" / "digits" / "runs.csv"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return load_example("digits")


@pytest.fixture(autouse=True)
def _same_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_idx(file: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    file.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tiny sets of images: bright in the rows that tell the label, and noise elsewhere."""
    folder = tmp_path_factory.mktemp("digits")
    random = np.random.default_rng(0)

    def images(count: int, size: int, white: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        pixels = random.integers(0, white // 2, (count, size, size))
        for image, label in zip(pixels, labels, strict=True):
            image[size * label // 10 : size * (label + 1) // 10] = white
        return pixels, labels

    (folder / "mnist").mkdir()
    for part, count in (("train", 200), ("t10k", 50)):
        pixels, labels = images(count, 28, 255)
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    arrays = {}
    for part, count in (("train", 120), ("test", 50)):
        pixels, labels = images(count, 16, 2000)
        arrays |= {f"x_{part}": pixels.astype(np.uint16), f"y_{part}": labels.astype(np.uint8)}
    (folder / "usps").mkdir()
    np.savez(folder / "usps" / "usps.npz", **arrays)
    return folder


def options(data: Path, **changed: object) -> SimpleNamespace:
    chosen = {"data": data, "examples": 60, "epochs": 2, "pretrain_epochs": 2, **changed}
    return SimpleNamespace(**chosen)


def test_images_are_read_as_they_were_written(digits: ModuleType, data: Path) -> None:
    mnist = digits.read_mnist(data / "mnist", "t10k")
    assert mnist.images.shape == (50, 784)
    assert mnist.images.max() == 1
    assert mnist.labels.tolist() == [i % 10 for i in range(50)]
    assert (mnist.images.view(-1, 28, 28)[3, 28 * 3 // 10 : 28 * 4 // 10] == 1).all()


def test_images_of_usps_are_placed_as_those_of_mnist_are(digits: ModuleType, data: Path) -> None:
    usps = digits.read_usps(data / "usps" / "usps.npz", "train")
    images = usps.images.view(-1, 28, 28)
    border = torch.ones(28, 28, dtype=torch.bool)
    border[4:24, 4:24] = False
    assert (images[:, border] == 0).all()
    assert images[:, 4:24, 4:24].amax((1, 2)).min() > 0.9
    brightest = images[0].mean(1).argmax()  # label 0: the first row of 16, the first of the 20
    assert brightest == 4


def test_a_restart_can_be_repeated_and_shares_its_start(digits: ModuleType, data: Path) -> None:
    runs = digits.run_restart(1, options(data))
    assert runs == digits.run_restart(1, options(data))
    of = {(run.method, run.p): run for run in runs}
    assert len(of) == len(runs) == 19
    start = of["pretrained", 0.0]
    assert start.distance == start.distance_all == 0
    assert start.mnist > 0.9
    assert start.usps > 0.2
    plain = of["dropout", 0.0]
    assert plain.distance == of["mixout", 0.0].distance
    assert all(run.distance_all > run.distance > 0 for run in runs if run is not start)
    assert len({run.distance for run in runs}) == 18  # p acts on each run
    assert of["mixout", 0.8].distance < plain.distance


def made_up(digits: ModuleType, slopes: dict[tuple[str, str], float]) -> list:
    """Return runs whose measures are lines in p, with small differences between restarts."""
    random = np.random.default_rng(0)
    return [
        digits.Run(
            method, p, restart,
            **{
                name: 0.5 + slopes.get((method, name), 0.0) * p + random.normal(0, 0.01)
                for name in ("usps", "mnist", "distance", "distance_all")
            },
        )
        for method in digits.METHODS
        for p in digits.PROBABILITIES
        for restart in range(10)
    ]  # fmt: skip


def test_the_verdict_follows_the_intervals(digits: ModuleType) -> None:
    slopes = {
        ("mixout", "distance"): -0.3,
        ("dropout", "distance"): -0.3,
        ("dropout", "distance_all"): 0.3,
        ("dropout", "usps"): -0.2,
        ("mixout", "mnist"): 0.2,
    }
    parts = digits.judge(made_up(digits, slopes))
    answers = [part["answer"] for part in parts]
    # mixout's distance over all parameters has no slope at all
    assert answers == ["yes", "no", "undecided", "yes", "yes", "no"]
    for part, value in zip(parts, (-0.3, -0.3, 0, 0.3, 0.2, -0.2), strict=True):
        assert part["low"] < part["value"] < part["high"]
        assert part["value"] == pytest.approx(value, abs=0.03)


def test_the_whole_script(
    digits: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(digits, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    out = tmp_path / "out"
    given = ["--restarts", "3", "--examples", "60", "--epochs", "1", "--pretrain-epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["digits.py", str(data), str(out), *given])
    digits.main()
    written = {path.name for path in out.iterdir()}
    assert written == {"runs.csv", "summary.json", "accuracy.png", "distance.png"}
    assert len((out / "runs.csv").read_text().splitlines()) == 1 + 3 * 19
    verdict = json.loads((out / "summary.json").read_text())["verdict"]
    printed = capsys.readouterr().out
    for part in verdict:
        assert part["answer"] in ("yes", "no", "undecided")
        assert f"{part['answer']:<9}  {part['claim']}" in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [(["missing", "out"], "has no mnist"), (["DATA", "out", "--restarts", "2"], "at least 3")],
)
def test_what_cannot_run_is_refused_with_a_sentence(
    digits: ModuleType,
    data: Path,
    given: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(data) if value == "DATA" else value for value in given]
    monkeypatch.setattr(sys, "argv", ["digits.py", *given])
    with pytest.raises(SystemExit, match="2"):
        digits.main()
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="needs MNIST and USPS")
def test_a_network_that_has_learned_mnist_reads_usps(digits: ModuleType) -> None:
    """Zero-shot accuracy falls to about 0.4 if the images are not enlarged."""
    train, test = (digits.read_mnist(REAL / "mnist", part) for part in ("train", "t10k"))
    assert (len(train.labels), len(test.labels)) == (60_000, 10_000)
    usps = digits.read_usps(REAL / "usps" / "usps.npz", "test")
    assert usps.images.shape == (2007, 784)
    network = digits.make_network(0)
    part = digits.Digits(train.images[:6000], train.labels[:6000])
    digits.train(network, part, epochs=3, seed=0)
    assert digits.accuracy(network, test) > 0.85
    assert digits.accuracy(network, usps) > 0.6


def test_the_page_shows_what_the_runs_say(digits: ModuleType) -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [
        digits.Run(row["method"], float(row["p"]), int(row["restart"]),
                   *(float(row[name]) for name in ("usps", "mnist", "distance", "distance_all")))
        for row in rows
    ]  # fmt: skip
    page = (ROOT / "docs" / "theory.md").read_text("utf-8")
    for part in digits.judge(runs):
        line = "| {claim} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {answer} |".format(**part)
        assert line in page, line
    table = re.findall(r"^\| (dropout|mixout) \| (0\.\d) \| (.+) \|$", page, re.M)
    assert len(table) == 6
    for method, p, cells in table:
        at = digits.PROBABILITIES.index(float(p))
        shown = cells.split(" | ")
        for name, cell in zip(("usps", "mnist", "distance", "distance_all"), shown, strict=True):
            mean = digits.curves(runs, method, name)[:, at].mean()
            assert cell == (f"{mean:.3f}" if name in ("usps", "mnist") else f"{mean:.1f}"), name
