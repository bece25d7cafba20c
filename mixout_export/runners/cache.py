"""Run models with a key/value cache. Its tensors have the names of Optimum and transformers.js."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixout_export.runners.runner import Array, Runner

_PAST, _PRESENT = "past_key_values.", "present."


def cache_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return cache input → the output that extends it; {} if any of these outputs is missing."""
    pairs = {name: name.replace(_PAST, _PRESENT, 1) for name in inputs if name.startswith(_PAST)}
    return pairs if set(pairs.values()) <= set(outputs) else {}


class CachedRunner:
    """A model with a key/value cache.

    `run` hides the cache: it reads each batch with an empty one, so the model works like any other.
    `extend` reads tokens that follow the tokens in a cache.
    """

    def __init__(self, whole: Runner, empty: Mapping[str, Array]) -> None:
        """Create a runner from one with all inputs and outputs.

        The empty cache is input name → float `(1, heads, 0, size)`.
        """
        self._whole = whole
        self._empty = empty
        self._grown = cache_outputs(tuple(empty), whole.outputs)
        self.inputs = tuple(name for name in whole.inputs if name not in empty)
        cache = set(self._grown.values())
        self.outputs = tuple(name for name in whole.outputs if name not in cache)

    def empty(self, rows: int) -> dict[str, Array]:
        """Return an empty cache: input name → float `(rows, heads, 0, size)`."""
        return {name: np.repeat(value, rows, axis=0) for name, value in self._empty.items()}

    def extend(
        self, inputs: Mapping[str, Array], cache: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Read the tokens that follow those in a cache.

        Args:
            inputs: `input_ids` and `position_ids`, int64 `(batch, new)`, and the `attention_mask`
                of all tokens so far, int64 `(batch, past + new)`.
            cache: A cache that `empty` or `extend` returned.

        Returns:
            The outputs, and the cache extended by the new tokens.
        """
        outputs = self._whole.run({**inputs, **cache})
        grown = {name: outputs[output] for name, output in self._grown.items()}
        return {name: outputs[name] for name in self.outputs}, grown

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch with an empty cache."""
        return self.extend(inputs, self.empty(len(inputs["input_ids"])))[0]
