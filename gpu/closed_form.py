"""Compare a mixed layer with the formula.

The first rows of the input are the identity, so the first rows of the output are Φ. The check
derives the mask from them. All other rows and all gradients must then follow from the formula,
computed in float64. The check does not need to know how masks are drawn, so it also works for
checkpointing, compilation, accumulation and replayed graphs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpu.results import CheckFailed
from mixout_export import MixoutConv1D, MixoutEmbedding, MixoutLinear
from mixout_export.layers import MixoutLayer
from mixout_export.masks import can_pack, round_probability

Call = Callable[[MixoutLayer, Tensor], Tensor]

P = 0.7
#: Seed of the masks, so that a failure can be repeated.
_SEED = 6

#: Tolerances. The unit is the dtype's eps times the root of the sum of squares of the terms. Half
#: precisions accumulate in float32, so mainly the rounding of the result remains: half an eps of a
#: result that is at most about 5 units. In float32 a sum of a thousand terms rounds as it goes.
_LIMITS = {torch.float32: 64.0, torch.bfloat16: 8.0, torch.float16: 8.0}


@dataclass(frozen=True)
class Case:
    """A layer to examine.

    Attributes:
        kind: "linear", "conv1d" or "embedding".
        granularity: "neuron", "filter" or "element".
        dtype: Dtype of the weights.
        autocast: The dtype of autocast; None if it is disabled.
        inputs: Number of input neurons.
        outputs: Number of output neurons.
        rows: Number of input rows in addition to the identity.
        bias: Whether the layer has a bias.
    """

    kind: str = "linear"
    granularity: str = "neuron"
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    inputs: int = 256
    outputs: int = 192
    rows: int = 512
    bias: bool = True

    @property
    def computed_in(self) -> torch.dtype:
        """The dtype of the product."""
        return self.autocast or self.dtype

    def __str__(self) -> str:
        """Describe the case: `linear, neuron, bfloat16, 256 → 192, 768 rows`."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.autocast is not None:
            dtype = f"{dtype} under autocast to {str(self.autocast).removeprefix('torch.')}"
        size = f"{self.inputs} → {self.outputs}, {self.inputs + self.rows} rows"
        return f"{self.kind}, {self.granularity}, {dtype}, {size}"


def make_layer(case: Case, device: torch.device) -> MixoutLayer:
    """Return a layer in training mode whose weights are far from their anchors.

    Values are drawn on the CPU, so every call returns the same layer.
    """
    generator = torch.Generator().manual_seed(3)
    layer: MixoutLayer
    if case.kind == "linear":
        layer = MixoutLinear(
            case.inputs, case.outputs, case.bias, p=P, granularity=case.granularity
        )
    elif case.kind == "conv1d":
        layer = MixoutConv1D(case.outputs, case.inputs, p=P, granularity=case.granularity)
    else:
        layer = MixoutEmbedding(case.inputs, case.outputs, p=P, granularity=case.granularity)
    shape = layer.weight.shape
    anchor = torch.randn(shape, generator=generator)
    away = (0.5 + torch.rand(shape, generator=generator)) * torch.randn(
        shape, generator=generator
    ).sign()
    with torch.no_grad():
        layer.pretrained_weight.copy_(anchor)
        layer.weight.copy_(anchor + away)
        if getattr(layer, "bias", None) is not None:
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return layer.to(device, case.dtype)


def _out_in(layer: MixoutLayer, value: Tensor) -> Tensor:
    """Return a tensor of the weight's layout in float64 as (out, in)."""
    return value.detach().double() if layer.input_dim == 1 else value.detach().double().t()


def _scales(case: Case, layer: MixoutLayer) -> list[float]:
    """Return the scales 1/(1 − p) that a layer may use.

    Element masks round p to a multiple of 2⁻¹⁶ and scale with the rounded value. Compiled or
    captured code uses p unchanged.
    """
    packed = case.granularity == "element" and can_pack(layer.weight.numel(), layer.p)
    return [1.0 / (1.0 - p) for p in ((round_probability(layer.p), P) if packed else (P,))]


@dataclass
class _Mixed:
    """The parts of the formula in float64, laid out as (out, in)."""

    mask: Tensor
    phi: Tensor
    scale: float
    #: |u| + m/(1 − p)·|w − u|. The rounding error of Φ is relative to this, even if Φ is smaller.
    size: Tensor


