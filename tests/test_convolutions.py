"""Mixed convolutions: the formula, what a neuron and a filter are, and the gathered channels."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from mixout_export import (
    MixoutConfig,
    MixoutConv1d,
    MixoutConv2d,
    collapse_mixout,
    inject_mixout,
    load_mixout,
    save_mixout,
)
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.errors import TargetError
from mixout_export.fast_linear import gathering
from mixout_export.fast_linear.gathering import always_gather, never_gather
from mixout_export.functional import mixout
from mixout_export.layers import MixoutConvolution, to_mixout, to_plain
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train.model import load_start
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.options import TrainOptions

GRANULARITIES = pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])
#: Those that have a fast path.
CHANNELS = pytest.mark.parametrize("granularity", ["neuron", "filter"])
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
P = 0.6

#: Arguments that change what a convolution computes.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "same, uneven": {"padding": "same", "kernel_size": 4},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular", "stride": 2},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "no bias": {"bias": False},
}
ALL_GEOMETRIES = pytest.mark.parametrize("geometry", GEOMETRIES)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def convolution(
    dims: int = 2, *, inputs: int = 4, outputs: int = 8, granularity: str = "filter", p: float = P,
    kernel_size: int = 3, **geometry: Any,
) -> MixoutConvolution:  # fmt: skip
    torch.manual_seed(0)
    kind = MixoutConv2d if dims == 2 else MixoutConv1d
    layer = kind(inputs, outputs, kernel_size, p=p, granularity=granularity, **geometry)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    return layer


def images(dims: int = 2, *, channels: int = 4, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *(7,) * dims, generator=generator)


@pytest.fixture
def always_gathered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gather the active channels although the layers of these tests are small."""
    monkeypatch.setitem(gathering.PADDING, "cpu", 2)
    with always_gather():
        yield


