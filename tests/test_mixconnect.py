"""The paper's equation 4 for masks from any distribution."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor

from mixout_export import MixoutError, mixconnect, mixout
from mixout_export.functional import draw_mask

Draw = Callable[[tuple[int, ...]], Tensor]

#: Distribution → mean, standard deviation, and a function that draws a mask in float64.
DISTRIBUTIONS: dict[str, tuple[float, float, Draw]] = {
    "bernoulli": (0.3, math.sqrt(0.21), lambda s: torch.bernoulli(torch.full(s, 0.3).double())),
    "gaussian": (0.8, 0.5, lambda s: 0.8 + 0.5 * torch.randn(s, dtype=torch.float64)),
    "uniform": (1.5, 1 / math.sqrt(12), lambda s: 1.0 + torch.rand(s, dtype=torch.float64)),
    "constant": (0.3, 0.0, lambda s: torch.full(s, 0.3, dtype=torch.float64)),
}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=DISTRIBUTIONS)
def distribution(request: pytest.FixtureRequest) -> tuple[float, float, Draw]:
    torch.manual_seed(0)
    return DISTRIBUTIONS[request.param]


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return weight.to(dtype), target.to(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 7), (5, 1), (5, 7)], ids=str)
def test_it_is_the_papers_equation(
    distribution: tuple[float, float, Draw], shape: tuple[int, ...]
) -> None:
    mean, _, draw = distribution
    w, u = pair(5, 7)
    m = draw(shape)
    literal = ((1 - m) * u + m * w - (1 - mean) * u) / mean
    torch.testing.assert_close(mixconnect(w, u, m, mean), literal, rtol=1e-13, atol=1e-13)


def test_weights_of_any_shape_are_mixed(distribution: tuple[float, float, Draw]) -> None:
    mean, _, draw = distribution
    for shape, of_mask in (((), ()), ((3,), (1,)), ((2, 3, 4, 5), (3, 1, 1))):
        w, u = pair(*shape)
        m = draw(of_mask)
        torch.testing.assert_close(mixconnect(w, u, m, mean), u + m / mean * (w - u))


def test_mean_and_variance(distribution: tuple[float, float, Draw]) -> None:
    """E[Φ] = w and Var Φ = σ²/μ² (w - u)², each within 5 standard errors, or rounding."""
    mean, deviation, draw = distribution
    draws = 50_000
    w, u = pair(6)
    mixed = mixconnect(w.expand(draws, 6), u.expand(draws, 6), draw((draws, 6)), mean)
    scale = deviation / mean * (w - u).abs()
    assert ((mixed.mean(0) - w).abs() <= 5 * scale / math.sqrt(draws) + 1e-12).all()
    squares = (mixed - w).square()
    error = squares.std(0) / math.sqrt(draws)
    assert ((squares.mean(0) - scale.square()).abs() <= 5 * error + 1e-12).all()


def test_the_gradient_is_exact(distribution: tuple[float, float, Draw]) -> None:
    mean, _, draw = distribution
    w, u = pair(4, 6)
    m = draw((1, 6))
    w.requires_grad_()
    u.requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: mixconnect(weight, u, m, mean), (w,))
    upstream = torch.randn(4, 6, dtype=torch.float64)
    mixconnect(w, u, m, mean).backward(upstream)
    torch.testing.assert_close(w.grad, m / mean * upstream)
    assert u.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_mixout_is_a_special_case(dtype: torch.dtype, granularity: str) -> None:
    w, u = pair(8, 32, dtype=dtype)
    torch.manual_seed(2)
    mixed = mixout(w, u, 0.7, granularity=granularity)
    torch.manual_seed(2)
    mask = draw_mask(w, 0.7, granularity=granularity)
    assert torch.equal(mixconnect(w, u, mask, 1.0 - 0.7), mixed)


def test_dropout_is_a_special_case() -> None:
    """A neuron mask and a target of zeros drop inputs, as torch's dropout does, for all rows."""
    w, _ = pair(5, 40)
    x = torch.randn(3, 40, dtype=torch.float64)
    scaled = F.dropout(torch.ones(1, 40, dtype=torch.float64), 0.6)  # m / (1 - p)
    mixed = mixconnect(w, torch.zeros_like(w), scaled != 0, 0.4)
    assert 0 < (scaled == 0).sum() < 40
    torch.testing.assert_close(F.linear(x, mixed), F.linear(x * scaled, w))


