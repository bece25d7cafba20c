"""Operations that models use and that cannot be captured as they are, put another way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from mixout_export.checkpoint.experts import gathered_experts


def _is_tail(index: Any, value: Any) -> bool:
    """Tell whether an index is all but the first along the last axis, `[..., 1:]` or `[:, 1:]`."""
    if not isinstance(index, tuple) or not isinstance(value, Tensor):
        return False
    *rest, last = index
    whole = all(part is Ellipsis or part == slice(None) for part in rest)
    return whole and last == slice(1, None) and (Ellipsis in rest or len(rest) + 1 == value.dim())


def _set_tail(target: Tensor, index: Any, value: Tensor) -> None:
    """Do `target[..., 1:] = value` as one copy of the whole.

    Encoder-decoders shift their input so. A copy into a part is captured only for a part of two
    elements at least, which would forbid sequences of one and two tokens.
    """
    target.copy_(torch.cat([target[..., :1], value], dim=-1))


def _squeeze(value: Tensor) -> Tensor:
    """Drop the axes that are always of size one: in a graph, a batch of one would lose its axis."""
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
    """Make what a model computes capturable while inside; it computes the same."""
    with gathered_experts(model), _TraceableOperations():
        yield
