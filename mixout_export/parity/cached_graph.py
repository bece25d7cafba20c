"""A graph with a key/value cache, as this package, Optimum and transformers.js name it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.parity.runners import CPU_PROVIDER, OnnxRunner

Array = npt.NDArray[Any]

_PAST, _PRESENT = "past_key_values.", "present."

#: onnxruntime's names of the types that a cache may have; what else there is counts as float32.
_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


class CachedGraph:
    """An ONNX file with a key/value cache in onnxruntime.

    As a runner it has neither the cache's inputs nor its outputs: each batch is read with an empty
    cache, like any other graph. `extend` reads on where a cache ends.
    """

    def __init__(self, graph: OnnxRunner) -> None:
        """Take an open graph that `has_cache`."""
        self._graph = graph
        self._past = tuple(name for name in graph.inputs if name.startswith(_PAST))
        self.path = graph.path
        self.inputs = tuple(name for name in graph.inputs if name not in self._past)
        self.outputs = tuple(name for name in graph.outputs if not name.startswith(_PRESENT))

    @property
    def metadata(self) -> dict[str, str]:
        """What the graph says about itself."""
        return self._graph.metadata

    @property
    def input_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each input's shape, with names or None for dynamic axes, the cache's included."""
        return self._graph.input_shapes

    @property
    def output_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each output's shape, with names or None for dynamic axes, the cache's included."""
        return self._graph.output_shapes

    def empty(self, rows: int) -> dict[str, Array]:
        """Return a cache of no tokens, float `(rows, heads, 0, size)` by input name."""
        shapes, types = self._graph.input_shapes, self._graph.input_types
        return {
            name: np.zeros(
                [rows, *(size if isinstance(size, int) else 0 for size in shapes[name][1:])],
                dtype=_DTYPES.get(types[name], np.float32),
            )
            for name in self._past
        }

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
            CheckpointError: The graph does not accept the batch.
        """
        given = self._graph.run({**inputs, **cache})
        grown = {name: given[name.replace(_PAST, _PRESENT, 1)] for name in self._past}
        return {name: given[name] for name in self.outputs}, grown

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch, read with an empty cache.

        Raises:
            ArgumentError: An input is missing.
            CheckpointError: The graph does not accept the batch.
        """
        return self.extend(inputs, self.empty(len(inputs["input_ids"])))[0]


def has_cache(graph: OnnxRunner) -> bool:
    """Tell whether a graph takes a key/value cache and gives it back."""
    past = [name for name in graph.inputs if name.startswith(_PAST)]
    return bool(past) and all(name.replace(_PAST, _PRESENT, 1) in graph.outputs for name in past)


def open_graph(path: Path, *, provider: str = CPU_PROVIDER) -> OnnxRunner | CachedGraph:
    """Open an ONNX file, with a key/value cache or without.

    Args:
        path: The `.onnx` file.
        provider: onnxruntime's execution provider.

    Raises:
        ArgumentError: No such provider on this machine.
        CheckpointError: The file is missing, or is not a graph onnxruntime can run.
    """
    graph = OnnxRunner(path, provider=provider)
    return CachedGraph(graph) if has_cache(graph) else graph
