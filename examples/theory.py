"""Measure what mixout adds to a loss on average, and compare it with the closed form.

    python examples/theory.py OUT [--draws 1000]

The script draws the pictures of docs/theory.md into the folder OUT and prints the numbers.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mixout_export import mixconnect

PROBABILITIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
COLORS = {"neuron": "tab:blue", "element": "tab:orange"}
MARKERS = {"neuron": "o", "element": "s"}
DISTRIBUTIONS = ("Bernoulli", "Gaussian", "uniform")
#: A loss that is not convex, with minima at -1 and 1.
DOUBLE_WELL: Callable[[Tensor], Tensor] = lambda t: (t.square() - 1).square() / 4  # noqa: E731


@dataclass(frozen=True)
class Quadratic:
    """The loss L(θ) = ½ (θ - a)ᵀ H (θ - a) of a weight θ of shape (out, in).

    Attributes:
        hessian: H, shape (out, in, out, in).
        minimum: a, shape (out, in).
    """

    hessian: Tensor
    minimum: Tensor

    def __call__(self, weights: Tensor) -> Tensor:
        """Map weights of shape (..., out, in) to losses of shape (...)."""
        away = weights - self.minimum
        return 0.5 * torch.einsum("...oi,oipj,...pj->...", away, self.hessian, away)

    def convexity(self) -> float:
        """Return the smallest eigenvalue of H, the strong-convexity constant of the loss."""
        count = self.minimum.numel()
        return float(torch.linalg.eigvalsh(self.hessian.reshape(count, count))[0])

    def excess(self, delta: Tensor, ratio: float, granularity: str) -> float:
        """Return E[L(Φ)] - L(w) in closed form, for δ = w - u and ratio = σ²/μ²."""
        if granularity == "neuron":  # Σ over columns c of δ_cᵀ H_cc δ_c
            terms = torch.einsum("oc,ocpc,pc->", delta, self.hessian, delta)
        else:  # Σ over weights i of H_ii δ_i²
            terms = torch.einsum("oi,oioi,oi->", delta, self.hessian, delta)
        return 0.5 * ratio * float(terms)


def example(rows: int = 3, columns: int = 4) -> tuple[Quadratic, Tensor, Tensor]:
    """Return a quadratic loss with a random Hessian, a weight w and an anchor u.

    In this Hessian, the weights of an input neuron act together more than other weights do. So
    neuron masks and element masks do not add the same.
    """
    random = torch.Generator().manual_seed(0)
    count = rows * columns
    root = torch.randn(count, count, generator=random, dtype=torch.float64)
    within = torch.ones(rows, rows).kron(torch.eye(columns))
    hessian = root @ root.T / count + 0.5 * within + 0.3 * torch.eye(count)
    u, moved, away = torch.randn(3, rows, columns, generator=random, dtype=torch.float64)
    w = u + 0.6 + 0.4 * moved
    return Quadratic(hessian.reshape(rows, columns, rows, columns), w - 0.3 * away), w, u


def draw(distribution: str, ratio: float, shape: tuple[int, ...]) -> tuple[Tensor, float]:
    """Draw a mask whose distribution has σ²/μ² = ratio; return it with its mean μ."""
    if distribution == "Bernoulli":
        mean = 1 / (1 + ratio)
        return (torch.rand(shape) < mean).double(), mean
    if distribution == "Gaussian":
        return 1 + ratio**0.5 * torch.randn(shape).double(), 1.0
    half = (3 * ratio) ** 0.5  # half the width of a uniform distribution with this variance
    return 2 + 2 * half * (2 * torch.rand(shape).double() - 1), 2.0


def measure(
    loss: Callable[[Tensor], Tensor],
    w: Tensor,
    u: Tensor,
    ratio: float,
    granularity: str,
    *,
    distribution: str = "Bernoulli",
    draws: int = 1000,
) -> tuple[float, float]:
    """Return the mean of L(Φ) - L(w) over random masks, and its standard error."""
    rows, columns = w.shape
    shape = (draws, 1, columns) if granularity == "neuron" else (draws, rows, columns)
    mask, mean = draw(distribution, ratio, shape)
    mixed = mixconnect(w.expand(draws, -1, -1), u.expand(draws, -1, -1), mask, mean)
    excess = loss(mixed) - loss(w)
    return float(excess.mean()), float(excess.std()) / draws**0.5


def ratio_of(p: float) -> float:
    """Return σ²/μ² of a Bernoulli(1 - p) mask, p/(1 - p)."""
    return p / (1 - p)


def show_points(
    axes: Axes, at: list[float], points: list[tuple[float, float]], marker: str = "o", **style: str
) -> None:
    """Draw measured means with bars of two standard errors."""
    means, errors = zip(*points, strict=True)
    bars = [2 * error for error in errors]
    hollow = {"mfc": "none", "ms": 7} if marker == "s" else {"ms": 4}
    axes.errorbar(at, means, yerr=bars, fmt=marker, capsize=3, **hollow, **style)


def show_excess(axes: Axes, title: str, loss: Quadratic, w: Tensor, u: Tensor, draws: int) -> None:
    """Draw and print the excess of a quadratic loss against p, with the bound."""
    delta, convexity = w - u, loss.convexity()
    fine = [i / 200 for i in range(181)]
    print(f"{title}\n  p     masks    closed form  measured            bound")
    bound = [0.5 * convexity * ratio_of(p) * float(delta.square().sum()) for p in fine]
    for granularity, color in COLORS.items():
        exact = [loss.excess(delta, ratio_of(p), granularity) for p in fine]
        axes.plot(fine, exact, color=color, label=f"{granularity} masks, closed form")
        points = [measure(loss, w, u, ratio_of(p), granularity, draws=draws) for p in PROBABILITIES]
        style = {"marker": MARKERS[granularity], "color": color}
        show_points(axes, PROBABILITIES, points, **style, label=f"{granularity} masks, measured")
        for p, (mean, error) in zip(PROBABILITIES, points, strict=True):
            at = fine.index(p)
            print(
                f"  {p:.1f}   {granularity:<7}  {exact[at]:<11.4f}  "
                f"{f'{mean:.4f} ± {2 * error:.4f}':<18}  {bound[at]:.4f}"
            )
    axes.plot(fine, bound, "k--", label="strong-convexity bound")
    axes.set(title=title, xlabel="p", ylabel="E[L(Φ)] − L(w)", yscale="log", xlim=(0, 0.93))


def draw_excess(draws: int) -> Figure:
    """Draw the excess for a random Hessian, and for H = m·I, where the bound is tight."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss, w, u = example()
    show_excess(left, "Random Hessian", loss, w, u, draws)
    eye = torch.eye(w.numel()).double().reshape(*w.shape, *w.shape)
    show_excess(right, "Hessian m·I, m = 0.7", Quadratic(0.7 * eye, loss.minimum), w, u, draws)
    left.legend(fontsize="small")
    return figure


