"""Models with a key/value cache, whose tensors are named as Optimum and transformers.js do."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixout_export.runners.runner import Array, Runner

_PAST, _PRESENT = "past_key_values.", "present."


def cache_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return a cache's inputs with the outputs that give them back; empty where one does not."""
    pairs = {name: name.replace(_PAST, _PRESENT, 1) for name in inputs if name.startswith(_PAST)}
    return pairs if set(pairs.values()) <= set(outputs) else {}


class CachedRunner:
    """A model with a key/value cache.

    As a runner it has neither the cache's inputs nor its outputs: each batch is read with an empty
    cache, like by any other model. `extend` reads on where a cache ends.
    """

    def __init__(self, whole: Runner, empty: Mapping[str, Array]) -> None:
        """Take what runs the model with all of its inputs and outputs.

        Args:
            whole: Runs it.
            empty: A row's cache of no tokens, float `(1, heads, 0, size)` by input name.
        """
        self._whole = whole
        self._empty = empty
        self._grown = cache_outputs(tuple(empty), whole.outputs)
        self.inputs = tuple(name for name in whole.inputs if name not in empty)
        given_back = set(self._grown.values())
        self.outputs = tuple(name for name in whole.outputs if name not in given_back)

    def empty(self, rows: int) -> dict[str, Array]:
        """Return a cache of no tokens, float `(rows, heads, 0, size)` by input name."""
        return {name: np.repeat(value, rows, axis=0) for name, value in self._empty.items()}

    def extend(
        self, inputs: Mapping[str, Array], cache: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Read the tokens that follow a cache; return the outputs, and the cache grown by them.

        Args:
            inputs: `input_ids` and `position_ids`, int64 `(batch, new)`, and the `attention_mask`
                of everything so far, int64 `(batch, past + new)`.
            cache: What `empty` or `extend` returned.

        Raises:
            ArgumentError: An input is missing.
            CheckpointError: The model does not accept the batch.
        """
        given = self._whole.run({**inputs, **cache})
        grown = {name: given[output] for name, output in self._grown.items()}
        return {name: given[name] for name in self.outputs}, grown

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch, read with an empty cache.

        Raises:
            ArgumentError: An input is missing.
            CheckpointError: The model does not accept the batch.
        """
        return self.extend(inputs, self.empty(len(inputs["input_ids"])))[0]
