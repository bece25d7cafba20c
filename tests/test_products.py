import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixout_export import MixoutConv1D, MixoutLinear
from mixout_export.products import must_spell_out

SHAPE = (3, 7, 40)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make_layer(kind: str, dtype: torch.dtype = torch.float64, p: float = 0.7) -> nn.Module:
    torch.manual_seed(0)
    layer = MixoutConv1D(24, 40, p=p) if kind == "conv1d" else MixoutLinear(40, 24, p=p)
    with torch.no_grad():
        layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    return layer.to(dtype)


def spelled_out(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the same with plain operations and autograd."""
    weight = layer.mixed_weight()
    return F.linear(inputs, weight if layer.input_dim == 1 else weight.t(), layer.bias)


def outcome(layer: nn.Module, dtype: torch.dtype, *, fast: bool, autocast: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_()
    layer.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert not must_spell_out(layer.weight, inputs)
        result = layer(inputs) if fast else spelled_out(layer, inputs)
    upstream = torch.randn(result.shape, generator=generator).to(result.dtype)
    result.backward(upstream)
    return [result.detach(), inputs.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_fast_product_is_the_formula(kind: str, dtype: torch.dtype) -> None:
    layer = make_layer(kind, dtype)
    fast = outcome(layer, dtype, fast=True, autocast=False)
    slow = outcome(layer, dtype, fast=False, autocast=False)
    tolerance = 8 * torch.finfo(dtype).eps  # products of other shapes sum in another order
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_fast_product_under_autocast(kind: str) -> None:
    layer = make_layer(kind, torch.float32)
    fast = outcome(layer, torch.float32, fast=True, autocast=True)
    slow = outcome(layer, torch.float32, fast=False, autocast=True)
    assert fast[0].dtype == torch.bfloat16
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2 * scale)


def test_dropped_neurons_get_a_gradient_of_exactly_zero() -> None:
    layer = make_layer("linear")
    outcome(layer, torch.float64, fast=True, autocast=False)
    columns = (layer.weight.grad != 0).all(dim=0)
    assert torch.equal(columns, (layer.weight.grad != 0).any(dim=0))
    assert 0 < columns.sum() < 40


def test_second_derivatives() -> None:
    layer = make_layer("linear", p=0.5)
    inputs = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)

    def product(value: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(value)

    assert torch.autograd.gradcheck(product, (inputs,))
    assert torch.autograd.gradgradcheck(product, (inputs,))


def test_nothing_of_the_weights_size_is_kept() -> None:
    layer = make_layer("linear")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 40, dtype=torch.float64, requires_grad=True))
    own = {layer.weight.data_ptr(), layer.pretrained_weight.data_ptr()}
    others = [t for t in kept if t.data_ptr() not in own]
    assert all(t.numel() < layer.weight.numel() for t in others)


@pytest.mark.parametrize("active", [0, 40])
def test_all_or_no_neuron_active(active: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.full((1, 40), bool(active))
    monkeypatch.setattr("mixout_export.products.draw_mask", lambda *_, **__: mask)
    layer = make_layer("linear", p=0.5)
    result = outcome(layer, torch.float64, fast=True, autocast=False)
    weight = layer.pretrained_weight + (2.0 if active else 0.0) * (
        layer.weight.detach() - layer.pretrained_weight
    )
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SHAPE, generator=generator).double()
    torch.testing.assert_close(result[0], inputs @ weight.t() + layer.bias.detach())
    assert bool(result[2].any()) is bool(active)


def test_plain_operations_where_they_are_needed() -> None:
    layer, inputs = make_layer("linear"), torch.randn(2, 40, dtype=torch.float64)
    with torch.no_grad():
        assert must_spell_out(layer.weight, inputs)
    layer.weight.requires_grad_(False)
    assert must_spell_out(layer.weight, inputs)
    assert must_spell_out(layer.weight.to("meta"), inputs)


def test_dtypes_are_judged_as_by_the_plain_layer() -> None:
    half = make_layer("linear", torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        half(torch.randn(2, 40))
    wide = make_layer("linear", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(torch.randn(2, 40, dtype=torch.float64)).dtype == torch.float64
