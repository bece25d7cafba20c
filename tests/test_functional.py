import copy
import math

import pytest
import torch
from torch import Tensor

from mixout_export import MixoutError, mixout
from mixout_export.functional import draw_mask, mix

GRANULARITIES = ("neuron", "element")


def literal(weight: Tensor, pretrained: Tensor, mask: Tensor, p: float) -> Tensor:
    """The paper's eq. 4 as it is written, with μ = 1 - p."""
    m = mask.to(weight.dtype)
    return ((1 - m) * pretrained + m * weight - p * pretrained) / (1 - p)


def pair(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    pretrained = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight.to(dtype), pretrained.to(dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_forward_is_the_papers_equation(p: float, granularity: str) -> None:
    weight, pretrained = pair(5, 7)
    torch.manual_seed(3)
    mask = draw_mask(weight, p, granularity=granularity)
    torch.manual_seed(3)
    mixed = mixout(weight, pretrained, p, granularity=granularity)
    torch.testing.assert_close(mixed, literal(weight, pretrained, mask, p), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_is_exact_in_float64(granularity: str) -> None:
    weight, pretrained = pair(4, 6)
    weight.requires_grad_()
    pretrained.requires_grad_()

    def fixed_mask(w: Tensor) -> Tensor:
        torch.manual_seed(5)
        return mixout(w, pretrained, 0.7, granularity=granularity)

    assert torch.autograd.gradcheck(fixed_mask, (weight,), atol=1e-8, rtol=0.0)
    fixed_mask(weight).sum().backward()
    assert pretrained.grad is None


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_is_the_scaled_mask(granularity: str) -> None:
    weight, pretrained = pair(4, 6, dtype=torch.float32)
    weight.requires_grad_()
    upstream = torch.randn(4, 6)
    torch.manual_seed(5)
    mixout(weight, pretrained, 0.6, granularity=granularity).backward(upstream)
    torch.manual_seed(5)
    mask = draw_mask(weight, 0.6, granularity=granularity)
    torch.testing.assert_close(weight.grad, mask / 0.4 * upstream, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mean_over_masks_is_the_weight(granularity: str) -> None:
    weight, pretrained = pair(6, 8)
    p, draws = 0.7, 20_000
    torch.manual_seed(0)
    total = torch.zeros_like(weight)
    for _ in range(draws):
        total += mixout(weight, pretrained, p, granularity=granularity)
    # Var Φ = p/(1-p) (w-u)²; 5 standard errors over 48 entries fail once in 36,000 seeds
    bound = 5 * math.sqrt(p / (1 - p) / draws) * (weight - pretrained).abs()
    assert ((total / draws - weight).abs() <= bound).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_excess_of_a_quadratic_loss(granularity: str) -> None:
    """½ p/(1-p) Σ_c δ_cᵀ H_cc δ_c over columns, or Σ_i H_ii δ_i², summed over all masks."""
    p = 0.6
    weight, pretrained = pair(2, 3)
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hessian = root @ root.T
    delta = (weight - pretrained).reshape(-1)

    def loss(mixed: Tensor) -> Tensor:
        flat = mixed.reshape(-1)
        return 0.5 * flat @ hessian @ flat

    shape = (1, 3) if granularity == "neuron" else (2, 3)
    bits = math.prod(shape)
    expected_loss = torch.zeros((), dtype=torch.float64)
    for code in range(2**bits):
        mask = torch.tensor([code >> i & 1 for i in range(bits)], dtype=torch.bool).reshape(shape)
        kept = int(mask.sum())
        probability = (1 - p) ** kept * p ** (bits - kept)
        expected_loss += probability * loss(mix(weight, pretrained, mask, p))
    if granularity == "neuron":
        columns = [torch.arange(6).reshape(2, 3)[:, c] for c in range(3)]
        terms = sum(delta[c] @ hessian[c][:, c] @ delta[c] for c in columns)
    else:
        terms = (hessian.diagonal() * delta**2).sum()
    excess = 0.5 * p / (1 - p) * terms
    torch.testing.assert_close(expected_loss - loss(weight), excess, rtol=1e-12, atol=1e-12)


def test_neuron_masks_are_constant_over_an_input_neurons_weights() -> None:
    weight, pretrained = torch.ones(9, 50), torch.zeros(9, 50)
    torch.manual_seed(0)
    mixed = mixout(weight, pretrained, 0.5)
    assert (mixed == mixed[:1]).all()
    assert mixed[0].unique().tolist() == [0.0, 2.0]
    transposed = mixout(weight, pretrained, 0.5, input_dim=0)
    assert (transposed == transposed[:, :1]).all()
    assert transposed[:, 0].unique().tolist() == [0.0, 2.0]


def test_element_masks_vary_within_rows_and_columns() -> None:
    torch.manual_seed(0)
    mixed = mixout(torch.ones(40, 50), torch.zeros(40, 50), 0.5, granularity="element")
    assert (mixed.std(0) > 0).all()
    assert (mixed.std(1) > 0).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_call_draws_its_own_mask(granularity: str) -> None:
    torch.manual_seed(0)
    one, two = (
        mixout(torch.ones(8, 64), torch.zeros(8, 64), 0.5, granularity=granularity)
        for _ in range(2)
    )
    assert not torch.equal(one, two)


def test_masks_of_two_calls_are_uncorrelated() -> None:
    torch.manual_seed(0)
    weight, count = torch.empty(1, 20_000), 20_000
    first = draw_mask(weight, 0.5, granularity="neuron")
    second = draw_mask(weight, 0.5, granularity="neuron")
    agreement = (first == second).double().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(count)


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rate_of_dropped_neurons_does_not_depend_on_the_default_dtype(default: torch.dtype) -> None:
    """Half-precision uniform draws have 256 or 2048 levels: p = 0.001 would be far off."""
    p, count = 0.001, 1_000_000
    earlier = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        torch.manual_seed(0)
        mask = draw_mask(torch.empty(1, count), p, granularity="neuron")
    finally:
        torch.set_default_dtype(earlier)
    rate = 1.0 - mask.double().mean().item()
    assert abs(rate - p) < 5 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0, True)])
def test_without_mixing_the_weight_itself_is_returned_and_nothing_drawn(
    p: float, training: bool
) -> None:
    weight, pretrained = pair(3, 4)
    before = torch.get_rng_state()
    assert mixout(weight, pretrained, p, training=training) is weight
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, 1.5, math.nan, math.inf, "x", "0.5", True, None])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside_its_domain_is_refused(p: object, training: bool) -> None:
    weight, pretrained = pair(3, 4)
    with pytest.raises(ValueError, match=r"p: got .*expected a number in \[0, 1\)") as caught:
        mixout(weight, pretrained, p, training=training)  # type: ignore[arg-type]
    assert isinstance(caught.value, MixoutError)


