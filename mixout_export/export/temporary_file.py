"""Write a graph to a temporary file, for libraries that accept at most 2 GiB in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from mixout_export.export.document import SINGLE_FILE_LIMIT


def is_large(model: onnx.ModelProto) -> bool:
    """Return whether a graph's weights are too large for one protobuf message."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > SINGLE_FILE_LIMIT


@contextmanager
def temporary_file(model: onnx.ModelProto) -> Iterator[Path]:
    """Write a graph to a file that is deleted on exit. Large weights go to a second file."""
    large = is_large(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=large, location="model.data")
        if large:  # saving removed the weights from `model`
            load_external_data_for_model(model, folder)
        yield path
