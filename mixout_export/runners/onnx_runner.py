"""Run an ONNX graph on a batch, in onnxruntime."""

import re
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.printable import first_line
from mixout_export.runners.runner import Array, require_inputs

CPU_PROVIDER = "CPUExecutionProvider"

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
    """Check that this machine's onnxruntime has an execution provider.

    Raises:
        ArgumentError: It has not; the message lists those there are.
    """
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

    def __init__(self, path: Path, *, provider: str = CPU_PROVIDER) -> None:
        """Open the file.

        Args:
            path: The `.onnx` file.
            provider: onnxruntime's execution provider.

        Raises:
            ArgumentError: No such provider on this machine.
            CheckpointError: The file is missing, or is not a graph onnxruntime can run.
        """
        check_provider(provider)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; check the path")
        self.path = path
        try:
            self._session = open_session(path, provider=provider)
        except _LOAD_ERRORS as error:
            raise CheckpointError(
                f"{path}: is not an ONNX graph that onnxruntime {onnxruntime.__version__} can run "
                f"({_message(error)})"
            ) from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """What the graph says about itself."""
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
        """Compute the outputs of one batch.

        Raises:
            ArgumentError: An input is missing.
            CheckpointError: The graph does not accept the batch.
        """
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