def dense_weight(layer: MixoutConvolution, seed: int) -> Tensor:
    """Return Φ under a seed by the paper's equation 4, one filter after another."""
    torch.manual_seed(seed)
    weight, anchor, p, groups = layer.weight, layer.pretrained_weight, layer.p, layer.groups
    filters, per_group = weight.shape[:2]
    if layer.granularity == "element":
        bits = torch.rand(weight.shape) >= p
    elif layer.granularity == "filter":
        bits = (torch.rand(filters) >= p).view(-1, *(1,) * (weight.dim() - 1)).expand_as(weight)
    else:
        of_channel = torch.rand(groups * per_group) >= p
        bits = torch.zeros(weight.shape, dtype=torch.bool)
        for f in range(filters):
            first = per_group * (f // (filters // groups))
            for c in range(per_group):
                bits[f, c] = of_channel[first + c]
    m = bits.to(weight.dtype)
    return ((1 - m) * anchor + m * weight - p * anchor) / (1 - p)


def spelled_out(layer: MixoutConvolution, inputs: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a weight as the plain layer does."""
    return layer._conv_forward(inputs, weight, layer.bias)


def gradients(layer: nn.Module, inputs: Tensor, output: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(output.shape, generator=generator).to(output.dtype)
    return list(torch.autograd.grad(output, [inputs, *layer.parameters()], upstream))


# The formula --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2])
@ALL_GEOMETRIES
@GRANULARITIES
@pytest.mark.parametrize("gathers", [always_gather, never_gather])
def test_forward_and_gradient_against_a_dense_reference(
    dims: int, geometry: str, granularity: str, gathers: Any
) -> None:
    layer = convolution(dims, granularity=granularity, **GEOMETRIES[geometry]).double()
    inputs = images(dims).double().requires_grad_()
    with gathers():
        torch.manual_seed(5)
        output = layer(inputs)
        got = gradients(layer, inputs, output)
    expected = spelled_out(layer, inputs, dense_weight(layer, 5))
    wanted = gradients(layer, inputs, expected)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    if granularity != "element":
        assert layer.takes_fast_path(inputs)


@pytest.mark.parametrize("dims", [1, 2])
def test_the_function_is_the_layer(dims: int) -> None:
    for granularity in ("neuron", "filter", "element"):
        layer = convolution(dims, granularity=granularity)
        torch.manual_seed(3)
        whole = layer.mixed_weight()
        torch.manual_seed(3)
        same = mixout(
            layer.weight, layer.pretrained_weight, P, granularity=granularity, input_dim=1
        )
        assert torch.equal(whole, same)


@CHANNELS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.2, 0.6])  # the input is kept whole, or gathered
@pytest.mark.usefixtures("always_gathered")
def test_gathered_channels_are_the_formula(granularity: str, p: float, dtype: torch.dtype) -> None:
    layer = convolution(inputs=12, outputs=10, granularity=granularity, p=p, padding=1).to(dtype)
    inputs = images(channels=12).to(dtype).requires_grad_()
    torch.manual_seed(5)
    output = layer(inputs)
    fast = [output, *gradients(layer, inputs, output)]
    torch.manual_seed(5)
    output = spelled_out(layer, inputs, layer.mixed_weight())
    slow = [output, *gradients(layer, inputs, output)]
    tolerance = 8 * torch.finfo(dtype).eps
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype == dtype
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)


@CHANNELS
@pytest.mark.parametrize("p", [0.2, 0.6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("always_gathered")
def test_second_derivatives(granularity: str, p: float, bias: bool) -> None:
    layer = convolution(
        inputs=4, outputs=3, granularity=granularity, p=p, bias=bias, stride=2
    ).double()
    inputs = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(6)
        return functional_call(layer, {"weight": weight}, (x,))

    assert layer.takes_fast_path(inputs)
    assert torch.autograd.gradcheck(call, (inputs, layer.weight))
    assert torch.autograd.gradgradcheck(call, (inputs, layer.weight))


def test_an_image_without_a_batch() -> None:
    layer, image = convolution(), images(batch=1)
    torch.manual_seed(1)
    single = layer(image[0])
    torch.manual_seed(1)
    torch.testing.assert_close(single, layer(image)[0])


# What shares a bit --------------------------------------------------------------------------------


def counted(layer: MixoutConvolution) -> Tensor:
    """Return, for each input channel and each filter, the sum of Φ's values; 0 where unconnected.

    With u = 0 and w = 1, a dropped weight counts 0, and a kept one 1 / (1 - p).
    """
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.pretrained_weight.zero_()
        channels = layer.in_channels
        impulses = torch.zeros(channels, channels, 3, 3)
        impulses[range(channels), range(channels)] = 1.0
        return layer(impulses).view(channels, -1)


def test_a_neuron_is_an_input_channel_with_all_its_weights() -> None:
    table = counted(convolution(inputs=64, outputs=5, bias=False, granularity="neuron"))
    assert (table == table[:, :1]).all()
    assert sorted(table[:, 0].unique().tolist()) == pytest.approx([0.0, 9 / (1 - P)])


def test_a_filter_is_an_output_channel_with_all_its_weights() -> None:
    table = counted(convolution(inputs=5, outputs=64, bias=False))
    assert (table == table[:1]).all()
    assert sorted(table[0].unique().tolist()) == pytest.approx([0.0, 9 / (1 - P)])


def test_each_channel_of_each_group_is_a_neuron_of_its_own() -> None:
    """One column of the weight serves several channels, and each of them has its own bit."""
    layer = convolution(inputs=64, outputs=12, groups=4, bias=False, granularity="neuron")
    table = counted(layer)
    bits = []
    for group in range(4):
        block = table[16 * group : 16 * (group + 1), 3 * group : 3 * (group + 1)]
        assert (block == block[:, :1]).all()
        bits.append(block[:, 0] > 0)
    assert all(0 < bit.sum() < 16 for bit in bits)
    assert not any(torch.equal(bits[0], other) for other in bits[1:])


@CHANNELS
def test_each_channel_of_a_depthwise_convolution_has_a_bit(granularity: str) -> None:
    layer = convolution(inputs=64, outputs=128, groups=64, bias=False, granularity=granularity)
    drawn = [layer.draw_mask().view(64, 2) for _ in range(20)]
    for mask in drawn:
        assert 0 < mask.sum() < 128
        # both filters of a channel share the bit of a neuron, and have a bit each as filters
        assert (mask[:, 0] == mask[:, 1]).all() == (granularity == "neuron")


@GRANULARITIES
def test_the_mean_is_the_weight(granularity: str) -> None:
    layer = convolution(granularity=granularity, groups=2)
    calls = 2000
    mean = torch.stack([layer.mixed_weight().detach() for _ in range(calls)]).mean(0)
    away = (layer.weight - layer.pretrained_weight).detach().abs()
    error = (mean - layer.weight.detach()).abs() / (away * (P / (1 - P) / calls) ** 0.5)
    assert error.max() < 5.0  # standard errors


# The plain layer ----------------------------------------------------------------------------------


@ALL_GEOMETRIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_and_p_zero_are_the_plain_layer_bit_for_bit(
    geometry: str, dtype: torch.dtype
) -> None:
    layer = convolution(**GEOMETRIES[geometry]).to(dtype)
    plain = to_plain(copy.deepcopy(layer))
    reference = nn.Conv2d(4, 8, **{"kernel_size": 3, **GEOMETRIES[geometry]})
    assert type(plain) is nn.Conv2d
    assert vars(plain).keys() == vars(reference).keys()
    assert repr(plain) == repr(reference)
    inputs, before = images().to(dtype), torch.get_rng_state()
    assert torch.equal(layer.eval()(inputs), plain(inputs))
    layer.train().p = 0.0
    assert torch.equal(layer(inputs), plain(inputs))
    assert torch.equal(torch.get_rng_state(), before)


@GRANULARITIES
def test_training_at_the_anchor_is_the_plain_layer(granularity: str) -> None:
    layer = convolution(granularity=granularity, groups=2)
    layer.pretrained_weight.copy_(layer.weight.detach())
    assert torch.equal(layer(images()), to_plain(copy.deepcopy(layer))(images()))


def test_to_mixout_keeps_the_plain_layers_tensors() -> None:
    plain = nn.Conv1d(4, 8, 3, padding="same")
    weight = plain.weight
    layer = to_mixout(plain, None, p=0.5, granularity="filter")
    assert type(layer) is MixoutConv1d
    assert layer.weight is weight
    assert repr(layer).endswith("padding=same, p=0.5, granularity=filter)")
    assert set(layer.state_dict()) == {"weight", "bias", "pretrained_weight"}


def test_a_wrong_input_is_refused_as_by_the_plain_layer() -> None:
    for shape in ((2, 5, 7, 7), (2, 4, 2, 2), (4, 7)):
        with pytest.raises(RuntimeError) as plain:
            nn.Conv2d(4, 8, 3)(torch.randn(shape))
        with pytest.raises(RuntimeError) as ours:
            convolution()(torch.randn(shape))
        assert str(ours.value) == str(plain.value)


# Around the layer ---------------------------------------------------------------------------------


@GRANULARITIES
def test_autocast_computes_in_bfloat16_and_keeps_full_precision_gradients(
    granularity: str,
) -> None:
    layer = convolution(granularity=granularity)
    inputs = images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(4)
        output = layer(inputs)
    got = gradients(layer, inputs, output)
    assert output.dtype == torch.bfloat16
    assert [g.dtype for g in got] == [torch.float32] * 3
    expected = spelled_out(layer, inputs, dense_weight(layer, 4))
    wanted = gradients(layer, inputs, expected)
    for left, right in zip([output.float(), *got], [expected, *wanted], strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-2 * scale)


@GRANULARITIES
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.usefixtures("always_gathered")
def test_gradient_checkpointing_recomputes_with_the_same_mask(
    granularity: str, use_reentrant: bool
) -> None:
    layers = nn.Sequential(
        convolution(granularity=granularity), nn.ReLU(), convolution(inputs=8, groups=2)
    )
    inputs = images().requires_grad_()

    def run(call: Any) -> list[Tensor]:
        torch.manual_seed(7)
        layers.zero_grad()
        inputs.grad = None
        call().square().sum().backward()
        return [inputs.grad.clone(), *(p.grad.clone() for p in layers.parameters())]

    plain = run(lambda: layers(inputs))
    again = run(lambda: checkpoint(layers, inputs, use_reentrant=use_reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@GRANULARITIES
def test_compiles_whole_with_fresh_masks(granularity: str) -> None:
    layer = convolution(granularity=granularity, groups=2, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    first, second = compiled(images()), compiled(images())
    assert not torch.equal(first, second)
    first.sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    layer.eval()
    assert torch.equal(compiled(images()), to_plain(copy.deepcopy(layer))(images()))


@CHANNELS
@pytest.mark.usefixtures("always_gathered")
def test_many_gradients_at_once(granularity: str) -> None:
    layer, inputs = convolution(granularity=granularity), images().requires_grad_()
    wanted = (inputs, layer.weight, layer.bias)
    outputs = layer(inputs)
    grads = torch.randn(3, *outputs.shape)
    batched = torch.autograd.grad(outputs, wanted, grads, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(grads):
        single = torch.autograd.grad(outputs, wanted, grad, retain_graph=True)
        for left, right in zip(batched, single, strict=True):
            torch.testing.assert_close(left[index], right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("granularity", "share"), [("filter", 1.0), ("neuron", 0.25)])
@pytest.mark.usefixtures("always_gathered")
def test_what_is_kept_for_the_backward_pass(granularity: str, share: float) -> None:
    """Nothing of the weight's size; and under neuron masks only the active channels."""
    layer = convolution(inputs=64, outputs=64, p=0.9, granularity=granularity)
    inputs = images(channels=64).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(inputs)
    own = {layer.weight.data_ptr(), layer.pretrained_weight.data_ptr()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) <= 64 + share * inputs.numel()


def test_dropped_channels_get_a_gradient_of_exactly_zero() -> None:
    for granularity, dim in (("filter", 0), ("neuron", 1)):
        layer = convolution(inputs=16, outputs=16, granularity=granularity)
        with always_gather():
            layer(images(channels=16)).square().sum().backward()
        others = [d for d in range(4) if d != dim]
        nonzero = (layer.weight.grad != 0).sum(others)
        assert set(nonzero.tolist()) == {0, 16 * 9}


# In a model ---------------------------------------------------------------------------------------


def resnet() -> ResNetForImageClassification:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return ResNetForImageClassification(config)


def mixed(model: nn.Module, targets: str, granularity: str = "filter") -> tuple[str, ...]:
    config = MixoutConfig(0.5, granularity, target_modules=targets)  # type: ignore[arg-type]
    return inject_mixout(model, config).replaced


def test_all_conv_is_every_convolution_of_the_body() -> None:
    model = resnet()
    names = {name for name, module in model.named_modules() if type(module) is nn.Conv2d}
    assert len(names) == 6
    assert set(mixed(model, "all-conv")) == names


def test_words_and_suffixes_can_be_combined() -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(2, 2), nn.Embedding(2, 2), nn.ReLU())

    assert mixed(make(), "all-conv") == ("0",)
    assert mixed(make(), "all-linear") == ("1",)
    assert mixed(make(), "all-linear,all-conv") == ("0", "1")
    assert mixed(make(), "all-conv,2") == ("0", "2")
    with pytest.raises(TargetError, match="'3' is a ReLU, which cannot be mixed, only Linear"):
        mixed(make(), "all-conv,3")


def test_a_model_without_linear_layers_says_what_to_write() -> None:
    wanted = "'all-linear' selects nothing to mix in ResNet.*'all-conv' selects 6 layers; write"
    with pytest.raises(TargetError, match=wanted):
        mixed(resnet(), "all-linear")
    with pytest.raises(TargetError, match="'all-linear' selects 1 layer;"):
        mixed(nn.Linear(2, 2), "all-conv")


def test_a_regular_expression_mixes_a_convolution_only_by_its_name() -> None:
    def make() -> nn.ModuleDict:
        return nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1), "head": nn.Linear(1, 1)})

    assert mixed(make(), ".*") == ("head",)
    assert mixed(make(), r"conv\d|head") == ("conv1", "head")
    with pytest.raises(TargetError, match=r"'conv1' is a Conv2d, which .* if it contains 'conv'"):
        mixed(make(), "c.*")