def test_dropconnect_is_a_special_case() -> None:
    """An element mask and a target of zeros drop weights, as torch's dropout of a weight does."""
    w, _ = pair(5, 40)
    torch.manual_seed(3)
    dropped = F.dropout(w, 0.6)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones_like(w), 0.6) != 0
    torch.testing.assert_close(mixconnect(w, torch.zeros_like(w), mask, 0.4), dropped)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_anchor_is_exact_in_every_dtype(
    dtype: torch.dtype, distribution: tuple[float, float, Draw]
) -> None:
    mean, _, draw = distribution
    w, _ = pair(6, 9, dtype=dtype)
    for of_mask in DTYPES:
        mixed = mixconnect(w, w.clone(), draw((1, 9)).to(of_mask), mean)
        assert mixed.dtype == dtype
        assert torch.equal(mixed, w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_result_is_rounded_in_its_own_dtype_only(
    dtype: torch.dtype, distribution: tuple[float, float, Draw]
) -> None:
    """In bfloat16 the difference w - u and Φ are rounded, but neither m nor 1/μ is."""
    mean, _, draw = distribution
    w, u = pair(50, 60, dtype=dtype)
    m = draw((50, 60)).to(torch.float32)
    away = m.double() / mean * (w.double() - u.double())
    error = mixconnect(w, u, m, mean).double() - (u.double() + away)
    eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-15
    assert (error.abs() <= eps * (u.double().abs() + 2 * away.abs())).all()
    slope = (error * away).sum() / away.square().sum()  # a rounded scale would show here
    assert abs(slope) < 2e-4


def test_a_target_of_another_dtype_is_cast() -> None:
    w, u = pair(3, 4, dtype=torch.float32)
    mask = torch.rand(1, 4)
    mixed = mixconnect(w, u.bfloat16(), mask, 0.5)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, mixconnect(w, u.bfloat16().float(), mask, 0.5))


def test_it_works_under_vmap_with_a_mask_each() -> None:
    w, u = pair(5, 3, 4)
    m = torch.rand(5, 1, 4, dtype=torch.float64)
    mapped = torch.func.vmap(lambda *tensors: mixconnect(*tensors, 0.5))(w, u, m)
    torch.testing.assert_close(mapped, mixconnect(w, u, m, 0.5))


@pytest.mark.parametrize("mean", [0, 0.0, -0.5, math.nan, math.inf, "0.5", True, None])
def test_a_mean_that_is_no_positive_number_is_refused(mean: object) -> None:
    w, u = pair(3, 4)
    with pytest.raises(ValueError, match=r"mean: got .*expected a finite number above 0") as caught:
        mixconnect(w, u, torch.ones(1, 4), mean)  # type: ignore[arg-type]
    assert isinstance(caught.value, MixoutError)


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), (1, 3, 4), (4, 3)], ids=str)
def test_a_mask_that_does_not_broadcast_to_the_weight_is_refused(shape: tuple[int, ...]) -> None:
    w, u = pair(3, 4)
    with pytest.raises(ValueError, match=r"mask: got shape .* broadcasts to the weight's \(3, 4\)"):
        mixconnect(w, u, torch.ones(shape), 0.5)


def test_other_bad_arguments_are_refused() -> None:
    w, u = pair(3, 4)
    mask = torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"target: got shape \(4, 3\), expected the weight's"):
        mixconnect(w, u.T, mask, 0.5)
    with pytest.raises(ValueError, match=r"weight: got torch.int64, expected floating point"):
        mixconnect(w.long(), u, mask, 0.5)
    with pytest.raises(ValueError, match=r"mask: got torch.complex64, expected real numbers"):
        mixconnect(w, u, mask.to(torch.complex64), 0.5)
