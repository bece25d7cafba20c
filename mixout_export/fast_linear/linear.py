"""The fast product: when it applies, and what all granularities have in common."""

import torch
from torch import Tensor, nn

from mixout_export.compact import CompactGradient
from mixout_export.fast_linear.element import element_product
from mixout_export.fast_linear.masked import masked_operation
from mixout_export.fast_linear.neuron import neuron_product
from mixout_export.fast_linear.operations import MatrixProduct
from mixout_export.fast_linear.products import product
from mixout_export.masks import PackedMask
from mixout_export.torch_internals import computes_forward_gradients, is_transformed

_DEVICES = ("cpu", "cuda")
#: Classes of weights without an own `__torch_dispatch__`. A sharded parameter has another class.
_PLAIN = (Tensor, nn.Parameter)


def needs_plain_ops(weight: Tensor, input: Tensor) -> bool:
    """Tell whether a layer must compute Φ and its product with plain operations.

    The reasons are:

    - a compiler, a tracer or a function transform is running, which must see plain operations;
    - a CUDA graph is being captured: the fast product draws its mask on the host, and the graph
      would repeat that one mask at every replay;
    - the weight is frozen, so there is no gradient to save;
    - the weight or the input is a tensor subclass (a sharded one, for example), or is on a device
      other than a CPU or a CUDA GPU;
    - the dtypes differ and autocast does not make them equal, or autocast leaves them alone
      (float64). The plain operations raise or compute what the plain layer would.

    Whether gradients are enabled makes no difference. Re-entrant checkpointing runs a layer once
    without gradients and once with them, and both calls must draw the same mask.

    Args:
        weight: w, of any shape.
        input: The layer's input.
    """
    if weight.device.type not in _DEVICES or input.device.type not in _DEVICES:
        return True
    autocast = torch.is_autocast_enabled(input.device.type)
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or is_transformed()
        or computes_forward_gradients()
        or not weight.requires_grad
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
        or (input.dtype != weight.dtype and not autocast)
        or (autocast and torch.float64 in (input.dtype, weight.dtype))
        or type(input) is not Tensor
        or type(weight) not in _PLAIN
    )


def mixed_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | PackedMask,
    *,
    p: float,
    granularity: str,
    input_dim: int,
    compact: CompactGradient | None = None,
) -> Tensor:
    """Multiply an input with Φ = u + (m / (1 - p)) ⊙ (w - u), and add the bias.

    Args:
        input: Shape (..., in), floating point.
        weight: w, of shape (out, in) if `input_dim` is 1, (in, out) if it is 0.
        pretrained_weight: u, of the same shape.
        bias: Shape (out,), or None.
        mask: m: packed for "element", else Bool on the CPU; it broadcasts against the weight.
        p: Mix probability in (0, 1).
        granularity: What shares a bit of the mask: "neuron", "filter" or "element".
        input_dim: The dimension of `weight` that counts input neurons.
        compact: Where the active slices of the weight's gradient may be written instead of into
            `weight.grad`; None for the dense gradient.

    Returns:
        Shape (..., out), of the input's dtype, or of autocast's if it is enabled.

    Raises:
        RuntimeError: The last dimension of `input` is not the weight's number of input neurons.
    """
    kind = input.device.type
    if torch.is_autocast_enabled(kind):  # cast as autocast does before a product
        dtype = torch.get_autocast_dtype(kind)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    if input.dim() == 0 or input.shape[-1] != weight.shape[input_dim]:
        return product(input, weight, bias, input_dim)  # raises the plain layer's error
    # As a matrix, so that the output is not a view made inside an autograd function. Such a view
    # must not be changed in place, and Longformer does that with its queries.
    rows = input if input.dim() == 2 else input.reshape(-1, input.shape[-1])
    tensors = (rows, weight, pretrained_weight, bias)
    if isinstance(mask, PackedMask):
        output = element_product(*tensors, mask, input_dim)
    elif granularity == "neuron":
        output = neuron_product(*tensors, mask, p, input_dim, compact)
    else:
        output = masked_operation(
            MatrixProduct(input_dim), *tensors, mask, p=p, granularity=granularity, compact=compact
        )
    return output.view(*input.shape[:-1], weight.shape[1 - input_dim])
