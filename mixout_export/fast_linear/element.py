"""The product with Φ under an element mask: one bit per weight."""

from typing import Any

import torch
from torch import Tensor

from mixout_export.fast_linear.products import (
    input_gradient,
    mask_gradient,
    product,
    weight_gradient,
)
from mixout_export.functional import coefficients, mix, mix_by
from mixout_export.masks import PackedMask


def element_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    mask: PackedMask,
    input_dim: int,
) -> Tensor:
    """Multiply (rows, in) with Φ under an element mask and add the bias.

    The arguments are those of `linear.mixed_product`. The mask has p rounded to a
    multiple of 2⁻¹⁶.
    """
    return _ElementProduct.apply(  # type: ignore[no-any-return, no-untyped-call]
        input, weight, pretrained_weight, bias, mask, input_dim
    )


class _ElementProduct(torch.autograd.Function):
    """y = x Φᵀ + b under an element mask, which the backward pass draws again."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        pretrained_weight: Tensor,
        bias: Tensor | None,
        mask: PackedMask,
        input_dim: int,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, pretrained_weight)
        ctx.mask, ctx.input_dim = mask, input_dim
        return product(input, _mixed(mask, weight, pretrained_weight), bias, input_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, pretrained_weight = ctx.saved_tensors
        needs_input_grad, needs_weight_grad, _, needs_bias_grad, *_ = ctx.needs_input_grad
        grad_input = grad_weight = None
        if needs_input_grad:
            mixed = _mixed(ctx.mask, weight, pretrained_weight)
            grad_input = input_gradient(grad, mixed, ctx.input_dim)
            del mixed
        if needs_weight_grad:
            whole = weight_gradient(grad, input, ctx.input_dim)
            grad_weight = _masked(ctx.mask, whole.to(weight.dtype).contiguous())
        grad_bias = grad.sum(0) if needs_bias_grad else None
        return grad_input, grad_weight, None, grad_bias, None, None


def _mixed(mask: PackedMask, weight: Tensor, pretrained_weight: Tensor) -> Tensor:
    """Return Φ; unless gradients are enabled, without another tensor of the weight's size."""
    if torch.is_grad_enabled():
        return mix(weight, pretrained_weight, mask.bits(weight), mask.p)
    mixed = torch.empty_like(weight, memory_format=torch.contiguous_format)
    flat, w, u = mixed.view(-1), weight.reshape(-1), pretrained_weight.reshape(-1)
    mean = 1.0 - mask.p
    for part, bits in mask.pieces(weight):
        factors = coefficients(bits, weight.dtype, mean)
        mix_by(factors, w[part], u[part], mean, out=flat[part])
    return mixed


def _masked(mask: PackedMask, gradient: Tensor) -> Tensor:
    """Multiply a gradient of Φ by m / (1 - p), in place."""
    if torch.is_grad_enabled():
        factors = coefficients(mask.bits(gradient), gradient.dtype, 1.0 - mask.p)
        return mask_gradient(gradient, factors, mask.p)
    flat = gradient.view(-1)
    for part, bits in mask.pieces(gradient):
        mask_gradient(flat[part], coefficients(bits, gradient.dtype, 1.0 - mask.p), mask.p)
    return gradient
