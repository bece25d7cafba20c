"""Replace operations that cannot be captured by equal operations that can."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from mixout_export.runners.torch_runner import gathered_experts


def _is_tail(index: Any, value: Any) -> bool:
    """Return whether an index is `[..., 1:]` or `[:, 1:]`: all but the first of the last axis."""
    if not isinstance(index, tuple) or not isinstance(value, Tensor):
        return False
    *rest, last = index
    whole = all(part is Ellipsis or part == slice(None) for part in rest)
    return whole and last == slice(1, None) and (Ellipsis in rest or len(rest) + 1 == value.dim())


def _set_tail(target: Tensor, index: Any, value: Tensor) -> None:
    """Compute `target[..., 1:] = value` as one copy of the whole tensor.

    Encoder-decoders shift their inputs this way. PyTorch captures a copy into a part only if the
    part has at least two elements, which would forbid sequences of one and two tokens.
    """
    target.copy_(torch.cat([target[..., :1], value], dim=-1))


def _squeeze(value: Tensor) -> Tensor:
    """Remove only the axes whose size is the constant 1.

    A plain `squeeze` would also remove the batch axis when the graph runs on a batch of one.
    """
    return value.squeeze(
        [axis for axis, size in enumerate(value.shape) if type(size) is int and size == 1]
    )


_SQUEEZES = (Tensor.squeeze, torch.squeeze)


class _TraceableOperations(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__setitem__ and _is_tail(*args[1:]):
            return _set_tail(*args)
        if func in _SQUEEZES and len(args) == 1 and not kwargs:
            return _squeeze(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """Replace the operations while inside the context. The model computes the same values."""
    with gathered_experts(model), _TraceableOperations():
        yield
