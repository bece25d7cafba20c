"""When a product is left to plain operations and autograd."""

import torch
from torch import Tensor

from mixout_export.torch_internals import computes_forward_gradients, is_transformed

_DEVICES = ("cpu", "cuda")


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
        or type(weight.data) is not Tensor
    )