@GRANULARITIES
def test_a_model_with_batch_normalization_collapses_bit_for_bit(granularity: str) -> None:
    model, pixels = resnet(), torch.randn(2, 3, 32, 32)
    keys = set(model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    mixed(model, "all-conv", granularity)
    model.train()(pixel_values=pixels, labels=torch.tensor([0, 1])).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    assert all((model.state_dict()[k] != v).any() for k, v in before.items())
    with torch.no_grad():
        mixed_logits = model.eval()(pixels).logits
        collapse_mixout(model)
        assert torch.equal(model(pixels).logits, mixed_logits)
    assert set(model.state_dict()) == keys


def test_a_resnet_goes_the_whole_way(tmp_path: Path) -> None:
    resnet().save_pretrained(tmp_path / "base")
    options = PrepareOptions(mixout=MixoutConfig(0.5, "filter", target_modules="all-conv"))
    prepare_checkpoint(str(tmp_path / "base"), tmp_path / "prepared", options)
    model = load_mixout(tmp_path / "prepared").train()
    assert {type(layer) for layer in mixout_layers(model).values()} == {MixoutConv2d}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    save_mixout(model, tmp_path / "trained")
    again = load_mixout(tmp_path / "trained")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    for alpha in (0.0, 0.5, 1.0):
        collapse_checkpoint(tmp_path / "trained", tmp_path / str(alpha), interpolate=alpha)
    base, half, trained = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "0.5", "1.0")
    )
    whole = load_file(tmp_path / "0.0" / "model.safetensors")
    assert all(torch.equal(whole[key], value) for key, value in base.items())
    for key, value in half.items():  # the statistics of batch normalization, too
        if value.is_floating_point():
            assert not torch.equal(base[key], trained[key])
            torch.testing.assert_close(value, (base[key] + trained[key]) / 2)
    assert "mixout" not in json.loads((tmp_path / "1.0" / "config.json").read_text())


def test_a_convnext_with_both_kinds_of_layers_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32, num_labels=3
    )
    model = ConvNextForImageClassification(config)
    names = mixed(model, "all-linear,all-conv", "neuron")
    depthwise = [m for m in mixout_layers(model).values() if getattr(m, "groups", 1) > 1]
    assert (len(names), len(depthwise)) == (8, 2)
    model.train()(
        pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])
    ).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    save_mixout(model, tmp_path / "trained")
    collapse_checkpoint(tmp_path / "trained", tmp_path / "collapsed")
    export_onnx(tmp_path / "collapsed", tmp_path / "onnx")
    assert verify_checkpoints(tmp_path / "trained", tmp_path / "onnx").holds


def test_decay_toward_the_pretrained_weights_leaves_statistics_alone(tmp_path: Path) -> None:
    resnet().save_pretrained(tmp_path / "base")
    options = PrepareOptions(mixout=MixoutConfig(0.5, target_modules="all-conv"))
    prepare_checkpoint(str(tmp_path / "base"), tmp_path / "prepared", options)
    start = load_start(
        open_checkpoint(tmp_path / "prepared"), TrainOptions(decay_toward="pretrained")
    )
    assert start.pretrained.keys() == {name for name, _ in start.model.named_parameters()}