def _read_mask(case: Case, layer: MixoutLayer, observed: Tensor) -> _Mixed:
    """Find the mask in the observed Φ, and compare Φ with the formula.

    Args:
        case: The layer's case.
        layer: The layer.
        observed: Φ in float64, (out, in), without the bias.
    """
    away = _out_in(layer, layer.weight) - _out_in(layer, layer.pretrained_weight)
    anchor = _out_in(layer, layer.pretrained_weight)
    choices = []
    for scale in _scales(case, layer):
        mask = (observed - anchor).abs() > (observed - anchor - scale * away).abs()
        size = anchor.abs() + scale * mask * away.abs()
        choices.append(_Mixed(mask, anchor + scale * mask * away, scale, size))
    mixed = min(choices, key=lambda choice: float((observed - choice.phi).abs().sum()))
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().abs()[:, None]
    size = anchor.abs() + mixed.scale * away.abs() + bias
    compare(case, "Φ", observed, mixed.phi, size, case.computed_in)
    mask = mixed.mask
    if case.granularity == "neuron" and not torch.equal(mask, mask[:1].expand_as(mask)):
        raise CheckFailed(f"{case}: the mask is not the same for all outputs of an input neuron")
    if case.granularity == "filter" and not torch.equal(mask, mask[:, :1].expand_as(mask)):
        raise CheckFailed(f"{case}: the mask is not the same for all inputs of an output neuron")
    if mask.all() or not mask.any():
        raise CheckFailed(f"{case}: the mask keeps {'every weight' if mask.all() else 'no weight'}")
    mixed.phi = mixed.phi.to(case.computed_in).double()
    return mixed


def compare(
    case: object, what: str, got: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype
) -> float:
    """Compare a tensor of a case with the formula.

    Returns:
        The largest error divided by the tolerance.

    Raises:
        CheckFailed: This is more than 1, or not a number.
    """
    if got.shape != wanted.shape:
        raise CheckFailed(f"{case}: {what} has shape {got.shape}, expected {wanted.shape}")
    limit = _LIMITS[dtype] * torch.finfo(dtype).eps
    apart = (got.double() - wanted).abs() / size.clamp_min(torch.finfo(torch.float32).tiny)
    worst = float(apart.max() / limit)
    if not worst <= 1.0:
        place = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
        raise CheckFailed(
            f"{case}: {what} differs by {worst:.3g} × the tolerance at {list(place)}: got "
            f"{float(got[place]):.6g}, expected {float(wanted[place]):.6g}; "
            f"{int((apart > limit).sum())} of {apart.numel()} values are outside the tolerance"
        )
    return worst


def plain_call(layer: MixoutLayer, inputs: Tensor) -> Tensor:
    """Call a layer."""
    return layer(inputs)  # type: ignore[no-any-return]


def make_inputs(case: Case, device: torch.device) -> Tensor:
    """Return the identity and random rows, in the dtype that the product is computed in."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(case.rows, case.inputs, generator=generator)
    together = torch.cat([torch.eye(case.inputs), rows]).to(case.computed_in)
    together = together.to(device, case.dtype if case.autocast is None else torch.float32)
    return together.requires_grad_()


def make_upstream(case: Case, device: torch.device, seed: int = 5) -> Tensor:
    """Return a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.inputs + case.rows, case.outputs)
    return torch.randn(shape, generator=generator).to(device, case.computed_in)


def examine(case: Case, device: torch.device, *, call: Call = plain_call, passes: int = 1) -> float:
    """Compare a layer's output and gradients with the formula.

    Args:
        case: The layer.
        device: Device of the layer.
        call: Calls the layer, for example under checkpointing or compiled.
        passes: Number of forward and backward passes whose gradients add up.

    Returns:
        The largest error divided by the tolerance.

    Raises:
        CheckFailed: The output or a gradient differs from the formula, for every possible mask.
    """
    layer, inputs = make_layer(case, device), make_inputs(case, device)
    torch.manual_seed(_SEED)
    observed = []
    for number in range(passes):
        upstream = make_upstream(case, device, seed=5 + number)
        with torch.autocast(device.type, case.autocast, enabled=case.autocast is not None):
            output = call(layer, inputs)
        output.backward(upstream)  # type: ignore[no-untyped-call]
        observed.append((output.detach(), upstream))
    return compare_passes(case, layer, inputs, observed)


