"""Compare mixed convolutions with the formula; see `closed_form` for how.

The first images of the input are impulses: a single 1 in the middle of one channel. The first
images of the output therefore show Φ, from which the check derives the mask.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpu.closed_form import P, compare
from gpu.results import CheckFailed, Finding
from gpu.waits import no_waiting
from mixout_export import MixoutAdamW
from mixout_export.layers import MixoutConv2d

Call = Callable[[MixoutConv2d, Tensor], Tensor]

_SIZE = 8
_SEED = 6


@dataclass(frozen=True)
class ConvolutionCase:
    """A convolution to examine, with a kernel of 3 × 3 and a padding of 1.

    Attributes:
        granularity: "neuron", "filter" or "element".
        dtype: Dtype of the weights.
        autocast: The dtype of autocast; None if it is disabled.
        groups: Number of groups.
        inputs: Number of input channels.
        outputs: Number of filters.
        images: Number of images in addition to the impulses.
    """

    granularity: str
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    groups: int = 1
    inputs: int = 64
    outputs: int = 96
    images: int = 16

    def __str__(self) -> str:
        """Describe the case: `convolution, filter, float32, 64 → 96, 1 group`."""
        names = [str(d).removeprefix("torch.") for d in (self.dtype, self.autocast) if d]
        sizes = f"{self.inputs} → {self.outputs}, groups {self.groups}"
        return f"convolution, {self.granularity}, {' under autocast to '.join(names)}, {sizes}"


def make_convolution(case: ConvolutionCase, device: torch.device) -> MixoutConv2d:
    """Return a layer in training mode whose weights are far from their anchors."""
    generator = torch.Generator().manual_seed(3)
    layer = MixoutConv2d(
        case.inputs, case.outputs, 3, padding=1, groups=case.groups, p=P,
        granularity=case.granularity,
    )  # fmt: skip
    anchor, away, bias = (
        torch.randn(shape, generator=generator)
        for shape in (layer.weight.shape, layer.weight.shape, layer.bias.shape)
    )
    with torch.no_grad():
        layer.pretrained_weight.copy_(anchor)
        layer.weight.copy_(anchor + away + 0.5 * away.sign())
        layer.bias.copy_(bias)
    return layer.to(device, case.dtype)


def _inputs(case: ConvolutionCase, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    impulses = torch.zeros(case.inputs, case.inputs, _SIZE, _SIZE)
    impulses[range(case.inputs), range(case.inputs), 4, 4] = 1.0
    images = torch.randn(case.images, case.inputs, _SIZE, _SIZE, generator=generator)
    together = torch.cat([impulses, images]).to(case.autocast or case.dtype)
    return together.to(device, case.dtype).requires_grad_()


def _shown(case: ConvolutionCase, output: Tensor) -> Tensor:
    """Return Φ, (out, in / groups, 3, 3), from the output of the impulses without the bias."""
    patches = output[: case.inputs, :, 3:6, 3:6].flip(2, 3).transpose(0, 1)
    groups = zip(patches.chunk(case.groups, 0), range(case.groups), strict=True)
    per_group = case.inputs // case.groups
    return torch.cat([p[:, g * per_group : (g + 1) * per_group] for p, g in groups])


def _check_shares(case: ConvolutionCase, mask: Tensor) -> None:
    """Refuse a mask whose bits are not shared as the granularity says."""
    by_group = mask.view(case.groups, -1, *mask.shape[1:])
    of = {"neuron": by_group[:, :1, :, :1, :1], "filter": by_group[:, :, :1, :1, :1]}
    expected = of.get(case.granularity, by_group)
    if not torch.equal(by_group, expected.expand_as(by_group)):
        raise CheckFailed(f"{case}: the weights of one {case.granularity} have different bits")
    if mask.all() or not mask.any():
        raise CheckFailed(f"{case}: the mask keeps {'every weight' if mask.all() else 'no weight'}")


def plain_call(layer: MixoutConv2d, inputs: Tensor) -> Tensor:
    """Call a layer."""
    return layer(inputs)  # type: ignore[no-any-return]


def examine_convolution(
    case: ConvolutionCase, device: torch.device, *, call: Call = plain_call
) -> float:
    """Compare a layer's output and gradients with the formula.

    Returns:
        The largest error divided by the tolerance.

    Raises:
        CheckFailed: The output or a gradient differs from the formula, for every possible mask.
    """
    dtype = case.autocast or case.dtype
    layer, inputs = make_convolution(case, device), _inputs(case, device)
    torch.manual_seed(_SEED)
    with torch.autocast(device.type, case.autocast, enabled=case.autocast is not None):
        output = call(layer, inputs)
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(output.shape, generator=generator).to(device, dtype)
    output.backward(upstream)  # type: ignore[no-untyped-call]
    anchor, bias = layer.pretrained_weight.double(), layer.bias.detach().to(dtype).double()
    away, scale = layer.weight.detach().double() - anchor, 1.0 / (1.0 - P)
    observed = _shown(case, output.detach().double() - bias.view(-1, 1, 1))
    mask = (observed - anchor).abs() > (observed - anchor - scale * away).abs()
    _check_shares(case, mask)
    size = anchor.abs() + scale * mask * away.abs()
    spread = size + bias.abs().view(-1, 1, 1, 1)
    worst = compare(case, "Φ", observed, anchor + scale * mask * away, spread, dtype)
    phi = (anchor + scale * mask * away).to(dtype).double()
    x, g = inputs.detach().double(), upstream.double()

    def convolved(x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> list[Tensor]:
        values = [value.requires_grad_() for value in (x.clone(), weight.clone(), bias.clone())]
        wanted = F.conv2d(*values, padding=1, groups=case.groups)
        return [wanted.detach(), *torch.autograd.grad(wanted, values, g)]

    wanted = convolved(x, phi, bias, g)
    squares = convolved(x.square(), size.square(), bias.square(), g.square())
    wanted[2], squares[2] = scale * mask * wanted[2], scale**2 * mask * squares[2]
    names = ("the output", "the input's gradient", "the weight's gradient", "the bias's gradient")
    got = (output.detach(), inputs.grad, layer.weight.grad, layer.bias.grad)
    for what, value, expected, square in zip(names, got, wanted, squares, strict=True):
        assert value is not None
        worst = max(worst, compare(case, what, value, expected, square.sqrt(), dtype))
    return worst


def check_convolutions(
    device: torch.device, precisions: tuple[tuple[torch.dtype, torch.dtype | None], ...]
) -> Finding:
    """Forward and gradients of convolutions, also grouped and under checkpointing."""

    def recomputed(layer: MixoutConv2d, inputs: Tensor) -> Tensor:
        return checkpoint(layer, inputs, use_reentrant=False)  # type: ignore[no-any-return]

    errors = []
    kinds = ("neuron", "filter", "element")
    with torch.backends.cudnn.flags(allow_tf32=False):  # the tolerances are those of float32
        for granularity, (dtype, autocast) in itertools.product(kinds, precisions):
            case = ConvolutionCase(granularity, dtype, autocast)
            errors.append(examine_convolution(case, device))
        for granularity, groups in itertools.product(kinds, (4, 32)):
            case = ConvolutionCase(granularity, groups=groups)
            errors.append(examine_convolution(case, device))
        for granularity in kinds:
            case = ConvolutionCase(granularity)
            errors.append(examine_convolution(case, device, call=recomputed))
    _check_no_waits(device)
    return Finding(
        f"{len(errors)} convolutions compared with the formula in float64; largest error "
        f"{max(errors):.2f} × the tolerance; no training step waits for the device",
        data={"errors": errors},
    )


def _check_no_waits(device: torch.device) -> None:
    """Do training steps with convolutions; raise an error if one waits for the device."""
    cases = [ConvolutionCase(g, outputs=64, groups=n) for g in ("neuron", "filter") for n in (1, 4)]
    network = nn.Sequential()
    for case in cases:
        network.extend([make_convolution(case, device), nn.BatchNorm2d(64, device=device)])
    optimizer = MixoutAdamW(network, lr=1e-3)
    images = torch.randn(32, 64, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1))
    images = images.to(device)

    def step() -> None:
        network(images).square().mean().backward()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()  # sets up allocators and kernels
    state = [*optimizer.buffers(), *(v for s in optimizer.state.values() for v in s.values())]
    with no_waiting(device, [*network.parameters(), *network.buffers(), *state, images]):
        for _ in range(2):
            step()
