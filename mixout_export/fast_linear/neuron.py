"""The product with Φ under a neuron mask: one bit per input neuron."""

from typing import Any

import torch
from torch import Tensor

from mixout_export.compact import CompactGradient
from mixout_export.fast_linear.gathering import ActiveNeurons
from mixout_export.fast_linear.products import (
    from_host,
    gathered_gradient,
    input_gradient,
    mask_gradient,
    product,
    weight_gradient,
)
from mixout_export.functional import coefficients
from mixout_export.fused import mixed_in


def neuron_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    p: float,
    input_dim: int,
    compact: CompactGradient | None,
) -> Tensor:
    """Multiply (rows, in) with Φ under a neuron mask and add the bias.

    The arguments are those of `linear.mixed_product`. On the CPU, the mask's active neurons can be
    counted without waiting for a GPU.
    """
    active = None
    if torch.is_grad_enabled():
        active = ActiveNeurons.of(mask, weight, input.shape[0], always=compact is not None)
    factors = coefficients(from_host(mask, weight.device), weight.dtype, 1.0 - p)
    output, _ = _NeuronProduct.apply(  # type: ignore[no-untyped-call]
        input, weight, pretrained_weight, bias, factors, active, p, input_dim, compact
    )
    return output  # type: ignore[no-any-return]


class _NeuronProduct(torch.autograd.Function):
    """y = x Φᵀ + b under a neuron mask.

    The gathered columns are an output too. Without that, second derivatives would not reach the
    input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        pretrained_weight: Tensor,
        bias: Tensor | None,
        factors: Tensor,
        active: ActiveNeurons | None,
        p: float,
        input_dim: int,
        compact: CompactGradient | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.compact = compact
        ctx.active, ctx.p, ctx.input_dim, ctx.shape = active, p, input_dim, input.shape
        gathered = active.gather(input) if active is not None and active.keeps_gathered else None
        kept = input if gathered is None else gathered
        ctx.save_for_backward(kept, weight, pretrained_weight, factors)
        mixed = mixed_in(input.dtype, factors, weight, pretrained_weight, p)
        return product(input, mixed, bias, input_dim), gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_gathered: Tensor | None) -> tuple[Any, ...]:
        kept, weight, pretrained_weight, factors = ctx.saved_tensors
        needs_input_grad, needs_weight_grad, _, needs_bias_grad, *_ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        if grad_gathered is not None and needs_input_grad:  # from a second derivative
            grad_input = ctx.active.scatter(grad_gathered, grad_gathered.new_zeros(ctx.shape), 1)
        if grad is not None:
            if needs_input_grad:
                mixed = mixed_in(grad.dtype, factors, weight, pretrained_weight, ctx.p)
                from_output = input_gradient(grad, mixed, ctx.input_dim)
                grad_input = from_output if grad_input is None else grad_input + from_output
            if needs_weight_grad:
                grad_weight, grad_bias = _parameter_gradients(ctx, grad, kept, weight, factors)
            if needs_bias_grad and grad_bias is None:
                grad_bias = grad.sum(0)
        if not needs_bias_grad:
            grad_bias = None
        return grad_input, grad_weight, None, grad_bias, None, None, None, None, None


def _parameter_gradients(
    ctx: Any, grad: Tensor, kept: Tensor, weight: Tensor, factors: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight's gradient, and the bias's if the same product has computed it.

    The weight's is None if it went to `ctx.compact`.
    """
    active, dim = ctx.active, ctx.input_dim
    if active is None:
        whole = weight_gradient(grad, kept, dim)
        return mask_gradient(whole.to(weight.dtype), factors, ctx.p), None
    gathered = kept if active.keeps_gathered else active.gather(kept)
    part = gathered_gradient(grad, gathered, dim)
    # A copy of the bias's gradient: a view would keep the whole product alive.
    grad_bias = part.select(dim, active.count).clone() if active.has_ones else None
    return active.weight_gradient(part, weight, dim, ctx.p, ctx.compact), grad_bias