def compare_passes(
    case: Case, layer: MixoutLayer, inputs: Tensor, observed: list[tuple[Tensor, Tensor]]
) -> float:
    """Compare outputs and accumulated gradients with the formula.

    Args:
        case: The layer's case.
        layer: The layer, with its gradients.
        inputs: From `make_inputs`, with its gradient.
        observed: For each pass, its output and the output's gradient.

    Returns:
        The largest error divided by the tolerance.
    """
    x, dtype = inputs.detach().double(), case.computed_in
    bias = None if layer.bias is None else layer.bias.detach().to(dtype).double()
    worst, of_inputs, of_weight, of_bias = 0.0, 0.0, 0.0, 0.0
    squares_inputs, squares_weight, squares_bias = 0.0, 0.0, 0.0
    for output, upstream in observed:
        if output.dtype != dtype:
            raise CheckFailed(f"{case}: the output is {output.dtype}, expected {dtype}")
        g, shown = upstream.double(), output.detach().double()
        columns = shown[: case.inputs] - (0.0 if bias is None else bias)
        mixed = _read_mask(case, layer, columns.t())
        wanted = x @ mixed.phi.t() + (0.0 if bias is None else bias)
        squares = x.square() @ mixed.size.square().t() + (0 if bias is None else bias.square())
        worst = max(worst, compare(case, "the output", shown, wanted, squares.sqrt(), dtype))
        of_inputs = of_inputs + g @ mixed.phi
        squares_inputs = squares_inputs + g.square() @ mixed.size.square()
        of_weight = of_weight + mixed.scale * mixed.mask * (g.t() @ x)
        squares_weight = squares_weight + mixed.mask * mixed.scale**2 * (
            g.square().t() @ x.square()
        )
        of_bias = of_bias + g.sum(0)
        squares_bias = squares_bias + g.square().sum(0)
    gradients = [
        ("the input's gradient", inputs.grad, of_inputs, squares_inputs),
        ("the weight's gradient", _out_in(layer, layer.weight.grad), of_weight, squares_weight),
    ]
    if layer.bias is not None:
        gradients.append(("the bias's gradient", layer.bias.grad, of_bias, squares_bias))
    for what, got, expected, squares in gradients:
        worst = max(worst, compare(case, what, got, expected, squares.sqrt(), dtype))
    return worst


def examine_embedding(case: Case, device: torch.device) -> float:
    """Compare a mixed embedding's rows and gradient with the formula; see `examine`."""
    layer = make_layer(case, device)
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randint(0, case.inputs, (case.rows,), generator=generator)
    ids = torch.cat([torch.arange(case.inputs), drawn]).to(device)
    upstream = make_upstream(case, device)
    torch.manual_seed(_SEED)
    with torch.autocast(device.type, case.autocast, enabled=case.autocast is not None):
        output = layer(ids)
    output.backward(upstream.to(output.dtype))
    shown = output.detach().double()
    table = shown[: case.inputs]
    anchor, weight = layer.pretrained_weight.double(), layer.weight.detach().double()
    scale = 1.0 / (1.0 - P)
    mask = (table - anchor).abs() > (table - anchor - scale * (weight - anchor)).abs()
    wanted = anchor + scale * mask * (weight - anchor)
    size = anchor.abs() + scale * (weight - anchor).abs()
    worst = compare(case, "Φ", table, wanted, size, case.dtype)
    if case.granularity == "neuron" and not torch.equal(mask, mask[:, :1].expand_as(mask)):
        raise CheckFailed(f"{case}: the mask is not the same for all weights of a row")
    if not torch.equal(shown, table[ids]):
        raise CheckFailed(f"{case}: two occurrences of one id are mixed differently")
    g = upstream.to(output.dtype).double()
    of_table = torch.zeros_like(table).index_add_(0, ids, g) * mask * scale
    squares = torch.zeros_like(table).index_add_(0, ids, g.square()) * mask * scale**2
    gradient = layer.weight.grad
    return max(
        worst,
        compare(case, "the table's gradient", gradient, of_table, squares.sqrt(), case.dtype),
    )
