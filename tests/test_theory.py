"""`examples/theory.py`: its closed forms against sums over all masks, and its page."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mixout_export import mixconnect

ROOT = Path(__file__).parents[1]
GRANULARITIES = ("neuron", "element")
#: A mask distribution with three values: value → probability.
THREE_VALUES = {0.0: 0.5, 0.5: 0.2, 2.0: 0.3}


def load_example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    return load_example("theory")


def all_masks(values: dict[float, float], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return every mask of a shape, and the probability of each."""
    bits = torch.Size(shape).numel()
    picks = list(itertools.product(values, repeat=bits))
    masks = torch.tensor(picks, dtype=torch.float64).reshape(-1, *shape)
    chances = torch.tensor([[values[v] for v in pick] for pick in picks], dtype=torch.float64)
    return masks, chances.prod(1)


def exact_excess(loss, w: Tensor, u: Tensor, values: dict[float, float], granularity: str) -> float:
    """Return E[L(Φ)] - L(w) as a sum over all masks."""
    mean = sum(value * chance for value, chance in values.items())
    masks, chances = all_masks(values, (1, w.shape[1]) if granularity == "neuron" else w.shape)
    count = len(masks)
    mixed = mixconnect(w.expand(count, *w.shape), u.expand(count, *u.shape), masks, mean)
    return float(chances @ loss(mixed) - loss(w))


def ratio(values: dict[float, float]) -> float:
    mean = sum(value * chance for value, chance in values.items())
    square = sum(value**2 * chance for value, chance in values.items())
    return square / mean**2 - 1


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "values", [{0.0: 0.3, 1.0: 0.7}, {0.0: 0.8, 1.0: 0.2}, THREE_VALUES, {0.4: 1.0}], ids=str
)
def test_the_closed_form_is_the_sum_over_all_masks(
    theory: ModuleType, granularity: str, values: dict[float, float]
) -> None:
    loss, w, u = theory.example(2, 3)
    found = exact_excess(loss, w, u, values, granularity)
    assert found == pytest.approx(loss.excess(w - u, ratio(values), granularity), abs=1e-12)


