"""The product with a mixed weight, for less than the formula spelled out would cost.

Under neuron masks whole columns of the weight's gradient are zero, so only the active input neurons
are gathered and multiplied: (1 - p) of that product. The mixed weight is computed again for the
input's gradient, so between the passes a layer keeps nothing of the weight's size.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor
from torch.autograd import forward_ad

from mixout_export.functional import draw_mask, mix


def must_spell_out(weight: Tensor, input: Tensor) -> bool:
    """Tell whether the product must be left to autograd.

    Compilers and function transforms see through plain operations only; a tensor subclass (a
    sharded one, say) has its own; a frozen weight has no gradient to save; dtypes that autocast
    does not bring together fail, or stay, as in the plain layer. On a GPU the number of active
    neurons would have to be waited for.
    """
    autocast = torch.is_autocast_enabled(input.device.type)
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or not weight.requires_grad
        or not torch.is_grad_enabled()
        or weight.device.type != "cpu"
        or (input.dtype != weight.dtype and not autocast)
        or (autocast and torch.float64 in (input.dtype, weight.dtype))
        or type(input) is not Tensor
        or type(weight.data) is not Tensor
    )


def neuron_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    *,
    p: float,
    input_dim: int,
) -> Tensor:
    """Multiply with Φ under a fresh neuron mask and add the bias.

    The mask and the mathematics are those of `functional.mixout` followed by a product.

    Args:
        input: Shape (..., in).
        weight: w, of shape (out, in) where `input_dim` is 1, (in, out) where it is 0.
        pretrained_weight: u, of the same shape.
        bias: Shape (out,), or None.
        p: Mix probability in (0, 1).
        input_dim: The dimension of `weight` that counts input neurons.

    Returns:
        Shape (..., out).
    """
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input = input.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    mask = draw_mask(weight, p, granularity="neuron", input_dim=input_dim)
    active = mask.flatten().nonzero().squeeze(1)
    return _NeuronProduct.apply(  # type: ignore[no-any-return, no-untyped-call]
        input, weight, pretrained_weight, bias, mask, active, p, input_dim
    )


def _product(input: Tensor, mixed: Tensor, bias: Tensor | None, input_dim: int) -> Tensor:
    mixed = mixed.to(input.dtype)
    return F.linear(input, mixed if input_dim == 1 else mixed.t(), bias)


def _input_gradient(grad: Tensor, mixed: Tensor, input_dim: int, like: Tensor) -> Tensor:
    mixed = mixed.to(grad.dtype)
    return (grad @ (mixed if input_dim == 1 else mixed.t())).view(like.shape)


class _NeuronProduct(torch.autograd.Function):
    """y = x Φᵀ + b under a neuron mask."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        pretrained_weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        active: Tensor,
        p: float,
        input_dim: int,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, pretrained_weight, mask, active)
        ctx.p, ctx.input_dim = p, input_dim
        return _product(input, mix(weight, pretrained_weight, mask, p), bias, input_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, pretrained_weight, mask, active = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        to_input, to_weight, _, to_bias, *_ = ctx.needs_input_grad
        for_input = for_weight = None
        if to_input:
            mixed = mix(weight, pretrained_weight, mask, ctx.p)
            for_input = _input_gradient(flat, mixed, ctx.input_dim, input)
            del mixed
        if to_weight:
            gathered = input.reshape(-1, input.shape[-1]).index_select(1, active)
            part = flat.t() @ gathered if ctx.input_dim == 1 else gathered.t() @ flat
            part = part.to(weight.dtype) * (1.0 / (1.0 - ctx.p))
            for_weight = torch.zeros_like(weight).index_copy(ctx.input_dim, active, part)
        for_bias = flat.sum(0) if to_bias else None
        return for_input, for_weight, None, for_bias, None, None, None, None
