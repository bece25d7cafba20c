"""The outputs of a model's modules while it runs one batch.

A PyTorch model is watched with forward hooks; `graph_trace` does the same with a graph.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixout_export.runners.runner import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

#: A module, and which of its calls, from 0.
Call = tuple[str, int]


@dataclass(frozen=True)
class Trace:
    """The outputs of one side's modules.

    Attributes:
        outputs: Call → the tensors that it returned, in the order in which calls ended.
        kinds: Module → name of its class; empty for a graph.
        passing: Modules that returned what they were given.
        counts_calls: Whether the calls of a module are separate entries, in their real order. A
            graph only has the values of all calls of a module, and one of many possible orders.
    """

    outputs: Mapping[Call, Sequence[Array]]
    kinds: Mapping[str, str]
    passing: frozenset[str]
    counts_calls: bool

    @property
    def calls(self) -> Counter[str]:
        """How often each module was called."""
        return Counter(module for module, _ in self.outputs)

    def split_by(self, calls: Mapping[str, int]) -> "Trace":
        """Return the trace with a graph's values divided among the calls of each module.

        Args:
            calls: How often each module is called; modules that are not listed are called once.
        """
        if self.counts_calls:
            return self
        outputs = {
            (module, call): part
            for (module, _), values in self.outputs.items()
            for call, part in enumerate(_divide(values, calls.get(module, 1)))
        }
        return Trace(outputs, self.kinds, self.passing, counts_calls=True)


def _divide(values: Sequence[Array], calls: int) -> list[Sequence[Array]]:
    """Divide the values that leave a module among its calls; [] if they do not divide evenly."""
    step, rest = divmod(len(values), calls)
    return [] if rest else [values[at : at + step] for at in range(0, len(values), step)]


def _tensors(output: Any) -> Iterator["Tensor"]:
    """Yield the floating-point tensors among what a module returned."""
    from torch import Tensor

    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def trace_modules(model: "nn.Module", run: Callable[[], object]) -> Trace:
    """Keep the output of each call of each module of a PyTorch model.

    Args:
        model: The model.
        run: Runs it.
    """
    outputs: dict[Call, list[Array]] = {}
    calls: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    passing: set[str] = set()

    def watch(name: str) -> Any:
        def keep(module: "nn.Module", given: tuple[Any, ...], output: Any) -> None:
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
