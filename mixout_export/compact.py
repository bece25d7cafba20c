"""Gradients of mixed weights without the columns that are zero."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from mixout_export.torch_internals import accumulates_gradient, is_transformed


@dataclass(frozen=True)
class Slices:
    """Some of a tensor's slices along one dimension.

    Attributes:
        indices: int64, shape (slices,), on the tensor's device.
        values: The tensor's shape, with the number of slices in place of its size along `dim`.
        dim: The dimension.
    """

    indices: Tensor
    values: Tensor
    dim: int

    @classmethod
    def of(cls, whole: Tensor, indices: Tensor, dim: int) -> "Slices":
        """Copy slices of a tensor."""
        if _are_columns(whole, dim):  # takes half of index_select's time
            return cls(indices, whole.gather(1, indices.expand(whole.shape[0], -1)), dim)
        return cls(indices, whole.index_select(dim, indices), dim)

    def write_to(self, whole: Tensor) -> Tensor:
        """Write the values into a tensor, in place, and return it."""
        if _are_columns(whole, self.dim):  # takes two thirds of index_copy_'s time
            return whole.scatter_(1, self.indices.expand(whole.shape[0], -1), self.values)
        return whole.index_copy_(self.dim, self.indices, self.values)


def _are_columns(whole: Tensor, dim: int) -> bool:
    """Tell whether slices are columns of a matrix on a CPU, where other operations are faster."""
    return dim == 1 and whole.dim() == 2 and whole.device.type == "cpu"


class CompactGradient:
    """The gradient of one mixed weight: only the slices that its mask leaves active.

    Under a neuron mask a weight of shape (out, in) has a gradient with (1 - p) of its columns; the
    others are zero. An optimizer that understands this form (`MixoutAdamW`) makes one of these for
    each mixed weight, and the backward pass then writes here instead of into `weight.grad`.

    Attributes:
        weight: The weight.
        dim: The dimension of `weight` whose slices a mask switches on and off.
        slices: The gradient of the active slices; None without a gradient.
    """

    def __init__(self, weight: Tensor, dim: int, owner: object) -> None:
        self.weight, self.dim = weight, dim
        self._owner = weakref.ref(owner)
        self.slices: Slices | None = None
        self._mask = torch.empty(0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle it as None: a copy of a model has no optimizer that would read it."""
        return type(None), ()

    def is_read(self) -> bool:
        """Tell whether an optimizer will read the gradient, so that it may be written here.

        Several processes reduce dense gradients, so theirs stay in `weight.grad`.
        """
        return self._owner() is not None and not (
            distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        )

    def accepts(self, computed_in: torch.dtype) -> bool:
        """Tell whether the backward pass that is running may write the gradient here.

        It may not if it records a graph for second derivatives, computes a batch of gradients, or
        returns the gradient to the caller (`torch.autograd.grad`). A gradient that was computed in
        float16 belongs to a loss scaler, which looks for it in `weight.grad`.
        """
        return (
            computed_in is not torch.float16
            and not torch.is_grad_enabled()
            and not is_transformed()
            and accumulates_gradient(self.weight)
        )

    def add(self, mask: Tensor, indices: Tensor, values: Tensor) -> None:
        """Add a gradient. If other slices are active than before, it becomes dense.

        Args:
            mask: The mask, on the CPU, where comparing it waits for no GPU.
            indices: The active slices of the mask; see `Slices`.
            values: Their gradient, in the weight's dtype.
        """
        known = self.slices
        if known is None:
            self.slices, self._mask = Slices(indices, values, self.dim), mask
        elif self._mask is mask or torch.equal(self._mask, mask):
            known.values.add_(values)
        else:
            self.make_dense()
            self._add_to_dense(Slices(indices, values, self.dim))

    def make_dense(self) -> None:
        """Move the gradient into `weight.grad`."""
        if self.slices is not None:
            self._add_to_dense(self.slices)
        self.clear()

    def _add_to_dense(self, slices: Slices) -> None:
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        self.weight.grad.index_add_(self.dim, slices.indices, slices.values)

    def clear(self) -> None:
        """Drop the gradient."""
        self.slices = None
