"""Repeat the paper's digits experiment (its Figure 2): dropout and mixout for p from 0 to 0.8.

    python examples/digits.py DATA OUT [--restarts 10] [--examples 500]

A fully connected network is pretrained on MNIST and finetuned on USPS. The paper went from EMNIST
digits to MNIST. DATA holds the four idx.gz files of MNIST in `mnist/`, and `usps/usps.npz` with the
arrays x_train, y_train, x_test, y_test (images of 16 × 16 pixels, uint16, 2000 is white).

The script writes into the folder OUT: `runs.csv` with one row per finetuned network,
`summary.json` with the slopes and the verdict, and the pictures `distance.png` and `accuracy.png`.

Restart r has its own pretrained network, its own subset of USPS and its own order of batches. All
methods and all p share them. Each worker process runs whole restarts on one thread, so the result
does not depend on the number of workers. All restarts together need five minutes of CPU time.
"""

import argparse
import copy
import csv
import gzip
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from matplotlib.figure import Figure
from scipy.stats import bootstrap
from torch import Tensor, nn

from mixout_export import MixoutConfig, collapse_mixout, inject_mixout

PROBABILITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
METHODS = {"dropout": "tab:orange", "mixout": "tab:blue"}
SIZES = (784, 300, 100, 10)
LR, BATCH = 1e-3, 100


@dataclass(frozen=True)
class Digits:
    """Images, shape (count, 784) in [0, 1], and their labels, shape (count,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Run:
    """One finetuned network.

    Attributes:
        method: "dropout" or "mixout"; "pretrained" for the network before it is finetuned.
        p: Probability in [0, 1).
        restart: Number of the restart.
        usps: Accuracy on USPS's test images.
        mnist: Accuracy on MNIST's test images, which shows forgetting.
        distance: ‖w_ft - w_pre‖² over the weights of layers 2 and 3, where the methods act.
        distance_all: The same over all parameters.
    """

    method: str
    p: float
    restart: int
    usps: float
    mnist: float
    distance: float
    distance_all: float


def read_idx(file: Path) -> Tensor:
    """Read a gzipped idx file of bytes: dimensions as big-endian numbers, then the values."""
    content = gzip.decompress(file.read_bytes())
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">i4").tolist()
    return torch.from_numpy(np.frombuffer(content[start:], np.uint8).reshape(shape).copy())


def read_mnist(folder: Path, part: str) -> Digits:
    """Read MNIST's "train" or "t10k" images."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return Digits(images.flatten(1) / 255, labels.long())


def read_usps(file: Path, part: str) -> Digits:
    """Read USPS's "train" or "test" images.

    A digit fills the 16 × 16 pixels of a USPS image. In MNIST it fills 20 × 20 of 28 × 28 pixels.
    """
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays[f"x_{part}"].astype(np.float32) / 2000)
        labels = torch.from_numpy(arrays[f"y_{part}"].astype(np.int64))
    enlarged = F.interpolate(images[:, None], size=(20, 20), mode="bilinear")
    return Digits(F.pad(enlarged, (4, 4, 4, 4)).flatten(1), labels)


def make_network(seed: int) -> nn.Sequential:
    """Return an untrained network 784-300-100-10; the dropout before layers 2 and 3 is off."""
    torch.manual_seed(seed)
    first, second, third = (nn.Linear(*sizes) for sizes in pairwise(SIZES))
    return nn.Sequential(
        first, nn.ReLU(), nn.Dropout(0.0), second, nn.ReLU(), nn.Dropout(0.0), third
    )


#: Names of layers 2 and 3 in `make_network`.
REGULARIZED = ("3", "6")


def regularize(network: nn.Sequential, method: str, p: float) -> None:
    """Turn on dropout before layers 2 and 3, or mixout in them."""
    if method == "mixout":
        inject_mixout(network, MixoutConfig(p=p, target_modules=",".join(REGULARIZED)))
    for module in network:
        if isinstance(module, nn.Dropout) and method == "dropout":
            module.p = p


