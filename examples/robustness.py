"""Measure how mixout changes accuracy under a shift: finetune on MNIST, test on MNIST and on USPS.

    python examples/robustness.py DATA OUT [--seeds 10] [--examples 500]

Two small networks are pretrained on the digits 0 to 4 of MNIST, distorted at random and rotated by
quarter turns: they predict the digit and the turn. Then they are finetuned on a few images of all
ten digits, which are not distorted. `docs/robustness.md` has the result. DATA is that of
`digits.py`.

The script writes into the folder OUT: `runs.csv` with one row per finetuned network,
`summary.json` with all comparisons, and the picture `robustness.png`.

Seed s has its own pretrained networks, its own images for finetuning and its own order of batches.
All arms share them. The statistics are those of a study: `docs/statistics.md`.
"""

import argparse
import copy
import csv
import json
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from digits import Digits, read_mnist, read_usps
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from mixout_export import MixoutConfig, collapse_mixout, inject_mixout
from mixout_export.study.statistics import ALPHA, bootstrap, holm, sign_flip_test

PROBABILITIES = (0.0, 0.3, 0.6, 0.8, 0.9)
#: Network → the granularities that are compared.
GRANULARITIES = {"convolutional": ("filter", "neuron"), "vit": ("neuron", "element")}
MEASURES = {"mnist": "MNIST, as in training", "usps": "USPS, shifted"}
COLORS = {"filter": "tab:orange", "neuron": "tab:blue", "element": "tab:green"}
LR, BATCH = 2e-3, 25
#: Digits that the networks are pretrained on, and the quarter turns of each.
KNOWN, TURNS = 5, 4


@dataclass(frozen=True)
class Run:
    """One finetuned network.

    Attributes:
        network: "convolutional" or "vit".
        granularity: What shares a mask bit; "none" at p = 0.
        p: Mix probability in [0, 1).
        seed: Number of the seed.
        mnist: Accuracy on MNIST's test images.
        usps: Accuracy on USPS's test images.
    """

    network: str
    granularity: str
    p: float
    seed: int
    mnist: float
    usps: float


class Classifier(nn.Module):
    """A body that is pretrained, and a new head."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (count, 784) in [0, 1], to scores, (count, classes)."""
        features = self.body(images.view(-1, 1, 28, 28))
        return self.head(getattr(features, "pooler_output", features))


def make_network(name: str) -> Classifier:
    """Return an untrained network for the digits and turns of the pretraining."""
    if name == "vit":
        config = ViTConfig(
            image_size=28, patch_size=7, num_channels=1, hidden_size=48, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=96, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, initializer_range=0.1,
        )  # fmt: skip
        return Classifier(ViTModel(config), 48, KNOWN * TURNS)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 2), (16, 32, 1), (32, 64, 1)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stride == 1 else []
    return Classifier(nn.Sequential(*layers, nn.Flatten()), 64 * 9, KNOWN * TURNS)


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear, move, blur and fade images, (count, 784), each at random."""
    count = len(images)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, size, shear = between(-0.35, 0.35), between(0.8, 1.4), between(-0.3, 0.3)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = size * angle.cos(), size * (shear - angle.sin())
    matrix[:, 1, 0], matrix[:, 1, 1] = size * angle.sin(), size * angle.cos()
    matrix[:, 0, 2], matrix[:, 1, 2] = between(-0.2, 0.2), between(-0.2, 0.2)
    grid = F.affine_grid(matrix, [count, 1, 28, 28], align_corners=False)
    moved = F.grid_sample(images.view(-1, 1, 28, 28), grid, align_corners=False)
    blurred = F.avg_pool2d(moved, 3, stride=1, padding=1)
    share, contrast = between(0.0, 1.0).view(-1, 1, 1, 1), between(0.4, 1.0).view(-1, 1, 1, 1)
    return ((share * moved + (1 - share) * blurred) * contrast).flatten(1)


def pretrain(network: Classifier, digits: Digits, *, steps: int, seed: int) -> None:
    """Train a network in place to predict digit and turn of distorted images, 100 in each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * LR, steps)
    network.train()
    for _ in range(steps):
        batch = torch.randint(len(digits.labels), (100,), generator=generator)
        turns = torch.arange(len(batch)) % TURNS
        shown = distort(digits.images[batch], generator).view(-1, 28, 28)
        turned = torch.stack([i.rot90(int(n)) for i, n in zip(shown, turns, strict=True)])
        optimizer.zero_grad()
        labels = digits.labels[batch] * TURNS + turns
        F.cross_entropy(network(turned.flatten(1)), labels).backward()
        optimizer.step()
        schedule.step()


