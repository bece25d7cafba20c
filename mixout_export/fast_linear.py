"""The product with a mixed weight, for less than the formula spelled out would cost.

Under neuron masks whole columns of the weight's gradient are zero, so only the active input neurons
are gathered and multiplied: (1 - p) of that product. Under element masks the bits come packed. The
mixed weight is computed again for the input's gradient, so between the passes a layer keeps nothing
of the weight's size.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor
from torch.autograd import forward_ad

from mixout_export.functional import coefficients, draw_mask, is_full_precision, mix, mix_by
from mixout_export.fused import mixed_in
from mixout_export.masks import PackedMask

#: Matrix units like sizes that are multiples of these; by device.
_PADDING = {"cpu": 16, "cuda": 64}
#: Multiplications that must be saved before gathering pays for itself (measured: about 40 µs).
_FEWEST_SAVED = 4_000_000
#: Largest share of the input neurons whose values are kept instead of the whole input.
_KEPT_SHARE = 0.5


def needs_plain_ops(weight: Tensor, input: Tensor) -> bool:
    """Tell whether the product must be left to autograd.

    Compilers and function transforms see through plain operations only; a tensor subclass (a
    sharded one, say) has its own; a frozen weight has no gradient to save; dtypes that autocast
    does not bring together fail, or stay, as in the plain layer. Whether gradients are enabled
    does not matter: re-entrant checkpointing runs a layer without them, then again with them, and
    both must draw the same mask. While a CUDA graph is captured, masks must be drawn on the GPU: a
    mask from the host would be the same at every replay.
    """
    if weight.device.type not in _PADDING or input.device.type not in _PADDING:
        return True
    autocast = torch.is_autocast_enabled(input.device.type)
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or not weight.requires_grad
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
        or (input.dtype != weight.dtype and not autocast)
        or (autocast and torch.float64 in (input.dtype, weight.dtype))
        or type(input) is not Tensor
        or type(weight.data) is not Tensor
    )


def _autocast(input: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast as autocast does before a product."""
    kind = input.device.type
    if not torch.is_autocast_enabled(kind):
        return input, bias
    dtype = torch.get_autocast_dtype(kind)
    return input.to(dtype), None if bias is None else bias.to(dtype)


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

    The mask and the mathematics are those of `functional.mixout` followed by a product. On a GPU
    the mask is drawn on the host, so that its size is known there without waiting.

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
    input, bias = _autocast(input, bias)
    if input.dim() == 0 or input.shape[-1] != weight.shape[input_dim]:
        return _product(input, weight, bias, input_dim)  # which says what is wrong
    mask = draw_mask(weight, p, granularity="neuron", input_dim=input_dim, device="cpu")
    active = None
    if torch.is_grad_enabled():
        active = _Active.of(mask, weight, input.numel() // max(1, input.shape[-1]))
    row = coefficients(from_host(mask, weight.device), weight.dtype, p)
    output, _ = _NeuronProduct.apply(  # type: ignore[no-untyped-call]
        _flat(input), weight, pretrained_weight, bias, row, active, p, input_dim
    )
    return output.view(*input.shape[:-1], weight.shape[1 - input_dim])  # type: ignore[no-any-return]


def _flat(input: Tensor) -> Tensor:
    """Return (..., in) as (rows, in), so that what an autograd function returns is no view.

    A view from inside one must not be changed in place, which Longformer does with its queries.
    """
    return input if input.dim() == 2 else input.reshape(-1, input.shape[-1])


def from_host(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device without waiting for it."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class _Active:
    """Which input neurons are active, and how many columns multiply well.

    Attributes:
        indices: int64, shape (1, columns): the active neurons, then any others.
        count: Number of active neurons.
        columns: Number of columns that are multiplied, `count` or a few more.
        keeps_gathered: Whether their values are kept instead of the whole input.
    """

    def __init__(self, neurons: Tensor, columns: int, total: int, device: torch.device) -> None:
        self.count, self.columns = neurons.shape[0], columns
        padded = torch.constant_pad_nd(neurons, (0, 0, 0, columns - self.count))
        self.indices = from_host(padded.view(1, -1), device)
        self.keeps_gathered = columns <= _KEPT_SHARE * total

    @property
    def has_ones(self) -> bool:
        """Whether there is a column beside those of the active neurons."""
        return self.count < self.columns

    @classmethod
    def of(cls, mask: Tensor, weight: Tensor, rows: int) -> "_Active | None":
        """Find them; None where leaving columns out of the product costs more than it saves.

        Args:
            mask: Bool, with an element for each input neuron, on the host.
            weight: The weight.
            rows: Number of rows of the input.
        """
        total = mask.numel()
        neurons = mask.view(-1).nonzero()
        step = _PADDING[weight.device.type]
        columns = min(-(-(neurons.shape[0] + 1) // step) * step, total)
        if (total - columns) * rows * (weight.numel() // max(1, total)) < _FEWEST_SAVED:
            return None
        return cls(neurons, columns, total, weight.device)

    def gather(self, input: Tensor) -> Tensor:
        """Return their values, shape (rows, columns), and a column of ones if there is room.

        Under the ones the product yields the bias's gradient for nothing.
        """
        flat = input.reshape(-1, input.shape[-1])
        if flat.device.type == "cpu":  # half of index_select's time along the last dimension
            gathered = flat.gather(1, self.indices.expand(flat.shape[0], -1))
        else:
            gathered = flat.index_select(1, self.indices.view(-1))
        if self.has_ones:
            gathered.select(1, self.count).fill_(1.0)
        return gathered

    def scatter(self, values: Tensor, whole: Tensor, dim: int) -> Tensor:
        """Write the active neurons' values into a tensor of zeros.

        Args:
            values: With `columns` elements along `dim`, of which the first `count` are taken.
            whole: Zeros, with an element for each input neuron along `dim`; written to.
            dim: 0 or 1.

        Returns:
            `whole`.
        """
        neurons, values = self.indices.narrow(1, 0, self.count), values.narrow(dim, 0, self.count)
        if dim == 1 and whole.device.type == "cpu":  # two thirds of index_copy_'s time there
            return whole.scatter_(1, neurons.expand(whole.shape[0], -1), values)
        return whole.index_copy_(dim, neurons.view(-1), values)


def _product(input: Tensor, mixed: Tensor, bias: Tensor | None, input_dim: int) -> Tensor:
    mixed = mixed.to(input.dtype)
    return F.linear(input, mixed if input_dim == 1 else mixed.t(), bias)


def _input_gradient(grad: Tensor, mixed: Tensor, input_dim: int, shape: torch.Size) -> Tensor:
    mixed = mixed.to(grad.dtype)
    return (grad @ (mixed if input_dim == 1 else mixed.t())).view(shape)


def _outer(grad: Tensor, input: Tensor, input_dim: int) -> Tensor:
    """Return the sum over rows of their outer products, laid out as the weight is."""
    return grad.t() @ input if input_dim == 1 else input.t() @ grad


class _NeuronProduct(torch.autograd.Function):
    """y = x Φᵀ + b under a neuron mask.

    The gathered input is an output too, so that second derivatives find their way to the input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        pretrained_weight: Tensor,
        bias: Tensor | None,
        row: Tensor,
        active: _Active | None,
        p: float,
        input_dim: int,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.active, ctx.p, ctx.input_dim, ctx.shape = active, p, input_dim, input.shape
        gathered = active.gather(input) if active is not None and active.keeps_gathered else None
        kept = input if gathered is None else gathered
        ctx.save_for_backward(kept, weight, pretrained_weight, row)
        mixed = mixed_in(input.dtype, row, weight, pretrained_weight, p)
        return _product(input, mixed, bias, input_dim), gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_gathered: Tensor | None) -> tuple[Any, ...]:
        kept, weight, pretrained_weight, row = ctx.saved_tensors
        needs_input_grad, needs_weight_grad, _, needs_bias_grad, *_ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        if of_gathered is not None and needs_input_grad:  # from a second derivative
            whole = of_gathered.new_zeros(of_gathered.shape[0], ctx.shape[-1])
            grad_input = ctx.active.scatter(of_gathered, whole, 1).view(ctx.shape)
        if grad is None:
            return grad_input, None, None, None, None, None, None, None
        flat = grad.reshape(-1, grad.shape[-1])
        if needs_input_grad:
            mixed = mixed_in(flat.dtype, row, weight, pretrained_weight, ctx.p)
            product = _input_gradient(flat, mixed, ctx.input_dim, ctx.shape)
            grad_input = product if grad_input is None else grad_input + product
        if needs_weight_grad:
            grad_weight, grad_bias = _neuron_gradients(ctx, flat, kept, weight, row)
        if needs_bias_grad and grad_bias is None:
            grad_bias = flat.sum(0)
        return (
            grad_input,
            grad_weight,
            None,
            grad_bias if needs_bias_grad else None,
            None,
            None,
            None,
            None,
        )


def _neuron_gradients(
    ctx: Any, grad: Tensor, kept: Tensor, weight: Tensor, row: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the weight, and that of the bias where it comes for nothing."""
    active, dim, scale = ctx.active, ctx.input_dim, 1.0 / (1.0 - ctx.p)
    if active is None:
        whole = _outer(grad, kept.reshape(-1, kept.shape[-1]), dim)
        return _scaled(whole.to(weight.dtype), row, ctx.p), None
    gathered = kept if active.keeps_gathered else active.gather(kept)
    part = _outer(grad, gathered, dim)
    scaled = part.to(weight.dtype) * scale
    # of the values, not of the weight: of many gradients at once, each needs zeros of its own
    grad_weight = active.scatter(scaled, scaled.new_zeros(weight.shape), dim)
    # a copy, or the bias's gradient would keep the whole product
    return grad_weight, part.select(dim, active.count).clone() if active.has_ones else None


def _scaled(gradient: Tensor, factors: Tensor, p: float) -> Tensor:
    """Multiply a gradient of Φ by m / (1 - p), in place."""
    gradient = gradient.mul_(factors)
    return gradient if is_full_precision(gradient.dtype) else gradient.mul_(1.0 / (1.0 - p))


def element_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    *,
    p: float,
    input_dim: int,
) -> Tensor:
    """Multiply with Φ under a fresh element mask and add the bias; see `neuron_product`."""
    input, bias = _autocast(input, bias)
    if input.dim() == 0 or input.shape[-1] != weight.shape[input_dim]:
        return _product(input, weight, bias, input_dim)  # which says what is wrong
    mask = PackedMask.draw(weight.shape, p)
    output = _ElementProduct.apply(  # type: ignore[no-untyped-call]
        _flat(input), weight, pretrained_weight, bias, mask, input_dim
    )
    return output.view(*input.shape[:-1], weight.shape[1 - input_dim])  # type: ignore[no-any-return]


def _element_mixed(mask: PackedMask, weight: Tensor, pretrained_weight: Tensor) -> Tensor:
    """Return Φ, with no other tensor of its size on the way unless autograd watches."""
    if torch.is_grad_enabled():
        return mix(weight, pretrained_weight, mask.bits(weight), mask.p)
    mixed = torch.empty_like(weight, memory_format=torch.contiguous_format)
    flat, w, u = mixed.view(-1), weight.reshape(-1), pretrained_weight.reshape(-1)
    for part, bits in mask.pieces(weight):
        factors = coefficients(bits, weight.dtype, mask.p)
        mix_by(factors, w[part], u[part], mask.p, out=flat[part])
    return mixed


def _element_scaled(mask: PackedMask, gradient: Tensor) -> Tensor:
    """Multiply a gradient of Φ by m / (1 - p), in place."""
    if torch.is_grad_enabled():
        return _scaled(gradient, coefficients(mask.bits(gradient), gradient.dtype, mask.p), mask.p)
    flat = gradient.view(-1)
    for part, bits in mask.pieces(gradient):
        _scaled(flat[part], coefficients(bits, gradient.dtype, mask.p), mask.p)
    return gradient


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
        mixed = _element_mixed(mask, weight, pretrained_weight)
        return _product(input, mixed, bias, input_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, pretrained_weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        needs_input_grad, needs_weight_grad, _, needs_bias_grad, *_ = ctx.needs_input_grad
        grad_input = grad_weight = None
        if needs_input_grad:
            mixed = _element_mixed(ctx.mask, weight, pretrained_weight)
            grad_input = _input_gradient(flat, mixed, ctx.input_dim, input.shape)
            del mixed
        if needs_weight_grad:
            whole = _outer(flat, input.reshape(-1, input.shape[-1]), ctx.input_dim)
            grad_weight = _element_scaled(ctx.mask, whole.to(weight.dtype).contiguous())
        grad_bias = flat.sum(0) if needs_bias_grad else None
        return grad_input, grad_weight, None, grad_bias, None, None
