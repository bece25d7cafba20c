from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixout_export import MixoutConv1D, MixoutLinear
from mixout_export.fast_linear import gathering
from mixout_export.fast_linear.gathering import always_gather
from mixout_export.fast_linear.linear import mixed_product, needs_plain_ops
from mixout_export.functional import mix
from mixout_export.masks import PackedMask

SHAPE = (3, 7, 40)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def always_gathered() -> Iterator[None]:
    """Gather the active neurons although the layers of these tests are small."""
    with always_gather():
        yield


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
        assert not needs_plain_ops(layer.weight, inputs)
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
    monkeypatch.setattr("mixout_export.layers.base.draw_mask", lambda *_, **__: mask)
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
    assert not needs_plain_ops(layer.weight, inputs)
    layer.weight.requires_grad_(False)
    assert needs_plain_ops(layer.weight, inputs)
    assert needs_plain_ops(layer.weight.to("meta"), inputs.to("meta"))


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
def test_whether_gradients_are_enabled_does_not_change_the_mask(granularity: str) -> None:
    layer = MixoutLinear(80, 60, granularity=granularity)
    with torch.no_grad():
        layer.weight.add_(1.0)
        torch.manual_seed(3)
        without = layer(torch.eye(80))
    torch.manual_seed(3)
    assert torch.equal(layer(torch.eye(80)), without)


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_mask(granularity: str, use_reentrant: bool) -> None:
    layer = MixoutLinear(80, 60, bias=False, granularity=granularity)
    with torch.no_grad():
        layer.weight.add_(1.0)
    eye = torch.eye(80, requires_grad=True)
    mixed = checkpoint(layer, eye, use_reentrant=use_reentrant)
    mixed.sum().backward()
    assert torch.equal(mixed.t() != layer.pretrained_weight, layer.weight.grad != 0)


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
def test_a_layer_on_meta_gives_its_shape(granularity: str) -> None:
    layer = MixoutLinear(80, 60, granularity=granularity, device="meta")
    assert layer(torch.randn(4, 80, device="meta")).shape == (4, 60)


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
@pytest.mark.usefixtures("always_gathered")
def test_many_gradients_at_once(granularity: str) -> None:
    layer = MixoutLinear(80, 60, granularity=granularity)
    inputs = torch.randn(5, 80, requires_grad=True)
    wanted = (inputs, layer.weight, layer.bias)
    grads = torch.randn(3, 5, 60)
    outputs = layer(inputs)
    batched = torch.autograd.grad(outputs, wanted, grads, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(grads):
        single = torch.autograd.grad(outputs, wanted, grad, retain_graph=True)
        for left, right in zip(batched, single, strict=True):
            torch.testing.assert_close(left[index], right)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.usefixtures("always_gathered")
def test_the_biases_gradient_keeps_nothing_else(kind: str) -> None:
    layer = make_layer(kind)
    layer(torch.randn(9, 40, dtype=torch.float64)).sum().backward()
    assert layer.bias.grad.untyped_storage().nbytes() == layer.bias.grad.nbytes


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
@pytest.mark.filterwarnings("ignore:Trace had nondeterministic nodes", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_a_layer_that_trains_can_be_traced(granularity: str) -> None:
    layer = MixoutLinear(80, 60, granularity=granularity)
    traced = torch.jit.trace(layer, torch.randn(4, 80), check_trace=False)
    assert traced(torch.randn(7, 80)).shape == (7, 60)


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
@pytest.mark.parametrize("shape", [(3, 7), ()])
def test_an_input_of_another_width_is_refused_as_by_the_plain_layer(
    granularity: str, shape: tuple[int, ...]
) -> None:
    wrong = torch.randn(shape)
    with pytest.raises(RuntimeError) as plain:
        torch.nn.Linear(80, 60)(wrong)
    with pytest.raises(RuntimeError) as ours:
        MixoutLinear(80, 60, granularity=granularity)(wrong)
    assert str(ours.value) == str(plain.value)


def test_dtypes_are_judged_as_by_the_plain_layer() -> None:
    half = make_layer("linear", torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        half(torch.randn(2, 40))
    wide = make_layer("linear", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(torch.randn(2, 40, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("p", [0.2, 0.7, 0.9])  # kept whole, kept gathered, few columns
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.usefixtures("always_gathered")
def test_gathered_columns_are_the_formula(
    kind: str, p: float, step: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gathering.PADDING, "cpu", step)
    layer = make_layer(kind, dtype, p)
    fast = outcome(layer, dtype, fast=True, autocast=False)
    slow = outcome(layer, dtype, fast=False, autocast=False)
    tolerance = 8 * torch.finfo(dtype).eps
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("p", [0.2, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("always_gathered")
def test_second_derivatives_of_gathered_columns(
    p: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gathering.PADDING, "cpu", 4)
    torch.manual_seed(0)
    layer = MixoutLinear(12, 3, bias, p=p).double()
    inputs = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    mask = layer.draw_mask()

    def product(value: Tensor, weight: Tensor) -> Tensor:
        return mixed_product(
            *(value, weight, layer.pretrained_weight, layer.bias, mask),
            p=p,
            granularity="neuron",
            input_dim=1,
        )

    arguments = (inputs, layer.weight)
    assert torch.autograd.gradcheck(product, arguments)
    assert torch.autograd.gradgradcheck(product, arguments)


@pytest.mark.usefixtures("always_gathered")
def test_gathered_columns_are_all_that_is_kept() -> None:
    torch.manual_seed(0)
    layer, inputs = MixoutLinear(640, 8, p=0.9), torch.randn(50, 640, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(inputs).sum().backward()
    own = {layer.weight.data_ptr(), layer.pretrained_weight.data_ptr()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) < 0.25 * inputs.numel()
    assert layer.weight.grad is not None


WIDE = (48, 96)


def element_outcome(
    kind: str, dtype: torch.dtype, *, autocast: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the element product's results, and those of the formula under the same bits."""
    torch.manual_seed(0)
    outputs, inputs = WIDE
    make = MixoutConv1D if kind == "conv1d" else lambda o, i, **kw: MixoutLinear(i, o, **kw)
    layer = make(outputs, inputs, p=0.7, granularity="element")
    with torch.no_grad():
        layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    layer = layer.to(dtype)
    values = torch.randn(3, 5, inputs).to(dtype)
    upstream = torch.randn(3, 5, outputs)
    results = []
    for fast in (True, False):
        layer.zero_grad()
        given = values.clone().requires_grad_()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fast:
                assert layer.takes_fast_path(given)
                result = layer(given)
            else:
                mask = PackedMask.draw(layer.weight.shape, 0.7)
                bits = mask.bits(torch.empty(layer.weight.shape)).bool()
                mixed = mix(layer.weight, layer.pretrained_weight, bits, mask.p)
                result = F.linear(given, mixed if layer.input_dim == 1 else mixed.t(), layer.bias)
        result.backward(upstream.to(result.dtype))
        results.append([result.detach(), given.grad, layer.weight.grad, layer.bias.grad])
    return results[0], results[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_element_product_is_the_formula(kind: str, dtype: torch.dtype) -> None:
    tolerance = 8 * torch.finfo(dtype).eps
    for got, wanted in zip(*element_outcome(kind, dtype), strict=True):
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)


def test_the_element_product_under_autocast() -> None:
    fast, slow = element_outcome("linear", torch.float32, autocast=True)
    assert fast[0].dtype == torch.bfloat16
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2 * scale)


def test_the_element_mask_is_not_kept_and_not_left_to_the_generator() -> None:
    torch.manual_seed(0)
    layer = MixoutLinear(96, 48, p=0.7, granularity="element")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = layer(torch.randn(2, 96, requires_grad=True))
    own = {layer.weight.data_ptr(), layer.pretrained_weight.data_ptr()}
    assert all(t.numel() < layer.weight.numel() for t in kept if t.data_ptr() not in own)
    torch.manual_seed(9)  # what happens between the passes does not matter
    before = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_second_derivatives_of_the_element_product() -> None:
    torch.manual_seed(0)
    layer = MixoutLinear(96, 48, p=0.5, granularity="element").double()
    inputs = torch.randn(2, 96, dtype=torch.float64, requires_grad=True)

    def product(value: Tensor) -> Tensor:
        torch.manual_seed(1)
        assert layer.takes_fast_path(value)
        return layer(value)

    assert torch.autograd.gradcheck(product, (inputs,))
    assert torch.autograd.gradgradcheck(product, (inputs,))


@pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
def test_checkpointing_redraws_the_same_mask(granularity: str) -> None:
    torch.manual_seed(0)
    layer = MixoutLinear(96, 96, p=0.7, granularity=granularity)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    inputs = torch.randn(300, 96, requires_grad=True)

    def gradients(run) -> list[Tensor]:
        layer.zero_grad()
        inputs.grad = None
        torch.manual_seed(7)
        run().square().sum().backward()
        return [inputs.grad.clone(), *(p.grad.clone() for p in layer.parameters())]

    plain = gradients(lambda: layer(inputs))
    again = gradients(lambda: checkpoint(layer, inputs, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
