"""Choose how a mixture of experts is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

#: Gather the experts of each token. The default sorts tokens by expert and calls an operator that
#: ONNX lacks, and a loop over experts would depend on the data.
_GATHERED = "batched_mm"


@contextmanager
def gathered_experts(model: nn.Module) -> Iterator[None]:
    """Compute experts inside the block as a graph does. The results are the same.

    Modules inside the experts then see their tokens in another order, so code that compares modules
    with those of a graph has to choose the same way.
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
