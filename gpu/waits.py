"""Detect training steps in which the CPU waits for the GPU, for example by reading a value.

On a GPU, PyTorch reports this itself (`torch.cuda.set_sync_debug_mode`). On a CPU nothing waits.
There the same operations are found by tracking which tensors would be on the device: those named at
the start, and everything computed from them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu.results import CheckFailed

_aten = torch.ops.aten
#: Operations whose result, or its size, the host needs at once.
_WAITING = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten._unique2.default,
}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default}


class _DeviceValues(TorchDispatchMode):
    """Tracks the tensors that would be on the device, by their storage."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        #: Address → storage. The storage is kept alive so that no other one gets its address.
        self.kept: dict[int, Any] = {}
        for tensor in tensors:
            self._keep(tensor)

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = storage

    def _has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.kept

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = tree_leaves((args, kwargs or {}))
        touches = any(self._has(value) for value in given)
        by_mask = func in _INDEXING and any(
            isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)
            for value in tree_leaves(args[1])
        )
        if touches and (func in _WAITING or by_mask):
            raise CheckFailed(f"{func} waits for the device during a training step")
        result = func(*args, **(kwargs or {}))
        if touches:
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self._keep(value)
        return result


@contextmanager
def no_waiting(device: torch.device, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Raise an error if an operation within the block waits for the device.

    Args:
        device: Device of the operations.
        tensors: The tensors on it: parameters, buffers, inputs. Used only if it is a CPU.

    Raises:
        CheckFailed: On a CPU.
        RuntimeError: On a GPU, from PyTorch.
    """
    if device.type != "cuda":
        with _DeviceValues(tensors):
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
