"""An operation with Φ under a mask over its input neurons or over its output neurons."""

from typing import Any

import torch
from torch import Tensor

from mixout_export.compact import CompactGradient
from mixout_export.fast_linear.gathering import ActiveNeurons
from mixout_export.fast_linear.operations import Operation
from mixout_export.fast_linear.products import from_host, mask_gradient
from mixout_export.functional import coefficients, mix_by

#: The dimension that counts neurons in inputs and in outputs.
_NEURONS = 1


def masked_operation(
    operation: Operation,
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    *,
    p: float,
    granularity: str,
    compact: CompactGradient | None = None,
) -> Tensor:
    """Compute an operation with Φ = u + (m / (1 - p)) ⊙ (w - u) and add the bias.

    Args:
        operation: A convolution, or the product of a linear layer.
        input: Shape (batch, in, …), floating point.
        weight: w.
        pretrained_weight: u, of the same shape.
        bias: Shape (out,), or None.
        mask: m, Bool, on the CPU, where its active neurons can be counted without waiting for a
            GPU; it broadcasts against the weight.
        p: Mix probability in (0, 1).
        granularity: "neuron" or "filter": what shares a bit of the mask.
        compact: Where the active slices of the weight's gradient may be written instead of into
            `weight.grad`; None for the dense gradient.

    Returns:
        Shape (batch, out, …), of the input's dtype, or of autocast's if it is enabled.
    """
    kind = input.device.type
    if torch.is_autocast_enabled(kind):  # cast as autocast does before the operation
        dtype = torch.get_autocast_dtype(kind)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    active = None
    if torch.is_grad_enabled() and operation.separable:
        rows = operation.rows(input, weight)
        active = ActiveNeurons.of(mask, weight, rows, always=compact is not None)
    factors = coefficients(from_host(mask, weight.device), weight.dtype, 1.0 - p)
    output, _ = _MaskedOperation.apply(  # type: ignore[no-untyped-call]
        *(input, weight, pretrained_weight, bias, factors),
        *(active, p, granularity == "filter", operation, compact),
    )
    return output  # type: ignore[no-any-return]


class _MaskedOperation(torch.autograd.Function):
    """The operation with Φ under a mask over input neurons, or over output neurons ("filters").

    Gathered input neurons are an output too. Without that, second derivatives would not reach the
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
        by_filter: bool,
        operation: Operation,
        compact: CompactGradient | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.compact = compact
        ctx.active, ctx.p, ctx.by_filter, ctx.operation = active, p, by_filter, operation
        ctx.shape = input.shape
        mixed = mix_by(factors, weight, pretrained_weight, 1.0 - p)
        output = operation.output(input, mixed, bias)
        gathered = None
        if active is not None and active.keeps_gathered and not by_filter:
            gathered = _gather(active, input)
        kept = input if gathered is None else gathered
        ctx.save_for_backward(kept, weight, pretrained_weight, factors)
        return output, gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_gathered: Tensor | None) -> tuple[Any, ...]:
        kept, weight, pretrained_weight, factors = ctx.saved_tensors
        needs_input_grad, needs_weight_grad, _, needs_bias_grad, *_ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        if grad_gathered is not None and needs_input_grad:  # from a second derivative
            zeros = grad_gathered.new_zeros(ctx.shape)
            grad_input = ctx.active.scatter(grad_gathered, zeros, _NEURONS)
        if grad is not None:
            if needs_input_grad:
                mixed = mix_by(factors, weight, pretrained_weight, 1.0 - ctx.p)
                from_output = ctx.operation.input_gradient(grad, ctx.shape, mixed)
                grad_input = from_output if grad_input is None else grad_input + from_output
            if needs_weight_grad:
                grad_weight = _weight_gradient(ctx, grad, kept, weight, factors)
            if needs_bias_grad:
                grad_bias = grad.sum([dim for dim in range(grad.dim()) if dim != _NEURONS])
        return grad_input, grad_weight, None, grad_bias, None, None, None, None, None, None


def _gather(active: ActiveNeurons, values: Tensor) -> Tensor:
    """Return the active neurons, (batch, columns, …), of an input or of an output's gradient."""
    return values.index_select(_NEURONS, active.indices.view(-1))


def _weight_gradient(
    ctx: Any, grad: Tensor, kept: Tensor, weight: Tensor, factors: Tensor
) -> Tensor | None:
    """Return the weight's gradient; None if it went to `ctx.compact`."""
    active: ActiveNeurons | None = ctx.active
    operation: Operation = ctx.operation
    if active is None:
        whole = operation.weight_gradient(grad, kept, weight.shape)
        return mask_gradient(whole.to(weight.dtype), factors, ctx.p)
    if ctx.by_filter:
        dim, grad = operation.output_dim, _gather(active, grad)
    else:
        dim, kept = operation.input_dim, kept if active.keeps_gathered else _gather(active, kept)
    shape = list(weight.shape)
    shape[dim] = active.columns
    part = operation.weight_gradient(grad, kept, torch.Size(shape))
    return active.weight_gradient(part, weight, dim, ctx.p, ctx.compact)
