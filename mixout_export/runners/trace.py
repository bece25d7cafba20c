"""The outputs of a model's modules while it runs one batch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixout_export.runners.runner import Array

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

        The argument says how often modules are called; those that are not listed are called once.
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
