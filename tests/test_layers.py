import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from mixout_export import MixoutConv1D, MixoutLinear
from mixout_export.layers import MixoutLayer, to_mixout, to_plain

GRANULARITIES = ("neuron", "filter", "element")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def moved(layer: MixoutLayer) -> MixoutLayer:
    """Move weight and bias away from where they started, as training does."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return layer


def linear(
    inputs: int = 6, outputs: int = 4, *, p: float = 0.6, granularity: str = "neuron", **kw: object
) -> MixoutLinear:
    torch.manual_seed(0)
    return moved(MixoutLinear(inputs, outputs, p=p, granularity=granularity, **kw))


def conv1d(
    inputs: int = 6, outputs: int = 4, *, p: float = 0.6, granularity: str = "neuron"
) -> MixoutConv1D:
    torch.manual_seed(0)
    return moved(MixoutConv1D(outputs, inputs, p=p, granularity=granularity))


MAKERS = pytest.mark.parametrize("make", [linear, conv1d])


def dense_weight(layer: MixoutLayer, seed: int) -> Tensor:
    """Return the weight (out, in) that the layer uses under a seed, by the paper's eq. 4."""
    torch.manual_seed(seed)
    weight, anchor, p = layer.weight, layer.pretrained_weight, layer.p
    # neurons are columns of Linear's weight, and rows of Conv1D's; filters are the other way around
    by_column = (layer.granularity == "neuron") == isinstance(layer, nn.Linear)
    if layer.granularity == "element":
        shape = weight.shape
    else:
        shape = (1, weight.shape[1]) if by_column else (weight.shape[0], 1)
    m = (torch.rand(shape) >= p).to(weight.dtype)
    mixed = ((1 - m) * anchor + m * weight - p * anchor) / (1 - p)
    return mixed if isinstance(layer, nn.Linear) else mixed.T


@MAKERS
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_forward_and_gradient_against_a_dense_reference(make, granularity: str) -> None:
    layer = make(granularity=granularity).double()
    inputs = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 2, 4, dtype=torch.float64)

    torch.manual_seed(1)
    output = layer(inputs)
    output.backward(upstream)
    got = [inputs.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
    inputs.grad = layer.weight.grad = layer.bias.grad = None

    expected = torch.einsum("bsi,oi->bso", inputs, dense_weight(layer, 1)) + layer.bias
    expected.backward(upstream)
    wanted = [inputs.grad, layer.weight.grad, layer.bias.grad]
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@MAKERS
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradcheck_with_a_fixed_mask(make, granularity: str) -> None:
    layer = make(granularity=granularity).double()
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(2)
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    arguments = (inputs, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(call, arguments, atol=1e-7, rtol=0.0)


@MAKERS
def test_masks_follow_input_neurons(make) -> None:
    """With u = 0, w = 1 and no bias an output counts the kept inputs: the same for every output."""
    layer = make(inputs=64)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.pretrained_weight.zero_()
        layer.bias.zero_()
    output = layer(torch.eye(64))  # row i is what input neuron i contributes to each output
    assert (output == output[:, :1]).all()
    assert sorted(output[:, 0].unique().tolist()) == pytest.approx([0.0, 2.5])


@MAKERS
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_are_independent_between_layers_and_steps(make, granularity: str) -> None:
    one = make(inputs=64, outputs=64, granularity=granularity)
    two = copy.deepcopy(one)
    torch.manual_seed(0)
    weights = [layer.mixed_weight() for _ in range(2) for layer in (one, two)]
    for index, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:index])


@MAKERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_is_the_plain_layer_bit_for_bit(make, dtype: torch.dtype) -> None:
    layer = make(37, 19).to(dtype).eval()
    plain = copy.deepcopy(layer)
    plain = to_plain(plain)
    assert type(plain) in (nn.Linear, Conv1D)
    inputs = torch.randn(5, 3, 37).to(dtype)
    before = torch.get_rng_state()
    assert torch.equal(layer(inputs), plain(inputs))
    assert torch.equal(torch.get_rng_state(), before)


