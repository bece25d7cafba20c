"""`examples/robustness.py` on generated images, and its page."""

import csv
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_digits import data  # noqa: F401 (a fixture)
from test_theory import load_example

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results" / "robustness"


@pytest.fixture(scope="module")
def robustness() -> ModuleType:
    load_example("digits")  # which the script imports from its own folder
    return load_example("robustness")


@pytest.fixture(autouse=True)
def _same_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("network", ["convolutional", "vit"])
def test_a_seed_can_be_repeated_and_p_acts(
    robustness: ModuleType,
    data: Path,  # noqa: F811
    network: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(robustness, "PROBABILITIES", (0.0, 0.8))
    options = SimpleNamespace(data=data, examples=60, epochs=2, pretrain_steps=3)
    runs = robustness.run_seed((network, 1), options)
    assert runs == robustness.run_seed((network, 1), options)
    kinds = robustness.GRANULARITIES[network]
    assert [(run.granularity, run.p) for run in runs] == [("none", 0.0), *((k, 0.8) for k in kinds)]
    assert all(0.0 <= run.usps <= 1.0 for run in runs)


def test_finetuning_keeps_the_statistics_and_pretraining_learns_them(
    robustness: ModuleType,
    data: Path,  # noqa: F811
) -> None:
    digits = robustness.read_mnist(data / "mnist", "train")
    known = robustness.Digits(digits.images, digits.labels % robustness.KNOWN)
    network = robustness.make_network("convolutional")
    norm = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    start = norm.running_mean.clone()
    robustness.pretrain(network, known, steps=2, seed=0)
    learned = norm.running_mean.clone()
    assert not torch.equal(start, learned)
    network.head = torch.nn.Linear(network.head.in_features, 10)
    before = network.body[0].weight.clone()
    robustness.finetune(network, digits, epochs=1, seed=0)
    assert torch.equal(norm.running_mean, learned)
    assert not torch.equal(network.body[0].weight, before)


def test_distorted_images_differ_and_stay_in_range(robustness: ModuleType) -> None:
    image = torch.zeros(1, 28, 28)
    image[:, 8:20, 10:18] = 1.0
    shown = robustness.distort(image.flatten(1).expand(20, -1), torch.Generator().manual_seed(0))
    assert shown.shape == (20, 784)
    assert (shown >= 0).all()
    assert (shown <= 1).all()
    assert len({tuple(row.tolist()) for row in shown}) == 20


def made_up(robustness: ModuleType, gain: float) -> list:
    """Return runs in which filter masks with p = 0.8 gain on USPS, and others gain nothing."""
    random = np.random.default_rng(0)
    runs = []
    for network, kinds in robustness.GRANULARITIES.items():
        for seed in range(10):
            arms = [("none", 0.0), *((k, p) for k in kinds for p in robustness.PROBABILITIES[1:])]
            for kind, p in arms:
                usps = 0.8 + random.normal(0, 0.01) + gain * (kind == "filter" and p == 0.8)
                run = robustness.Run(network, kind, p, seed, 0.9 + random.normal(0, 0.01), usps)
                runs.append(run)
    return runs


@pytest.mark.parametrize(("gain", "expected"), [(0.1, "higher"), (-0.1, "lower")])
def test_the_comparison_finds_what_is_there(
    robustness: ModuleType, gain: float, expected: str
) -> None:
    rows = robustness.compare(made_up(robustness, gain))
    found = {(r["measure"], r["granularity"], r["p"]): robustness.verdict(r) for r in rows}
    assert {key for key, answer in found.items() if answer != "undecided"} == {
        ("usps", "filter", 0.8)
    }
    assert found["usps", "filter", 0.8] == expected
    row = next(
        r for r in rows if (r["measure"], r["granularity"], r["p"]) == ("usps", "filter", 0.8)
    )
    assert row["gain"]["low"] < row["gain"]["value"] < row["gain"]["high"]
    assert row["gain"]["value"] == pytest.approx(gain, abs=0.03)


def test_the_page_shows_the_results(robustness: ModuleType) -> None:
    with (RESULTS / "runs.csv").open(newline="") as file:
        runs = [
            robustness.Run(
                row["network"], row["granularity"], float(row["p"]), int(row["seed"]),
                float(row["mnist"]), float(row["usps"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
    rows = robustness.compare(runs)
    assert robustness.table(rows) in (DOCS / "robustness.md").read_text("utf-8")
    assert json.loads((RESULTS / "summary.json").read_text())["comparisons"] == rows
