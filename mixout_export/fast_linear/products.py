"""The matrix products of a linear layer, for a weight stored as (out, in) or as (in, out)."""

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor

from mixout_export.functional import is_full_precision


def from_host(host: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the device."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def product(input: Tensor, weight: Tensor, bias: Tensor | None, input_dim: int) -> Tensor:
    """Return the layer's output, (..., out), in the input's dtype, from the input, (..., in).

    Dimension `input_dim` of the weight counts input neurons.
    """
    weight = weight.to(input.dtype)
    return F.linear(input, weight if input_dim == 1 else weight.t(), bias)


def input_gradient(grad: Tensor, weight: Tensor, input_dim: int) -> Tensor:
    """Return the gradient of the input, shape (rows, in), from the output's, (rows, out)."""
    weight = weight.to(grad.dtype)
    return grad @ (weight if input_dim == 1 else weight.t())


def weight_gradient(grad: Tensor, input: Tensor, input_dim: int) -> Tensor:
    """Return the gradient of the weight from the output's, (rows, out), and the input, (rows, in).

    Dimension `input_dim` of the result counts input neurons.
    """
    return grad.t() @ input if input_dim == 1 else input.t() @ grad


def gathered_gradient(grad: Tensor, gathered: Tensor, input_dim: int) -> Tensor:
    """Return `weight_gradient` of a few input neurons, whose columns were gathered."""
    if input_dim == 1 and grad.device.type == "cpu":
        # Few rows times many columns takes two thirds of the time of the transposed product.
        return (gathered.t() @ grad).t()
    return weight_gradient(grad, gathered, input_dim)


def mask_gradient(gradient: Tensor, factors: Tensor, p: float) -> Tensor:
    """Multiply a gradient of Φ by m / (1 - p), in place, which makes it the gradient of w.

    `factors` is the mask as `functional.coefficients` returns it.
    """
    gradient = gradient.mul_(factors)
    return gradient if is_full_precision(gradient.dtype) else gradient.mul_(1.0 / (1.0 - p))