def test_the_ratio_of_a_bernoulli_mask(theory: ModuleType) -> None:
    assert theory.ratio_of(0.7) == pytest.approx(ratio({0.0: 0.7, 1.0: 0.3}), rel=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_bound_holds_and_is_tight_for_equal_curvature(
    theory: ModuleType, granularity: str
) -> None:
    loss, w, u = theory.example()
    bound = 0.5 * loss.convexity() * theory.ratio_of(0.7) * float((w - u).square().sum())
    assert loss.excess(w - u, theory.ratio_of(0.7), granularity) > bound > 0
    eye = torch.eye(12, dtype=torch.float64).reshape(3, 4, 3, 4)
    loss = theory.Quadratic(0.7 * eye, loss.minimum)
    bound = 0.5 * 0.7 * theory.ratio_of(0.7) * float((w - u).square().sum())
    assert loss.convexity() == pytest.approx(0.7)
    assert loss.excess(w - u, theory.ratio_of(0.7), granularity) == pytest.approx(bound)


def test_for_a_linear_layer_with_squared_error_both_granularities_add_the_same(
    theory: ModuleType,
) -> None:
    """The penalty of a weight is then the mean square of its input, as the page says."""
    _, w, u = theory.example()
    x = torch.randn(50, 4, dtype=torch.float64)
    hessian = torch.einsum("op,ni,nj->oipj", torch.eye(3).double(), x, x) / 50
    loss = theory.Quadratic(hessian, u)
    wanted = 0.5 * 2.0 * float((x.square().mean(0) * (w - u).square()).sum())
    for granularity in GRANULARITIES:
        assert loss.excess(w - u, 2.0, granularity) == pytest.approx(wanted)


def test_independent_weights_go_a_share_of_the_way(theory: ModuleType) -> None:
    """For a diagonal Hessian, the mean loss is smallest at u + (1 - p) (a - u)."""
    _, a, u = theory.example()
    curvatures = torch.rand(12, dtype=torch.float64) + 0.1
    loss = theory.Quadratic(curvatures.diag().reshape(3, 4, 3, 4), a)
    best = (u + 0.3 * (a - u)).requires_grad_()
    masks, chances = all_masks({0.0: 0.7, 1.0: 0.3}, (1, 4))
    mixed = mixconnect(best.expand(16, 3, 4), u.expand(16, 3, 4), masks, 0.3)
    (chances @ loss(mixed)).backward()
    assert best.grad.abs().max() < 1e-12


def test_moves_that_help_only_together_are_shortened_most(theory: ModuleType) -> None:
    """Two weights at p = 0.5 whose moves (1, -1) help together, while each alone hurts."""
    hessian = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    u = torch.zeros(1, 2, dtype=torch.float64)
    masks, chances = all_masks({0.0: 0.5, 1.0: 0.5}, (1, 2))
    shares = {}
    for move in ((1.0, -1.0), (1.0, 1.0)):
        a = torch.tensor([move], dtype=torch.float64)
        loss = theory.Quadratic(hessian, a)
        alone = [float(loss(a * torch.tensor(kept))) < float(loss(u)) for kept in ((1, 0), (0, 1))]
        curvature = 1.0 + 0.8 * move[1]
        shares[all(alone)] = curvature / (curvature + 1.0)  # of the way, with σ²/μ² = 1
        best = (shares[all(alone)] * a).requires_grad_()
        (chances @ loss(mixconnect(best.expand(4, 1, 2), u.expand(4, 1, 2), masks, 0.5))).backward()
        assert best.grad.abs().max() < 1e-12
    assert shares[False] < 0.5 < shares[True]


@pytest.mark.parametrize("distribution", ["Bernoulli", "Gaussian", "uniform"])
def test_masks_have_the_mean_and_variance_that_they_claim(
    theory: ModuleType, distribution: str
) -> None:
    torch.manual_seed(0)
    mask, mean = theory.draw(distribution, 0.75, (200_000,))
    assert mask.mean().item() == pytest.approx(mean, rel=0.01)
    assert (mask.var() / mean**2).item() == pytest.approx(0.75, rel=0.03)


@pytest.mark.parametrize("distribution", ["Bernoulli", "Gaussian", "uniform"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_measured_is_the_closed_form(
    theory: ModuleType, distribution: str, granularity: str
) -> None:
    torch.manual_seed(0)
    loss, w, u = theory.example()
    options = {"distribution": distribution, "draws": 20_000}
    mean, error = theory.measure(loss, w, u, 1.5, granularity, **options)
    wanted = loss.excess(w - u, 1.5, granularity)
    assert abs(mean - wanted) < 5 * error < 0.1 * wanted


def test_a_loss_that_is_not_convex(theory: ModuleType) -> None:
    """At the top between two minima, mixing lowers the loss, and no further than m = -1 allows."""
    assert theory.double_well_excess(0.0, -1.0, 0.5) == pytest.approx(-0.25)
    for p in (0.1, 0.3, 0.5, 0.6):
        excess = theory.double_well_excess(0.0, -1.0, p)
        assert -0.5 * theory.ratio_of(p) <= excess < 0
    assert theory.double_well_excess(0.0, -1.0, 0.7) > 0


def test_the_script_draws_its_pictures_and_the_page_shows_its_numbers(
    theory: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["theory.py", str(tmp_path / "out"), "--draws", "20"])
    theory.main()
    pictures = {path.name for path in (tmp_path / "out").iterdir()}
    assert pictures == {f"theory-{n}.png" for n in ("excess", "distributions", "nonconvex")}
    assert pictures <= {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = printed[: printed.index(["Hessian", "m·I,", "m", "=", "0.7"])]
    page = (ROOT / "docs" / "theory.md").read_text("utf-8")
    rows = re.findall(r"^\| (0\.\d) \| (neuron|element) \| (\S+) \| .+ \| (\S+) \|$", page, re.M)
    assert len(rows) == 6
    for p, granularity, exact, bound in rows:
        assert [p, granularity, exact, bound] in [[*line[:3], line[-1]] for line in first]
