"""How a mixture of experts is computed, where that can be chosen."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

#: Each token's own experts, gathered. The default sorts tokens by expert and calls an operator
#: that ONNX has not; looping over experts depends on their data.
_GATHERED = "batched_mm"


@contextmanager
def gathered_experts(model: nn.Module) -> Iterator[None]:
    """Compute experts the way a graph does while inside; what comes out is the same.

    Modules inside the experts see their tokens in another order then, so whoever compares modules
    with a graph's has to choose the same way.

    Args:
        model: Any model; one whose experts cannot be chosen, or that has none, is left alone.
    """
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()  # type: ignore[operator]
    model.set_experts_implementation(_GATHERED)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_experts_implementation(before)  # type: ignore[operator]