def finetune(network: Classifier, digits: Digits, *, epochs: int, seed: int) -> None:
    """Train a network in place on labeled digits.

    The statistics of batch normalization stay those of the pretraining, as is usual when networks
    are compared under a shift. Otherwise they would be those of the noisy mixed layers.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)
    steps = epochs * math.ceil(len(digits.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """Return the share of images that the network labels correctly."""
    parts = zip(digits.images.split(1000), digits.labels.split(1000), strict=True)
    right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in parts)
    return right / len(digits.labels)


def run_seed(task: tuple[str, int], options: argparse.Namespace) -> list[Run]:
    """Pretrain a network, then finetune it once for each granularity and each p."""
    name, seed = task
    torch.set_num_threads(1)
    mnist, usps = options.data / "mnist", options.data / "usps" / "usps.npz"
    tests = {"mnist": read_mnist(mnist, "t10k"), "usps": read_usps(usps, "test")}
    digits = read_mnist(mnist, "train")
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    few, others = order[: options.examples], order[options.examples :]
    known = others[digits.labels[others] < KNOWN]
    torch.manual_seed(seed)
    pretrained = make_network(name)
    before = Digits(digits.images[known], digits.labels[known])
    pretrain(pretrained, before, steps=options.pretrain_steps, seed=seed)
    pretrained.head = nn.Linear(pretrained.head.in_features, 10)
    train = Digits(digits.images[few], digits.labels[few])
    arms = [("none", 0.0)]
    arms += [(g, p) for g in GRANULARITIES[name] for p in PROBABILITIES if p > 0]
    runs = []
    for granularity, p in arms:
        network = copy.deepcopy(pretrained)
        if p > 0:
            targets = "all-conv" if name == "convolutional" else "all-linear"
            config = MixoutConfig(p, granularity, target_modules=targets, exclude_modules="head")
            inject_mixout(network, config)
        finetune(network, train, epochs=options.epochs, seed=seed)
        if p > 0:
            collapse_mixout(network)
        found = {name: accuracy(network, test) for name, test in tests.items()}
        runs.append(Run(name, granularity, p, seed, **found))
    return runs


def curve(runs: Sequence[Run], network: str, granularity: str, measure: str) -> np.ndarray:
    """Return a measure of an arm's runs for each p, shape (seeds, probabilities)."""
    of = {
        (run.seed, run.p): getattr(run, measure)
        for run in runs
        if run.network == network and run.granularity in ("none", granularity)
    }
    seeds = sorted({seed for seed, _ in of})
    return np.array([[of[seed, p] for p in PROBABILITIES] for seed in seeds])


def compare(runs: Sequence[Run]) -> list[dict]:
    """Compare each arm with p = 0 on the same seeds.

    The p-values of one network and one measure are corrected together (Holm).
    """
    found: list[dict] = []
    for network, granularities in GRANULARITIES.items():
        for measure in MEASURES:
            rows = []
            for granularity in granularities:
                values = curve(runs, network, granularity, measure)
                for at, p in enumerate(PROBABILITIES[1:], start=1):
                    gains = values[:, at] - values[:, 0]
                    rows.append(
                        {
                            "network": network, "measure": measure, "granularity": granularity,
                            "p": p, "accuracy": float(values[:, at].mean()),
                            "plain": float(values[:, 0].mean()),
                            "gain": asdict(bootstrap(np.mean, gains)),
                            "p_value": sign_flip_test(gains),
                        }
                    )  # fmt: skip
            corrected = holm([row["p_value"] for row in rows])
            found += [{**row, "corrected": c} for row, c in zip(rows, corrected, strict=True)]
    return found


def verdict(row: dict) -> str:
    """Return "higher", "lower" or "undecided": the corrected p-value decides."""
    if row["corrected"] > ALPHA:
        return "undecided"
    return "higher" if row["gain"]["value"] > 0 else "lower"


def draw(runs: Sequence[Run], file: Path) -> None:
    """Draw accuracy against p: the mean of the seeds, and a band of one standard deviation."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    for row, (network, granularities) in zip(
        figure.subplots(2, len(MEASURES)), GRANULARITIES.items(), strict=True
    ):
        for axes, (measure, title) in zip(row, MEASURES.items(), strict=True):
            for granularity in granularities:
                values = curve(runs, network, granularity, measure)
                mean, spread = values.mean(0), values.std(0, ddof=1)
                color = COLORS[granularity]
                axes.plot(PROBABILITIES, mean, "o-", ms=4, color=color, label=granularity)
                axes.fill_between(
                    PROBABILITIES, mean - spread, mean + spread, color=color, alpha=0.2
                )
            axes.set(title=f"{network}, {title}", xlabel="p", ylabel="accuracy")
            axes.legend()
    figure.savefig(file, dpi=110)


def table(rows: Sequence[dict]) -> str:
    """Return all comparisons as Markdown."""
    head = "| network | test | granularity | p | accuracy | gain over p = 0 | corrected p | |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        gain = row["gain"]
        known = gain["low"] is not None
        interval = " [{low:+.4f}, {high:+.4f}]".format(**gain) if known else ""
        lines.append(
            f"| {row['network']} | {row['measure']} | {row['granularity']} | {row['p']} | "
            f"{row['accuracy']:.4f} | {gain['value']:+.4f}{interval} | {row['corrected']:.3f} | "
            f"{verdict(row)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all seeds, write the runs and the picture, and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--examples", type=int, default=500, help="images for finetuning")
    parser.add_argument("--epochs", type=int, default=10, help="passes over these images")
    parser.add_argument("--pretrain-steps", type=int, default=600, help="with 100 images each")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    for part in ("mnist", "usps/usps.npz"):
        if not (options.data / part).exists():
            parser.error(f"{options.data} has no {part}; see the first lines of digits.py")
    if options.seeds < 2:
        parser.error(f"--seeds: got {options.seeds}, expected at least 2")
    options.out.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    tasks = [(name, seed) for seed in range(1, options.seeds + 1) for name in GRANULARITIES]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        runs = [run for some in pool.map(partial(run_seed, options=options), tasks) for run in some]
    rows = compare(runs)
    with (options.out / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Run)])
        writer.writerows(astuple(run) for run in runs)
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "out")}
    summary = {"settings": settings, "torch": torch.__version__, "comparisons": rows}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(runs, options.out / "robustness.png")
    print(table(rows))
    print(f"\n{len(runs)} rows in {perf_counter() - started:.0f} s: {options.out / 'runs.csv'}")


if __name__ == "__main__":
    main()