@MAKERS
def test_p_zero_draws_nothing_and_is_the_plain_layer(make) -> None:
    layer = make(p=0.0).train()
    plain = to_plain(copy.deepcopy(layer))
    inputs = torch.randn(5, 6)
    before = torch.get_rng_state()
    assert torch.equal(layer(inputs), plain(inputs))
    assert torch.equal(torch.get_rng_state(), before)


@MAKERS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_training_at_the_anchor_is_the_plain_layer(make, dtype, granularity: str) -> None:
    layer = make(granularity=granularity, p=0.9).to(dtype).train()
    layer.pretrained_weight.copy_(layer.weight.detach())
    inputs = torch.randn(5, 6).to(dtype)
    assert torch.equal(layer(inputs), to_plain(copy.deepcopy(layer))(inputs))


@MAKERS
@pytest.mark.parametrize("p", [1, -0.1, float("nan"), "x", True])
def test_p_outside_its_domain_is_refused(make, p: object) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
        make(p=p)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_outputs_can_be_changed_in_place(granularity: str) -> None:
    layer, x = linear(256, 64, granularity=granularity).train(), torch.randn(2, 3, 256)
    torch.manual_seed(1)
    halved = layer(x)
    halved /= 2  # as Longformer does with its queries
    torch.manual_seed(1)
    assert torch.equal(halved, layer(x) / 2)
    halved.sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_layer_without_bias() -> None:
    layer = linear(bias=False)
    torch.manual_seed(3)
    output = layer(torch.eye(6))
    torch.testing.assert_close(output, dense_weight(layer, 3).T)
    assert list(layer.state_dict()) == ["weight", "pretrained_weight"]


