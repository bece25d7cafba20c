"""Φ for one product: on a GPU in one pass, on a CPU in memory that is used again.

On a GPU, a kernel reads w and u once and writes Φ in the product's dtype.

The plain operations write Φ in the weight's dtype and then cast it. With float32 weights and a
bfloat16 product they move 18 bytes per weight. The kernel moves 10, or 8 with bfloat16 anchors.

The kernel is written in Triton, which comes with PyTorch's CUDA builds for Linux. Without Triton,
and on a CPU, the plain operations run. The kernel is off by default, because it has not been
measured on a GPU yet. `python -m gpu` times training steps with and without it.
"""

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixout_export.functional import is_full_precision, mix_by
from mixout_export.torch_internals import is_transformed

_BLOCK = 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class KernelUse:
    """How often the kernel ran within a block of `one_pass`."""

    calls: int = 0


#: Counts the calls while the kernel is on; None while it is off. A plain global, because autograd
#: runs GPU backward passes in another thread.
_use: KernelUse | None = None


@contextmanager
def one_pass(enabled: bool = True) -> Iterator[KernelUse]:
    """Turn the kernel on, or off, within a `with` block.

    Args:
        enabled: Whether `mixed_in` may use the kernel.

    Yields:
        A count of the kernel's calls. It stays 0 where the plain operations run instead.
    """
    global _use
    use = KernelUse()
    before, _use = _use, use if enabled else None
    try:
        yield use
    finally:
        _use = before


class _Scratch(threading.local):
    """Memory for Φ on a CPU, which the products of a thread use one after the other.

    New memory for each product would cost the system's work of providing it, and the processor's
    caches would not hold it yet: 2 % of a training step in all.
    """

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, Tensor] = {}
        self._views: dict[tuple[torch.dtype, torch.Size], Tensor] = {}

    def like(self, weight: Tensor) -> Tensor:
        """Return a contiguous tensor like a weight, valid until the next call in this thread."""
        key = weight.dtype, weight.shape
        if key not in self._views:
            with torch.inference_mode(False):  # whose tensors could not be written to later
                self._views[key] = self._block(weight)[: weight.numel()].view(weight.shape)
        return self._views[key]

    def _block(self, weight: Tensor) -> Tensor:
        """Return memory with room for a weight: what there is, or more in its place."""
        block = self._blocks.get(weight.dtype)
        if block is None or block.numel() < weight.numel():
            block = torch.empty(weight.numel(), dtype=weight.dtype, device=weight.device)
            self._blocks[weight.dtype] = block
            self._views.clear()
        return block


_scratch = _Scratch()


def mixed_in(
    dtype: torch.dtype, factors: Tensor, weight: Tensor, pretrained_weight: Tensor, p: float
) -> Tensor:
    """Compute Φ under a neuron mask, in the dtype of the product that will use it.

    The result is for one product. Without gradients, on a CPU, the next call overwrites it.

    `factors` is the mask as `functional.coefficients` returns it: one element per input neuron,
    size 1 in the weight's other dimension.
    """
    if _use is not None and kernel_applies(dtype, weight, pretrained_weight):
        _use.calls += 1
        return run_kernel(dtype, factors, weight, pretrained_weight, p)
    reuses = weight.device.type == "cpu" and not torch.is_grad_enabled() and not is_transformed()
    out = _scratch.like(weight) if reuses else None
    return mix_by(factors, weight, pretrained_weight, 1.0 - p, out=out).to(dtype)


def kernel_applies(dtype: torch.dtype, weight: Tensor, pretrained_weight: Tensor) -> bool:
    """Tell whether the kernel can run. It has no gradient, so gradients must be disabled."""
    tensors = (weight, pretrained_weight)
    return (
        all(t.is_cuda and t.is_contiguous() and t.dtype in _DTYPES for t in tensors)
        and dtype in _DTYPES
        and not torch.is_grad_enabled()
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def run_kernel(
    dtype: torch.dtype, factors: Tensor, weight: Tensor, pretrained_weight: Tensor, p: float
) -> Tensor:
    """Compute Φ with the kernel; the arguments and the result are those of `mixed_in`."""
    mixed = torch.empty_like(weight, dtype=dtype)
    count = weight.numel()
    # In half precision the factors are only the mask; see `functional.coefficients`.
    scale = 1.0 if is_full_precision(weight.dtype) else 1.0 / (1.0 - p)
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]  # where Triton launches
        _kernel()[(-(-count // _BLOCK),)](
        factors.contiguous(), weight, pretrained_weight, mixed, count, weight.shape[-1], scale,
        IN_LAST=factors.shape == (1, weight.shape[1]), BLOCK=_BLOCK,
    )  # fmt: skip
    return mixed


@cache
def _kernel() -> Any:
    """Return the kernel, which Triton compiles at its first call."""
    from mixout_export import fused_kernel

    return fused_kernel.mix
