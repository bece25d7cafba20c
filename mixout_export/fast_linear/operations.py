"""What a layer computes with its weight, and the gradients of that.

Each operation maps an input, (batch, in, …), to an output, (batch, out, …). Dimension 1 of both
counts neurons, or channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor
from torch.nn import grad as gradients

from mixout_export.fast_linear import products


class Operation(Protocol):
    """An operation that is linear in its input and in its weight.

    Attributes:
        input_dim: The dimension of the weight that counts input neurons.
        output_dim: The one that counts output neurons.
        separable: Whether every output neuron reads every input neuron, so that some of them can
            be left out of the weight's gradient.
    """

    @property
    def input_dim(self) -> int: ...  # noqa: D102 (described above)
    @property
    def output_dim(self) -> int: ...  # noqa: D102
    @property
    def separable(self) -> bool: ...  # noqa: D102

    def rows(self, input: Tensor, weight: Tensor) -> int:
        """Return how often the batch uses each weight."""

    def output(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output in the input's dtype."""

    def input_gradient(self, grad: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """Return the gradient of an input of this shape from the output's."""

    def weight_gradient(self, grad: Tensor, input: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the weight from the output's and the input.

        If both lack neurons, `shape` is that of the weight without them.
        """


@dataclass(frozen=True)
class MatrixProduct:
    """The product of a linear layer: (rows, in) to (rows, out).

    Attributes:
        input_dim: 1 for a weight stored as (out, in), 0 for one stored as (in, out).
    """

    input_dim: int

    @property
    def output_dim(self) -> int:
        """The dimension of the weight that counts output neurons."""
        return 1 - self.input_dim

    @property
    def separable(self) -> bool:
        """True."""
        return True

    def rows(self, input: Tensor, weight: Tensor) -> int:
        """Return the number of rows of the input."""
        return input.shape[0]

    def output(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output, (rows, out)."""
        return products.product(input, weight, bias, self.input_dim)

    def input_gradient(self, grad: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """Return the gradient of the input, (rows, in)."""
        return products.input_gradient(grad, weight, self.input_dim)

    def weight_gradient(self, grad: Tensor, input: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the weight."""
        return products.weight_gradient(grad, input, self.input_dim)


#: Number of the weight's dimensions → PyTorch's functions for a convolution and its gradients.
_CONVOLVE: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d}
_OF_INPUT = {3: gradients.conv1d_input, 4: gradients.conv2d_input}
_OF_WEIGHT = {3: gradients.conv1d_weight, 4: gradients.conv2d_weight}


@dataclass(frozen=True)
class Convolution:
    """A convolution, with one number for each dimension that the kernel moves along.

    Attributes:
        stride: Step between two positions of the kernel.
        padding: Number of zeros added at each side.
        dilation: Distance between the values that the kernel reads.
        groups: Number of groups of channels that are convolved separately.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def input_dim(self) -> int:
        """The weight is stored as (out, in / groups, …)."""
        return 1

    @property
    def output_dim(self) -> int:
        """See `input_dim`."""
        return 0

    @property
    def separable(self) -> bool:
        """Whether there are no groups."""
        return self.groups == 1

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve as the plain layer does: dtypes must fit, and the batch may be left out."""
        return _CONVOLVE[weight.dim()](
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def rows(self, input: Tensor, weight: Tensor) -> int:
        """Return at how many positions of the whole batch the kernel is applied."""
        sizes = zip(
            input.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
        )
        return input.shape[0] * math.prod(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes
        )

    def output(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output, (batch, out, …)."""
        return self.convolve(input, weight.to(input.dtype), bias)

    def input_gradient(self, grad: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """Return the gradient of the input, (batch, in, …)."""
        return _OF_INPUT[weight.dim()](  # type: ignore[no-any-return, no-untyped-call]
            shape, weight.to(grad.dtype), grad, self.stride, self.padding, self.dilation,
            self.groups,
        )  # fmt: skip

    def weight_gradient(self, grad: Tensor, input: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the weight."""
        return _OF_WEIGHT[len(shape)](  # type: ignore[no-any-return, no-untyped-call]
            input, shape, grad, self.stride, self.padding, self.dilation, self.groups
        )