def draw_distributions(draws: int) -> Figure:
    """Draw the excess against σ²/μ² for masks of several distributions."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    loss, w, u = example()
    ratios = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    axes.plot(ratios, [loss.excess(w - u, r, "neuron") for r in ratios], "k", label="closed form")
    print("Mask distributions, neuron masks\n  σ²/μ²  distribution  closed form  measured")
    for shift, distribution in zip((-0.02, 0, 0.02), DISTRIBUTIONS, strict=True):
        points = [
            measure(loss, w, u, r, "neuron", distribution=distribution, draws=draws) for r in ratios
        ]
        show_points(axes, [r + shift for r in ratios], points, label=distribution)
        for ratio, (mean, error) in zip(ratios, points, strict=True):
            exact = loss.excess(w - u, ratio, "neuron")
            print(f"  {ratio:<5}  {distribution:<12}  {exact:<11.4f}  {mean:.4f} ± {2 * error:.4f}")
    axes.set(xlabel="σ²/μ² of the mask", ylabel="E[L(Φ)] − L(w)")
    axes.legend(fontsize="small")
    return figure


def double_well_excess(w: float, u: float, p: float) -> float:
    """Return E[L(Φ)] - L(w) of the double well, as the sum over both values of the mask."""
    values = torch.tensor([u, u + (w - u) / (1 - p)]).double()
    weights = torch.tensor([p, 1 - p]).double()
    return float(weights @ DOUBLE_WELL(values) - DOUBLE_WELL(torch.tensor(w).double()))


def draw_nonconvex(draws: int) -> Figure:
    """Draw the double well, and the excess between its wells, which is negative for small p."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    w, u, p = 0.0, -1.0, 0.4
    line = torch.linspace(-1.6, 1.6, 200)
    left.plot(line, DOUBLE_WELL(line), "k", label="L(θ) = (θ² − 1)²/4")
    for name, value, color in (
        ("u, and Φ if the mask is 0", u, "tab:green"),
        ("w", w, "tab:red"),
        (f"Φ if the mask is 1, p = {p}", u + (w - u) / (1 - p), "tab:blue"),
    ):
        left.plot(value, DOUBLE_WELL(torch.tensor(value)), "o", color=color, label=name)
    left.set(xlabel="θ", ylabel="L(θ)")
    fine = [i / 200 for i in range(141)]
    right.axhline(0, color="gray", linewidth=0.8)
    right.plot(fine, [double_well_excess(w, u, p) for p in fine], color="tab:blue", label="exact")
    bound = [-0.5 * ratio_of(p) * (w - u) ** 2 for p in fine]
    right.plot(fine, bound, "k--", label="bound for m = −1")
    at = [p for p in PROBABILITIES if p <= 0.7]
    pair = (torch.tensor([[w]]).double(), torch.tensor([[u]]).double())
    print("Double well, w = 0, u = -1\n  p     exact    measured")

    def loss(weights: Tensor) -> Tensor:
        return DOUBLE_WELL(weights).sum((-2, -1))

    points = [measure(loss, *pair, ratio_of(p), "neuron", draws=draws) for p in at]
    show_points(right, at, points, color="tab:blue", label="measured")
    for p, (mean, error) in zip(at, points, strict=True):
        print(f"  {p:.1f}  {double_well_excess(w, u, p):8.4f}  {mean:.4f} ± {2 * error:.4f}")
    right.set(xlabel="p", ylabel="E[L(Φ)] − L(w)", ylim=(-0.5, 0.8))
    for axes in (left, right):
        axes.legend(fontsize="small", loc="upper center")
    return figure


def main() -> None:
    """Draw the pictures and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=1000, help="masks for each measured point")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, drawing in (
        ("excess", draw_excess),
        ("distributions", draw_distributions),
        ("nonconvex", draw_nonconvex),
    ):
        path = options.out / f"theory-{name}.png"
        drawing(options.draws).savefig(path, dpi=110)
        print(f"wrote {path}\n")


if __name__ == "__main__":
    main()