def test_other_bad_arguments_are_refused() -> None:
    weight, pretrained = pair(3, 4)
    expected = "granularity: got 'row', expected one of neuron, filter, element"
    with pytest.raises(ValueError, match=expected):
        mixout(weight, pretrained, 0.5, granularity="row")
    with pytest.raises(ValueError, match=r"got shape \(4, 3\), expected the weight's \(3, 4\)"):
        mixout(weight, pretrained.T, 0.5)
    with pytest.raises(ValueError, match="expected floating point"):
        mixout(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4), 0.5)
    with pytest.raises(ValueError, match="at least one dimension"):
        mixout(torch.tensor(1.0), torch.tensor(1.0), 0.5)


@pytest.mark.parametrize("input_dim", [2, -3, 5])
def test_an_input_dimension_that_is_not_there_is_refused(input_dim: int) -> None:
    weight, pretrained = pair(3, 4)
    with pytest.raises(ValueError, match="input_dim"):
        mixout(weight, pretrained, 0.5, input_dim=input_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exact_at_the_anchor_in_every_dtype(dtype: torch.dtype, granularity: str) -> None:
    weight = (torch.randn(16, 64) * 10).to(dtype)
    mixed = mixout(weight, weight.clone(), 0.9, granularity=granularity)
    assert mixed.dtype == dtype
    assert torch.equal(mixed, weight)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)]
)
def test_rounding_in_lower_precisions_is_bounded(dtype: torch.dtype, eps: float) -> None:
    weight, pretrained = pair(32, 64, dtype=dtype)
    p = 0.7
    mask = draw_mask(weight, p, granularity="element")
    exact = literal(weight.double(), pretrained.double(), mask, p)
    got = mix(weight, pretrained, mask, p).double()
    # the difference w - u and the sum are rounded once each, the scale at most once
    difference = (weight.double() - pretrained.double()).abs() / (1 - p)
    assert ((got - exact).abs() <= eps * (exact.abs() + difference)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_scale_unrounded(dtype: torch.dtype) -> None:
    """1/(1 - 0.7) rounded to bfloat16 is 0.16 % too small: every kept weight would be."""
    weight, pretrained = pair(100, 1000, dtype=dtype)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    kept = mix(weight, pretrained, mask, 0.7).double() - pretrained.double()
    wanted = (weight - pretrained).double() / 0.3
    slope = (kept * wanted).sum() / wanted.square().sum()
    assert abs(slope.item() - 1.0) < 5e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_the_scaled_mask(dtype: torch.dtype) -> None:
    weight, pretrained = pair(4, 32, dtype=dtype)
    weight.requires_grad_()
    torch.manual_seed(1)
    mixout(weight, pretrained, 0.5).sum().backward()
    torch.manual_seed(1)
    mask = draw_mask(weight, 0.5, granularity="neuron")
    assert torch.equal(weight.grad, (mask * 2.0).expand(4, 32).to(dtype))


def test_an_anchor_of_another_dtype_is_cast() -> None:
    weight, pretrained = pair(4, 8, dtype=torch.float32)
    torch.manual_seed(0)
    mixed = mixout(weight, pretrained.bfloat16(), 0.5)
    torch.manual_seed(0)
    expected = mixout(weight, pretrained.bfloat16().float(), 0.5)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, expected)


def test_arguments_are_left_alone() -> None:
    weight, pretrained = pair(4, 8)
    copies = copy.deepcopy((weight, pretrained))
    mixout(weight, pretrained, 0.5)
    assert torch.equal(weight, copies[0])
    assert torch.equal(pretrained, copies[1])
