"""Gradients of mixed weights without the columns that are zero."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from mixout_export.errors import ArgumentError
from mixout_export.torch_internals import accumulates_gradient, has_gradient_hooks, is_transformed


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


def process_count() -> int:
    """Return how many processes train together; 0 without a process group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0
    return int(distributed.get_world_size())


class CompactGradient:
    """The gradient of one mixed weight: only the slices that its mask leaves active.

    Under a neuron mask a weight of shape (out, in) has a gradient with (1 - p) of its columns; the
    others are zero. An optimizer that understands this form (`MixoutAdamW`) makes one of these for
    each mixed weight, and the backward pass then writes here instead of into `weight.grad`.

    Meanwhile `weight.grad` is a placeholder, an empty sparse tensor. Whoever sets it to None drops
    the gradient. Code that expects a dense gradient fails, instead of overlooking this one.

    Attributes:
        weight: The weight.
        dim: The dimension of `weight` whose slices a mask switches on and off.
        mask: The mask of the newest gradient, Bool, on the CPU.
        masks_differ: Whether several masks contributed to the gradient.
        was_dense: Whether all of the gradient was in `weight.grad` before, where a loss scaler saw
            it.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        self.weight, self.dim = weight, dim
        self._readers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._slices: Slices | None = None
        self.mask = torch.empty(0, dtype=torch.bool)
        self.masks_differ = False
        self.was_dense = False
        self._placeholder: Tensor | None = None
        self._version = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle it as None: a copy of a model has no optimizer that would read it."""
        return type(None), ()

    def add_reader(self, optimizer: object) -> None:
        """Name an optimizer that reads this gradient as long as it exists."""
        self._readers.add(optimizer)

    def is_read(self) -> bool:
        """Tell whether exactly one optimizer will read the gradient, so that it may be put here.

        DistributedDataParallel reduces dense gradients, even those of a single process, so theirs
        stay in `weight.grad`.
        """
        return len(self._readers) == 1 and process_count() == 0

    def accepts(self, computed_in: torch.dtype) -> bool:
        """Tell whether the backward pass that is running may write the gradient here.

        It may not if it records a graph for second derivatives, computes a batch of gradients, or
        returns the gradient to the caller (`torch.autograd.grad`). Hooks on the weight get dense
        gradients. A gradient that was computed in float16 belongs to a loss scaler, which looks for
        it in `weight.grad`.
        """
        return (
            computed_in is not torch.float16
            and not torch.is_grad_enabled()
            and not is_transformed()
            and not has_gradient_hooks(self.weight)
            and accumulates_gradient(self.weight)
            and self.is_read()
        )

    @property
    def slices(self) -> Slices | None:
        """The gradient of the active slices; None without a gradient, or if it is dense.

        Raises:
            ArgumentError: Someone has changed the placeholder.
        """
        grad, placeholder = self.weight.grad, self._placeholder
        if grad is None:  # as Module.zero_grad leaves it
            self._slices = None
        elif (placeholder is not None and grad.is_sparse) and (
            grad is not placeholder or placeholder._version != self._version
        ):
            raise ArgumentError(
                "the gradient of a mixed weight was changed, but MixoutAdamW keeps it apart from "
                "weight.grad; clip with the optimizer's clip_grad_norm_, and set gradients to None "
                "instead of zero"
            )
        return self._slices

    def add(self, mask: Tensor, indices: Tensor, values: Tensor) -> None:
        """Add a gradient. If other slices are active than before, it becomes dense.

        Args:
            mask: The mask, on the CPU, where comparing it waits for no GPU.
            indices: The active slices of the mask; see `Slices`.
            values: Their gradient, in the weight's dtype.
        """
        known, new = self.slices, Slices(indices, values, self.dim)
        self.was_dense = False
        if self.weight.grad is None:
            self._slices, self.mask, self.masks_differ = new, mask, False
            self.weight.grad = self._hold_place()
        elif known is not None and (self.mask is mask or torch.equal(self.mask, mask)):
            known.values.add_(values)
        else:
            differ = self.masks_differ or known is not None
            self.make_dense()
            self._add_to_dense(new)
            self.masks_differ = differ

    def take(self) -> Slices | None:
        """Return the gradient of the active slices and drop it; None if it is dense or missing."""
        slices = self.slices
        self.clear()
        return slices

    def make_dense(self) -> None:
        """Move the gradient into `weight.grad`."""
        slices = self.take()
        if slices is not None:
            self._add_to_dense(slices)

    def replace_dense(self, mask: Tensor) -> None:
        """Keep only the slices of a dense gradient that a mask, Bool, leaves active."""
        grad = self.weight.grad
        if grad is not None and not grad.is_sparse:
            indices = mask.view(-1).nonzero().view(-1).to(grad.device)
            self._slices, self.mask = Slices.of(grad, indices, self.dim), mask
            self.was_dense = True
            self.weight.grad = self._hold_place()

    def clear(self) -> None:
        """Drop the gradient of the active slices."""
        self._slices, self.masks_differ = None, False
        if self.weight.grad is not None and self.weight.grad is self._placeholder:
            self.weight.grad = None

    def _add_to_dense(self, slices: Slices) -> None:
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        self.weight.grad.index_add_(self.dim, slices.indices, slices.values)

    def _hold_place(self) -> Tensor:
        """Return an empty sparse tensor like the weight, which `weight.grad` can be."""
        place, weight = self._placeholder, self.weight
        if place is None or (place.device, place.dtype) != (weight.device, weight.dtype):
            place = torch.sparse_coo_tensor(
                torch.empty(weight.dim(), 0, dtype=torch.int64, device=weight.device),
                weight.new_empty(0),
                weight.shape,
                check_invariants=False,
            )
        self._placeholder, self._version = place, place._version
        return place
