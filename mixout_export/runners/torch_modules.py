"""Watch the modules of a PyTorch model, and read the epsilons of its normalizations."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mixout_export.runners.runner import Array
from mixout_export.runners.trace import Call, Trace

#: Attributes with the epsilon of PyTorch's and transformers' normalizations.
_ATTRIBUTES = ("eps", "variance_epsilon", "epsilon")


def model_epsilons(model: nn.Module) -> dict[str, float]:
    """Return the epsilon of each normalization, by the module's name."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        values = (getattr(module, attribute, None) for attribute in _ATTRIBUTES)
        epsilon = next((value for value in values if isinstance(value, float)), None)
        if epsilon is not None and next(module.children(), None) is None:
            found[name] = epsilon
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors among what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def trace_modules(model: nn.Module, run: Callable[[], object]) -> Trace:
    """Return the output of each call of each module while `run` runs the model."""
    outputs: dict[Call, list[Array]] = {}
    calls: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    passing: set[str] = set()

    def watch(name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            # a copy: the model may go on in the same memory
            found = [tensor.detach().float().numpy().copy() for tensor in _tensors(output)]
            if not found:
                return
            if any(value is output for value in given):
                passing.add(name)
            kinds[name] = type(module).__name__
            outputs[name, calls[name]] = found
            calls[name] += 1

        return keep

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(outputs, kinds, frozenset(passing), counts_calls=True)