def train(network: nn.Module, digits: Digits, *, epochs: int, seed: int) -> None:
    """Train a network with Adam on batches of 100 images, in place.

    Args:
        network: The network.
        digits: What to train on.
        epochs: Number of passes over the images.
        seed: Sets the order of the images, and the masks of dropout and mixout.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """Return the share of images that the network labels correctly."""
    return float((network(digits.images).argmax(1) == digits.labels).float().mean())


@torch.no_grad()
def distance(network: nn.Module, pretrained: nn.Module, names: Sequence[str]) -> float:
    """Return ‖w - u‖² over the parameters of these names."""
    pairs = [(network.get_parameter(name), pretrained.get_parameter(name)) for name in names]
    return float(sum((w - u).square().sum() for w, u in pairs))


def run_restart(restart: int, options: argparse.Namespace) -> list[Run]:
    """Pretrain a network, then finetune it once for each method and each p."""
    torch.set_num_threads(1)
    mnist, usps = options.data / "mnist", options.data / "usps" / "usps.npz"
    tests = {"usps": read_usps(usps, "test"), "mnist": read_mnist(mnist, "t10k")}
    pretrained = make_network(restart)
    digits = read_mnist(mnist, "train")
    train(pretrained, digits, epochs=options.pretrain_epochs, seed=restart)
    digits = read_usps(usps, "train")
    chosen = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(restart))
    chosen = chosen[: options.examples]
    digits = Digits(digits.images[chosen], digits.labels[chosen])

    def measure(network: nn.Module, method: str, p: float) -> Run:
        return Run(
            method, p, restart,
            **{name: accuracy(network, test) for name, test in tests.items()},
            distance=distance(network, pretrained, [f"{name}.weight" for name in REGULARIZED]),
            distance_all=distance(network, pretrained, [n for n, _ in network.named_parameters()]),
        )  # fmt: skip

    runs = [measure(pretrained, "pretrained", 0.0)]
    for method in METHODS:
        for p in PROBABILITIES:
            if p == 0 and method != "dropout":
                same = next(run for run in runs if run.method == "dropout")
                runs.append(replace(same, method=method))
                continue
            network = copy.deepcopy(pretrained)
            regularize(network, method, p)
            train(network, digits, epochs=options.epochs, seed=restart)
            if method == "mixout":
                collapse_mixout(network)
            runs.append(measure(network, method, p))
    return runs


def curves(runs: Sequence[Run], method: str, measure: str) -> np.ndarray:
    """Return a measure of a method's runs, shape (restarts, probabilities)."""
    values = {(r.restart, r.p): getattr(r, measure) for r in runs if r.method == method}
    restarts = sorted({restart for restart, _ in values})
    return np.array([[values[restart, p] for p in PROBABILITIES] for restart in restarts])


def slopes(runs: Sequence[Run], method: str, measure: str) -> np.ndarray:
    """Return the least-squares slope of a measure in p, for each restart."""
    return np.polyfit(PROBABILITIES, curves(runs, method, measure).T, 1)[0]


def interval(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray] = np.mean
) -> dict[str, float]:
    """Return a statistic of the restarts with its 95 % BCa bootstrap interval."""
    resampled = bootstrap(
        samples, statistic, paired=True, vectorized=True, random_state=np.random.default_rng(0)
    )
    low, high = resampled.confidence_interval
    return {"value": float(statistic(*samples)), "low": float(low), "high": float(high)}


