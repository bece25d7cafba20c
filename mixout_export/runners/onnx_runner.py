"""Run an ONNX graph, with or without a key/value cache, in onnxruntime."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.printable import first_line
from mixout_export.runners import CPU_PROVIDER
from mixout_export.runners.cache import CachedRunner, cache_outputs
from mixout_export.runners.runner import Array, require_inputs

#: onnxruntime's type name → dtype of a cache. Other types count as float32.
_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}

_LOAD_ERRORS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.NoSuchFile,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)


def check_provider(provider: str) -> None:
    """Check that this machine's onnxruntime has an execution provider."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ArgumentError(
            f"provider: got {provider!r}, this machine's onnxruntime has {', '.join(available)}"
        )


def open_session(
    graph: Path | bytes,
    options: onnxruntime.SessionOptions | None = None,
    *,
    provider: str = CPU_PROVIDER,
) -> onnxruntime.InferenceSession:
    """Open a graph, or its bytes, in a session that logs nothing."""
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # threads that wait by spinning take the cores from PyTorch, which runs in turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


class OnnxRunner:
    """An ONNX file in onnxruntime, at full graph optimization."""

    def __init__(
        self, path: Path, *, provider: str = CPU_PROVIDER, copy: bytes | None = None
    ) -> None:
        """Open a file; see `open_graph`."""
        check_provider(provider)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; check the path")
        self.path = path
        try:
            self._session = open_session(copy or path, provider=provider)
        except _LOAD_ERRORS as error:
            raise CheckpointError(
                f"{path}: is not an ONNX graph that onnxruntime {onnxruntime.__version__} can run "
                f"({_message(error)})"
            ) from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's own metadata."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def input_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each input's shape, with names or None for dynamic axes."""
        return {value.name: tuple(value.shape) for value in self._session.get_inputs()}

    @property
    def input_types(self) -> dict[str, str]:
        """Each input's type as onnxruntime writes it, "tensor(int64)" for instance."""
        return {value.name: value.type for value in self._session.get_inputs()}

    @property
    def output_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Each output's shape, with names or None for dynamic axes."""
        return {value.name: tuple(value.shape) for value in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch."""
        require_inputs(str(self.path), "graph", self.inputs, inputs)
        feed = {name: inputs[name] for name in self.inputs}
        try:
            values = self._session.run(list(self.outputs), feed)
        except _LOAD_ERRORS as error:
            shape = next(iter(feed.values())).shape
            raise CheckpointError(
                f"{self.path}: the graph does not run on inputs of shape {shape} "
                f"({_message(error)})"
            ) from error
        return dict(zip(self.outputs, values, strict=True))


def _message(error: Exception) -> str:
    """Return what an onnxruntime error says, without its preamble and source paths."""
    text = first_line(error).rpartition(" : ")[2]
    for preamble in ("failed:", "Status Message: "):
        text = text.rpartition(preamble)[2]
    return re.sub(r"^/\S+:\d+ ", "", text)


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


def open_graph(
    path: Path, *, provider: str = CPU_PROVIDER, copy: bytes | None = None
) -> OnnxRunner | CachedGraph:
    """Open an ONNX file, with or without a key/value cache.

    Args:
        path: The file.
        provider: onnxruntime's execution provider.
        copy: A changed copy of the file to run instead. None runs the file.

    Raises:
        ArgumentError: This machine has no such provider.
        CheckpointError: The file is missing, or onnxruntime cannot run it.
    """
    graph = OnnxRunner(path, provider=provider, copy=copy)
    return CachedGraph(graph) if cache_outputs(graph.inputs, graph.outputs) else graph
