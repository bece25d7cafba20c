"""Run an ONNX graph with a key/value cache in onnxruntime."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mixout_export.runners.cache import CachedRunner, cache_outputs
from mixout_export.runners.onnx_runner import CPU_PROVIDER, OnnxRunner
from mixout_export.runners.runner import Array

#: onnxruntime's type name → dtype of a cache. Other types count as float32.
_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def _empty(graph: OnnxRunner, names: Iterable[str]) -> dict[str, Array]:
    shapes, types = graph.input_shapes, graph.input_types
    return {
        name: np.zeros(
            [1, *(size if isinstance(size, int) else 0 for size in shapes[name][1:])],
            dtype=_DTYPES.get(types[name], np.float32),
        )
        for name in names
    }


class CachedGraph(CachedRunner):
    """An ONNX file with a key/value cache in onnxruntime."""

    def __init__(self, graph: OnnxRunner) -> None:
        """Create a runner for an open graph that has a cache."""
        super().__init__(graph, _empty(graph, cache_outputs(graph.inputs, graph.outputs)))
        self._graph = graph
        self.path = graph.path

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's metadata."""
        return self._graph.metadata

    @property
    def input_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each input's shape, including the cache's, with names or None for dynamic axes."""
        return self._graph.input_shapes

    @property
    def output_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each output's shape, including the cache's, with names or None for dynamic axes."""
        return self._graph.output_shapes


def open_graph(path: Path, *, provider: str = CPU_PROVIDER) -> OnnxRunner | CachedGraph:
    """Open an ONNX file, with or without a key/value cache.

    Args:
        path: The `.onnx` file.
        provider: onnxruntime's execution provider.

    Raises:
        ArgumentError: This machine has no such provider.
        CheckpointError: The file is missing, or onnxruntime cannot run it.
    """
    graph = OnnxRunner(path, provider=provider)
    return CachedGraph(graph) if cache_outputs(graph.inputs, graph.outputs) else graph