def gain_in_flatness(dropout: np.ndarray, mixout: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return by how much less steep the mean slope with mixout is than with dropout."""
    return np.abs(dropout.mean(axis)) - np.abs(mixout.mean(axis))


def answer(found: dict[str, float], *, positive: bool = True) -> str:
    """Return whether an interval is on the expected side of 0: yes, no or undecided."""
    low, high = (found["low"], found["high"]) if positive else (-found["high"], -found["low"])
    return "yes" if low > 0 else "no" if high < 0 else "undecided"


def judge(runs: Sequence[Run]) -> list[dict]:
    """Return the parts of the paper's observation, each with its evidence and an answer."""
    parts = []
    for measure, where in (
        ("distance", "of layers 2 and 3"),
        ("distance_all", "of all parameters"),
    ):
        for method, verb, positive in (("mixout", "shrinks", False), ("dropout", "grows", True)):
            found = interval([slopes(runs, method, measure)])
            claim = f"‖w_ft − w_pre‖² {where} {verb} as p grows, with {method}"
            parts.append({"claim": claim, **found, "answer": answer(found, positive=positive)})
    for measure, name in (("usps", "USPS"), ("mnist", "MNIST")):
        pair = [slopes(runs, method, measure) for method in METHODS]
        found = interval(pair, gain_in_flatness)
        claim = f"accuracy on {name} is flatter in p with mixout than with dropout"
        by_method = {m: interval([s]) for m, s in zip(METHODS, pair, strict=True)}
        parts.append({"claim": claim, **found, "answer": answer(found), "slopes": by_method})
    return parts


def draw(
    runs: Sequence[Run], panels: dict[str, str], label: str, *, before: bool, file: Path
) -> None:
    """Draw measures against p: the mean of the restarts, and a band of one standard deviation."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for method, color in METHODS.items():
            values = curves(runs, method, measure)
            mean, spread = values.mean(0), values.std(0, ddof=1)
            axes.plot(PROBABILITIES, mean, "o-", ms=4, color=color, label=method)
            axes.fill_between(PROBABILITIES, mean - spread, mean + spread, color=color, alpha=0.25)
        if before:
            start = np.mean([getattr(r, measure) for r in runs if r.method == "pretrained"])
            axes.axhline(start, color="gray", ls="--", label="before finetuning")
        axes.set(title=title, xlabel="p", ylabel=label)
        axes.legend()
    figure.savefig(file, dpi=110)


def print_table(runs: Sequence[Run]) -> None:
    """Print means and standard deviations over the restarts."""
    print("method   p    accuracy on USPS  on MNIST         distance² layers 2, 3  all parameters")
    for method in METHODS:
        of = {m: curves(runs, method, m) for m in ("usps", "mnist", "distance", "distance_all")}
        for at, p in enumerate(PROBABILITIES):
            cells = {
                m: (values[:, at].mean(), values[:, at].std(ddof=1)) for m, values in of.items()
            }
            accuracies = "   ".join("{:.4f} ± {:.4f}".format(*cells[m]) for m in ("usps", "mnist"))
            distances = "          ".join(
                "{:6.2f} ± {:5.2f}".format(*cells[m]) for m in ("distance", "distance_all")
            )
            print(f"{method:<7}  {p:.1f}  {accuracies}   {distances}")


def main() -> None:
    """Run all restarts, write the runs and pictures, and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--examples", type=int, help="images of USPS for finetuning; default: all")
    parser.add_argument("--epochs", type=int, default=5, help="passes over these images")
    parser.add_argument("--pretrain-epochs", type=int, default=2, help="passes over MNIST")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    for part in ("mnist", "usps/usps.npz"):
        if not (options.data / part).exists():
            parser.error(f"{options.data} has no {part}; see the first lines of this script")
    if options.restarts < 3:
        parser.error(f"--restarts: got {options.restarts}, expected at least 3, for the intervals")
    options.out.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        one = partial(run_restart, options=options)
        runs = [run for of_one in pool.map(one, range(options.restarts)) for run in of_one]
    parts = judge(runs)
    with (options.out / "runs.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([field.name for field in fields(Run)])
        rows.writerows(astuple(run) for run in runs)
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "out")}
    summary = {"settings": settings, "torch": torch.__version__, "verdict": parts}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False))
    draw(
        runs,
        {"distance": "weights of layers 2 and 3", "distance_all": "all parameters"},
        "‖w_ft − w_pre‖²",
        before=False,
        file=options.out / "distance.png",
    )
    draw(
        runs,
        {"usps": "USPS, finetuned on", "mnist": "MNIST, pretrained on"},
        "accuracy on test images",
        before=True,
        file=options.out / "accuracy.png",
    )
    print_table(runs)
    print("\nThe paper's observation (slope in p, or difference of slopes; 95 % interval)")
    for part in parts:
        print("  {answer:<9}  {claim}: {value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**part))
        for method, slope in part.get("slopes", {}).items():
            print(
                f"{'':13}slope with {method}: "
                + "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**slope)
            )
    print(f"\n{len(runs)} rows in {perf_counter() - started:.0f} s: {options.out / 'runs.csv'}")


if __name__ == "__main__":
    main()