@MAKERS
def test_autocast_computes_in_bfloat16_and_keeps_full_precision_gradients(make) -> None:
    layer = make()
    inputs = torch.randn(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(4)
        output = layer(inputs)
        assert output.dtype == torch.bfloat16
        output.sum().backward()
        second = layer(inputs)
    assert layer.weight.grad.dtype == torch.float32
    expected = (inputs @ dense_weight(layer, 4).T + layer.bias).detach()
    torch.testing.assert_close(output.float(), expected, rtol=2**-6, atol=2**-4)
    assert not torch.equal(output, second)  # autocast's weight cache must not keep the first mask


@MAKERS
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_recomputes_with_the_same_mask(make, use_reentrant: bool) -> None:
    layers = nn.Sequential(make(6, 6), nn.Tanh(), make(6, 6), nn.Dropout(0.5))
    inputs = torch.randn(5, 6, requires_grad=True)

    def gradients(run) -> list[Tensor]:
        layers.zero_grad()
        inputs.grad = None
        torch.manual_seed(7)
        run().square().sum().backward()
        return [inputs.grad.clone(), *(p.grad.clone() for p in layers.parameters())]

    plain = gradients(lambda: layers(inputs))
    again = gradients(lambda: checkpoint(layers, inputs, use_reentrant=use_reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_compiles_whole_with_fresh_masks_and_the_exact_gradient() -> None:
    layer = linear(64, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.eye(64)
    first, second = compiled(inputs), compiled(inputs)
    assert not torch.equal(first, second)
    first.sum().backward()
    # rows of the output are rows of Φ: where the mask is off they are u, and get no gradient
    kept = ~torch.isclose(first - layer.bias, layer.pretrained_weight.T, atol=1e-6).all(1)
    assert 5 < kept.sum() < 59
    torch.testing.assert_close(layer.weight.grad, (kept / 0.4).expand(8, 64))
    assert torch.equal(compiled.eval()(inputs), to_plain(copy.deepcopy(layer))(inputs))


@MAKERS
def test_functional_gradients(make) -> None:
    layer = make().double()
    inputs = torch.randn(3, 6, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, values, (inputs,)).square().sum()

    torch.manual_seed(8)
    got = grad(loss)(parameters)
    torch.manual_seed(8)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-12, atol=1e-12)


@MAKERS
def test_vmap_with_a_mask_for_each_example(make) -> None:
    layer = make(inputs=64)
    inputs = torch.randn(64).expand(5, 64)
    output = vmap(layer, randomness="different")(inputs)
    assert output.shape == (5, 4)
    assert len({tuple(row.tolist()) for row in output}) == 5
    same = vmap(layer, randomness="same")(inputs)
    torch.testing.assert_close(same, same[:1].expand(5, 4))


@MAKERS
def test_conversion_takes_the_anchor_along(make) -> None:
    layer = make()
    anchor = layer.pretrained_weight.clone()
    layer.to(torch.float64)
    assert layer.pretrained_weight.dtype == torch.float64
    assert torch.equal(layer.pretrained_weight, anchor.double())
    assert layer.half()(torch.randn(2, 6).half()).dtype == torch.float16
    assert layer.to("meta").pretrained_weight.device.type == "meta"


@MAKERS
def test_copies_are_independent(make) -> None:
    layer = make()
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.zero_()
        twin.pretrained_weight.zero_()
    assert layer.weight.abs().sum() > 0
    assert layer.pretrained_weight.abs().sum() > 0
    assert (type(twin), twin.p, twin.granularity) == (type(layer), 0.6, "neuron")


@MAKERS
@pytest.mark.parametrize("converted", [False, True])
def test_pickles(make, converted: bool) -> None:
    layer = make(granularity="element")
    if converted:
        anchor = layer.pretrained_weight.clone()
        plain = to_plain(layer)
        layer = to_mixout(plain, anchor, p=0.6, granularity="element")
    twin = pickle.loads(pickle.dumps(layer))
    inputs = torch.randn(2, 6)
    torch.manual_seed(0)
    expected = layer(inputs)
    torch.manual_seed(0)
    assert torch.equal(twin(inputs), expected)


@MAKERS
def test_state_dict_round_trip_is_strict(make) -> None:
    layer = make()
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert set(state) == {"weight", "bias", "pretrained_weight"}
    other = type(layer)(*((6, 4) if make is linear else (4, 6)))
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.pretrained_weight, layer.pretrained_weight)
    assert not torch.equal(other.pretrained_weight, other.weight)
    del state["pretrained_weight"]
    with pytest.raises(RuntimeError, match="pretrained_weight"):
        other.load_state_dict(state, strict=True)


@MAKERS
def test_anchor_is_a_frozen_copy(make) -> None:
    layer = make()
    fresh = to_mixout(to_plain(layer), None, p=0.5, granularity="neuron")
    assert torch.equal(fresh.pretrained_weight, fresh.weight)
    with torch.no_grad():
        fresh.weight.add_(1.0)
    assert not torch.equal(fresh.pretrained_weight, fresh.weight)
    assert not fresh.pretrained_weight.requires_grad
    assert "pretrained_weight" not in dict(fresh.named_parameters())
    given = torch.zeros_like(fresh.weight)
    again = to_mixout(to_plain(fresh), given, p=0.5, granularity="neuron")
    given.fill_(9.0)
    assert again.pretrained_weight.abs().sum() == 0


@MAKERS
def test_conversion_back_leaves_only_what_a_plain_layer_has(make) -> None:
    layer = make()
    plain = to_plain(layer)
    reference = nn.Linear(6, 4) if make is linear else Conv1D(4, 6)
    assert type(plain) is type(reference)
    assert vars(plain).keys() == vars(reference).keys()
    assert plain.state_dict().keys() == reference.state_dict().keys()
    assert repr(plain) == repr(reference)


def test_description_says_how_strongly_it_mixes() -> None:
    assert "p=0.6, granularity=neuron" in repr(linear())
    assert repr(conv1d()) == "MixoutConv1D(nf=4, nx=6, p=0.6, granularity=neuron)"


def test_only_exact_types_are_converted_and_a_refusal_changes_nothing() -> None:
    class Special(nn.Linear):
        pass

    with pytest.raises(
        ValueError,
        match="got Special, expected exactly Linear, Conv1D, Conv1d, Conv2d or Embedding",
    ):
        to_mixout(Special(2, 2), None, p=0.5, granularity="neuron")
    plain = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"got shape \(3, 3\), expected the weight's \(3, 2\)"):
        to_mixout(plain, torch.zeros(3, 3), p=0.5, granularity="neuron")
    with pytest.raises(ValueError, match="p: got 1"):
        to_mixout(plain, None, p=1, granularity="neuron")
    assert type(plain) is nn.Linear
    assert vars(plain).keys() == vars(nn.Linear(2, 3)).keys()
